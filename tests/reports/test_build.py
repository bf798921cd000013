"""The whole report: files, provenance, `--check`, golden tables, pictures."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pypdf import PdfReader
from study_records import CorpusOnDisk, StudyOnDisk, VariantOnDisk, factorial_variants
from typer.testing import CliRunner

from hicmae.config import canonical_json, from_dict
from hicmae.record import RunRecord, write_json
from reports import build, figures, latex
from reports.build import build_report, check_report
from reports.freshness import is_current
from reports.run_figures import draw_scaling, scaling
from reports.tables import EXTRAS, cell_key

pytestmark = pytest.mark.xdist_group("build")  # its fixtures are made once

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tables"
NAME = "ablation_hierarchical_smoke"
NINE = {
    "crema_d": CorpusOnDisk(classes=6, samples_per_fold=60, n_train=240),
    "ravdess": CorpusOnDisk(classes=8, folds=6, samples_per_fold=40, n_train=200),
    "msp_improv": CorpusOnDisk(folds=6),
    "iemocap": CorpusOnDisk(),
    "mafw": CorpusOnDisk(classes=11, samples_per_fold=66, n_train=264),
    "dfew": CorpusOnDisk(classes=7, samples_per_fold=42, n_train=168),
    "mer_multi": CorpusOnDisk(classes=6, folds=1, metrics=("WF1",)),
    "werewolf_xl": CorpusOnDisk(targets=("arousal", "valence", "dominance"), metrics=("PCC", "CCC")),
    "avcaffe": CorpusOnDisk(classes=5, folds=1, tasks=True, metrics=("WF1",)),
}


def smoke_study(root: Path, **changes: object) -> StudyOnDisk:
    return StudyOnDisk(
        root, NAME, factorial_variants(), {"synthetic": CorpusOnDisk()}, table={"baseline": "none"}, **changes
    ).write()  # type: ignore[arg-type]


def nine_corpora_study(root: Path) -> StudyOnDisk:
    variants = [
        VariantOnDisk("audio-visual", 0.75, {"modality": "AV"}),
        VariantOnDisk("audio", 0.55, {"modality": "A"}, {"head.modality": "A"}),
        VariantOnDisk("video", 0.65, {"modality": "V"}, {"head.modality": "V"}),
    ]
    return StudyOnDisk(
        root, "main_results", variants, NINE, size="base", table={"baseline": "audio-visual"}, title="Main results"
    ).write()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyOnDisk:
    return smoke_study(tmp_path_factory.mktemp("study") / "runs")


@pytest.fixture(scope="module")
def out(study: StudyOnDisk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    build_report(study.root, folder, pdf=False)
    return folder


def assert_golden(files: dict[str, str], folder: Path) -> None:
    """Compare texts with golden files; HICMAE_RENEW_GOLDEN=1 writes them instead."""
    if os.environ.get("HICMAE_RENEW_GOLDEN") == "1":
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    renew = "if the change is meant: HICMAE_RENEW_GOLDEN=1 pytest tests/reports/test_build.py, then look at the difference"
    assert sorted(files) == sorted(path.name for path in folder.glob("*")), renew
    for name, text in files.items():
        assert text == (folder / name).read_text(encoding="utf-8"), f"{folder / name}: {renew}"


def pinned(study: StudyOnDisk) -> dict[str, str]:
    """The rounded outputs of a study: the unrounded ones may differ in the last bit between machines."""
    pages, _ = build.compute_pages(study.root, [study.name])
    return {name: text for name, text in build.study_files(pages[0]).items() if name.endswith((".tex", ".html"))}


def test_golden_tables_of_the_ablation(study: StudyOnDisk) -> None:
    assert_golden(pinned(study), GOLDEN / "ablation")


@pytest.mark.slow
def test_golden_tables_of_nine_corpora(tmp_path: Path) -> None:
    assert_golden(pinned(nine_corpora_study(tmp_path / "runs")), GOLDEN / "nine_corpora")


@pytest.mark.slow
@pytest.mark.system("pdflatex", "latexmk")
def test_report_of_nine_corpora_compiles(tmp_path: Path) -> None:
    study = nine_corpora_study(tmp_path / "runs")
    report = build_report(study.root, tmp_path / "out")
    assert report.pdf is not None, report.notes
    assert not report.problems
    assert len(report.pages[0].tables) >= 3
    assert {picture.stem.name for picture in report.pages[0].pictures} >= {"paper", "ranks", "confusion-mafw", "folds-crema_d"}
    links = _link_targets(report.pdf)
    cells = [(block, row) for table in report.pages[0].tables for block in table.blocks for row in block.shown]
    metrics = {corpus.corpus: len(corpus.metrics) for corpus in report.pages[0].analysis.corpora}
    assert len(cells) == 27 and len(links) == sum(metrics[block.corpus] for block, _ in cells)
    assert set(links) == {latex.anchor(cell_key("main_results", block.corpus, row.variant)) for block, row in cells}
    assert check_report(study.root, tmp_path / "out") == []


def _link_targets(pdf: Path) -> list[str]:
    """The named place that each link of the PDF leads to; every one of them is there."""
    reader = PdfReader(pdf)
    annotations = [entry.get_object() for page in reader.pages for entry in page.get("/Annots", ())]
    targets = [str(entry["/A"]["/D"]) for entry in annotations if entry["/Subtype"] == "/Link"]
    assert set(targets) <= set(reader.named_destinations)
    return targets


def test_html_is_one_file_that_needs_no_other(out: Path) -> None:
    html = (out / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"', html)
    assert all(link.startswith("data:image/png;base64,") for link in links)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(pictures) >= 4
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


def test_html_page_says_what_follows_and_how_to_repeat_it(out: Path, study: StudyOnDisk) -> None:
    html = (out / "report.html").read_text()
    for text in (
        "What the modules do.",
        "What can and cannot be concluded",
        "the effect of fusion on UAR",
        f"hicmae report {NAME}",
    ):
        assert text in html
    assert json.loads(study.study_file.read_text())["command"] in html


def test_numbers_link_to_the_runs_behind_them(out: Path) -> None:
    html = (out / "report.html").read_text()
    targets = set(re.findall(r'id="(cell-[0-9a-f]+)"', html))
    used = set(re.findall(r'href="#(cell-[0-9a-f]+)"', html))
    assert len(used) == 8 and used == targets
    fragment = (out / NAME / f"{NAME}.tex").read_text()
    assert set(re.findall(r"\\hicmaelink\{(cell-[0-9a-f]+)\}", fragment)) == targets


def test_provenance_leads_from_a_cell_to_its_runs(out: Path, study: StudyOnDisk) -> None:
    cells = json.loads((out / NAME / "provenance.json").read_text())["cells"]
    cell = cells[cell_key(NAME, "synthetic", "fusion")]
    assert {run["run_id"] for run in cell["runs"]} == {study.path("fusion", "synthetic", fold).name for fold in range(1, 6)}
    run = cell["runs"][0]
    config = RunRecord(study.root / run["run_id"]).config()
    import hashlib

    assert run["config_sha256"] == hashlib.sha256(canonical_json(config).encode()).hexdigest()
    assert run["config_sha256"].startswith(run["run_id"])
    assert run["data_fingerprint"] == config.data.fingerprint
    assert (run["commit"], run["cpu_hours"], run["counts"]) == ("0" * 40, 0.5, True)
    assert cell["cpu_hours"] == 2.5
    assert [earlier["run_id"] for earlier in cell["pretraining"]] == [config.initial.reference]  # type: ignore[union-attr]


def test_check_is_silent_on_a_fresh_report(out: Path, study: StudyOnDisk) -> None:
    assert check_report(study.root, out) == []


@pytest.mark.parametrize("file", [f"{NAME}.tex", f"{NAME}.csv", "provenance.json"])
def test_check_finds_a_stale_or_missing_file(out: Path, study: StudyOnDisk, file: str) -> None:
    path = out / NAME / file
    text = path.read_text()
    try:
        path.write_text(text.replace("5", "6"))
        assert any(file in line and "stale" in line for line in check_report(study.root, out))
        path.unlink()
        assert any(file in line and "missing" in line for line in check_report(study.root, out))
    finally:
        path.write_text(text)


def test_check_ignores_mlflow_pages(out: Path, study: StudyOnDisk, tmp_path: Path) -> None:
    """A sync after the report changes links, not numbers."""
    folder = study.root / "_mlflow"
    folder.mkdir()
    run = study.path("none", "synthetic", 1).name
    write_json(folder / "links.json", {NAME: {run: "http://127.0.0.1:5000/#/experiments/1/runs/abc"}})
    assert check_report(study.root, out) == []
    build_report(study.root, tmp_path, pdf=False)
    assert "http://127.0.0.1:5000/#/experiments/1/runs/abc" in (tmp_path / "report.html").read_text()
    (folder / "links.json").unlink()
    folder.rmdir()


def test_check_fails_on_an_incomplete_cell(tmp_path: Path) -> None:
    study = smoke_study(tmp_path / "runs", skip=lambda v, c, fold, s: v == "fusion" and fold == 2)
    build_report(study.root, tmp_path / "out", pdf=False)
    wrong = check_report(study.root, tmp_path / "out")
    assert any("fusion is incomplete (4/5)" in line for line in wrong)


def test_command_line_writes_checks_and_fails(tmp_path: Path) -> None:
    from experiments.cli import app

    study = smoke_study(tmp_path / "runs", skip=lambda v, c, fold, s: v == "fusion" and fold == 2)
    options = ["--runs", str(study.root), "--out", str(tmp_path / "out")]
    made = CliRunner().invoke(app, ["report", NAME, "--no-pdf", *options])
    assert made.exit_code == 0 and "report.html" in made.output
    assert "fold 2" in made.output and "not launched yet" in made.output
    checked = CliRunner().invoke(app, ["report", "--check", *options])
    assert checked.exit_code != 0 and "incomplete (4/5)" in checked.output
    unknown = CliRunner().invoke(app, ["report", "ablation_hierarchical_smok", *options])
    assert unknown.exit_code != 0 and NAME in str(unknown.exception)


@pytest.mark.parametrize("stem", ["effects-synthetic", "folds-synthetic", "curves-synthetic", "confusion-synthetic"])
def test_pictures_are_there_in_both_formats_and_not_blank(out: Path, stem: str) -> None:
    folder = out / NAME / "figures"
    assert (folder / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
    pixels = np.asarray(Image.open(folder / f"{stem}.png").convert("L"))
    assert pixels.min() < 60 and pixels.max() == 255
    assert 0.005 < (pixels < 250).mean() < 0.8


def test_same_numbers_give_the_same_picture_files(study: StudyOnDisk, out: Path, tmp_path: Path) -> None:
    build_report(study.root, tmp_path, pdf=False)
    for path in sorted((out / NAME / "figures").iterdir()):
        assert path.read_bytes() == (tmp_path / NAME / "figures" / path.name).read_bytes(), path.name


def test_reconstructions_of_pretraining_are_shown_where_runs_drew_them(tmp_path: Path) -> None:
    variants = [VariantOnDisk("a", 0.5), VariantOnDisk("b", 0.6, delta={"decoder.skip_connections": False})]
    study = StudyOnDisk(tmp_path / "runs", "drawn_smoke", variants, {"synthetic": CorpusOnDisk(folds=2)}).write()
    report = build_report(study.root, tmp_path / "out", pdf=False)
    assert "reconstructions" not in {picture.stem.name for picture in report.pages[0].pictures}
    first, second = [run["run_id"] for run in study.runs.values() if run["stage"] == "pretrain"]
    for run_id in (first, second):
        (study.root / run_id / "pictures").mkdir()
    Image.new("RGB", (300, 90), (200, 30, 30)).save(study.root / first / "pictures" / "reconstruction-1.png")
    (study.root / second / "pictures" / "reconstruction-1.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    page = build_report(study.root, tmp_path / "out", pdf=False).pages[0]
    picture = next(picture for picture in page.pictures if picture.stem.name == "reconstructions")
    pixels = np.asarray(Image.open(picture.png).convert("RGB")).reshape(-1, 3)
    assert (np.abs(pixels.astype(int) - (200, 30, 30)).max(1) < 8).mean() > 0.3
    assert f"{second}/pictures/reconstruction-1.png" in picture.caption  # the torn one is named


def test_scaling_curves_are_drawn_over_parameters_epochs_and_numbers(tmp_path: Path) -> None:
    sizes = {"tiny": (20.5, 32), "small": (45.7, 48), "base": (80.8, 64)}
    scale = [
        VariantOnDisk(size, 0.5, {"size": size, "parameters (M)": millions}, {"encoder.dim": width})
        for size, (millions, width) in sizes.items()
    ]
    epochs = [VariantOnDisk(str(e), 0.5, {"epochs": e}, {"initial.epoch": e if e < 8 else None}) for e in (2, 4, 8)]
    weights = [VariantOnDisk(f"{w:g}", 0.5, {"weight": w}, {"objective.contrastive_weight": w}) for w in (0.001, 0.0025, 0.01)]
    corpora = {"synthetic": CorpusOnDisk(folds=1, samples_per_fold=20)}
    made: dict[str, list[tuple[str, list[float]]]] = {}
    for name, variants in (("scale", scale), ("epochs", epochs), ("weights", weights)):
        study = StudyOnDisk(tmp_path / name, name, variants, corpora).write()
        for size, (millions, _) in sizes.items() if name == "scale" else ():
            path = study.path(size, "synthetic", 1) / "result.json"
            write_json(path, {**json.loads(path.read_text()), "parameters": int(millions * 1e6)})
        analysis = build.compute_pages(study.root, [name])[0][0].analysis
        found = scaling(analysis.study, analysis.corpora[0])
        made[name] = [(series.quantity, [x for x, _ in points]) for series in found for points in series.lines.values()]
        assert all(draw_scaling(analysis.corpora[0], series).axes for series in found)
    assert made["scale"] == [("Parameters (million)", [20.5, 45.7, 80.8])]
    assert made["epochs"] == [("Epochs of pre-training", [2.0, 4.0, 8.0])]
    assert made["weights"] == [("weight", [0.001, 0.0025, 0.01])]


@pytest.mark.slow
@pytest.mark.system("chromium")
def test_page_never_scrolls_sideways_on_a_screen_or_a_phone(tmp_path: Path) -> None:
    """The widest table: every column, long names. It scrolls inside its own frame."""
    variants = [VariantOnDisk(f"a variant with a name of some length {i}", 0.5 + i / 10, {"size": "base"}) for i in range(2)]
    variants[1] = VariantOnDisk(variants[1].name, 0.6, {"size": "x" * 40}, {"head.feature_fusion": "last"})
    table = {"baseline": variants[0].name}
    study = StudyOnDisk(tmp_path / "runs", "wide_smoke", variants, {"synthetic": CorpusOnDisk()}, table=table).write()
    build_report(study.root, tmp_path, extras=list(EXTRAS), pdf=False)
    frames = "".join(f'<iframe src="report.html" width="{width}" height="600"></iframe>' for width in (1280, 390))
    hidden = "(d => d.scrollWidth - d.clientWidth)(frame.contentDocument.documentElement)"
    script = f"[...document.querySelectorAll('iframe')].map(frame => {hidden})"
    page = f"<body>{frames}<p></p><script>onload = () => document.querySelector('p').textContent = {script}.join(' ')</script>"
    (tmp_path / "frames.html").write_text(page)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--allow-file-access-from-files"]
    options += [f"--user-data-dir={tmp_path / 'chromium'}", "--virtual-time-budget=5000", "--window-size=1700,900", "--dump-dom"]
    command = ["chromium", *options, (tmp_path / "frames.html").as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "<p>0 0</p>" in seen  # pixels that do not fit


def test_cliques_join_only_methods_without_a_difference() -> None:
    def differs(a: str, b: str) -> bool:
        return {a, b} in ({"a", "c"}, {"a", "d"}, {"b", "d"})

    assert figures.cliques("abcd", differs) == [(0, 1), (1, 2), (2, 3)]
    assert figures.cliques("abcd", lambda a, b: False) == [(0, 3)]
    assert figures.cliques("ab", lambda a, b: True) == []


def test_reports_do_not_depend_on_the_order_of_studies(study: StudyOnDisk, tmp_path: Path) -> None:
    """A study's page is the same alone and among others."""
    alone, _ = build.compute_pages(study.root, [NAME])
    StudyOnDisk(study.root, "a_first_smoke", [VariantOnDisk("x", 0.5)], {"synthetic": CorpusOnDisk(folds=2)}).write()
    try:
        both, _ = build.compute_pages(study.root, ["a_first_smoke", NAME])
    finally:
        (study.root / "_studies" / "a_first_smoke.json").unlink()
    assert build.study_files(both[1]) == build.study_files(alone[0])


def test_config_written_by_the_records_is_a_real_one(study: StudyOnDisk) -> None:
    values = json.loads((study.path("none", "synthetic", 1) / "config.json").read_text())
    assert from_dict(values) == RunRecord(study.path("none", "synthetic", 1)).config()


def test_report_is_current_until_a_record_changes(tmp_path: Path) -> None:
    root, out = tmp_path / "runs", tmp_path / "out"
    study = StudyOnDisk(root, "a_smoke", [VariantOnDisk("x", 0.5)], {"synthetic": CorpusOnDisk(folds=2)}).write()
    assert not is_current(root, out, pdf=False)
    build_report(root, out, pdf=False)
    assert is_current(root, out, pdf=False)
    assert not is_current(root, out, extras=["parameters"], pdf=False)
    RunRecord(study.path("x", "synthetic", 1)).append_event("checkpoint", step=99)
    assert not is_current(root, out, pdf=False)


def test_anchor_is_the_same_in_html_and_latex(out: Path) -> None:
    anchor = latex.anchor(cell_key(NAME, "synthetic", "none"))
    assert anchor in (out / "report.html").read_text() and anchor in (out / "report.tex").read_text()
