"""The trials of a search in Optuna's storage: the only module that imports optuna.

    study = Study.open(search, folder)                # folder: runs/_studies/<search>
    while (trial := study.claim()) is not None:       # asked from the sampler, or taken over from a dead worker
        study.tell(trial, value)

Storage is a journal file in the folder, safe for many processes on many machines, or a database by its URL. Every trial has one
owner (experiments/search/claims.py); asking happens under the study's lock, so the budget is met exactly.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.search import space as spaces
from experiments.search.claims import Claim, Claims, SharedLock
from experiments.search.definition import Budget, Search
from experiments.search.space import Bundle, Choice, Dimension, Float, Params
from hicmae.errors import UsageError, raise_unknown
from hicmae.seeding import derive

optuna.logging.set_verbosity(optuna.logging.ERROR)

JOURNAL = "journal.log"
MAX_TAKEOVERS = 10  # a trial that took so many workers with it counts as failed
_SAME_SEED = ("GridSampler", "QMCSampler")  # walk one fixed sequence, whoever asks
_STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Row:
    """A trial as recorded. `notes` are what workers wrote beside it: runs, splits, hours, reason."""

    number: int
    state: str  # waiting, running, done, pruned or failed
    params: Params
    value: float | None
    notes: Mapping[str, Any]
    reports: Mapping[int, float]

    @property
    def splits(self) -> int:
        """On how many inner splits its value is the mean."""
        return int(self.notes.get("splits", 1))


def ranked(search: Search, rows: Iterable[Row]) -> list[Row]:
    """Finished trials, best first: those judged on more splits come before those that were not worth as many."""
    sign = -1 if search.maximizes else 1
    done = [row for row in rows if row.state == "done" and row.value is not None]
    return sorted(done, key=lambda row: (-row.splits, sign * (row.value or 0.0), row.number))


@dataclass(frozen=True)
class OwnTrial:
    """A trial that this process owns until it is told or given back."""

    number: int
    params: Params
    notes: dict[str, Any]
    claim: Claim
    trial: Trial = field(repr=False)
    reported: set[int] = field(default_factory=set)  # steps

    def note(self, **values: Any) -> None:
        """Write something beside the trial that whoever takes it over, and readers, will find."""
        for name, value in values.items():
            if self.notes.get(name) != value:
                self.notes[name] = value
                self.trial.set_user_attr(name, value)

    def report(self, value: float, step: int) -> bool:
        """Record an intermediate value once; whether the pruner says that the trial is not worth going on."""
        if step not in self.reported:
            self.trial.report(value, step)
            self.reported.add(step)
        return not self.notes.get("promoted") and self.trial.should_prune()

    def give_back(self) -> None:
        """Leave the trial to another worker, or to oneself later."""
        self.claim.release(finished=False)


class Study:
    """The trials of one search."""

    def __init__(self, search: Search, folder: Path, study: optuna.Study) -> None:
        self.search, self.folder, self._study = search, folder, study
        self._lock = SharedLock(folder / "study.lock")
        self._claims = Claims(folder / "claims")

    @classmethod
    def open(cls, search: Search, folder: Path, url: str | None, identity: Mapping[str, Any]) -> Study:
        """The study of a search, made when there is none. Raises UsageError when its name is in use for another search."""
        folder.mkdir(parents=True, exist_ok=True)
        # Claims lie in the folder, so a database must not serve two of them.
        identity = {**identity, **({"folder": str(folder.absolute())} if url else {})}
        with SharedLock(folder / "study.lock"):
            storage = _storage(folder, url)
            study = optuna.create_study(
                storage=storage,
                study_name=search.name,
                direction="maximize" if search.maximizes else "minimize",
                sampler=_made("sampler", search.sampler, search.sampler_options),
                pruner=_made("pruner", search.pruner, search.pruner_options),
                load_if_exists=True,
            )
            opened = cls(search, folder, study)
            opened._agree(identity)
            opened._enqueue_recipe()
        return opened

    @classmethod
    def look(cls, search: Search, folder: Path, url: str | None = None) -> Study:
        """The study for reading. Raises UsageError when it was never begun, or has been declared anew since."""
        try:
            if not url and not (folder / JOURNAL).exists():
                raise KeyError(search.name)
            study = optuna.load_study(study_name=search.name, storage=_storage(folder, url))
        except KeyError:
            raise UsageError(f"{search.name}: was never begun in {folder.parent.parent}; `hicmae search run` begins it") from None
        known, form = study.user_attrs.get("identity", {}), search.form()
        if any(known[key] != value for key, value in form.items() if key in known):  # older studies know less of themselves
            raise UsageError(
                f"{search.name}: was launched with another {_first_difference({key: known.get(key) for key in form}, form)}; "
                f"name the file as it was then, a copy is in {folder.parent.parent}/_code"
            )
        budget = study.user_attrs.get("budget")
        return cls(replace(search, budget=Budget(**budget)) if budget else search, folder, study)

    def keep_budget(self) -> None:
        """Write down the budget of a launch, which may be another than the declared one."""
        self._study.set_user_attr("budget", asdict(self.search.budget))

    def claim(self) -> OwnTrial | None:
        """A trial to work on: a dead worker's first, else a new one from the sampler; None when the budget is spent."""
        with self._lock:
            trials = self._study.get_trials(deepcopy=False)
            for frozen in trials:
                owned = self._take_over(frozen) if frozen.state == TrialState.RUNNING else None
                if owned is not None:
                    return owned
            if not self._may_begin(trials):
                return None
            seed = self.search.seed if self.search.sampler in _SAME_SEED else derive(self.search.seed, len(trials)) % 2**32
            self._study.sampler = _made("sampler", self.search.sampler, self.search.sampler_options, seed)
            return self._owned(self._study.ask())

    def tell(self, trial: OwnTrial, value: float | None = None, *, pruned: bool = False, reason: str = "") -> bool:
        """Finish an own trial: with a value, as pruned, or as failed for a reason. False when another worker had finished it."""
        state = TrialState.PRUNED if pruned else TrialState.FAIL if value is None else TrialState.COMPLETE
        if reason:
            trial.note(reason=reason)
        try:
            self._study.tell(trial.trial, value, state=state)
            told = True
        except (ValueError, UpdateFinishedTrialError):  # it was taken over while this worker seemed dead
            told = False
        except RuntimeError:  # samplers of finite spaces call for an end, which Optuna takes inside its own loop only
            self._study.set_user_attr("exhausted", True)
            told = True
        trial.claim.release(finished=True)
        return told

    def rows(self) -> list[Row]:
        """All trials by number."""
        return [_row(frozen) for frozen in self._study.get_trials(deepcopy=False)]

    def is_spent(self) -> bool:
        """Whether nothing is left to begin or to finish."""
        trials = self._study.get_trials(deepcopy=False)
        return all(frozen.state.is_finished() for frozen in trials) and not self._may_begin(trials)

    def best(self) -> Row:
        """The best finished trial among those that were judged on most splits. Raises UsageError when none is finished."""
        found = ranked(self.search, self.rows())
        if not found:
            raise UsageError(f"{self.search.name}: no trial is finished yet; see `hicmae search status`")
        return found[0]

    def promote(self, number: int) -> None:
        """Ask for a pruned trial to be run to its end, beyond the budget. Raises UsageError for one that was not pruned."""
        pruned = [row for row in self.rows() if row.state == "pruned"]
        row = next((row for row in pruned if row.number == number), None)
        if row is None:
            raise_unknown(f"pruned trial of {self.search.name}", str(number), [str(row.number) for row in pruned])
        with self._lock:
            if not any(other.notes.get("promoted") == number for other in self.rows()):
                self._study.enqueue_trial(dict(row.params), user_attrs={"promoted": number})

    def importance(self) -> dict[str, float]:
        """How much each parameter explains of the objective (Optuna's PED-ANOVA), largest first; empty with too few trials."""
        done = [row for row in self.rows() if row.state == "done"]
        if len({row.value for row in done}) < 2:
            return {}
        return dict(optuna.importance.get_param_importances(self._study))

    def draw(self, folder: Path) -> list[Path]:
        """Optuna's figures, as PNG and PDF: history, slice, parallel coordinates and, with two values or more, importance."""
        import matplotlib

        matplotlib.use("Agg")
        from optuna.visualization import matplotlib as plots

        target = self.search.metric if self.search.function else f"validation {self.search.metric}"
        study = self._with_short_names()
        figures: dict[str, Callable[[], Any]] = {
            "history": lambda: plots.plot_optimization_history(study, target_name=target),
            "slice": lambda: plots.plot_slice(study, target_name=target),
            "parallel_coordinates": lambda: plots.plot_parallel_coordinate(study, target_name=target),
        }
        if self.importance():
            figures["importance"] = lambda: plots.plot_param_importances(study, target_name=target)
        folder.mkdir(parents=True, exist_ok=True)
        width_in = 3.0 + 1.7 * len(self.search.space)
        with _quiet(), matplotlib.rc_context():  # Optuna's figures change the style for good
            return [path for name, plot in figures.items() for path in _save(plot(), folder / name, width_in)]

    def draw_found(self) -> None:
        """The figures of what was found, if anything, to the study's folder."""
        if any(row.state == "done" for row in self.rows()):
            self.draw(self.folder / "figures")

    def _with_short_names(self) -> optuna.Study:
        """A copy in memory whose parameters are called by the last word of their fields, where that is clear."""
        short = spaces.short_names(self.search.space)
        copy = optuna.create_study(direction=self._study.direction)
        for frozen in self._study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)):
            frozen.params = {short[name]: value for name, value in frozen.params.items()}
            frozen.distributions = {short[name]: distribution for name, distribution in frozen.distributions.items()}
            copy.add_trial(frozen)
        return copy

    def _agree(self, identity: Mapping[str, Any]) -> None:
        known = self._study.user_attrs.get("identity")
        if known is None:
            self._study.set_user_attr("identity", dict(identity))
        elif known != dict(identity):
            raise UsageError(
                f"{self.search.name}: its name is in use with another {_first_difference(known, identity)}; "
                f"give the search another name, or remove {self.folder} (its runs are kept)"
            )

    def _enqueue_recipe(self) -> None:
        recipe = self.search.recipe()
        if recipe is not None and not self._study.get_trials(deepcopy=False):
            self._study.enqueue_trial(recipe)

    def _take_over(self, frozen: FrozenTrial) -> OwnTrial | None:
        """Own a running trial if its worker is dead."""
        claim = self._claims.take(frozen.number)
        if claim is None:
            return None
        trial = Trial(self._study, frozen._trial_id)  # the public constructor takes the id that only this attribute has
        now = next(row for row in self._study.get_trials(deepcopy=False) if row.number == frozen.number)
        if now.state.is_finished():  # told between our look and our claim
            claim.release(finished=True)
            return None
        owned = self._owned(trial, claim)
        owned.reported.update(now.intermediate_values)
        if claim.takeovers > MAX_TAKEOVERS:
            self.tell(owned, reason=f"{claim.takeovers} workers died over it")
            return None
        return owned

    def _owned(self, trial: Trial, claim: Claim | None = None) -> OwnTrial:
        """Complete a trial's parameters; those that a dead worker had drawn stay."""
        claim = claim or self._claims.take(trial.number)
        if claim is None:
            raise UsageError(f"{self.folder}: belongs to a search with another storage; give the search another name")
        params = spaces.draw(self.search.space, lambda name, dimension: _suggest(trial, name, dimension))
        return OwnTrial(trial.number, params, dict(trial.user_attrs), claim, trial)

    def _may_begin(self, trials: list[FrozenTrial]) -> bool:
        if any(frozen.state == TrialState.WAITING for frozen in trials):
            return True
        counted = [frozen for frozen in trials if "promoted" not in frozen.user_attrs]
        spent = [float(frozen.user_attrs.get("hours", 0.0)) for frozen in counted if frozen.state.is_finished()]
        going = [float(frozen.user_attrs.get("hours", 0.0)) for frozen in counted if not frozen.state.is_finished()]
        return "exhausted" not in self._study.user_attrs and self.search.budget.allows_another(spent, going)


class _JournalLock(JournalFileOpenLock):
    """The journal's lock, which a killed process leaves free.

    A last line torn by a full disk or a lost machine is cut off before anything is written behind it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path, self._lock = path, SharedLock(path.with_suffix(".lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        with self._path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                file.truncate(self._path.read_bytes().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._lock.release()


def _storage(folder: Path, url: str | None) -> BaseStorage:
    """The journal of the folder, or a database. Raises UsageError for one that cannot be reached."""
    if not url:
        path = folder / JOURNAL
        path.touch()
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_JournalLock(path)))
    from sqlalchemy.exc import SQLAlchemyError

    shown = url.rpartition("@")[2] if "@" in url else url  # a password is never shown
    try:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        raise UsageError(f"storage {shown}: its driver is not installed ({error.__cause__ or error}); pip install it") from None
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"storage {shown}: cannot be used ({reason}); give a URL such as postgresql://user@host/database"
        ) from None


def _made(kind: str, name: str, options: Mapping[str, Any], seed: int | None = None) -> Any:
    """A sampler or pruner of Optuna's by its class name. Raises UsageError for unknown ones, and for options that they refuse."""
    module = optuna.samplers if kind == "sampler" else optuna.pruners
    known = [other for other in module.__all__ if other.endswith(kind.title()) and not other.startswith(("Base", "Partial"))]
    if name not in known:
        raise_unknown(kind, name, known)
    try:
        with _quiet():
            return getattr(module, name)(**options, **({} if seed is None or "seed" in options else {"seed": seed}))
    except ImportError as error:
        raise UsageError(f"{name} needs a package that is not installed: {str(error).splitlines()[0]}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: refuses its options {dict(options)}: {error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remark that a part of Optuna may change (the lock file keeps its version), or that an axis has one value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Attempting to set identical low and high", UserWarning)
        yield


def _suggest(trial: Trial, name: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Float):
        return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
    if isinstance(dimension, (Choice, Bundle)):
        return trial.suggest_categorical(name, dimension.labels)
    return trial.suggest_int(name, dimension.low, dimension.high, step=dimension.step, log=dimension.log)


def _row(frozen: FrozenTrial) -> Row:
    state, value = _STATES[frozen.state], frozen.value if frozen.values else None
    return Row(frozen.number, state, dict(frozen.params), value, dict(frozen.user_attrs), dict(frozen.intermediate_values))


def _first_difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """`space: optim.base_lr: low: was ..., is ...`: the first thing in which two identities differ."""
    for key in [*wanted, *known]:
        old, new = known.get(key), wanted.get(key)
        if old != new and isinstance(old, dict) and isinstance(new, dict):
            return f"{key}: {_first_difference(old, new)}"
        if old != new:
            return f"{key}: was {json.dumps(old)}, is {json.dumps(new)}"
    return "definition"


def _save(axes: Any, path: Path, width_in: float) -> list[Path]:
    """Save a figure of Optuna's, plain and wide enough for its parameters' names."""
    import numpy as np
    from matplotlib import pyplot

    figure = np.ravel(axes)[0].figure
    is_parallel = path.name == "parallel_coordinates"
    figure.set_size_inches(width_in if is_parallel or path.name == "slice" else 7.0, 4.2)
    for axis in figure.axes:
        axis.set_facecolor("0.9" if is_parallel else "white")  # its palest lines would vanish on white
        axis.spines[:].set(visible=not is_parallel, color="0.7")
        axis.grid(False)
        axis.tick_params(labelsize="small", which="both")
        axis.tick_params(axis="x", which="minor", labelbottom=False)
    files = [path.with_suffix(suffix) for suffix in (".png", ".pdf")]
    for file in files:
        figure.savefig(file, bbox_inches="tight", dpi=150)
    pyplot.close(figure)
    return files
