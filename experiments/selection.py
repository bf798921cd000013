"""`--only variant=... corpus=... fold=... seed=...`: the part of a study that a launch or a question is about."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from experiments.experiment import Run
from hicmae.errors import UsageError, raise_unknown

KEYS = ("variant", "corpus", "fold", "seed", "stage")


def select(runs: Sequence[Run], filters: Sequence[str]) -> list[Run]:
    """The runs that all filters let through, and those that they depend on, in the given order.

    A filter is key=value or key=one,two; values may be shell patterns; filters of one key add up. Raises UsageError,
    nearest first, for an unknown key and for a value that no run has.
    """
    wanted = _parsed(runs, filters)
    chosen = {run.run_id for run in runs if all(_matches(run, key, values) for key, values in wanted.items())}
    if not chosen:
        raise UsageError(f"no run of the study matches {' '.join(filters)}: each value exists, their combination does not")
    by_id = {run.run_id: run for run in runs}
    open_ends = list(chosen)
    while open_ends:
        needed = [name for name in by_id[open_ends.pop()].depends_on if name in by_id and name not in chosen]
        chosen.update(needed)
        open_ends.extend(needed)
    return [run for run in runs if run.run_id in chosen]


def _parsed(runs: Sequence[Run], filters: Sequence[str]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for text in filters:
        key, equals, values = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r}: a filter is key=value, with a key of {', '.join(KEYS)}")
        if key not in KEYS:
            raise_unknown("filter", key, KEYS)
        known = dict.fromkeys(name for run in runs for name in _values(run, key))
        parts = [values] if values in known else values.split(",")
        for value in parts:
            if not any(_fits(name, value) for name in known):
                raise_unknown(key, value, known)
        wanted.setdefault(key, []).extend(parts)
    return wanted


def _values(run: Run, key: str) -> tuple[str, ...]:
    """What a run shows to a filter. Pre-training has no fold of its own: it comes along with what depends on it."""
    if key == "variant":
        return run.variants
    value = {"corpus": run.corpus, "fold": run.fold, "seed": run.seed, "stage": run.stage}[key]
    return () if value is None else (str(value),)


def _matches(run: Run, key: str, wanted: Sequence[str]) -> bool:
    return any(_fits(name, value) for name in _values(run, key) for value in wanted)


def _fits(name: str, wanted: str) -> bool:
    return name == wanted or fnmatchcase(name, wanted)
