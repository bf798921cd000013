"""MLflow's client, patient: what the synchronisation needs of it, tried again while a server is away. The only mlflow import."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import tenacity

from hicmae.errors import HicmaeError
from hicmae.tracking.content import Point

if TYPE_CHECKING:
    from mlflow import MlflowClient

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
_PARAMS, _TAGS = 100, 100  # MLflow's limits for one batch


@dataclass
class Known:
    """A run as MLflow has it: its id there, the signature of what was told, and the last step sent of every split."""

    mlflow_id: str
    signature: str = ""
    sent: dict[str, int] = field(default_factory=dict)


class Store:
    """A tracking store. Errors that pass (server away, 5xx, database locked) are tried again for `patience_s` seconds."""

    def __init__(self, uri: str, say: Say, patience_s: float) -> None:
        self.uri, self._say, self._patience_s = uri, say, patience_s
        self._announced = False
        self._client: MlflowClient = self._connect()

    def _connect(self) -> MlflowClient:
        # The retries are ours; MLflow's own would hide an outage for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        if self.uri.startswith("sqlite:///") and not Path(self.uri.removeprefix("sqlite:///")).exists():
            self._say(f"mlflow: creating {self.uri.removeprefix('sqlite:///')} (once, some seconds)")
        from mlflow import MlflowClient

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return self._patiently(lambda: MlflowClient(tracking_uri=self.uri))

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
            return Known(made.info.run_id)

        return self._patiently(once)

    def log(self, run: Known, found: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """One batch; it ends by noting what was sent, so that a kill before that repeats the batch, which MLflow ignores."""
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

    def add_dataset(self, run: Known, name: str, digest: str, role: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name=name, digest=digest, source_type="hicmae corpus", source=json.dumps({"corpus": name}))
        inputs = [DatasetInput(data, [InputTag("mlflow.data.context", role)])]
        self._patiently(lambda: self._client.log_inputs(run.mlflow_id, datasets=inputs))

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


def _passes(error: BaseException) -> bool:
    """Whether an error may be gone at the next try."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, MlflowException):
        return error.error_code in _TRANSIENT
    return isinstance(error, (RequestException, OperationalError, ConnectionError, TimeoutError))


def _first_line(error: BaseException | None) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _steps(text: str | None) -> dict[str, int]:
    try:
        return {str(split): int(step) for split, step in json.loads(text or "{}").items()}
    except (ValueError, AttributeError):
        return {}
