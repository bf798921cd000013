"""`hicmae bench report`: how fast thousands of recorded runs are read and computed for a report, on generated records.

    hicmae bench report --runs 5000

The records are complete: configuration, snapshot, events, metrics, predictions, result. Read first from the run directories
alone, then again with what the first reading kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from experiments import outputs
from hicmae.config import RUN_ID_LENGTH, to_dict
from hicmae.record import write_json

NAME = "many"
FOLDS, CLASSES, GROUPS = 5, 4, 5
CREATED = 1_700_000_000.0
GOALS_S = {"first reading": 5.0, "second reading": 5.0}


@dataclass(frozen=True)
class Size:
    """How many records; every combination is a run of `samples` test samples."""

    corpora: int = 2
    variants: int = 50
    seeds: int = 10
    samples: int = 40

    @property
    def runs(self) -> int:
        return self.corpora * self.variants * FOLDS * self.seeds


def bench_report(
    runs: Annotated[int, typer.Option(help="Recorded runs; rounded up to a multiple of 500.", min=1)] = 5000,
    samples: Annotated[int, typer.Option(help="Test samples of a run.", min=10)] = 40,
    output: Annotated[Path, outputs.JSON_FILE] = Path("bench-report.json"),
) -> None:
    """Seconds to read recorded runs for a report and to compute it, without and with what an earlier report kept."""
    result = measure(Size(seeds=-(-runs // Size(seeds=1).runs), samples=samples))
    write_json(output, result)
    console = Console()
    title = f"{result['runs']} recorded runs of {samples} test samples, {result['cores']} cores"
    table = Table("step", "s", "s of processor", "records/s", "goal", title=title, box=box.SIMPLE_HEAD)
    for case in result["cases"]:
        goal = f"< {GOALS_S[case['name']]:g} s" if case["name"] in GOALS_S and result["runs"] <= 5000 else ""
        table.add_row(case["name"], f"{case['wall_s']:.2f}", f"{case['cpu_s']:.2f}", f"{case['records_per_s']:.0f}", goal)
    console.print(table)
    console.print(str(output))


def measure(size: Size) -> dict[str, Any]:
    """Write the records to a temporary folder and time reading and computing."""
    from reports.analysis import analyse
    from reports.build import study_generator
    from reports.query import load_study
    from reports.tables import tables_of

    with tempfile.TemporaryDirectory() as folder, _own_cache(Path(folder) / "cache"):
        root = Path(folder) / "runs"
        write_records(root, size)
        load_study(write_records(Path(folder) / "warm", Size(1, 1, 1)), NAME)  # imports
        cases = [_timed(name, size.runs, lambda: load_study(root, NAME)) for name in GOALS_S]
        study = load_study(root, NAME)
        cases.append(_timed("tables and statistics", size.runs, lambda: tables_of(analyse(study, study_generator(NAME)))))
    return {
        "runs": size.runs,
        "samples": size.samples,
        "cases": cases,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }


def _timed(name: str, records: int, work: Callable[[], Any]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return {"name": name, "wall_s": wall_s, "cpu_s": cpu_s, "records_per_s": records / wall_s}


@contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """An empty cache folder for the time of the measurement."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def write_records(root: Path, size: Size) -> Path:
    """A study `many` of complete run records below `root`; quick, so without syncing files as real runs do."""
    (root / "_studies").mkdir(parents=True)
    runs = []
    for corpus_index in range(size.corpora):
        corpus = f"list:corpus_{corpus_index}"
        template = _template(corpus)
        for fold in range(1, FOLDS + 1):
            lists = _test_list(corpus_index, fold, size.samples)
            for variant, seed in product(range(size.variants), range(size.seeds)):
                run_id = _write_run(root, template, fold, variant, seed, lists)
                about = {"stage": "finetune", "corpus": corpus, "fold": fold, "seed": seed, "depends_on": []}
                runs.append({"run_id": run_id, "variants": [f"v{variant:02d}"], **about})
    variants = [{"name": f"v{v:02d}", "columns": {"smoothing": v / 1000}, "delta": {}} for v in range(size.variants)]
    table = {"columns": ["smoothing"], "metrics": ["UAR", "WAR"], "baseline": "v00", "selection": "last"}
    study = {"experiment": NAME, "title": "Many runs", "smoke": True, "table": table, "variants": variants, "runs": runs}
    (root / "_studies" / f"{NAME}.json").write_text(json.dumps(study))
    return root


def _template(corpus: str) -> dict[str, Any]:
    from hicmae import presets

    values = json.loads(json.dumps(to_dict(presets.finetune("smoke", corpus, CLASSES))))
    values["data"]["fingerprint"] = hashlib.sha256(corpus.encode()).hexdigest()
    return dict(values)


def _test_list(corpus: int, fold: int, samples: int) -> dict[str, Any]:
    """Samples, actors and labels of a fold, shared by all runs on it."""
    index = np.arange(samples)
    labels = np.random.default_rng([corpus, fold]).permutation(index % CLASSES)
    names = [f"f{fold}_s{i:05d}" for i in index]
    return {"sample_id": names, "group": [f"actor_{fold}_{i % GROUPS}" for i in index], "label": labels, "corpus": corpus}


def _write_run(root: Path, template: dict[str, Any], fold: int, variant: int, seed: int, lists: dict[str, Any]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hicmae.metrics import compute

    config = deepcopy(template)
    config["data"]["fold"], config["seed"], config["augment"]["label_smoothing"] = fold, seed, variant / 1000
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:RUN_ID_LENGTH]
    folder.mkdir()
    scores = _scores(np.random.default_rng([lists["corpus"], fold, variant, seed]), lists["label"], 0.4 + 0.01 * variant)
    columns = {f"{name}_{k}": scores[:, k] for name in ("view_0", "score") for k in range(CLASSES)}
    answers, names = scores.argmax(1), ("sample_id", "group", "label")
    selected = {"prediction": answers, **columns, "selection": ["last"] * len(answers)}
    pq.write_table(pa.table({**{name: lists[name] for name in names}, **selected}), folder / "predictions.parquet")
    metrics = compute(("UAR", "WAR"), lists["label"], answers)
    (folder / "config.json").write_text(text)
    (folder / "snapshot.json").write_text(json.dumps({"code": {"commit": "0" * 40, "dirty": False}}))
    (folder / "events.jsonl").write_text(json.dumps({"event": "started", "time": CREATED}) + "\n")
    kinds = (("train", {"loss": 1.0}), ("test", metrics))
    points = [_point(split, epoch, values) for epoch in (1, 2) for split, values in kinds]
    (folder / "metrics.jsonl").write_text("".join(points))
    about = {"seed": seed, "fold": fold, "selection": "last", "metrics": {"last": metrics}, "headline": "UAR"}
    sizes = {"n_test": len(answers), "n_train": 4 * len(answers), "gpu_hours": 0.1, "cpu_hours": 0.1, "parameters": 10**6}
    result = {"run_id": folder.name, "stage": "finetune", "status": "done", **about, **sizes}
    (folder / "result.json").write_text(json.dumps(result))
    return folder.name


def _point(split: str, epoch: int, values: dict[str, float]) -> str:
    return json.dumps({"split": split, "step": 10 * epoch, "epoch": epoch, "time": CREATED, "values": values}) + "\n"


def _scores(generator: np.random.Generator, labels: Any, accuracy: float) -> Any:
    """(S, K): the largest is at the label for a share `accuracy` of the samples."""
    right = generator.random(len(labels)) < accuracy
    answers = np.where(right, labels, (labels + generator.integers(1, CLASSES, size=len(labels))) % CLASSES)
    scores = generator.random((len(labels), CLASSES)) * 0.1
    scores[np.arange(len(labels)), answers] = 1.0
    return scores / scores.sum(axis=1, keepdims=True)
