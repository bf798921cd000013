"""5,000 recorded runs with every kind of damage: the report has the numbers of the sound cells, and names everything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.bench_report import FOLDS, NAME, Size, write_records
from reports.build import build_report
from reports.query import Study, load_study
from reports.stats import corrected_t

SIZE = Size()
Runs = dict[tuple[str, str, int, int], Path]  # (variant, corpus, fold, seed) -> run directory
pytestmark = pytest.mark.slow


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_table(path: Path, name: str, make: Callable[[pa.Table], Any]) -> None:
    table = pq.read_table(path / "predictions.parquet")
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, [make(table)]), path / "predictions.parquet")


def cut(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[: (path / name).stat().st_size * 3 // 5])


def never_finished(path: Path) -> None:
    (path / "result.json").unlink()
    cut("events.jsonl")(path)
    with (path / "events.jsonl").open("a") as file:
        file.write('\n{"event": "started"}\n{"event": "check')


def garbage(path: Path) -> None:
    (path / "predictions.parquet").write_bytes(np.random.default_rng(0).bytes(4000))


def another_version(path: Path) -> None:
    """As a run that was made after clips of the corpus were replaced: its configuration, and so its name, differ."""
    config = json.loads((path / "config.json").read_text())
    config["data"]["fingerprint"] = "f" * 64
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    new = path.with_name(sha256(text.encode()).hexdigest()[:16])
    path.rename(new)
    (new / "config.json").write_text(text)
    edit_json(new / "result.json", run_id=new.name)
    study = path.parent / "_studies" / f"{NAME}.json"
    study.write_text(study.read_text().replace(path.name, new.name))


def of_fold_one(path: Path) -> None:
    """The predictions (and their metrics) are those of the same seed's first fold."""
    config = json.loads((path / "config.json").read_text())
    config["data"]["fold"] = 1
    other = path.with_name(sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16])
    shutil.copy(other / "predictions.parquet", path / "predictions.parquet")
    edit_json(path / "result.json", metrics=json.loads((other / "result.json").read_text())["metrics"])


def another_class(path: Path) -> None:
    """Labels and answers of class 0 are of a class that the corpus has not; the metrics agree."""
    for name in ("label", "prediction"):
        edit_table(path, name, lambda t, name=name: np.where(t[name].to_numpy() == 0, 4, t[name].to_numpy()))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing fold": (shutil.rmtree, "not launched yet"),
    "never finished": (never_finished, "not done (interrupted)"),
    "half a configuration": (cut("config.json"), "config.json: unreadable"),
    "half a result": (cut("result.json"), "result.json: unreadable"),
    "half the predictions": (cut("predictions.parquet"), "predictions.parquet: unreadable"),
    "garbage predictions": (garbage, "predictions.parquet: unreadable"),
    "no predictions": (lambda path: (path / "predictions.parquet").unlink(), "predictions.parquet: missing"),
    "another version of the corpus": (another_version, "another version of the corpus"),
    "another selection rule": (lambda p: edit_json(p / "result.json", selection="validation"), "selection rule 'validation'"),
    "a sample twice": (lambda p: edit_table(p, "sample_id", lambda t: ["same"] * len(t)), "a sample appears twice"),
    "scores that are NaN": (lambda p: edit_table(p, "score_1", lambda t: [float("nan")] * len(t)), "not finite"),
    "other answers": (lambda p: edit_table(p, "prediction", lambda t: np.zeros(len(t), dtype=int)), "result.json says"),
    "a result that is NaN": (lambda p: edit_json(p / "result.json", metrics={"last": {"UAR": float("nan")}}), "says nan"),
    "samples of another fold": (of_fold_one, "test samples are also in another fold"),
    "a class outside the list": (another_class, "class 4, but the corpus has the classes 0..3"),
    "metrics of another kind": (lambda p: edit_json(p / "result.json", metrics={"last": {"UAR": "high"}}), "damaged record"),
}
HARMLESS: dict[str, tuple[Callable[[Path], None], str]] = {
    "half the curves": (cut("metrics.jsonl"), "metrics.jsonl: is empty or ends in half a line"),
    "no events": (lambda path: (path / "events.jsonl").unlink(), "events.jsonl: unreadable"),
}


@dataclass(frozen=True)
class Damaged:
    """The records, which (variant, corpus) were damaged, and what must be said: run, reason."""

    root: Path
    cells: dict[tuple[str, str], str]
    expected: list[tuple[str, str]]
    runs: Runs


def runs_of(root: Path) -> Runs:
    study = json.loads((root / "_studies" / f"{NAME}.json").read_text())
    return {(r["variants"][0], r["corpus"], r["fold"], r["seed"]): root / r["run_id"] for r in study["runs"]}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    """Two runs of each kind, each in a cell of its own; the baseline v00 stays whole."""
    root = write_records(tmp_path_factory.mktemp("many") / "runs", SIZE)
    order = np.random.default_rng(6).permutation([(v, c) for v in range(1, SIZE.variants) for c in range(SIZE.corpora)])
    places = iter([(f"v{variant:02d}", f"list:corpus_{corpus}") for variant, corpus in order])
    cells, kinds, labels = {}, [*DAMAGES, *HARMLESS], []
    for kind in [*kinds, *kinds]:
        damage, reason = {**DAMAGES, **HARMLESS}[kind]
        variant, corpus = next(places)
        damage(runs_of(root)[variant, corpus, 3, 7])
        labels.append((f"finetune {corpus} fold 3 seed 7, {variant} (", reason))
        cells |= {(variant, corpus): kind} if kind in DAMAGES else {}
    study = json.loads((root / "_studies" / f"{NAME}.json").read_text())
    (root / "_studies" / f"{NAME}.json").write_text(
        json.dumps({**study, "table": {**study["table"], "metrics": ["UAR", "WAR", "Karma"]}})
    )
    described = {f"list:corpus_{c}": {"title": f"list:corpus_{c}", "classes": list("abcd")} for c in range(SIZE.corpora)}
    (root / "_corpora.json").write_text(json.dumps(described))
    (root / "_studies" / "empty.json").write_text(json.dumps({**study, "experiment": "empty", "runs": [], "variants": []}))
    return Damaged(root, cells, labels, runs_of(root))


def independent(runs: Runs, variant: str, corpus: str) -> dict[str, Any]:
    """Metrics of a cell from its files with NumPy alone: on all folds together for each seed, and fold by fold."""
    pooled, folds = {"UAR": [], "WAR": []}, {fold: [] for fold in range(1, FOLDS + 1)}
    for seed in range(SIZE.seeds):
        parts = []
        for fold in range(1, FOLDS + 1):
            table = pq.read_table(runs[variant, corpus, fold, seed] / "predictions.parquet", columns=["label", "prediction"])
            parts.append(np.stack([table["label"].to_numpy(), table["prediction"].to_numpy()]))
            folds[fold].append(recall(parts[-1]))
        together = np.concatenate(parts, axis=1)
        pooled["UAR"].append(recall(together))
        pooled["WAR"].append(100 * np.mean(together[0] == together[1]))
    return {"pooled": {m: np.mean(v) for m, v in pooled.items()}, "folds": [np.mean(v) for v in folds.values()]}


def recall(both: np.ndarray) -> float:
    labels, answers = both
    return float(100 * np.mean([np.mean(answers[labels == c] == c) for c in np.unique(labels)]))


def test_report_of_5000_runs_has_the_numbers_of_the_sound_ones_and_names_the_others(damaged: Damaged, tmp_path: Path) -> None:
    assert len(damaged.runs) == 5000
    report = build_report(damaged.root, tmp_path, pdf=False)
    table = json.loads((tmp_path / NAME / f"{NAME}.json").read_text())
    keys = [column["key"] for column in table["columns"]]
    assert [key for key in keys if key.startswith("pooled.")] == ["pooled.UAR", "pooled.WAR"]
    truth = {}
    for block in table["blocks"]:
        for row in block["rows"]:
            cell, fields = (row["variant"], block["corpus"]), dict(zip(keys, row["fields"], strict=True))
            if cell in damaged.cells:
                assert (fields["pooled.UAR"]["value"], fields["pooled.UAR"]["text"]) == (None, "49/50"), damaged.cells[cell]
                assert fields["spread.UAR"]["value"] is None and fields["pooled.UAR"]["rank"] == ""
                continue
            truth[cell] = independent(damaged.runs, *cell)
            for metric, value in truth[cell]["pooled"].items():
                assert fields[f"pooled.{metric}"]["value"] == pytest.approx(value), cell
            assert fields["spread.UAR"]["value"] == pytest.approx(np.mean(truth[cell]["folds"]))
            if row["variant"] != "v00":
                ratio = 1 / 4  # test over training samples
                wanted = corrected_t(np.subtract(truth[cell]["folds"], truth["v00", block["corpus"]]["folds"]), ratio)
                shown = fields["baseline.UAR"]
                assert (shown["value"], shown["low"], shown["high"]) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert len(truth) == SIZE.variants * SIZE.corpora - len(damaged.cells) == 68
    html = (tmp_path / "report.html").read_text()
    for start, reason in damaged.expected:
        named = [problem for problem in report.problems if start in problem]
        assert len(named) == 1 and reason in named[0], (start, reason, named)
        assert html.count(start.replace("'", "&#39;")) >= 1
    assert any("'Karma'" in problem for problem in report.problems)
    assert any(problem.startswith("empty: ") and "no run with a test part" in problem for problem in report.problems)
    cells = json.loads((tmp_path / NAME / "provenance.json").read_text())["cells"]
    left_out = {(c["variant"], c["corpus"]) for c in cells.values() if [run for run in c["runs"] if not run["counts"]]}
    assert left_out == set(damaged.cells)
    _assert_kept_is_the_same(damaged, next(page for page in report.pages if page.name == NAME).analysis.study)


def _assert_kept_is_the_same(damaged: Damaged, first: Study) -> None:
    """Reading again takes what the first report kept; that is the same, and never hides new damage."""
    second = load_study(damaged.root, NAME)
    assert first.problems == second.problems
    for one, other in zip(first.runs, second.runs, strict=True):
        assert (one.run_id, one.result, one.config, one.remarks) == (other.run_id, other.result, other.config, other.remarks)
        assert (one.predictions is None) == (other.predictions is None)
        if one.predictions and other.predictions:
            for name in ("sample_ids", "groups", "truth", "answers"):
                assert np.array_equal(getattr(one.predictions, name), getattr(other.predictions, name))
    path = damaged.runs["v00", "list:corpus_0", 1, 0] / "predictions.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of the same size
    assert len(load_study(damaged.root, NAME).problems) == len(first.problems) + 1
    path.write_bytes(whole)
