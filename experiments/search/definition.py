"""A search: a base recipe, a space, an objective on the validation part, a budget, a sampler and a pruner.

A search is a function `search() -> Search` in experiments/search_<name>.py, or in any Python file of one's own:

    python experiments/launch.py search_finetune
    python experiments/launch.py path/to/my_search.py

Selection is nested: each outer fold has a search of its own (`Search.at_fold`), whose trials see that fold's training part
alone. An inner split cuts a validation part of whole actors or sessions out of it, by the split's number as the seed.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments import recipes
from experiments.experiment import Experiment, Run, Variant, is_file, load_file, split_delta
from experiments.search import space as spaces
from experiments.search.space import Space
from hicmae.config import flatten
from hicmae.errors import UsageError, raise_unknown

SMOKE = "_smoke"
SMOKE_FOLDS = (1,)
FREE_TRIALS = 50  # after so many trials in a row that cost nothing a budget of hours alone counts as spent
INNER = "inner"  # EvaluationConfig.selection of trials: judged on the validation part, the test part is never read
# What decides which clips are seen by whom, or what is measured: trials must not differ in it.
FIXED_FIELDS = (
    *("stage", "seed", "data.corpus", "data.fold", "data.fingerprint", "head.task", "head.outputs"),
    *("evaluation.selection", "evaluation.oracle"),
)
LOWER_IS_BETTER = ("loss", "MAE", "RMSE")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
Function = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True)
class Budget:
    """When a search ends: after so many trials, or when so many hours of devices (of GPUs, else of cores) are spent."""

    trials: int | None = None
    gpu_hours: float | None = None

    def __post_init__(self) -> None:
        if self.trials is None and self.gpu_hours is None:
            raise UsageError("a search needs a budget: Budget(trials=50) or Budget(gpu_hours=100)")
        if (self.trials is not None and self.trials < 1) or (self.gpu_hours is not None and not self.gpu_hours > 0):
            raise UsageError(f"a budget of {self}: must be more than zero")

    def allows_another(self, spent: Sequence[float], going: Sequence[float]) -> bool:
        """Whether one more trial fits beside the finished and the unfinished ones, given by the hours each has used so far.

        What is still to come is foreseen from the mean of the finished ones.
        """
        if self.trials is not None and len(spent) + len(going) >= self.trials:
            return False
        if self.gpu_hours is None:
            return True
        if len(spent) >= FREE_TRIALS and not any(spent[-FREE_TRIALS:]):
            return False  # nothing new is proposed any more: all of it was recorded already
        mean = sum(spent) / len(spent) if spent else 0.0
        return sum(spent) + sum(max(mean, hours) for hours in going) + mean <= self.gpu_hours

    def __str__(self) -> str:
        parts = [
            f"{self.trials} trials" if self.trials is not None else "",
            f"{self.gpu_hours:g} GPU-hours (of cores where there is none)" if self.gpu_hours is not None else "",
        ]
        return " or ".join(part for part in parts if part)


@dataclass(frozen=True)
class Search:
    """A declared search. Raises UsageError for everything about it that can be known to be wrong before the first trial.

    `objective` is "validation <metric>", the metric being one of the corpus (its first by default) or "loss"; or a function of
    the parameters, for a search over anything else, which `direction` then says how to read.
    """

    name: str
    title: str
    space: Space
    budget: Budget
    objective: str | Function = "validation"
    direction: str = ""  # maximize or minimize; known for metrics
    description: str = ""
    corpus: str = "crema_d"
    folds: tuple[int, ...] | None = None  # outer folds, each with a search of its own; None: all that the corpus has
    fold: int | None = None  # the outer fold of this search, set by `at_fold`
    splits: int = 1  # inner splits at most; a trial runs the first, and further ones only while it is worth it
    base: Mapping[str, Any] = field(default_factory=dict)  # dotted changes to the recipe, the same for all trials
    size: str = "base"
    pretrain_corpus: str | None = "voxceleb2"
    sampler: str = "TPESampler"
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    pruner: str = "MedianPruner"
    pruner_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    recipe_first: bool = True  # trial 0 is the base configuration itself, where it lies inside the space
    smoke: Mapping[str, Any] = field(default_factory=dict)  # fields of this class that differ at smoke size

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(f"search name {self.name!r}: use letters, digits, '_', '-', '+' and '.' only (it names files)")
        spaces.check_shape(self.space)
        if self.splits < 1:
            raise UsageError(f"{self.name}: splits = {self.splits}: must be at least 1")
        if callable(self.objective):
            if self.direction not in ("maximize", "minimize"):
                raise_unknown("direction of a search over a function", self.direction, ("maximize", "minimize"))
        else:
            _check_objective(self)
            _check_fields(self)

    @property
    def function(self) -> Function | None:
        return self.objective if callable(self.objective) else None

    @property
    def metric(self) -> str:
        """The name of what is optimised, as in metrics.jsonl."""
        if callable(self.objective):
            return "value"
        return self.objective.partition(" ")[2] or recipes.corpus(self.corpus).metrics[0]

    @property
    def maximizes(self) -> bool:
        if self.direction:
            return self.direction == "maximize"
        return self.metric.split()[0] not in LOWER_IS_BETTER

    def at_smoke_size(self) -> Search:
        """The same search at a size for one CPU core, on the generated corpus."""
        changes: dict[str, Any] = {
            "name": self.name + SMOKE,
            "corpus": "synthetic",
            "folds": SMOKE_FOLDS,
            "size": "smoke",
            "pretrain_corpus": "synthetic" if self.pretrain_corpus else None,
        }
        return replace(self, **{**changes, **self.smoke})

    def outer_folds(self) -> tuple[int, ...]:
        """The folds that have a search of their own. Raises UsageError for one that the corpus does not have."""
        known = recipes.corpus(self.corpus).folds
        for fold in self.folds or ():
            if fold not in known:
                raise UsageError(f"{self.name}: {self.corpus} has no fold {fold}; valid: {', '.join(map(str, known))}")
        return known if self.folds is None else self.folds

    def parts(self) -> list[Search]:
        """The independent searches: one per outer fold; a search over a function is one."""
        if self.function is not None or self.fold is not None:
            return [self]
        return [self.at_fold(fold) for fold in self.outer_folds()]

    def at_fold(self, fold: int) -> Search:
        """The search inside one outer fold's training part."""
        return replace(self, name=f"{self.name}_fold{fold}", folds=(fold,), fold=fold)

    def check_space(self) -> None:
        """Build the configurations at the corners of the space. Raises UsageError, with the field and its limits."""
        if self.function is None:
            spaces.check_values(self.space, lambda delta: self.trial_runs(0, delta, 1, lambda corpus: ""))

    def recipe(self) -> spaces.Params | None:
        """The parameters of the base configuration; None when it lies outside the space, or there is none."""
        if self.function is not None or not self.recipe_first:
            return None
        known: dict[str, Any] = {}
        for run in self.trial_runs(0, {}, 1, lambda corpus: ""):  # pre-training first: a field of both is fine-tuning's
            known.update(flatten(run.config))
            known.update({f"{run.stage}.{name}": value for name, value in flatten(run.config).items()})
        return spaces.defaults(self.space, known)

    def trial_runs(self, number: int, delta: Mapping[str, Any], splits: int, fingerprint: Callable[[str], str]) -> list[Run]:
        """The runs of a trial with its first inner splits, pre-training first. Raises ConfigError for values that cannot run."""
        return self.trials_experiment({number: delta}, splits).runs(fingerprint)

    def trials_experiment(self, deltas: Mapping[int, Mapping[str, Any]], splits: int) -> Experiment:
        """Trials as variants of an experiment inside the outer fold's training part."""
        variants = tuple(
            Variant(trial_name(number), {**self.base, **delta, **_inner()}, columns=dict(delta))
            for number, delta in deltas.items()
        )
        return Experiment(
            name=self.name,
            title=self.title,
            description=self.description,
            variants=variants,
            corpora=(self.corpus,),
            folds=(self.fold or self.outer_folds()[0],),
            seeds=tuple(range(splits)),
            size=self.size,
            pretrain_corpus=self.pretrain_corpus,
        )

    def form(self) -> dict[str, Any]:
        """What is searched for, as plain values."""
        values: dict[str, Any] = {"space": spaces.to_json(self.space), "direction": "maximize" if self.maximizes else "minimize"}
        if self.function is None:
            objective = f"validation {self.metric}"
            values |= {"objective": objective, "corpus": self.corpus, "fold": self.fold, "splits": self.splits}
            values |= {"base": dict(self.base), "size": self.size, "pretrain_corpus": self.pretrain_corpus}
        return dict(json.loads(json.dumps(values, default=str)))

    def identity(self, fingerprint: Callable[[str], str]) -> dict[str, Any]:
        """What makes trials comparable: two searches of one name must agree in it."""
        if self.function is not None:
            return self.form()
        recipe = [run.run_id for run in self.trial_runs(0, {}, 1, fingerprint)]
        return {**self.form(), "base configuration and data": recipe}


def trial_name(number: int) -> str:
    return f"trial {number:04d}"


def names() -> tuple[str, ...]:
    """The searches that the project knows by name: experiments/search_<name>.py."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.parent.glob("search_*.py")))


def find(name: str) -> Search:
    """The search of a name, or of a Python file that defines `search()`. Raises UsageError when there is none."""
    if is_file(name):
        if not Path(name).is_file():
            raise UsageError(f"{name}: no such file; a search is a name ({', '.join(names())}) or a Python file with search()")
        module = load_file(Path(name))
    elif name in names():
        module = importlib.import_module(f"experiments.{name}")
    else:
        raise_unknown("search", name, names())
    make = getattr(module, "search", None)
    found = make() if callable(make) else None
    if not isinstance(found, Search):
        raise UsageError(
            f"{module.__file__}: needs a function search() that returns a Search; see experiments/search_finetune.py"
        )
    return found


def is_search(name: str) -> bool:
    """Whether a name, or a Python file, is that of a search rather than of an experiment."""
    if is_file(name):
        return Path(name).is_file() and callable(getattr(load_file(Path(name)), "search", None))
    return name in names()


def _inner() -> dict[str, Any]:
    return {"evaluation.selection": INNER, "evaluation.oracle": False}


def _check_objective(search: Search) -> None:
    part, _, metric = str(search.objective).partition(" ")
    if part != "validation":
        reason = "choosing by the test part would make its numbers optimistic, so it is seen once, by the chosen configuration"
        raise UsageError(
            f"{search.name}: objective {search.objective!r}: a search is judged on 'validation <metric>' alone; {reason}"
            if part in ("test", "oracle", "last")
            else f"{search.name}: objective {search.objective!r}: is 'validation <metric>', such as 'validation UAR'"
        )
    known = recipes.corpus(search.corpus)
    if known.task == "pretraining":
        raise UsageError(f"{search.name}: {search.corpus} has no labels to judge by; search on the corpus that is fine-tuned")
    allowed = [*known.metrics, *(f"{kind} {target}" for kind in known.metrics for target in known.targets), "loss"]
    if metric and metric not in allowed:
        raise_unknown(f"metric of {search.corpus}", metric, allowed)


def _check_fields(search: Search) -> None:
    """Refuse fields that no stage has, and those in which trials must not differ."""
    searched = spaces.fields(search.space)
    split_delta(dict.fromkeys([*searched, *search.base]))
    for name in [*searched, *search.base]:
        inner = name.removeprefix("pretrain.").removeprefix("finetune.")
        if inner in FIXED_FIELDS or (inner.startswith("evaluation.") and name in searched):
            raise UsageError(
                f"{search.name}: {name} is not for a search: it says what is measured, and trials would not be comparable; "
                "set Search.corpus, folds, splits or objective instead"
            )
