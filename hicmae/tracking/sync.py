"""Carry studies and runs into MLflow: one experiment per study, a parent run per variant, a child per fold and seed.
A search is one parent run with its trials as children.

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

from hicmae.config import RunConfig
from hicmae.errors import HicmaeError, RecordError
from hicmae.record import RunRecord, write_json
from hicmae.tracking import content, files, search
from hicmae.tracking.content import Data, Entry, Summary
from hicmae.tracking.store import SIGNATURE, SQLITE, Known, Say, Store

FOLDER = "_mlflow"
UI_ADDRESS = "http://127.0.0.1:5000"
MODEL_TRAINING = "?workflowType=machine_learning"  # else MLflow's UI opens on its pages for language models
UPLOADED = "+weights"  # ends the signature of a run whose weights were copied to a server
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
    upload_models: bool = False,
) -> SyncReport:
    """Tell MLflow what is new in the named studies, or in all. Several calls at once wait for each other.

    `summarise` gives what the variants' parent runs show. Logged models link the weights of their runs where MLflow's files lie
    on a local disk; a server is told where the weights are, and gets a copy with `upload_models`.
    Raises HicmaeError when the store does not answer for `patience_s`.
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
        store = Store(uri, say, patience_s, upload_models and not uri.startswith(SQLITE))
        for name in names:
            _send_study(runs_root, name, store, memory, report, say, summarise)
        store.settle()
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


def is_up_to_date(runs_root: Path, tracking_uri: str | None = None, *, studies: Sequence[str] | None = None) -> bool:
    """Whether `sync` of the studies would find nothing new, from what is remembered beside the runs; MLflow is not asked."""
    uri = tracking_uri or default_uri(runs_root)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return False
    memory = _Memory(runs_root / FOLDER, uri)
    files_of = (runs_root / "_studies").glob("*.json")
    return all(_is_told(runs_root, path, memory) for path in files_of if studies is None or path.stem in studies)


def _is_told(runs_root: Path, study_file: Path, memory: _Memory) -> bool:
    known = memory.runs(study_file.stem)
    if known is None:
        return False
    try:
        study, entries = _read_study(study_file)
    except RecordError:
        return False
    found = search.Found.of(runs_root, study)
    if found is not None and (found.parent not in known or known[found.parent].signature != found.signature):
        return False
    return not any(_is_new(runs_root, entry, known) for entry in entries)


def _is_new(runs_root: Path, entry: Entry, known: Mapping[str, Known], uploaded: bool = False) -> bool:
    """Whether there is something to tell of a run: of its record or, where weights are `uploaded`, these."""
    record, told = RunRecord(runs_root / entry.run_id), known.get(entry.run_id)
    if not (record.path / "config.json").exists():
        return False
    sign = content.signature(record)
    return told is None or told.signature not in ((f"{sign}{UPLOADED}",) if uploaded else (sign, f"{sign}{UPLOADED}"))


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
            "runs": {run_id: {**asdict(known), "is_old": True} for run_id, known in runs.items()},
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
        self.name, self.told = name, set[tuple[str, str, str]]()
        self.found = search.Found.of(runs_root, self.study)
        self.order = list(dict.fromkeys(variant for entry in self.entries for variant in entry.variants))
        remembered = memory.runs(name, self.token)
        self.known = store.runs(self.experiment_id) if remembered is None else remembered
        self.is_remembered = remembered is not None

    def send(self, summarise: Summarise | None) -> None:
        changed = [entry for entry in self.entries if _is_new(self.root, entry, self.known, self.store.upload_models)]
        self.report.studies += 1
        self.report.unchanged_runs += len(self.entries) - len(changed)
        if not (changed or self._lacks_tables(summarise)) and self.is_remembered:
            return
        self.memory.begin()
        for number, entry in enumerate(changed, 1):
            self._send_safely(entry)
            if number % 50 == 0 or number == len(changed):
                self.say(f"mlflow: {self.name}: {number} of {len(changed)} runs")
        if self.found is not None:
            self._send_search(self.found)
        elif summarise:
            self._send_summaries(summarise(self.root, self.name))
        self._close_shared()
        self.memory.remember(self.name, self.experiment_id, self.token, self.known)

    def _lacks_tables(self, summarise: Summarise | None) -> bool:
        """Whether a parent run does not show what is known: a variant's table, or what a search has found by now."""
        if self.found is not None:
            known = self.known.get(self.found.parent)
            return known is None or known.signature != self.found.signature
        return summarise is not None and any(
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
        """Everything new of a run; its signature ends the last batch, so that a kill before that sends the rest again."""
        config, sign, status = record.config(), content.signature(record), content.status(record)
        sign += UPLOADED if self.store.upload_models and status == "FINISHED" else ""
        parent, data = self._parent(entry), content.dataset(config, record)
        tags = {**content.tags(self.study, entry, record), "mlflow.parentRunId": parent.mlflow_id}
        run = self.known.get(entry.run_id)
        if run is None:
            run = self.store.create(self.experiment_id, entry.run_id, entry.name, tags, content.start_ms(record))
            self.known[entry.run_id] = run
            tags = {}
        params = {} if run.signature else content.params(config)
        if not run.signature:
            self._add_data(parent, run, data)
        counts = content.confusion_counts(record, entry) if status == "FINISHED" else None
        if status == "FINISHED":
            self._send_files(run, record, config, counts)
        self.store.close(run, status, content.end_ms(record))
        self._send_points(run, record, counts, params, {**tags, SIGNATURE: sign})
        run.signature = sign

    def _add_data(self, parent: Known, run: Known, data: Data) -> None:
        """The run's data set; its parent has it too, because MLflow's list shows parents first."""
        self.store.add_dataset(run, data)
        if (parent.mlflow_id, data.corpus, data.digest) not in self.told:
            self.store.add_dataset(parent, Data(data.corpus, data.fingerprint, "all runs"))
            self.told.add((parent.mlflow_id, data.corpus, data.digest))

    def _send_files(self, run: Known, record: RunRecord, config: RunConfig, counts: content.Counts | None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            files.write(record, counts, Path(folder))
            self.store.add_files(run, Path(folder))
        if (record.path / "checkpoints" / files.WEIGHTS).is_file():
            step = int((record.result() or {}).get("steps") or 0)
            self.store.add_model(
                self.experiment_id,
                run,
                config.stage,
                step,
                lambda place, model_id: files.write_model(record, config, place, model_id, run.mlflow_id),
            )

    def _send_points(
        self,
        run: Known,
        record: RunRecord,
        counts: content.Counts | None,
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        found = content.points(record, run.sent)
        final = content.final_point(record, counts) if record.state() == "done" and "result" not in run.sent else None
        found += [final] if final else []
        groups = list(content.batches(found, BATCH)) or [[]]
        for index, group in enumerate(groups):
            self.store.log(run, group, params if index == 0 else {}, tags if index == len(groups) - 1 else {})
            self.report.points += sum(len(point.values) for point in group)

    def _parent(self, entry: Entry) -> Known:
        """The run above a run: its search, its variant, or that of the runs that several variants share."""
        return self._search_run(self.found) if self.found is not None else self._variant(entry.parent)

    def _variant(self, name: str) -> Known:
        title = "shared by several variants" if name == content.SHARED else name
        return self._parent_run(f"variant:{name}", title, {"hicmae.variant": name, "hicmae.stage": "variant"})

    def _search_run(self, found: search.Found) -> Known:
        return self._parent_run(found.parent, found.title, {"hicmae.stage": "search"})

    def _parent_run(self, key: str, title: str, tags: Mapping[str, str]) -> Known:
        if key not in self.known:
            tags = {"hicmae.study": self.name, **tags}
            launched = int(1000 * float(self.study.get("created") or 0)) or None
            if launched and title in self.order:  # MLflow shows what began last first: a millisecond each keeps the study's order
                launched -= self.order.index(title)
            self.known[key] = self.store.create(self.experiment_id, key, title[:250], tags, launched)
        return self.known[key]

    def _send_search(self, found: search.Found) -> None:
        """What a search has found so far, and its figures, into its parent run."""
        parent = self._search_run(found)
        if parent.signature == found.signature:
            return
        with tempfile.TemporaryDirectory() as folder:
            if found.lay_out(Path(folder)):
                self.store.add_files(parent, Path(folder))
        step = parent.sent.get("search", -1) + 1
        note = {"mlflow.note.content": found.markdown[: content.NOTE_LENGTH]}
        self._close_parent(parent, [RunRecord(self.root / entry.run_id) for entry in self.entries], found.is_over)
        *earlier, last = list(content.batches(found.points(step), BATCH)) or [[]]
        for group in earlier:
            self.store.log(parent, group, {}, {})
        self.store.log(parent, last, {}, {**note, SIGNATURE: found.signature})
        parent.signature = found.signature

    def _close_shared(self) -> None:
        """The run above shared runs ends with the last of them."""
        shared = self.known.get(f"variant:{content.SHARED}")
        records = [RunRecord(self.root / entry.run_id) for entry in self.entries if entry.parent == content.SHARED]
        if shared and not shared.signature and all(record.state() == "done" for record in records):
            self._close_parent(shared, records, True)
            self.store.log(shared, [], {}, {SIGNATURE: "closed"})
            shared.signature = "closed"

    def _send_summaries(self, summaries: Mapping[str, Summary]) -> None:
        """The aggregated table into the description of every parent; metrics as of now, replacing none."""
        for name, summary in summaries.items():
            parent = self._variant(name)
            sign = hashlib.sha256(json.dumps([summary.markdown, dict(summary.metrics)], sort_keys=True).encode()).hexdigest()[:16]
            if parent.signature == sign:
                continue
            step = parent.sent.get("summary", -1) + 1
            values = {content.key(metric): value for metric, value in summary.metrics.items()}
            point = [content.Point("summary", step, 0, values)] if values else []
            note = {"mlflow.note.content": summary.markdown[: content.NOTE_LENGTH]}
            self.store.log(parent, point, {}, {**note, SIGNATURE: sign})
            records = [RunRecord(self.root / entry.run_id) for entry in self.entries if name in entry.variants]
            self._close_parent(parent, records, all(record.state() == "done" for record in records))
            parent.signature = sign

    def _close_parent(self, parent: Known, records: Sequence[RunRecord], is_over: bool) -> None:
        """A parent ends with the last of its runs."""
        ended = [end for record in records if (end := content.end_ms(record)) is not None]
        self.store.close(parent, "FINISHED" if is_over else "RUNNING", max(ended, default=None))


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
