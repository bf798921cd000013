"""The plan of a launch: the runs that a study wants against those that are recorded.

    python experiments/launch.py NAME --dry-run

Torch is never imported here. The states cost one look at each run's directory, and one question to the scheduler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.cost import UNIT, Cost, Costs
from experiments.experiment import Experiment, Run
from experiments.study_file import Place, earlier, places_of, row, rows
from hicmae.config import differences
from hicmae.errors import HicmaeError
from hicmae.record import RunRecord
from slurm.state import RunState, read_states


@dataclass(frozen=True)
class Change:
    """Runs whose configuration is another than at the last launch, with the fields that changed alike in all of them."""

    fields: Mapping[str, tuple[Any, Any]]
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a launch would do. `runs` are all that the study wants, `selected` those that this launch is about."""

    experiment: Experiment
    runs: list[Run]
    selected: list[Run]
    states: Mapping[str, RunState]
    costs: Costs
    missing: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    orphans: tuple[str, ...] = ()

    @property
    def to_do(self) -> list[Run]:
        """Selected runs that nobody works on and that are not done."""
        return [run for run in self.selected if self.state(run) != "done" and not self.states[run.run_id].is_active]

    @property
    def active(self) -> list[Run]:
        return [run for run in self.selected if self.states[run.run_id].is_active]

    def state(self, run: Run) -> str:
        return self.states[run.run_id].state

    def counts(self) -> dict[str, Counter[str]]:
        """How many selected runs of each stage are in each state."""
        found: dict[str, Counter[str]] = {}
        for run in self.selected:
            found.setdefault(run.stage, Counter())[self.state(run)] += 1
        return found

    def shared(self) -> list[Run]:
        """Runs that stand for several variants."""
        return [run for run in self.selected if len(run.variants) > 1]

    def cost(self, stage: str | None = None) -> Cost:
        """Of what is to do, altogether or of one stage."""
        costs = [self.costs.of(run) for run in self.to_do if stage in (None, run.stage)]
        return Cost(
            hours=sum(cost.hours for cost in costs),
            disk_bytes=sum(cost.disk_bytes for cost in costs),
            measured=sum(cost.measured for cost in costs),
            wall_s=sum(cost.wall_s for cost in costs),
            unknown=sum(cost.unknown for cost in costs),
        )

    def to_json(self) -> dict[str, Any]:
        """Everything that the terminal shows, for programs."""
        cost = self.cost()
        return {
            "experiment": self.experiment.name,
            "title": self.experiment.title,
            "source": self.experiment.source,
            "counts": {stage: dict(counter) for stage, counter in self.counts().items()},
            "to_do": [run.run_id for run in self.to_do],
            "shared": [run.run_id for run in self.shared()],
            "unit": UNIT[self.costs.device],
            "hours": cost.hours,
            "hours_from": {"recorded runs": cost.measured, "FLOPs": len(self.to_do) - cost.measured},
            "disk_bytes": cost.disk_bytes,
            "of_unknown_length": cost.unknown,
            "missing": dict(self.missing),
            "changes": [{"fields": {k: list(v) for k, v in c.fields.items()}, "runs": list(c.run_ids)} for c in self.changes],
            "orphans": list(self.orphans),
            "runs": [{**row(run), "state": self.state(run), "reason": self.states[run.run_id].reason} for run in self.selected],
        }


def make_plan(
    experiment: Experiment,
    runs: Sequence[Run],
    selected: Sequence[Run],
    runs_root: Path,
    recorded: Mapping[str, Any] | None,
    missing: Mapping[str, str],
) -> Plan:
    """Reconcile what is wanted with what is recorded; `recorded` is the study file of the last launch, if there was one."""
    states = read_states(runs_root, [run.run_id for run in runs])
    old = _places(recorded)
    needed = {run.run_id for run in runs} | {old["run_id"] for old in earlier(recorded, experiment, runs)}
    named = {old["run_id"] for old in rows(recorded)} if recorded else set()
    return Plan(
        experiment,
        list(runs),
        list(selected),
        states,
        Costs(runs_root, None if experiment.is_smoke else "gpu"),
        missing,
        tuple(_changes(runs, old, runs_root)),
        tuple(sorted(run_id for run_id in named - needed if (runs_root / run_id).is_dir())),
    )


def _places(recorded: Mapping[str, Any] | None) -> dict[Place, str]:
    """Which run stood where at the last launch."""
    found: dict[Place, str] = {}
    for run in (recorded or {}).get("runs", ()):
        found.update(dict.fromkeys(places_of(run), run["run_id"]))
    return found


def _changes(runs: Sequence[Run], old: Mapping[Place, str], runs_root: Path) -> list[Change]:
    """Group the runs that are new where another stood before by the fields that differ."""
    groups: dict[str, tuple[Mapping[str, tuple[Any, Any]], list[str]]] = {}
    for run in runs:
        before = next((old[place] for place in places_of(row(run)) if place in old), run.run_id)
        if before != run.run_id:
            fields = _difference(runs_root / before, run)
            groups.setdefault(repr(fields), (fields, []))[1].append(run.run_id)
    return [Change(fields, tuple(run_ids)) for fields, run_ids in groups.values()]


def _difference(before: Path, run: Run) -> dict[str, tuple[Any, Any]]:
    try:
        return differences(RunRecord(before).config(), run.config)
    except HicmaeError as error:
        return {"(the old configuration cannot be read)": (str(error), None)}
