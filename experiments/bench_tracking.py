"""`hicmae bench tracking`: how fast recorded runs get into MLflow, beside one client call for each value.

    hicmae bench tracking --runs 1000

Synthetic run records (a real configuration, 300 points of metrics, predictions of 60 clips, weights, a snapshot) are carried
into a new SQLite store by `hicmae.tracking.sync`, with files and logged model. The other way, one call of MLflow's client for
each parameter and point, is timed on the first runs of the same records, without files and in a store of its own, and scaled.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from experiments import outputs
from hicmae import presets
from hicmae.config import FinetuneConfig, change, run_id
from hicmae.errors import HicmaeError
from hicmae.record import RunRecord, append_line, write_json

STUDY = "bench"
VARIANTS, EPOCHS, CLIPS = 10, 100, 60
GOALS = {"ms_per_run": 100.0, "ratio": 3.0}
BEGUN = 1_700_000_000.0
Show = Callable[[int, int, str], None]


def bench_tracking(
    runs: Annotated[int, typer.Option(help="Synthetic run records.", min=1)] = 1000,
    sample: Annotated[int, typer.Option(help="Runs sent with one call for each value.", min=1)] = 20,
    output: Annotated[Path, outputs.JSON_FILE] = Path("bench-tracking.json"),
) -> None:
    """Milliseconds a run into MLflow on SQLite, beside one client call for each value."""
    console = Console()
    with Progress(console=console, transient=True) as progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("writing records", total=None)

        def show(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=what)

        result = measure(Path(folder), runs, min(sample, runs), show)
    write_json(output, result)
    console.print(table(result))
    console.print(str(output))


def measure(folder: Path, runs: int, sample: int, show: Show) -> dict[str, Any]:
    """Write the records below `folder` and time both ways; times are wall times."""
    root = folder / "runs"
    records = write_records(root, runs, show)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    new_store(f"sqlite:///{folder / 'single.db'}", show)
    batched, cpu, again = time_sync(root, f"sqlite:///{folder / 'batched.db'}", runs, show)
    single = time_single_calls(records[:sample], f"sqlite:///{folder / 'single.db'}", show)
    counts = contents(records[0])
    values = {"ms_per_run": 1000 * batched / runs, "cpu_ms_per_run": 1000 * cpu / runs}
    values |= {"single_ms_per_run": 1000 * single / sample, "nothing_new_s": again}
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": load},
        "runs": runs,
        "sample": sample,
        **counts,
        **values,
        "ratio": values["single_ms_per_run"] / values["ms_per_run"],
        "goals": GOALS,
    }


def write_records(root: Path, runs: int, show: Show) -> list[RunRecord]:
    """The records and their study file: `VARIANTS` variants with many seeds."""
    records, rows = [], []
    for number in range(runs):
        variant, seed = number % VARIANTS, number // VARIANTS
        config = _config(variant, seed)
        records.append(_record(root, config, number))
        place = {"corpus": config.data.corpus, "fold": 1, "seed": seed, "depends_on": []}
        rows.append({"run_id": run_id(config), "stage": config.stage, "variants": [f"variant {variant}"], **place})
        show(number + 1, runs, "writing records")
    (root / "_studies").mkdir()
    study = {"experiment": STUDY, "title": "Synthetic records", "command": "hicmae bench tracking", "runs": rows}
    write_json(root / "_studies" / f"{STUDY}.json", study)
    return records


def time_sync(root: Path, uri: str, runs: int, show: Show) -> tuple[float, float, float]:
    """Seconds, and seconds of the processor, of a call into a store that is ready; seconds of another, with nothing new."""
    from hicmae.tracking import sync

    new_store(uri, show)
    seconds, cpu = [], []
    for _ in range(2):
        begun, busy = time.perf_counter(), time.process_time()
        report = sync(root, uri, say=lambda line: _tell(line, runs, show))
        seconds.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - busy)
    if report.sent_runs:
        raise HicmaeError(f"the second call sent {report.sent_runs} runs again")
    return seconds[0], cpu[0], seconds[1]


def _tell(line: str, runs: int, show: Show) -> None:
    words = line.split()
    if words[-1:] == ["runs"] and words[-4].isdigit():
        show(int(words[-4]), runs, "into MLflow, in batches")


def new_store(uri: str, show: Show) -> None:
    """An empty store, made before anything is timed."""
    from hicmae.tracking.store import open_client

    show(0, 1, "making an MLflow store")
    open_client(uri).search_experiments()


def time_single_calls(records: list[RunRecord], uri: str, show: Show) -> float:
    """Seconds of telling the same runs value by value."""
    from hicmae.tracking import content
    from hicmae.tracking.store import open_client

    client = open_client(uri)
    experiment = client.create_experiment(STUDY)
    begun = time.perf_counter()
    for number, record in enumerate(records):
        run = client.create_run(experiment, start_time=content.start_ms(record), run_name=record.id).info.run_id
        for name, value in content.params(record.config()).items():
            client.log_param(run, name, value)
        for point in content.points(record, {}):
            for name, number_logged in point.values.items():
                client.log_metric(run, name, number_logged, point.time_ms, point.step)
        client.set_terminated(run, "FINISHED")
        show(number + 1, len(records), "one call for each value")
    return time.perf_counter() - begun


def contents(record: RunRecord) -> dict[str, int]:
    """How many parameters and points a record has."""
    from hicmae.tracking import content

    points = sum(len(point.values) for point in content.points(record, {}))
    return {"parameters_per_run": len(content.params(record.config())), "points_per_run": points}


def table(result: dict[str, Any]) -> Table:
    """What was measured, with the goals."""
    what = f"{result['runs']} runs, {result['parameters_per_run']} parameters and {result['points_per_run']} points each"
    where = result["machine"]
    made = Table(
        "", "measured", "goal", title=f"{what}\nSQLite, {where['cores']} cores, load {where['load']:.1f}", box=box.SIMPLE_HEAD
    )
    made.add_row("ms a run, with its files", f"{result['ms_per_run']:.1f}", f"at most {GOALS['ms_per_run']:.0f}")
    made.add_row("ms of the processor a run", f"{result['cpu_ms_per_run']:.1f}", "")
    made.add_row(f"ms a run, one call a value ({result['sample']} runs)", f"{result['single_ms_per_run']:.1f}", "")
    made.add_row("times as fast", f"{result['ratio']:.1f}", f"at least {GOALS['ratio']:.0f}")
    made.add_row("s for a call with nothing new", f"{result['nothing_new_s']:.2f}", "")
    return made


def _config(variant: int, seed: int) -> FinetuneConfig:
    base = presets.finetune("smoke", "synthetic", 4)
    return change(base, {"data.fold": 1, "data.fingerprint": "0" * 64, "seed": seed, "optim.layer_decay": 0.5 + 0.05 * variant})


def _record(root: Path, config: FinetuneConfig, number: int) -> RunRecord:
    """A finished run's directory, quickly: the append-only files in one write each."""
    record = RunRecord.create(root, config)
    lines = []
    for epoch in range(1, EPOCHS + 1):
        values = {"loss": 2.0 / epoch + 1e-3 * number, "lr": 1e-3 / epoch, "grad_norm": 1.0 + 1.0 / epoch}
        lines.append({"split": "train", "step": 10 * epoch, "epoch": epoch, "time": BEGUN + epoch, "values": values})
    (record.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = {"python": platform.python_version(), "platform": platform.platform(), "packages": {"torch": "2.11.0"}}
    write_json(record.path / "snapshot.json", {"code": {"commit": "0" * 40, "dirty": False}, "environment": environment})
    _write_predictions(record, number)
    (record.path / "checkpoints" / "final.safetensors").write_bytes(bytes(1024))  # never read: MLflow's model links it
    append_line(record.path / "events.jsonl", {"event": "started", "time": BEGUN})
    result = {
        "stage": "finetune",
        "status": "done",
        "selection": "last",
        "steps": 10 * EPOCHS,
        "metrics": {"last": {"UAR": 50.0}},
    }
    write_json(record.path / "result.json", {"run_id": record.id, **result})
    append_line(record.path / "events.jsonl", {"event": "finished", "time": BEGUN + EPOCHS})
    return record


def _write_predictions(record: RunRecord, number: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = [clip % 4 for clip in range(CLIPS)]
    answered = [(clip + (clip * (number + 7) % 5 == 0)) % 4 for clip in range(CLIPS)]
    columns = {"sample_id": [f"clip {clip}" for clip in range(CLIPS)], "label": label, "prediction": answered}
    pq.write_table(pa.table({**columns, "selection": ["last"] * CLIPS}), record.path / "predictions.parquet")
