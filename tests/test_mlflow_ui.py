"""The MLflow UI in a real headless Chromium: find the study, open a run, see a chart and the confusion matrix.

HICMAE_SCREENSHOTS=folder keeps the pictures (the README's come from here).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge import free_port
from mlflow_server import PATIENCE_S, wait_for
from PIL import Image
from study_records import CorpusOnDisk, StudyOnDisk, factorial_variants

from hicmae.tracking import study_pages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.system("chromium", "chromedriver"),
    pytest.mark.xdist_group("ui"),
]  # its fixtures are made once
NAME = "ablation_hierarchical_smoke"
CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1500,1000",
    "--hide-scrollbars",
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyOnDisk:
    root = tmp_path_factory.mktemp("ui") / "runs"
    corpora = {"synthetic": CorpusOnDisk(folds=2)}
    title = "The three modules of HiCMAE"
    return StudyOnDisk(root, NAME, factorial_variants(), corpora, table={"baseline": "none"}, title=title).write()


@pytest.fixture(scope="module")
def address(study: StudyOnDisk) -> Iterator[str]:
    """`hicmae ui`, once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "experiments.cli", "ui", "--port", str(port), "--runs", str(study.root)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert server.stdout is not None
        said = next(line for line in server.stdout if "MLflow UI" in line)
        assert f"http://127.0.0.1:{port}" in said
        wait_for(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = _program("chromium")
    for argument in [*CHROMIUM, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_program("chromedriver")))
    yield driver
    driver.quit()


def _program(name: str) -> str:
    path = shutil.which(name)
    assert path is not None
    return path


def see(browser: Any, path: str) -> Any:
    """The first visible element at an XPath, waited for."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.expected_conditions import visibility_of_element_located
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, PATIENCE_S).until(visibility_of_element_located((By.XPATH, path)), f"not seen: {path}")


def picture(browser: Any, name: str, tmp_path: Path) -> np.ndarray:
    """The screen as grey levels; kept where HICMAE_SCREENSHOTS says."""
    time.sleep(1.5)  # lets animations of the page end; nothing is asserted on it
    folder = Path(os.environ.get("HICMAE_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(folder / f"{name}.png"))
    return np.asarray(Image.open(folder / f"{name}.png").convert("L"))


def open_page(browser: Any, page: str) -> None:
    """Go there, and close MLflow's panel that offers help."""
    from selenium.webdriver.common.by import By

    browser.get(page)
    see(browser, "//*[text()='Model training' or contains(text(), 'Model metrics')]")
    for close in browser.find_elements(By.CSS_SELECTOR, "[data-component-id='mlflow.assistant.chat_panel.close']"):
        close.click()


def pages(study: StudyOnDisk, address: str) -> dict[str, str]:
    """run id -> page, as `hicmae sync` left them for reports."""
    links = json.loads((study.root / "_mlflow" / "links.json").read_text())[NAME]
    return {run_id: page.replace("http://127.0.0.1:5000", address) for run_id, page in links.items()}


def test_study_is_found_and_its_variants_are_listed(browser: Any, address: str, study: StudyOnDisk, tmp_path: Path) -> None:
    open_page(browser, address + "/#/experiments")
    see(browser, "//*[text()='Model training']").click()
    link = see(browser, f"//a[contains(., '{NAME}')]")
    assert link.get_attribute("href") in study_pages(study.root)[NAME].replace("http://127.0.0.1:5000", address)
    link.click()
    for name in ("skips + contrast", "none", "shared by several variants"):
        see(browser, f"//a[contains(., '{name}')]")
    digest = hashlib.sha256(b"synthetic").hexdigest()[:12]
    see(browser, f"//*[@role='gridcell'][contains(., 'synthetic') and contains(., '{digest}')]")
    assert picture(browser, "mlflow-study", tmp_path).std() > 5


def test_run_shows_what_it_is_its_chart_and_its_confusion_matrix(
    browser: Any, address: str, study: StudyOnDisk, tmp_path: Path
) -> None:
    page = pages(study, address)[study.path("skips + contrast + fusion", "synthetic", 1).name]
    open_page(browser, page)
    see(browser, "//*[contains(text(), 'synthetic fold 1 seed 0: skips + contrast + fusion')]")
    see(browser, "//*[contains(text(), 'hicmae reproduce')]")
    see(browser, "//*[contains(text(), 'head.feature_fusion')]")
    picture(browser, "mlflow-run", tmp_path)
    open_page(browser, page + "/model-metrics")
    see(browser, "//input[contains(@placeholder, 'Search metric')]").send_keys("train")
    see(browser, "//*[text()='loss']")
    see(browser, "//*[contains(@class, 'js-plotly-plot')]")
    picture(browser, "mlflow-chart", tmp_path)
    open_page(browser, page + "/system-metrics")
    see(browser, "//*[text()='samples_per_s' or text()='system/samples_per_s']")
    see(browser, "//*[contains(@class, 'js-plotly-plot')]")
    picture(browser, "mlflow-system", tmp_path)
    open_page(browser, page + "/artifacts/confusion.png")
    see(browser, "//*[contains(text(), 'confusion.png')]")
    assert browser.execute_script(WIDEST_PICTURE) > 200
    picture(browser, "mlflow-confusion", tmp_path)


WIDEST_PICTURE = """
const ends = Date.now() + 60000, done = () => Math.max(0, ...[...document.images].map(image => image.naturalWidth));
return (async () => { while (done() < 200 && Date.now() < ends) await new Promise(r => setTimeout(r, 200)); return done(); })();
"""


def test_parent_run_shows_the_table(browser: Any, address: str, study: StudyOnDisk, tmp_path: Path) -> None:
    open_page(browser, pages(study, address)["variant:skips + contrast + fusion"])
    table = see(browser, "//table[.//th[contains(., 'all folds')]]")
    assert "UAR" in table.text and "2/2" in table.text
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", table)
    picture(browser, "mlflow-variant", tmp_path)
