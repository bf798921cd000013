"""The whole report: files, provenance, `--check`, golden tables, pictures."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pypdf import PdfReader
from study_records import CorpusOnDisk, StudyOnDisk, VariantOnDisk, factorial_variants
from typer.testing import CliRunner

from hicmae.config import canonical_json, from_dict
from hicmae.metrics import compute
from hicmae.record import RunRecord, write_json
from reports import build, figures, latex, manifest
from reports.build import build_report
from reports.check import check_report
from reports.freshness import is_current
from reports.run_figures import draw_scaling, pretrainings, scaling
from reports.stats import corrected_t
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


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> StudyOnDisk:
    return nine_corpora_study(tmp_path_factory.mktemp("nine") / "runs")


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
    return {name: text for name, text in build.study_files(pages[0]).items() if name.endswith((".tex", ".html", "-numbers.txt"))}


def test_golden_tables_of_the_ablation(study: StudyOnDisk) -> None:
    assert_golden(pinned(study), GOLDEN / "ablation")


@pytest.mark.slow
def test_golden_tables_of_nine_corpora(nine: StudyOnDisk) -> None:
    assert_golden(pinned(nine), GOLDEN / "nine_corpora")


@pytest.mark.slow
@pytest.mark.system("pdflatex", "latexmk")
def test_report_of_nine_corpora_compiles(nine: StudyOnDisk, tmp_path: Path) -> None:
    report = build_report(nine.root, tmp_path, extras=["spread", "folds", "baseline", "gpu_hours"])
    assert report.pdf is not None, report.notes
    assert not report.problems
    page = report.pages[0]
    assert len(page.tables) >= 3
    assert {picture.stem.name for picture in page.pictures} >= {"paper", "ranks", "confusion-mafw", "folds-crema_d"}
    metrics = {corpus.corpus: len(corpus.metrics) for corpus in page.analysis.corpora}
    links = {table.name: _links(page.pdfs[table.name]) for table in page.tables}
    anchors = set(PdfReader(report.pdf).named_destinations)
    for table in page.tables:
        cells = [(block.corpus, row.variant) for block in table.blocks for row in block.shown]
        wanted = [latex.anchor(cell_key("main_results", *cell)) for cell in cells for _ in range(metrics[cell[0]])]
        assert sorted(links[table.name]) == sorted(("../report.pdf", anchor) for anchor in wanted)
        assert anchors.issuperset(wanted) and len(PdfReader(page.pdfs[table.name]).pages) == 1
    inside = [target for file, target in _links(report.pdf) if not file]
    assert sorted(inside) == sorted(target for found in links.values() for _, target in found)
    assert {file for file, _ in _links(report.pdf) if file} == {f"main_results/{table.name}.pdf" for table in page.tables}
    assert check_report(nine.root, tmp_path) == []  # with the columns of the report, which are not the usual ones
    assert any("stale" in line for line in check_report(nine.root, tmp_path, extras=["folds"]))
    pdf = next(iter(page.pdfs.values()))
    pdf.write_bytes(pdf.read_bytes()[:-1] + b"x")
    assert [line.split(":")[0] for line in check_report(nine.root, tmp_path)] == [str(pdf)]


def _links(pdf: Path) -> list[tuple[str, str]]:
    """The other file (or none) and the named place in it that each link of a PDF leads to."""
    annotations = [entry.get_object() for page in PdfReader(pdf).pages for entry in page.get("/Annots", ())]
    targets = [entry["/A"] for entry in annotations if entry["/Subtype"] == "/Link"]
    return [(str(target.get("/F", "")), str(target.get("/D", ""))) for target in targets]


def test_html_is_one_file_that_needs_no_other(out: Path) -> None:
    html = (out / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"', html)
    assert all(link.startswith("data:") for link in links)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(pictures) >= 4
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    files = dict(re.findall(r'<a download="([^"]+)" href="data:[^,"]+,([^"]+)"', html))
    assert {f"{NAME}.tex", f"{NAME}.csv", f"{NAME}-effects.csv", f"{NAME}-numbers.tex", f"{NAME}-numbers.txt"} == set(files)
    assert all(base64.b64decode(contents) == (out / NAME / name).read_bytes() for name, contents in files.items())


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
    assert run["config_sha256"] == hashlib.sha256(canonical_json(config).encode()).hexdigest()
    assert run["config_sha256"].startswith(run["run_id"])
    assert run["data_fingerprint"] == config.data.fingerprint
    assert (run["commit"], run["cpu_hours"], run["counts"]) == ("0" * 40, 0.5, True)
    assert cell["cpu_hours"] == 2.5
    assert [earlier["run_id"] for earlier in cell["pretraining"]] == [config.initial.reference]  # type: ignore[union-attr]


def test_check_is_silent_on_a_fresh_report(out: Path, study: StudyOnDisk) -> None:
    assert check_report(study.root, out) == check_report(study.root, out, NAME) == []


@pytest.mark.parametrize(
    "file",
    [
        *(f"{NAME}/{name}" for name in (f"{NAME}.tex", f"{NAME}.csv", f"{NAME}-numbers.txt", "provenance.json")),
        *(f"{NAME}/figures/curves-synthetic.{kind}" for kind in ("png", "pdf")),
        "report.html",
        "report.tex",
    ],
)
def test_check_finds_an_edited_or_missing_file(out: Path, study: StudyOnDisk, file: str) -> None:
    path = out / file
    content = path.read_bytes()
    try:
        path.write_bytes(content.replace(b"5", b"6", 100))
        [line] = check_report(study.root, out)
        assert line.startswith(f"{path}: ") and ("stale" in line or "changed" in line)
        path.unlink()
        [line] = check_report(study.root, out)
        assert line.startswith(f"{path}: missing")
    finally:
        path.write_bytes(content)


def test_check_finds_pictures_of_other_curves_and_a_page_of_other_words(out: Path, study: StudyOnDisk) -> None:
    """Nothing of either is in the tables' files."""
    RunRecord(study.path("none", "synthetic", 1)).append_metrics("train", 50, 5, {"loss": 0.1})
    stale = [line for line in check_report(study.root, out) if "figures/" in line and "stale" in line]
    lines = (study.path("none", "synthetic", 1) / "metrics.jsonl").read_text().splitlines(keepends=True)
    (study.path("none", "synthetic", 1) / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert stale and check_report(study.root, out) == []
    text = study.study_file.read_text()
    study.study_file.write_text(text.replace("What the modules do.", "What modules do."))
    assert [line.split(":")[0] for line in check_report(study.root, out)] == [
        str(out / f"report.{kind}") for kind in ("html", "tex")
    ]
    study.study_file.write_text(text)


def test_check_of_a_damaged_manifest_or_of_none_is_a_line(out: Path, study: StudyOnDisk, tmp_path: Path) -> None:
    place = out / manifest.NAME
    text = place.read_text()
    try:
        for damaged in ("{", "[]", '{"studies": {"x": 5}}'):
            place.write_text(damaged)
            [line] = check_report(study.root, out)
            assert line.startswith(f"{place}: damaged")
    finally:
        place.write_text(text)
    assert [line.split(":")[0] for line in check_report(study.root, tmp_path)] == [str(tmp_path / manifest.NAME)]


def test_another_report_takes_its_own_old_files_away_and_no_others(tmp_path: Path) -> None:
    corpora, out = {"synthetic": CorpusOnDisk(folds=2)}, tmp_path / "out"
    study = StudyOnDisk(tmp_path / "runs", "a_smoke", [VariantOnDisk("x", 0.5)], corpora).write()
    build_report(study.root, out, pdf=False)
    curves, folds, own = (
        out / "a_smoke" / "figures" / name for name in ("curves-synthetic.png", "folds-synthetic.png", "own.png")
    )
    own.write_bytes(b"somebody's")
    for run in study.root.glob("*/metrics.jsonl"):
        run.write_text("\n")
    StudyOnDisk(study.root, "b_smoke", [VariantOnDisk("x", 0.6)], corpora).write()
    build_report(study.root, out, "a_smoke", pdf=False)
    assert (curves.exists(), folds.exists(), own.exists()) == (False, True, True)
    assert check_report(study.root, out, "a_smoke") == []
    missing = check_report(study.root, out)  # of both: the page shows one
    assert any("b_smoke.tex: missing" in line for line in missing) and any("report.html: stale" in line for line in missing)


def test_a_sync_after_the_report_is_no_change_and_pictures_are_the_same_again(
    out: Path, study: StudyOnDisk, tmp_path: Path
) -> None:
    """It changes links, not numbers."""
    folder, page = study.root / "_mlflow", "http://127.0.0.1:5000/#/experiments/1/runs/abc"
    folder.mkdir()
    write_json(folder / "links.json", {NAME: {study.path("none", "synthetic", 1).name: page}})
    assert check_report(study.root, out) == []
    build_report(study.root, tmp_path, pdf=False)
    assert page in (tmp_path / "report.html").read_text() and check_report(study.root, tmp_path) == []
    (folder / "links.json").unlink()
    folder.rmdir()
    assert check_report(study.root, tmp_path) == []
    for path in sorted((out / NAME / "figures").iterdir()):
        assert path.read_bytes() == (tmp_path / NAME / "figures" / path.name).read_bytes(), path.name


def test_effects_and_interactions_are_in_files_and_in_words(out: Path, study: StudyOnDisk) -> None:
    rows = list(csv.DictReader((out / NAME / f"{NAME}-effects.csv").open()))
    assert [row["factors"] for row in rows if row["kind"] == "effect"] == ["skips", "contrast", "fusion"]
    assert sum(row["kind"] == "interaction" for row in rows) == 4
    names = ["none", "contrast", "skips", "skips + contrast"]
    pooled = {}
    for name in [*names, *(f"{name} + fusion".removeprefix("none + ") for name in names)]:
        tables = [pq.read_table(study.path(name, "synthetic", fold) / "predictions.parquet") for fold in range(1, 6)]
        chosen = [table.filter(pc.field("selection") == "last") for table in tables]
        pooled[name] = np.array([compute(["UAR"], t["label"].to_numpy(), t["prediction"].to_numpy())["UAR"] for t in chosen])
    signs = {name: (1 if "skips" in name else -1) * (1 if "contrast" in name else -1) for name in pooled}
    wanted = corrected_t(sum(signs[name] * values for name, values in pooled.items()) / 4, 40 / 160)
    [found] = [row for row in rows if row["factors"] == "skips x contrast"]
    assert [float(found[key]) for key in ("mean", "low", "high", "p")] == pytest.approx(
        [wanted.mean, wanted.low, wanted.high, wanted.p]
    )
    in_json = json.loads((out / NAME / f"{NAME}.json").read_text())["effects"]
    assert [(" x ".join(row["factors"]), row["mean"]) for row in in_json] == [
        (row["factors"], float(row["mean"])) for row in rows
    ]
    words = f"skips x contrast {wanted.mean:+.2f} [{wanted.low:+.2f}, {wanted.high:+.2f}]"
    assert words in unescape((out / "report.html").read_text())


def test_hours_of_shared_pre_trainings_are_in_no_row_and_said(study: StudyOnDisk) -> None:
    pages, _ = build.compute_pages(study.root, [NAME], ["gpu_hours"])
    shared = {"runs": 4, "wanted": 4, "gpu_hours": 0.0, "cpu_hours": 2.0}
    assert json.loads(pages[0].files[f"{NAME}.json"])["pretraining"] == pages[0].provenance["pretraining"] == shared
    cell = pages[0].provenance["cells"][cell_key(NAME, "synthetic", "fusion")]
    assert cell["pretraining_hours"] == {"runs": 1, "wanted": 1, "gpu_hours": 0.0, "cpu_hours": 0.5, "shared_with": ["none"]}
    assert "the 4 pre-trainings before them, which rows share, took 0.0 GPU h, counted in no row." in pages[0].tables[0].notes[-2]


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


def test_reconstructions_of_pretraining_are_shown_where_runs_drew_them(tmp_path: Path) -> None:
    variants = [VariantOnDisk("a", 0.5), VariantOnDisk("b", 0.6, delta={"decoder.skip_connections": False})]
    study = StudyOnDisk(tmp_path / "runs", "drawn_smoke", variants, {"synthetic": CorpusOnDisk(folds=2)}).write()
    assert pretrainings(build.compute_pages(study.root, [study.name])[0][0].analysis, study.root) == []
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
    assert made["epochs"] == [("Epochs of pre-training", [2.0, 4.0, 6.0])]
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
