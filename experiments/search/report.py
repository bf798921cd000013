"""What a search found, for people and programs: the study file, the best configuration as a preset, the trials as lines.

The study file runs/_studies/<search>.json lists trials as variants (`trial 0007`) with their runs, as every study does, so that
MLflow gets them as children of the search; under "search" it has the space, the trials with their values, and the best one.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from experiments import study_file
from experiments.experiment import Experiment, Run, Table, Variant, split_delta
from experiments.search import space as spaces
from experiments.search.claims import SharedLock
from experiments.search.definition import INNER, Search, trial_name
from experiments.search.study import Row, Study, ranked
from hicmae.errors import raise_unknown
from hicmae.record import write_json

FORMATS = ("python", "toml", "json")
BEST = "_best"  # ends the name of the study that runs a search's best configurations on the outer folds


def record(
    search: Search,
    study: Study,
    runs_root: Path,
    fingerprint: Callable[[str], str],
    command: Sequence[str] = (),
    snapshot: Mapping[str, Any] | None = None,
) -> None:
    """Write the study file, whole, by one process at a time; command and snapshot stay those of the last launch.

    A search over a function has no runs; its trials are written to summary.json in the study's folder.
    """
    with SharedLock(study.folder / "study-file.lock"):
        rows = study.rows()
        if search.function is not None:
            write_json(study.folder / "summary.json", summary(search, rows))
            return
        before = study_file.read_or_none(runs_root, search.name) or {}
        launched = {
            "created": before.get("created", time.time()),
            "command": shlex.join(command) or before.get("command", ""),
            "snapshot": dict(snapshot or before.get("snapshot", {})),
        }
        values = contents(search, rows, fingerprint)
        write_json(study_file.path_of(runs_root, search.name), {**values, **launched, "search": summary(search, rows)})


def contents(search: Search, rows: list[Row], fingerprint: Callable[[str], str]) -> dict[str, Any]:
    """The study file's part that all studies have; runs of trials that were never begun are left out."""
    deltas = {row.number: spaces.delta(search.space, row.params) for row in rows if row.notes.get("runs")}
    if not deltas:
        deltas = {0: {}}
    experiment = search.trials_experiment(deltas, search.splits)
    begun = {run_id for row in rows for run_id in row.notes.get("runs", ())}
    runs = [study_file.row(run) for run in experiment.runs(fingerprint) if run.run_id in begun]
    prints = {name: fingerprint(name) for name in experiment.used_corpora()}
    described = experiment.describe()
    return {
        **described,
        "table": {**described["table"], "columns": list(search.space), "selection": INNER, "metrics": [search.metric]},
        "fingerprints": prints,
        "runs": runs,
    }


def summary(search: Search, rows: list[Row]) -> dict[str, Any]:
    """The search and its trials, as JSON; `place` is a finished trial's rank (1 is the best), which readers sort by."""
    places = {row.number: place for place, row in enumerate(ranked(search, rows), start=1)}
    return {
        "objective": "value" if search.function else f"validation {search.metric}",
        "direction": "maximize" if search.maximizes else "minimize",
        "space": {name: spaces.describe(dimension) for name, dimension in search.space.items()},
        "budget": asdict(search.budget),
        "sampler": search.sampler,
        "pruner": search.pruner,
        "fold": search.fold,
        "recipe": next((trial_name(row.number) for row in rows if row.params == search.recipe()), None),
        "trials": [
            {
                **asdict(row),
                "name": trial_name(row.number),
                "place": places.get(row.number),
                "reports": {str(k): v for k, v in row.reports.items()},
            }
            for row in rows
        ],
    }


def preset(search: Search, row: Row, form: str) -> str:
    """The best configuration as text to paste: a Python function over the recipe, TOML or JSON of the changed fields."""
    delta = {**search.base, **spaces.delta(search.space, row.params)}
    if form == "json":
        return json.dumps({"trial": row.number, "value": row.value, "delta": delta}, indent=1)
    if form == "toml":
        lines = [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in delta.items() if value is not None]
        lines += [f"# {name} is unset" for name, value in delta.items() if value is None]
        return "\n".join([f"# {_origin(search, row)}", f"[{search.name}]", *lines])
    return _python(search, row, delta)


def best_experiment(search: Search, best: Mapping[int, Row]) -> Experiment:
    """The study that judges what the outer folds' searches have chosen: each on its own fold's test part, beside the recipe."""
    deltas = {fold: {**search.base, **spaces.delta(search.space, row.params)} for fold, row in best.items()}
    return NestedExperiment(
        name=search.name + BEST,
        title=f"{search.title}: the chosen configurations on the outer folds",
        description="Every fold runs what the search inside its own training part has chosen; its test part is seen here alone.",
        variants=(
            Variant("recipe", columns={"configuration": "recipe"}),
            Variant("best", columns={"configuration": "best of the search"}),
        ),
        corpora=(search.corpus,),
        folds=tuple(deltas),
        size=search.size,
        pretrain_corpus=search.pretrain_corpus,
        table=Table(columns=("configuration",), baseline="recipe"),
        deltas=deltas,
    )


@dataclass(frozen=True)
class NestedExperiment(Experiment):
    """An experiment whose variant `best` has changes of its own in every fold."""

    deltas: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def runs(self, fingerprint: Callable[[str], str]) -> list[Run]:
        merged: dict[str, Run] = {}
        for fold, delta in self.deltas.items():
            inside = {item.name: getattr(self, item.name) for item in fields(Experiment)}
            variants = tuple(replace(v, delta=delta) if v.name == "best" else v for v in self.variants)
            for run in Experiment(**{**inside, "variants": variants, "folds": (fold,)}).runs(fingerprint):
                known = merged.get(run.run_id)
                names = dict.fromkeys([*(known.variants if known else ()), *run.variants])
                merged[run.run_id] = replace(run, variants=tuple(names))
        return sorted(merged.values(), key=lambda run: run.stage != "pretrain")


def _origin(search: Search, row: Row) -> str:
    objective = "value" if search.function else f"validation {search.metric}"
    return f"{trial_name(row.number)} of {search.name}: {objective} {row.value:.6g}"


def _python(search: Search, row: Row, delta: Mapping[str, Any]) -> str:
    """Functions as in hicmae/presets.py, one for each stage that is changed; of a search over a function, the parameters."""
    if search.function is not None:
        return f"BEST = {delta!r}  # {_origin(search, row)}"
    stages = ("pretrain", "finetune") if search.pretrain_corpus else ("finetune",)
    parts = [(stage, changes) for stage, changes in split_delta(delta).items() if changes and stage in stages]
    recipes = {"pretrain": f'"{search.size}", "{search.pretrain_corpus}"', "finetune": f'"{search.size}", "{search.corpus}"'}
    types = {"pretrain": "PretrainConfig", "finetune": "FinetuneConfig"}
    lines = [
        "from experiments import recipes",
        f"from hicmae.config import {', '.join(sorted({*(types[s] for s, _ in parts)}))}, change",
    ]
    for stage, changes in parts:
        lines += [
            "",
            "",
            f"def {search.name}_{stage}() -> {types[stage]}:",
            f'    """{_origin(search, row)}."""',
            "    return change(",
        ]
        lines += [f"        recipes.{stage}({recipes[stage]}),", "        {"]
        lines += [
            f"            {json.dumps(name)}: {json.dumps(value) if isinstance(value, str) else repr(value)},"
            for name, value in changes.items()
        ]
        lines += ["        },", "    )"]
    return "\n".join(lines)


def check_format(form: str) -> str:
    """Raise UsageError, naming the formats, unless it is one."""
    return form if form in FORMATS else raise_unknown("format", form, FORMATS)
