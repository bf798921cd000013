"""MLflow's client, patient: what the synchronisation needs of it, tried again while a server is away. The only mlflow import."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlparse
from uuid import uuid4

import tenacity

from hicmae.errors import HicmaeError
from hicmae.tracking.content import Data, Point

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

T = TypeVar("T")
Say = Callable[[str], None]
TOKEN = "hicmae.token"  # noqa: S105 - names an experiment, opens nothing
RUN_ID, SENT, SIGNATURE = "hicmae.run_id", "hicmae.sent", "hicmae.signature"
_TRANSIENT = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
}
_REASONS = re.compile(
    r"too many \d+ error responses|Connection refused|Read timed out|timed out|Name or service not known|No route to host"
    r"|Connection reset"
)
_PARAMS = 100  # MLflow's limit for one batch
SQLITE = "sqlite:///"
MODEL = "model"  # runs:/<run>/model
_LOCAL_DISKS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "tmpfs", "apfs", "hfs", "ntfs")


@dataclass
class Known:
    """A run as MLflow has it: its id there, the signature of what was told, and the last step sent of every split."""

    mlflow_id: str
    signature: str = ""
    sent: dict[str, int] = field(default_factory=dict)
    is_old: bool = True  # not made by this call


class Store:
    """A tracking store. Errors that pass (server away, 5xx, database locked) are tried again for `patience_s` seconds."""

    def __init__(self, uri: str, say: Say, patience_s: float, upload_models: bool = False) -> None:
        self.uri, self._say, self._patience_s, self.upload_models = uri, say, patience_s, upload_models
        self._announced = False
        self._client: MlflowClient = self._connect()

    def _connect(self) -> MlflowClient:
        # The retries are ours; MLflow's own would hide an outage for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # what a laboratory does is its own
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        file = self._file
        if file is not None and not file.exists():
            self._say(f"mlflow: creating {file} (once, some seconds)")
        client = self._patiently(lambda: open_client(self.uri))
        if file is not None:
            self._patiently(lambda: client.search_experiments(max_results=1))
            _write_ahead(file)
        return client

    @property
    def _file(self) -> Path | None:
        return Path(self.uri.removeprefix(SQLITE)) if self.uri.startswith(SQLITE) else None

    def settle(self) -> None:
        """Bring all that was written ahead into the database file itself, which may then be copied or removed alone."""
        if self._file is not None:
            with suppress(sqlite3.OperationalError), closing(sqlite3.connect(self._file)) as database:  # busy: at the next call
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def experiment(self, name: str, note: str, artifacts: str | None) -> tuple[str, str]:
        """Id and token of the experiment, made when there is none. Raises HicmaeError when it was deleted in MLflow."""
        found = self._patiently(lambda: self._client.get_experiment_by_name(name))
        if found is None:
            token = {TOKEN: uuid4().hex, "mlflow.note.content": note, "mlflow.experimentKind": "custom_model_development"}
            self._patiently(lambda: self._create_experiment(name, artifacts, token))
            found = self._patiently(lambda: self._client.get_experiment_by_name(name))
        if found is None or found.lifecycle_stage != "active":
            raise HicmaeError(
                f"MLflow's experiment {name!r} was deleted; `mlflow gc` removes it for good, or restore it in the UI"
            )
        if found.tags.get("mlflow.note.content") != note:
            self._patiently(lambda: self._client.set_experiment_tag(found.experiment_id, "mlflow.note.content", note))
        return str(found.experiment_id), str(found.tags.get(TOKEN, ""))

    def _create_experiment(self, name: str, artifacts: str | None, tags: Mapping[str, str]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_experiment(name, artifact_location=artifacts, tags=dict(tags))
        except MlflowException as error:
            # Another machine was faster, or an earlier try got through after all.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def runs(self, experiment_id: str, run_id: str | None = None) -> dict[str, Known]:
        """hicmae run id -> run, of all runs or of one; of several with the same id the oldest counts."""
        wanted = "" if run_id is None else f"tags.`{RUN_ID}` = '{run_id}'"
        known: dict[str, Known] = {}
        page = None
        while True:
            found = self._patiently(
                lambda token=page: self._client.search_runs(  # type: ignore[misc]
                    [experiment_id], wanted, max_results=1000, order_by=["attributes.start_time DESC"], page_token=token
                )
            )
            for run in found:
                tags = run.data.tags
                if RUN_ID in tags:
                    known[tags[RUN_ID]] = Known(run.info.run_id, tags.get(SIGNATURE, ""), _steps(tags.get(SENT)))
            page = found.token
            if not page:
                return known

    def create(self, experiment_id: str, run_id: str, name: str, tags: Mapping[str, str], start_ms: int | None) -> Known:
        """A new run, found again by its tag if an earlier try got through without an answer."""
        tried = False

        def once() -> Known:
            nonlocal tried
            if tried and (earlier := self.runs(experiment_id, run_id).get(run_id)):
                return earlier
            tried = True
            made = self._client.create_run(experiment_id, start_time=start_ms, tags={**tags, RUN_ID: run_id}, run_name=name)
            return Known(made.info.run_id, is_old=False)

        return self._patiently(once)

    def log(self, run: Known, found: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """One batch; its tags come last and note what was sent: a kill before repeats the batch, which MLflow ignores."""
        from mlflow.entities import Metric, Param, RunTag

        run.sent |= {point.split: point.step for point in found}
        metrics = [Metric(name, value, p.time_ms, p.step) for p in found for name, value in p.values.items()]
        noted = {**tags, SENT: json.dumps(run.sent, sort_keys=True)}
        rows = [Param(name, value) for name, value in params.items()]
        for start in range(0, len(rows), _PARAMS) or [0]:
            last = start + _PARAMS >= len(rows)
            self._patiently(
                lambda start=start, last=last: self._client.log_batch(  # type: ignore[misc]
                    run.mlflow_id,
                    metrics=metrics if last else [],
                    params=rows[start : start + _PARAMS],
                    tags=[RunTag(name, value) for name, value in noted.items()] if last else [],
                    synchronous=True,
                )
            )

    def add_dataset(self, run: Known, data: Data) -> None:
        """Name the data of a run as its input; again changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kept = {"corpus": data.corpus, "fingerprint": data.fingerprint}
        entity = Dataset(data.corpus, data.digest, "hicmae corpus", json.dumps(kept), profile=json.dumps(kept))
        inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", data.role)])]
        self._patiently(lambda: self._client.log_inputs(run.mlflow_id, datasets=inputs))

    def add_model(self, experiment_id: str, run: Known, kind: str, step: int, write: Callable[[Path, str], Path | None]) -> None:
        """The trained model as the run's logged model, found again when an earlier try had begun it.

        `write(folder, id)` lays out its files and returns the weights, which are linked into `folder`/data on a local disk.
        """
        from mlflow.entities import LoggedModelOutput

        outputs = self._patiently(lambda: self._client.get_run(run.mlflow_id)).outputs if run.is_old else None
        found = self._models(experiment_id, run) if run.is_old else []
        model = found[0] if found else self._create_model(experiment_id, run, kind)
        self._write_model(model.artifact_location, model.model_id, write)
        self._patiently(lambda: self._client.finalize_logged_model(model.model_id, "READY"))
        if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else ())]:
            self._patiently(lambda: self._client.log_outputs(run.mlflow_id, [LoggedModelOutput(model.model_id, step)]))

    def _models(self, experiment_id: str, run: Known) -> list[LoggedModel]:
        wanted = f"name = '{MODEL}' AND source_run_id = '{run.mlflow_id}'"
        return list(self._patiently(lambda: self._client.search_logged_models([experiment_id], wanted)))

    def _create_model(self, experiment_id: str, run: Known, kind: str) -> LoggedModel:
        tried = False

        def once() -> LoggedModel:
            nonlocal tried
            if tried and (earlier := self._models(experiment_id, run)):
                return earlier[0]
            tried = True
            return self._client.create_logged_model(experiment_id, MODEL, run.mlflow_id, model_type=kind)

        return self._patiently(once)

    def _write_model(self, location: str, model_id: str, write: Callable[[Path, str], Path | None]) -> None:
        place = urlparse(location)
        if place.scheme in ("", "file"):
            folder = Path(unquote(place.path))
            folder.mkdir(parents=True, exist_ok=True)
            weights = write(folder, model_id)
            if weights is not None:
                _link(weights, folder / "data" / weights.name)
            return
        with tempfile.TemporaryDirectory() as made:
            weights = write(Path(made), model_id)
            if weights is not None and self.upload_models:
                _link(weights, Path(made) / "data" / weights.name)
            self._patiently(lambda: self._client.log_model_artifacts(model_id, made))

    def add_files(self, run: Known, folder: Path) -> None:
        """Everything in a folder, replacing files of the same names."""
        self._patiently(lambda: self._client.log_artifacts(run.mlflow_id, str(folder)))

    def close(self, run: Known, status: str, end_ms: int | None) -> None:
        """Set the status; a run that goes on has no end."""
        if status in ("RUNNING", "SCHEDULED"):
            self._patiently(lambda: self._client.update_run(run.mlflow_id, status=status))
        else:
            self._patiently(lambda: self._client.set_terminated(run.mlflow_id, status=status, end_time=end_ms))

    def _patiently(self, action: Callable[[], T]) -> T:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passes),
            wait=tenacity.wait_exponential(multiplier=0.25, max=15),
            stop=tenacity.stop_after_delay(self._patience_s),
            before_sleep=self._warn,
            reraise=True,
        )
        try:
            return retrying(action)
        except Exception as error:
            if not _passes(error):
                raise
            reason = _first_line(error)
            raise HicmaeError(
                f"MLflow at {self.uri} does not answer ({reason}); nothing is lost, `hicmae sync` goes on later"
            ) from None

    def _warn(self, state: tenacity.RetryCallState) -> None:
        if not self._announced and state.outcome is not None:
            self._announced = True
            self._say(f"mlflow: {self.uri} does not answer ({_first_line(state.outcome.exception())}); trying again")


def _link(file: Path, place: Path) -> None:
    """A second name for a file that is never changed, which takes no room; a copy on another disk."""
    place.unlink(missing_ok=True)
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def _write_ahead(file: Path) -> None:
    """Have SQLite write ahead: one flush for each change instead of three, and the UI reads meanwhile. Only on local disks."""
    if not _is_on_local_disk(file):
        return
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(file)) as database:  # in use: it stays as it is
        database.execute("PRAGMA journal_mode=WAL")


def _is_on_local_disk(file: Path) -> bool:
    import psutil

    places = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    nearest = next((place for place in file.resolve().parents if place in places), None)
    return nearest is not None and places[nearest].startswith(_LOCAL_DISKS)


def open_client(uri: str) -> MlflowClient:
    """MLflow's own client, without its news about migrations."""
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _passes(error: BaseException) -> bool:
    """Whether an error may be gone at the next try."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, MlflowException):
        return error.error_code in _TRANSIENT
    return isinstance(error, (RequestException, OperationalError, ConnectionError, TimeoutError))


def _first_line(error: BaseException | None) -> str:
    """Why, in a few words: MLflow wraps the network's reason into several lines' worth of classes and addresses."""
    found = _REASONS.search(str(error))
    if found is not None:
        return found[0]
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _steps(text: str | None) -> dict[str, int]:
    try:
        return {str(split): int(step) for split, step in json.loads(text or "{}").items()}
    except (ValueError, AttributeError):
        return {}


def write_mlmodel(folder: Path, model_id: str, run: str, outputs: Sequence[str]) -> None:
    """The file MLmodel: a pyfunc in `data` that hicmae.tracking.predictor loads, from a column of paths to named numbers."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    answers = Schema([ColSpec("double", name) for name in outputs]) if outputs else None
    signature = ModelSignature(Schema([ColSpec("string", "clip")]), answers)
    model = Model(artifact_path=MODEL, run_id=run, model_id=model_id, signature=signature)
    pyfunc.add_to_model(model, "hicmae.tracking.predictor", data="data", python_env="python_env.yaml")
    model.save(str(folder / "MLmodel"))
