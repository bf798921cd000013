"""The space of a search: typed ranges over dotted fields of hicmae/config.py, checked before the first trial.

    space = {
        "optim.base_lr": Float(1e-4, 1e-2, log=True),
        "optim.batch_size": Int(16, 64, step=16),
        "objective.contrastive": Choice(("none", "last", "hierarchical")),
        "objective.contrastive_weight": Float(1e-4, 1e-1, log=True, when={"objective.contrastive": ("last", "hierarchical")}),
        "decoder": Bundle({"shallow": {"decoder.depth": 3, "objective.levels": (5, 10)}, "deep": {}}),
    }

A dimension with `when` exists only where the dimensions before it have one of the given values; elsewhere its field keeps
the value of the base configuration.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hicmae.errors import ConfigError, UsageError, raise_unknown

MAX_CORNERS = 512  # all of them where they are fewer, else so many drawn ones, each value of each dimension among them
DENSE = 32  # values of an integer range that are tried, ends included
Params = dict[str, Any]  # what the sampler chose: numbers, and the labels of options
When = Mapping[str, Any]


@dataclass(frozen=True)
class Float:
    """A real number between two limits, both included; `log` draws its logarithm evenly."""

    low: float
    high: float
    log: bool = False
    when: When = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_limits(self.low, self.high, self.log)

    def values(self) -> list[Any]:
        """What is tried before the first trial."""
        return [float(self.low), float(self.high)]

    def holds(self, value: Any) -> bool:
        return _is_number(value) and self.low <= value <= self.high


@dataclass(frozen=True)
class Int:
    """A whole number between two limits, both included, at a step from the lower one."""

    low: int
    high: int
    step: int = 1
    log: bool = False
    when: When = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_limits(self.low, self.high, self.log)
        if not all(isinstance(number, int) for number in (self.low, self.high, self.step)) or self.step < 1:
            raise UsageError(f"Int({self.low}, {self.high}, step={self.step}): takes whole numbers and a step of at least 1")
        if (self.high - self.low) % self.step or (self.log and self.step != 1):
            raise UsageError(f"Int({self.low}, {self.high}, step={self.step}): the step must lead to the end, and is 1 with log")

    def values(self) -> list[Any]:
        steps = (self.high - self.low) // self.step
        chosen = {round(steps * share / (DENSE - 1)) for share in range(DENSE)}
        return [self.low + self.step * number for number in sorted(chosen)]

    def holds(self, value: Any) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high and not (value - self.low) % self.step


@dataclass(frozen=True)
class Choice:
    """One of some values of any type that the field takes."""

    options: tuple[Any, ...]
    when: When = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_labels(self.labels)

    @property
    def labels(self) -> list[Any]:
        """How samplers and tables call the options: numbers, truth values, None and texts by themselves, all else by its text."""
        return [option if isinstance(option, (str, int, float, bool, type(None))) else str(option) for option in self.options]

    def values(self) -> list[Any]:
        return self.labels

    def holds(self, value: Any) -> bool:
        return value in self.options


@dataclass(frozen=True)
class Bundle:
    """One of some named sets of changes, for fields that fit only together. The dimension's own name is free."""

    options: Mapping[str, Mapping[str, Any]]
    when: When = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_labels(self.labels)

    @property
    def labels(self) -> list[Any]:
        return list(self.options)

    def values(self) -> list[Any]:
        return self.labels

    def holds(self, value: Any) -> bool:
        return value in self.options


Dimension = Float | Int | Choice | Bundle
Space = Mapping[str, Dimension]


def check_shape(space: Space) -> None:
    """Raise UsageError for an empty space and for a `when` that cannot be decided from the dimensions before it."""
    if not space:
        raise UsageError("the space is empty: name at least one field with its range, such as 'optim.base_lr': Float(1e-4, 1e-2)")
    before: list[str] = []
    for name, dimension in space.items():
        for other, wanted in dimension.when.items():
            if other not in before:
                raise_unknown(f"dimension in `when` of {name} (it must stand before it)", other, before)
            for value in _as_tuple(wanted):
                if value not in space[other].values() and not (_is_number(value) and space[other].holds(value)):
                    raise_unknown(f"value of {other} in `when` of {name}", str(value), map(str, space[other].values()))
        before.append(name)


def draw(space: Space, choose: Callable[[str, Dimension], Any]) -> Params:
    """Walk the space in its order, asking `choose` for each dimension that exists under the choices before it."""
    params: Params = {}
    for name, dimension in space.items():
        if exists(dimension, params):
            params[name] = choose(name, dimension)
    return params


def exists(dimension: Dimension, params: Mapping[str, Any]) -> bool:
    """Whether a conditional dimension is there under the choices made so far."""
    return all(other in params and params[other] in _as_tuple(wanted) for other, wanted in dimension.when.items())


def delta(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """The changes to the base configuration that chosen parameters stand for."""
    changes: dict[str, Any] = {}
    for name, value in params.items():
        dimension = space[name]
        if isinstance(dimension, Bundle):
            changes.update(dimension.options[value])
        elif isinstance(dimension, Choice):
            changes[name] = dimension.options[dimension.labels.index(value)]
        else:
            changes[name] = value
    return changes


def fields(space: Space) -> list[str]:
    """All dotted fields that the space changes."""
    return list(
        dict.fromkeys(
            inner
            for name, dimension in space.items()
            for inner in (itertools.chain.from_iterable(dimension.options.values()) if isinstance(dimension, Bundle) else (name,))
        )
    )


def defaults(space: Space, base: Mapping[str, Any]) -> Params | None:
    """The parameters that stand for the base configuration itself; None when it lies outside the space.

    `base` has the dotted fields of the base configuration.
    """
    params: Params = {}
    for name, dimension in space.items():
        if not exists(dimension, params):
            continue
        if isinstance(dimension, Bundle):
            same = [k for k, changes in dimension.options.items() if all(base.get(f) == v for f, v in changes.items())]
            if not same:
                return None
            params[name] = same[0]
        elif name in base and dimension.holds(base[name]):
            value = base[name]
            params[name] = dimension.labels[dimension.options.index(value)] if isinstance(dimension, Choice) else value
        else:
            return None
    return params


def check_values(space: Space, build: Callable[[dict[str, Any]], object]) -> None:
    """Build the configurations at the corners of the space; raise UsageError with the smallest set of values that is refused.

    `build` takes dotted changes and raises ConfigError, which names the field and its limits.
    """

    def refusal(params: Params) -> str | None:
        try:
            build(delta(space, params))
        except ConfigError as error:
            return str(error)
        return None

    for params in corners(space):
        reason = refusal(params)
        if reason is not None:
            for name in list(params):  # leave out what has no part in it
                fewer = {other: value for other, value in params.items() if other != name}
                params = fewer if refusal(fewer) == reason else params
            told = " and ".join(f"{name} = {value!r}" for name, value in params.items()) or "the base configuration"
            raise UsageError(f"the space allows {told}, which the configuration refuses: {reason}")


def corners(space: Space) -> Iterator[Params]:
    """Parameters at the ends of all ranges and with every option, in all combinations or, in large spaces, in drawn ones."""
    count = math.prod(len(_ends(dimension)) for dimension in space.values())
    if count <= MAX_CORNERS:
        for ends in itertools.product(*(_ends(dimension) for dimension in space.values())):
            chosen = dict(zip(space, ends, strict=True))
            yield draw(space, lambda name, _, chosen=chosen: chosen[name])  # type: ignore[misc]
    generator = random.Random(0)  # noqa: S311 (nothing secret)
    repeats = 1 if count <= MAX_CORNERS else max(1, MAX_CORNERS // sum(len(d.values()) for d in space.values()))
    for name, dimension in space.items():
        for value, _ in itertools.product(dimension.values(), range(repeats)):
            fixed = {**_needed(space, name), name: value}
            yield draw(space, lambda n, d, fixed=fixed: fixed[n] if n in fixed else generator.choice(_ends(d)))  # type: ignore[misc]


def to_json(space: Space) -> dict[str, Any]:
    """Plain values: what is compared when a study's name is used again."""
    return {name: {"kind": type(dimension).__name__, **asdict(dimension)} for name, dimension in space.items()}


def describe(dimension: Dimension) -> str:
    """`1e-04 to 0.01, logarithmic`, as people read it."""
    if isinstance(dimension, (Choice, Bundle)):
        text = ", ".join(map(str, dimension.labels))
    else:
        text = f"{dimension.low:g} to {dimension.high:g}"
        text += f" in steps of {dimension.step}" if isinstance(dimension, Int) and dimension.step > 1 else ""
        text += ", logarithmic" if dimension.log else ""
    conditions = [f"{name} = {' or '.join(map(str, _as_tuple(wanted)))}" for name, wanted in dimension.when.items()]
    return text + (f"; when {' and '.join(conditions)}" if conditions else "")


def _needed(space: Space, name: str) -> Params:
    """Choices under which a conditional dimension is there."""
    params: Params = {}
    for other, wanted in space[name].when.items():
        params |= {**_needed(space, other), other: _as_tuple(wanted)[0]}
    return params


def _ends(dimension: Dimension) -> list[Any]:
    values = dimension.values()
    return [values[0], values[-1]] if isinstance(dimension, Int) and len(values) > 1 else values


def _as_tuple(wanted: Any) -> tuple[Any, ...]:
    return tuple(wanted) if isinstance(wanted, (tuple, list)) else (wanted,)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_limits(low: Any, high: Any, log: bool) -> None:
    if not (_is_number(low) and _is_number(high) and math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(f"a range from {low!r} to {high!r}: needs two finite numbers, the lower one first")
    if log and low <= 0:
        raise UsageError(f"a logarithmic range from {low!r}: must start above 0")


def _check_labels(labels: list[Any]) -> None:
    if not labels or len({str(label) for label in labels}) < len(labels):
        raise UsageError(f"a choice needs distinct options, found {labels}")


def short_names(space: Space) -> dict[str, str]:
    """Parameters by the last word of their fields, where that is clear."""
    words = {name: name.rpartition(".")[2] for name in space}
    return {name: word if list(words.values()).count(word) == 1 else name for name, word in words.items()}
