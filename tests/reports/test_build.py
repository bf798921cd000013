"""The whole report: files, provenance, `--check`, golden tables, pictures."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from study_records import CorpusOnDisk, StudyOnDisk, VariantOnDisk, factorial_variants
from typer.testing import CliRunner

from hicmae.config import canonical_json, from_dict
from hicmae.record import RunRecord, write_json
from reports import build, figures, latex
from reports.build import build_report, check_report
from reports.freshness import is_current
from reports.tables import cell_key

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
    assert {picture.stem.name for picture in report.pages[0].pictures} >= {"paper", "confusion-mafw", "folds-crema_d"}
    assert check_report(study.root, tmp_path / "out") == []


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
