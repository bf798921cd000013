"""What MLflow is told about a run: names, tags, parameters, points and files, from its record alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hicmae.config import FinetuneConfig, RunConfig, flatten
from hicmae.errors import HicmaeError
from hicmae.record import RunRecord

if TYPE_CHECKING:
    from hicmae.data.corpora.base import Corpus

STATUS = {
    "done": "FINISHED",
    "failed": "FAILED",
    "running": "RUNNING",
    "cancelled": "KILLED",
    "blocked": "KILLED",
}  # else SCHEDULED
SHARED = "shared"
NOTE_LENGTH = 7500  # MLflow keeps 8000 characters of a tag
Counts = tuple[list[str], list[list[int]]]
_SIGNED = ("config.json", "snapshot.json", "events.jsonl", "metrics.jsonl", "predictions.parquet", "result.json")
_KEY = re.compile(r"[^A-Za-z0-9_\-./ ]")


@dataclass(frozen=True)
class Summary:
    """What a variant's parent run shows: a Markdown table, and metrics over all folds."""

    markdown: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Entry:
    """A run's place in a study, as the study file has it."""

    run_id: str
    stage: str
    variants: tuple[str, ...]
    corpus: str
    fold: int | None
    seed: int

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Entry:
        fold = values.get("fold")
        return cls(values["run_id"], values["stage"], tuple(values["variants"]), values["corpus"], fold, int(values["seed"]))

    @property
    def parent(self) -> str:
        """The variant under which the run is shown; a run that several variants share stands under `shared`."""
        return self.variants[0] if len(self.variants) == 1 else SHARED

    @property
    def name(self) -> str:
        """`crema_d fold 2 seed 0: all three`, `pre-training: all three = no fusion`."""
        place = "pre-training" if self.stage == "pretrain" else f"{self.corpus} fold {self.fold} seed {self.seed}"
        return f"{place}: {' = '.join(self.variants)}"[:250]


@dataclass(frozen=True)
class Data:
    """The corpus that a run read; MLflow shows the beginning of its fingerprint."""

    corpus: str
    fingerprint: str
    role: str

    @property
    def digest(self) -> str:
        return self.fingerprint[:12] or "unknown"


@dataclass(frozen=True)
class Point:
    """All values logged for a split at a step."""

    split: str
    step: int
    time_ms: int
    values: Mapping[str, float]


def signature(record: RunRecord) -> str:
    """Changes whenever there may be something new to tell about a run."""
    sizes = [path.stat().st_size if (path := record.path / name).exists() else -1 for name in _SIGNED]
    return hashlib.sha256(json.dumps([record.state(), sizes]).encode()).hexdigest()[:16]


def status(record: RunRecord) -> str:
    """MLflow's word for the state of a run."""
    return STATUS.get(record.state(), "SCHEDULED")


def tags(study: Mapping[str, Any], entry: Entry, record: RunRecord) -> dict[str, str]:
    """What runs are found by."""
    code = record.snapshot().get("code") or {}
    values = {
        "hicmae.run_id": entry.run_id,
        "hicmae.study": study["experiment"],
        "hicmae.variant": " = ".join(entry.variants),
        "hicmae.stage": entry.stage,
        "hicmae.corpus": entry.corpus,
        "hicmae.fold": "" if entry.fold is None else str(entry.fold),
        "hicmae.seed": str(entry.seed),
        "hicmae.state": record.state(),
        "hicmae.commit": str(code.get("commit") or ""),
        "mlflow.source.name": "experiments/launch.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": str(code.get("commit") or ""),
        "mlflow.note.content": _note(study, entry, record),
    }
    return {key: value[:NOTE_LENGTH] for key, value in values.items() if value}


def _note(study: Mapping[str, Any], entry: Entry, record: RunRecord) -> str:
    """Markdown: what the run is, how it ended, and the command that repeats it."""
    failures = [str(event.get("reason")) for event in record.events() if event.get("event") == "failed"]
    lines = [f"**{entry.name}** of *{study.get('title') or study['experiment']}*", f"State: {record.state()}"]
    lines += [f"Last failure: {failures[-1]}"] if failures and record.state() == "failed" else []
    lines += ["Reproduce the run:", f"```\nhicmae reproduce {entry.run_id}\n```"]
    return "\n\n".join([*lines, "or the whole study:", f"```\n{study.get('command', '')}\n```"])


def study_note(study: Mapping[str, Any]) -> str:
    """The description of the MLflow experiment."""
    lines = [f"# {study.get('title') or study['experiment']}", str(study.get("description", "")), str(study.get("source", ""))]
    return "\n\n".join([*filter(None, lines), f"```\n{study.get('command', '')}\n```"])[:NOTE_LENGTH]


def params(config: RunConfig) -> dict[str, str]:
    """All fields of the configuration, flat."""
    return {key: json.dumps(value) if isinstance(value, tuple) else str(value) for key, value in flatten(config).items()}


def points(record: RunRecord, after: Mapping[str, int]) -> list[Point]:
    """Points that were not sent, in step order; `after` is the last step sent of every split."""
    found = [
        Point(
            str(line["split"]),
            line["step"],
            int(1000 * line.get("time", 0)),
            _named(str(line["split"]), line.get("values") or {}),
        )
        for line in record.metrics()
    ]
    return [point for point in found if point.step > after.get(point.split, -1) and point.values]


def _named(split: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {key(f"{split}/{name}"): float(value) for name, value in values.items() if isinstance(value, (int, float))}


def key(name: str) -> str:
    """A metric name that MLflow takes."""
    return _KEY.sub("_", name)[:250]


def final_point(record: RunRecord, counts: Counts | None) -> Point | None:
    """The result of a run that is done: metrics of every selection, recall of every class, compute."""
    result = record.result()
    if result is None:
        return None
    values = {
        key(f"{rule}/{metric}"): value
        for rule, metrics in (result.get("metrics") or {}).items()
        for metric, value in metrics.items()
        if not metric.startswith("recall ")  # a section of their own below
    }
    for name in ("gpu_hours", "cpu_hours", "wall_s", "parameters", "n_train", "n_test", "train_loss_last"):
        if isinstance(result.get(name), (int, float)):
            values[name] = float(result[name])
    if counts is not None:
        rows = enumerate(zip(*counts, strict=True))
        values |= {key(f"recall/{name}"): 100.0 * row[i] / sum(row) for i, (name, row) in rows if sum(row)}
    return Point("result", int(result.get("steps") or 0), end_ms(record) or 0, values)


def confusion_counts(record: RunRecord, entry: Entry) -> Counts | None:
    """Class names and confusion counts of the test part; None where there are no classes or no readable predictions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hicmae.metrics import confusion

    if entry.stage != "finetune" or not (record.path / "predictions.parquet").exists():
        return None
    selection = str((record.result() or {}).get("selection") or "last")
    try:
        table = pq.read_table(record.path / "predictions.parquet", columns=["label", "prediction", "selection"])
        chosen = table.filter(pa.compute.equal(table["selection"], selection))
        corpus = known_corpus(entry.corpus)
        names = list(corpus.classes) if corpus else []
        counts = confusion(chosen["label"].to_numpy(), chosen["prediction"].to_numpy(), len(names) or None)
    except (OSError, pa.ArrowException, KeyError, HicmaeError):
        return None
    return names or [str(index) for index in range(len(counts))], counts.tolist()


def known_corpus(name: str) -> Corpus | None:
    """The corpus of a name; None for one that is not known here."""
    from hicmae.data import corpora

    try:
        return corpora.get(name)
    except HicmaeError:
        return None


def start_ms(record: RunRecord) -> int | None:
    return next(
        (int(1000 * event["time"]) for event in record.events() if event.get("event") == "started" and "time" in event), None
    )


def end_ms(record: RunRecord) -> int | None:
    """When the last thing happened to the run."""
    return max((int(1000 * event["time"]) for event in record.events() if "time" in event), default=None)


def batches(found: Sequence[Point], size: int) -> Iterator[list[Point]]:
    """Consecutive points with at most `size` values together (one point at least)."""
    batch: list[Point] = []
    for point in found:
        if batch and sum(len(other.values) for other in batch) + len(point.values) > size:
            yield batch
            batch = []
        batch.append(point)
    if batch:
        yield batch


def dataset(config: RunConfig, record: RunRecord) -> Data:
    """The data that the run read, by the fingerprint that it was planned with or, else, found."""
    role = f"fold {config.data.fold}" if isinstance(config, FinetuneConfig) else "pre-training"
    found = str((record.snapshot().get("data") or {}).get("fingerprint") or "")
    return Data(config.data.corpus, config.data.fingerprint or found, role)
