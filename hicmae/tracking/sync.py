"""Carry studies and runs into MLflow: one experiment per study, a parent run per variant, a child per fold and seed.

A run is found by its tag `hicmae.run_id` before it is created; the points sent are noted in the same run, in the batch that
brings them. What was told is also remembered beside the runs (`_mlflow/state-*.json`), so that a second call with nothing new
asks MLflow for nothing but the experiment. A kill leaves that file marked unfinished, and then MLflow itself is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from hicmae.errors import HicmaeError, RecordError
from hicmae.record import RunRecord, write_json
from hicmae.tracking import content
from hicmae.tracking.content import Entry, Summary
from hicmae.tracking.store import SIGNATURE, Known, Say, Store

FOLDER = "_mlflow"
SQLITE = "sqlite:///"
UI_ADDRESS = "http://127.0.0.1:5000"
MODEL_TRAINING = "?workflowType=machine_learning"  # else MLflow's UI opens on its pages for language models
BATCH = 900  # values in a batch; MLflow takes 1000
Summarise = Callable[[Path, str], Mapping[str, Summary]]


@dataclass
class SyncReport:
    """What a call did; `problems` are records that could not be read, one line each."""

    studies: int = 0
    sent_runs: int = 0
    unchanged_runs: int = 0
    points: int = 0
    problems: tuple[str, ...] = ()


def default_uri(runs_root: Path) -> str:
    """$MLFLOW_TRACKING_URI, else a SQLite file in the runs root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{runs_root.resolve() / FOLDER / 'mlflow.db'}"


def sync(
    runs_root: Path,
    tracking_uri: str | None = None,
    *,
    studies: Sequence[str] | None = None,
    summarise: Summarise | None = None,
    say: Say = print,
    patience_s: float = 60.0,
) -> SyncReport:
    """Tell MLflow what is new in the named studies, or in all. Several calls at once wait for each other.

    `summarise` gives what the variants' parent runs show. Raises HicmaeError when the store does not answer for `patience_s`.
    """
    folder = runs_root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    report = SyncReport()
    names = sorted(path.stem for path in (runs_root / "_studies").glob("*.json")) if studies is None else list(studies)
    if not names:
        return report
    uri = tracking_uri or default_uri(runs_root)
    with FileLock(str(folder / "sync.lock")):
        memory = _Memory(folder, uri)
        store = Store(uri, say, patience_s)
        for name in names:
            _send_study(runs_root, name, store, memory, report, say, summarise)
        memory.save()
    return report


def _send_study(
    runs_root: Path, name: str, store: Store, memory: _Memory, report: SyncReport, say: Say, summarise: Summarise | None
) -> None:
    try:
        _Study(runs_root, name, store, memory, report, say).send(summarise)
    except RecordError as error:
        _problem(report, say, f"{name}: {error}")


def study_pages(runs_root: Path, tracking_uri: str | None = None) -> dict[str, str]:
    """study -> its page in the UI, of the studies sent before."""
    memory = _Memory(runs_root / FOLDER, tracking_uri or default_uri(runs_root))
    return {study: memory.page(study) for study in memory.studies}


def is_up_to_date(runs_root: Path, tracking_uri: str | None = None) -> bool:
    """Whether a call of `sync` would find nothing new, from what is remembered beside the runs; MLflow is not asked."""
    uri = tracking_uri or default_uri(runs_root)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return False
    memory = _Memory(runs_root / FOLDER, uri)
    return all(_is_told(runs_root, path, memory) for path in (runs_root / "_studies").glob("*.json"))


def _is_told(runs_root: Path, study_file: Path, memory: _Memory) -> bool:
    known = memory.runs(study_file.stem)
    if known is None:
        return False
    try:
        entries = _read_study(study_file)[1]
    except RecordError:
        return False
    return not any(_is_new(runs_root, entry, known) for entry in entries)


def _is_new(runs_root: Path, entry: Entry, known: Mapping[str, Known]) -> bool:
    record, told = RunRecord(runs_root / entry.run_id), known.get(entry.run_id)
    started = (record.path / "config.json").exists()
    return started and (told is None or told.signature != content.signature(record))


class _Memory:
    """What MLflow was told, study by study; empty when the last call did not end."""

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder, self._uri = folder, uri
        self._path = folder / f"state-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.json"
        self._values: dict[str, Any] = {"ended": True, "studies": {}}
        try:
            values = json.loads(self._path.read_text())
            if values["ended"]:
                self._values = {"ended": True, "studies": dict(values["studies"])}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # asked from MLflow instead

    def runs(self, study: str, token: str | None = None) -> dict[str, Known] | None:
        """The runs told before, or None when this is not the experiment that they were told to (any, without a token)."""
        values = self._values["studies"].get(study)
        if not values or (token is not None and values["token"] != token):
            return None
        return {run_id: Known(**known) for run_id, known in values["runs"].items()}

    def begin(self) -> None:
        """Note on disk that something is being sent; nothing remembered counts until `save`."""
        if self._values["ended"]:
            self._values["ended"] = False
            write_json(self._path, self._values)

    def remember(self, study: str, experiment_id: str, token: str, runs: Mapping[str, Known]) -> None:
        self._values["studies"][study] = {
            "experiment_id": experiment_id,
            "token": token,
            "runs": {run_id: asdict(known) for run_id, known in runs.items()},
        }

    def save(self) -> None:
        if not self._values["ended"]:
            self._values["ended"] = True
            write_json(self._path, self._values)
            self._write_links()

    def _write_links(self) -> None:
        """study -> run id -> page in the UI, for reports."""
        links = {
            name: {run_id: f"{self.page(name, '')}/runs/{known['mlflow_id']}" for run_id, known in study["runs"].items()}
            for name, study in self._values["studies"].items()
        }
        write_json(self._folder / "links.json", links)

    def page(self, study: str, suffix: str = MODEL_TRAINING) -> str:
        base = self._uri if self._uri.startswith("http") else UI_ADDRESS
        return f"{base.rstrip('/')}/#/experiments/{self._values['studies'][study]['experiment_id']}{suffix}"

    @property
    def studies(self) -> list[str]:
        return sorted(self._values["studies"])


class _Study:
    """One study on its way into MLflow."""

    def __init__(self, runs_root: Path, name: str, store: Store, memory: _Memory, report: SyncReport, say: Say) -> None:
        self.root, self.store, self.memory, self.report, self.say = runs_root, store, memory, report, say
        self.study, self.entries = _read_study(runs_root / "_studies" / f"{name}.json")
        local = store.uri.startswith(SQLITE)
        artifacts = (runs_root.resolve() / FOLDER / "artifacts" / name).as_uri() if local else None
        self.experiment_id, self.token = store.experiment(name, content.study_note(self.study), artifacts)
        self.name = name
        remembered = memory.runs(name, self.token)
        self.known = store.runs(self.experiment_id) if remembered is None else remembered
        self.is_remembered = remembered is not None

    def send(self, summarise: Summarise | None) -> None:
        changed = [entry for entry in self.entries if _is_new(self.root, entry, self.known)]
        self.report.studies += 1
        self.report.unchanged_runs += len(self.entries) - len(changed)
        bare = summarise is not None and self._has_bare_parents()
        if not (changed or bare) and self.is_remembered:
            return
        self.memory.begin()
        for number, entry in enumerate(changed, 1):
            self._send_safely(entry)
            if number % 50 == 0 or number == len(changed):
                self.say(f"mlflow: {self.name}: {number} of {len(changed)} runs")
        if summarise:
            self._send_summaries(summarise(self.root, self.name))
        self._close_shared()
        self.memory.remember(self.name, self.experiment_id, self.token, self.known)

    def _has_bare_parents(self) -> bool:
        """Whether a variant's parent run shows no table yet."""
        return any(
            key.startswith("variant:") and key != f"variant:{content.SHARED}" and not run.signature
            for key, run in self.known.items()
        )

    def _send_safely(self, entry: Entry) -> None:
        try:
            self._send_run(entry, RunRecord(self.root / entry.run_id))
            self.report.sent_runs += 1
        except RecordError as error:
            _problem(self.report, self.say, f"{self.name}: {error}")

    def _send_run(self, entry: Entry, record: RunRecord) -> None:
        """Everything new of a run; its signature is noted last, so that a kill before that sends the rest again."""
        config, sign, status = record.config(), content.signature(record), content.status(record)
        tags = {**content.tags(self.study, entry, record), "mlflow.parentRunId": self._parent(entry.parent).mlflow_id}
        params: dict[str, str] = {}
        run = self.known.get(entry.run_id)
        if run is None:
            run = self.store.create(self.experiment_id, entry.run_id, entry.name, tags, content.start_ms(record))
            self.known[entry.run_id] = run
        if not run.signature:
            params = content.params(config)
            self.store.add_dataset(run, *content.dataset(config))
        self._send_points(run, entry, record, params, tags)
        if status == "FINISHED":
            with tempfile.TemporaryDirectory() as folder:
                content.write_files(record, entry, Path(folder))
                self.store.add_files(run, Path(folder))
        self.store.close(run, status, content.end_ms(record))
        self.store.log(run, [], {}, {SIGNATURE: sign})
        run.signature = sign

    def _send_points(
        self, run: Known, entry: Entry, record: RunRecord, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        found = content.points(record, run.sent)
        final = content.final_point(record, entry) if record.state() == "done" and "result" not in run.sent else None
        found += [final] if final else []
        groups = list(content.batches(found, BATCH)) or [[]]
        for index, group in enumerate(groups):
            self.store.log(run, group, params if index == 0 else {}, tags if index == 0 else {})
            self.report.points += sum(len(point.values) for point in group)

    def _parent(self, name: str) -> Known:
        """The parent run of a variant, or of the runs that several variants share."""
        key = f"variant:{name}"
        if key not in self.known:
            title = "shared by several variants" if name == content.SHARED else name
            tags = {"hicmae.study": self.name, "hicmae.variant": name, "hicmae.stage": "variant"}
            self.known[key] = self.store.create(self.experiment_id, key, title[:250], tags, None)
        return self.known[key]

    def _close_shared(self) -> None:
        """The run above shared runs ends with the last of them."""
        shared = self.known.get(f"variant:{content.SHARED}")
        ids = [entry.run_id for entry in self.entries if entry.parent == content.SHARED]
        if shared and not shared.signature and all(RunRecord(self.root / run_id).state() == "done" for run_id in ids):
            self.store.close(shared, "FINISHED", None)
            self.store.log(shared, [], {}, {SIGNATURE: "closed"})
            shared.signature = "closed"

    def _send_summaries(self, summaries: Mapping[str, Summary]) -> None:
        """The aggregated table into the description of every parent; metrics as of now, replacing none."""
        for name, summary in summaries.items():
            parent = self._parent(name)
            sign = hashlib.sha256(json.dumps([summary.markdown, dict(summary.metrics)], sort_keys=True).encode()).hexdigest()[:16]
            if parent.signature == sign:
                continue
            step = parent.sent.get("summary", -1) + 1
            values = {content.key(metric): value for metric, value in summary.metrics.items()}
            point = [content.Point("summary", step, 0, values)] if values else []
            note = {"mlflow.note.content": summary.markdown[: content.NOTE_LENGTH]}
            self.store.log(parent, point, {}, {**note, SIGNATURE: sign})
            self.store.close(parent, "FINISHED" if self._all_done(name) else "RUNNING", None)
            parent.signature = sign

    def _all_done(self, variant: str) -> bool:
        return all(RunRecord(self.root / entry.run_id).state() == "done" for entry in self.entries if variant in entry.variants)


def _problem(report: SyncReport, say: Say, line: str) -> None:
    report.problems = (*report.problems, line)
    say(f"mlflow: left out: {line}")


def _read_study(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    try:
        study = json.loads(path.read_text())
        return {"experiment": path.stem, **study}, [Entry.read(run) for run in study["runs"]]
    except FileNotFoundError:
        raise HicmaeError(f"{path}: no such study; `hicmae report` lists those that were launched") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: damaged study file ({error!r}); launch the study again to write it anew") from None
