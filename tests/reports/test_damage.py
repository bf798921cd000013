"""Damaged and mixed records: every one is named with its reason, left out, and nothing is averaged over silently."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from study_records import CorpusOnDisk, StudyOnDisk, VariantOnDisk

from hicmae.config import change, from_dict, run_id
from hicmae.errors import RecordError, UsageError
from hicmae.record import RunRecord, write_json
from reports.analysis import analyse
from reports.build import build_report
from reports.query import load_study, study_names

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StudyOnDisk:
    variants = [VariantOnDisk("a", 0.6), VariantOnDisk("b", 0.8, delta={"head.feature_fusion": "last"})]
    root = tmp_path_factory.mktemp("whole") / "runs"
    return StudyOnDisk(root, "study_smoke", variants, {"synthetic": CorpusOnDisk(folds=3)}, table={"baseline": "a"}).write()


@pytest.fixture
def study(whole: StudyOnDisk, tmp_path: Path) -> StudyOnDisk:
    """A copy to be damaged."""
    shutil.copytree(whole.root, tmp_path / "runs")
    return StudyOnDisk(tmp_path / "runs", whole.name, whole.variants, whole.corpora, runs=whole.runs)


def edit_json(path: Path, **values: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **values})


def edit_predictions(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    file = path / "predictions.parquet"
    pq.write_table(edit(pq.read_table(file)), file)


def set_column(name: str, make: Callable[[pa.Table], list[Any]]) -> Damage:
    def damage(path: Path) -> None:
        edit_predictions(path, lambda table: table.set_column(table.column_names.index(name), name, [make(table)]))

    return damage


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no predictions": (lambda path: (path / "predictions.parquet").unlink(), "predictions.parquet: missing"),
    "torn predictions": (
        lambda path: (path / "predictions.parquet").write_bytes((path / "predictions.parquet").read_bytes()[:500]),
        "predictions.parquet: unreadable",
    ),
    "empty predictions": (lambda path: (path / "predictions.parquet").write_bytes(b""), "predictions.parquet: unreadable"),
    "torn result": (lambda path: (path / "result.json").write_text('{"run_id": "'), "result.json: unreadable"),
    "result is a list": (lambda path: (path / "result.json").write_text("[]"), "is not a JSON object"),
    "result of another run": (lambda path: edit_json(path / "result.json", run_id="0" * 16), "belongs to 0000000000000000"),
    "no configuration": (lambda path: (path / "config.json").unlink(), "config.json: missing"),
    "edited configuration": (lambda path: edit_json(path / "config.json", seed=7), "does not hash to"),
    "other selection only": (set_column("selection", lambda t: ["oracle"] * len(t)), "no predictions selected by 'last'"),
    "a sample twice": (set_column("sample_id", lambda t: ["same"] * len(t)), "a sample appears twice"),
    "labels missing": (set_column("label", lambda t: [None] * len(t)), "not class indices"),
    "no group column": (lambda path: edit_predictions(path, lambda t: t.drop_columns(["group"])), "no column 'group'"),
    "no answers": (lambda path: edit_predictions(path, lambda t: t.drop_columns(["label"])), "neither label and prediction"),
    "changed answers": (set_column("prediction", lambda t: [0] * len(t)), "result.json says"),
    "rows lost": (lambda path: edit_predictions(path, lambda t: t.slice(3)), "37 samples, result.json says 40"),
    "not finished": (lambda path: (path / "result.json").unlink(), "not done (interrupted)"),
    "directory gone": (shutil.rmtree, "not launched yet"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_run_is_named_and_its_cell_incomplete(study: StudyOnDisk, kind: str) -> None:
    damage, reason = DAMAGES[kind]
    path = study.path("a", "synthetic", 2)
    damage(path)
    analysis = analyse(load_study(study.root, study.name), np.random.default_rng(0), 50)
    named = [problem for problem in analysis.problems if path.name in problem]
    assert len(named) == 1 and reason in named[0], analysis.problems
    broken, sound = (analysis.corpora[0].cell(variant) for variant in ("a", "b"))
    assert (broken.progress, broken.pooled) == ("2/3", {})
    assert sound.complete
    assert not analysis.complete and not analysis.corpora[0].comparisons


def replace_run(study: StudyOnDisk, variant: str, fold: int, delta: dict[str, Any], result: dict[str, Any] | None = None) -> Path:
    """Make a fold's run that of a changed configuration, as after a relaunch, with the old files."""
    old = study.path(variant, "synthetic", fold)
    config = change(from_dict(json.loads((old / "config.json").read_text())), delta)
    record = RunRecord.create(study.root, config)
    for name in ("predictions.parquet", "events.jsonl", "metrics.jsonl", "snapshot.json"):
        shutil.copy(old / name, record.path / name)
    write_json(
        record.path / "result.json", {**json.loads((old / "result.json").read_text()), **(result or {}), "run_id": record.id}
    )
    text = study.study_file.read_text().replace(old.name, run_id(config))
    study.study_file.write_text(text)
    return record.path


def test_another_version_of_the_corpus_is_left_out(study: StudyOnDisk) -> None:
    path = replace_run(study, "a", 2, {"data.fingerprint": "f" * 64})
    loaded = load_study(study.root, study.name)
    assert any(path.name in problem and "another version of the corpus" in problem for problem in loaded.problems)
    assert [run.fold for run in loaded.cell_runs("a", "synthetic") if run.predictions] == [1, 3]


def test_mixed_selection_rules_in_a_cell_are_left_out(study: StudyOnDisk) -> None:
    path = replace_run(study, "a", 3, {"evaluation.selection": "validation"}, {"selection": "validation"})
    loaded = load_study(study.root, study.name)
    assert any(path.name in problem and "selection rule 'validation'" in problem for problem in loaded.problems)
    assert [run.fold for run in loaded.cell_runs("a", "synthetic") if run.predictions] == [1, 2]


def test_rows_with_other_selection_rules_are_named(study: StudyOnDisk) -> None:
    for fold in (1, 2, 3):
        replace_run(study, "a", fold, {"evaluation.selection": "validation"}, {"selection": "validation"})
    loaded = load_study(study.root, study.name)
    assert any("different rules (last, validation)" in problem for problem in loaded.problems)


def test_a_test_sample_in_two_folds_is_named(study: StudyOnDisk) -> None:
    first, second = study.path("a", "synthetic", 1), study.path("a", "synthetic", 2)
    shutil.copy(first / "predictions.parquet", second / "predictions.parquet")
    result = json.loads((first / "result.json").read_text())
    edit_json(second / "result.json", metrics=result["metrics"])
    loaded = load_study(study.root, study.name)
    assert any(second.name in problem and "40 test samples are also in another fold" in problem for problem in loaded.problems)


def test_rows_on_other_samples_are_not_compared(study: StudyOnDisk) -> None:
    path = study.path("b", "synthetic", 1)
    edit_predictions(path, lambda t: t.set_column(0, "sample_id", [[f"other_{name}" for name in t["sample_id"].to_pylist()]]))
    analysis = analyse(load_study(study.root, study.name), np.random.default_rng(0), 50)
    assert any("other test samples or labels; not compared" in problem for problem in analysis.problems)
    assert not analysis.corpora[0].comparisons


def test_metric_that_nobody_logged_is_named(study: StudyOnDisk) -> None:
    values = json.loads(study.study_file.read_text())
    edit_json(study.study_file, table={**values["table"], "metrics": ["UAR", "Karma", "CCC valence"]})
    analysis = analyse(load_study(study.root, study.name), np.random.default_rng(0), 50)
    assert any("'Karma'" in problem for problem in analysis.problems)
    assert any("'CCC valence'" in problem for problem in analysis.problems)
    assert analysis.corpora[0].metrics == ("UAR",)


def test_empty_study_says_so_and_still_has_a_page(study: StudyOnDisk, tmp_path: Path) -> None:
    edit_json(study.study_file, runs=[])
    report = build_report(study.root, tmp_path / "out", pdf=False)
    assert any("no run with a test part" in problem for problem in report.problems)
    assert "Nothing can be concluded" in report.html.read_text()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"runs": 5, "variants": []}', '{"runs": [{"run_id": "x"}], "variants": []}', "null"]
)
def test_damaged_study_file_is_one_clear_line_and_others_are_reported(study: StudyOnDisk, tmp_path: Path, text: str) -> None:
    broken = study.root / "_studies" / "broken.json"
    broken.write_text(text)
    with pytest.raises(RecordError, match=r"broken\.json: damaged study file"):
        load_study(study.root, "broken")
    report = build_report(study.root, tmp_path / "out", pdf=False)
    assert [page.name for page in report.pages] == [study.name]
    assert any("damaged study file" in problem for problem in report.problems)


def test_unknown_study_names_the_nearest(study: StudyOnDisk) -> None:
    with pytest.raises(UsageError, match="study_smoke"):
        load_study(study.root, "study_smok")


def test_nothing_launched_says_how_to_launch(tmp_path: Path) -> None:
    assert study_names(tmp_path) == []
    with pytest.raises(UsageError, match="launch"):
        build_report(tmp_path, tmp_path / "out")
