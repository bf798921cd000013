"""`runs/_studies/<experiment>.json`: what a study wanted at its last launch, so that readers need no experiment's Python.

It names the variants with what tables show of them, the table, every run with its place, and the corpora's content hashes.
`earlier` has the runs of launches for other corpora, seeds or sizes, which `hicmae prune` spares.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.experiment import Experiment, Run
from hicmae.errors import RecordError, raise_unknown
from hicmae.record import write_json

FOLDER = "_studies"
Place = tuple[str, str, str, int | None, int]  # variant, stage, corpus, fold, seed: a run's place in its study


def path_of(runs_root: Path, name: str) -> Path:
    return runs_root / FOLDER / f"{name}.json"


def studies(runs_root: Path) -> list[str]:
    """The studies that were launched into this folder."""
    return sorted(path.stem for path in (runs_root / FOLDER).glob("*.json"))


def write(
    runs_root: Path,
    experiment: Experiment,
    runs: Sequence[Run],
    fingerprints: Mapping[str, str],
    command: Sequence[str],
    snapshot: Mapping[str, Any],
) -> Path:
    """Record what the study wants now; earlier contents but for `earlier` are replaced, whole or not at all."""
    path = path_of(runs_root, experiment.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        **experiment.describe(),
        **_scope(experiment),
        "earlier": earlier(read_or_none(runs_root, experiment.name), experiment, runs),
        "command": shlex.join(command),
        "created": time.time(),
        "snapshot": dict(snapshot),
        "fingerprints": dict(fingerprints),
        "runs": [row(run) for run in runs],
    }
    write_json(path, values)
    return path


def read(runs_root: Path, name: str) -> dict[str, Any]:
    """The recorded study. Raises UsageError, nearest first, for a name never launched; RecordError for a damaged file."""
    path = path_of(runs_root, name)
    if not path.exists():
        raise_unknown(f"study in {runs_root}", name, studies(runs_root))
    try:
        values = json.loads(path.read_text())
        required = values["runs"], values["variants"]
    except (OSError, ValueError, KeyError, TypeError):
        required = None
    if required is None:
        raise RecordError(f"{path}: damaged; launch {name} again to write it anew (its runs are kept)")
    return dict(values)


def read_or_none(runs_root: Path, name: str) -> dict[str, Any] | None:
    """As `read`, but None for a study that was never launched here, or whose file is damaged: a launch writes it anew."""
    try:
        return read(runs_root, name) if path_of(runs_root, name).exists() else None
    except RecordError:
        return None


def rows(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every run that a study file speaks for, those of earlier selections included."""
    return [*study["runs"], *study.get("earlier", ())]


def earlier(recorded: Mapping[str, Any] | None, experiment: Experiment, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Recorded runs that the study as it stands now neither has nor replaces: of other corpora, seeds or sizes.

    A run is replaced when another one stands in its place (variant, stage, corpus, fold, seed), or its variants are gone.
    """
    if recorded is None:
        return []
    wanted, taken = {run.run_id for run in runs}, {place for run in runs for place in places_of(row(run))}
    names, scope = {variant.name for variant in experiment.variants}, _scope(experiment)
    then = {name: recorded.get(name) for name in scope}
    kept = []
    for old in ({**then, **each} for each in rows(recorded) if each["run_id"] not in wanted):
        has_place = any(place[0] in names and place not in taken for place in places_of(old))
        if has_place or any(old[name] != value for name, value in scope.items()):
            kept.append(old)
    return kept


def places_of(run: Mapping[str, Any]) -> list[Place]:
    """Where a row's run stands in its study."""
    return [(variant, run["stage"], run["corpus"], run["fold"], run["seed"]) for variant in run["variants"]]


def _scope(experiment: Experiment) -> dict[str, Any]:
    """What a launch may choose that no place in the study tells."""
    return {"size": experiment.size, "deterministic": experiment.deterministic}


def row(run: Run) -> dict[str, Any]:
    """A run's place in its study, as JSON."""
    return {
        "run_id": run.run_id,
        "stage": run.stage,
        "variants": list(run.variants),
        "corpus": run.corpus,
        "fold": run.fold,
        "seed": run.seed,
        "depends_on": list(run.depends_on),
    }
