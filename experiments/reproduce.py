"""Run recorded runs again beside the old ones, from the recorded code, and say whether the same comes out.

    hicmae reproduce 3f681c7ba8109d8f
    hicmae reproduce "ablation_hierarchical_smoke/synthetic/skips + fusion" --with-pretraining

The number of processes and threads is that of the record. Broken off, the same command goes on where it ended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import available, comparison, cost, execution, recorded_code, repeats
from experiments.comparison import DIFFERENT, IDENTICAL, VERDICTS, WITHIN, Comparison, Line
from experiments.repeats import Cell, Recorded
from hicmae import provenance
from hicmae.config import from_dict
from hicmae.errors import HicmaeError
from hicmae.record import RunRecord, write_json
from slurm.local import Entry, Job, LocalExecutor, Options, run_command
from slurm.machine import Machine
from slurm.view import view_for

VERDICT = "verdict.json"
SHOWN = 6  # differences of the environment in an error's line
STYLES = {IDENTICAL: "bold green", WITHIN: "green", DIFFERENT: "bold red"}
_MEMORY_BYTES = 2 << 30  # of a run whose configuration this version cannot read


@dataclass(frozen=True)
class Request:
    """What is to be reproduced, and how."""

    runs_root: Path
    target: str
    with_pretraining: bool = False
    anyway: bool = False
    tolerance: float | None = None
    max_parallel: int | None = None


@dataclass(frozen=True)
class Report:
    """What came out: a comparison per run, for a cell its pooled values too, and what a reader must know."""

    target: str
    comparisons: tuple[Comparison, ...]
    pooled: tuple[Line, ...] = ()
    environment: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        return max((each.verdict for each in self.comparisons), key=VERDICTS.index)

    @property
    def is_different(self) -> bool:
        return self.verdict == DIFFERENT

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "verdict": self.verdict,
            "runs": [each.to_json() for each in self.comparisons],
            "pooled": [asdict(line) for line in self.pooled],
            "environment": [{"name": name, "recorded": then, "here": here} for name, then, here in self.environment],
            "notes": list(self.notes),
        }


@dataclass
class _Work:
    """A run, the code that it is executed from and where its repeat lies."""

    run: Recorded
    code: Path
    folder: Path = field(default_factory=Path)


def repeat_and_compare(request: Request, console: Console) -> Report:
    """Check, execute, compare. Raises HicmaeError when code, packages, data or weights are missing or a repeat fails."""
    root = request.runs_root
    cell, ids = repeats.choose(root, request.target)
    runs = [repeats.read(root, run_id) for run_id in ids]
    earlier = dict.fromkeys(run.pretraining for run in runs if run.pretraining) if request.with_pretraining else {}
    before = [repeats.read(root, run_id) for run_id in earlier]
    differences = _checked(request, [*before, *runs], console)
    codes: dict[str, Path] = {}
    for run in (*before, *runs):
        if run.tree not in codes:  # looking for one reads all copies
            codes[run.tree] = recorded_code.restore(root, run.snapshot, run.id)
    works = [_Work(run, codes[run.tree]) for run in (*before, *runs)]
    _place(request, works, set(earlier))
    for stage in ("pretrain", "finetune"):
        _execute([work for work in works if work.run.config["stage"] == stage], request.max_parallel, console)
    compared = [_compare(request, work, bool(differences)) for work in works]
    notes = list(dict.fromkeys(note for work in works for note in _notes(work)))
    pooled = _pooled(root, cell, works) if cell else ()
    return Report(cell.address if cell else ids[0], tuple(compared), pooled, tuple(differences), tuple(notes))


def _checked(request: Request, runs: Sequence[Recorded], console: Console) -> list[tuple[str, str, str]]:
    """Refuse before anything is executed; returns the differences of the environment that were asked to be passed over."""
    differences = list(dict.fromkeys(each for run in runs for each in repeats.environment_differences(run.snapshot)))
    if differences and not request.anyway:
        shown = "; ".join(f"{name} {then} then, {here} here" for name, then, here in differences[:SHOWN])
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise HicmaeError(
            f"the environment is not that of the record: {shown}{more}; install those versions (`make env` with the "
            "requirements.lock of that time), or add --anyway to compare all the same"
        )
    for name, then, here in differences:
        console.print(f"{name}: {then} then, {here} here", style="yellow", highlight=False, markup=False)
    if not request.with_pretraining:
        for run in runs:
            repeats.require_weights(request.runs_root, run)
    available.ensure_generated(dict.fromkeys(run.config["data"]["corpus"] for run in runs), console)
    repeats.require_data(runs)
    return differences


def _place(request: Request, works: Sequence[_Work], earlier: set[str]) -> None:
    """Give every repeat its directory, and every fine-tuning a link to its pre-training, recorded or repeated."""
    own = json.dumps(provenance.environment(), sort_keys=True)
    about = {"with_pretraining": request.with_pretraining, "environment": hashlib.sha256(own.encode()).hexdigest()}
    made: dict[str, Path] = {}
    for work in (work for work in works if work.run.id not in earlier):
        work.folder = repeats.place(request.runs_root, work.run, {**about, "code": work.code.name})
        needed = work.run.pretraining
        started = repeats.linked_pretraining(work.folder, needed) if needed else None
        if needed and started:
            made.setdefault(needed, started)
    for work in (work for work in works if work.run.id in earlier):
        known = made.get(work.run.id)
        work.folder = known or repeats.place(request.runs_root, work.run, {**about, "code": work.code.name})
        made[work.run.id] = work.folder
    for work in (work for work in works if work.run.pretraining):
        needed = str(work.run.pretraining)
        repeats.link_pretraining(work.folder, needed, made.get(needed, request.runs_root / needed))


def _execute(works: Sequence[_Work], max_parallel: int | None, console: Console) -> None:
    """Execute the repeats of a stage, those of one code and one number of threads at a time."""
    groups: dict[tuple[Path, int | None, int], list[_Work]] = {}
    for work in works:
        groups.setdefault((work.code, work.run.threads, work.run.processes), []).append(work)
    for (code, threads, processes), group in groups.items():
        command = {work.folder.name: _command(work) for work in group}
        together = max(1, Machine.here().cores // ((threads or 1) * processes))
        options = Options(
            max_parallel=max_parallel or (None if Machine.here().gpus else together),
            gpus_per_run=processes,
            environment={**execution.environment_of_runs(), **_threads(threads), "PYTHONDONTWRITEBYTECODE": "1"},
            code=code,
            command=lambda path, _, command=command: command[path.name],  # type: ignore[misc]
        )
        with view_for(console) as view:
            executor = LocalExecutor([_job(work) for work in group], view, options)
            board = executor.execute()
        _require_done(board, executor.stopping > 0, console)


def _threads(threads: int | None) -> dict[str, str]:
    return {"HICMAE_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)} if threads else {}


def _command(work: _Work) -> list[str]:
    """As it was executed then: so many processes, and clips left out where clips were left out."""
    skipping = ["--on-error", "skip"] if work.run.result.get("skipped_clips") else []
    return [*run_command(work.folder, work.run.processes), *skipping]


def _job(work: _Work) -> Job:
    try:
        memory = cost.memory(from_dict(work.run.config))
    except HicmaeError:
        memory = _MEMORY_BYTES
    wall_s = work.run.result.get("wall_s")
    return Job(work.run.id, work.folder, work.run.label, work.run.config["stage"], (), memory, wall_s)


def _require_done(board: Sequence[Entry], stopped: bool, console: Console) -> None:
    if stopped:
        console.print("the same command goes on where it ended", highlight=False)
        raise KeyboardInterrupt
    broken = [entry for entry in board if entry.state != "done"]
    if broken:
        first = broken[0]
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise HicmaeError(f"{first.job.label}: the repeat is {first.state}{more}: {first.reason}; its log: {first.log}")


def _compare(request: Request, work: _Work, is_other_environment: bool) -> Comparison:
    repeated = RunRecord(work.folder)
    same_machine = repeats.hardware_of(repeated.snapshot()) == work.run.hardware and not is_other_environment
    spreads = comparison.spreads_of(request.runs_root, work.run.id, request.tolerance)
    exact = work.run.is_deterministic and same_machine
    found = comparison.compare(work.run.record, repeated, spreads, exact, work.run.label)
    write_json(work.folder.parent / VERDICT, found.to_json())
    return found


def _notes(work: _Work) -> list[str]:
    """What makes equal bits unlikely, and is no fault of anybody."""
    here, then = repeats.hardware_of(RunRecord(work.folder).snapshot()), work.run.hardware
    notes = [f"other {name}: {then[name]} then, {here[name]} here" for name in then if then[name] not in (None, here[name])]
    trees = {event.get("tree") for event in work.run.record.events() if event.get("event") == "started"}
    if len(trees) > 1:
        notes.append(
            f"{work.run.label}: its attempts were executed from {len(trees)} versions of the code; repeated from the first"
        )
    return notes


def _pooled(runs_root: Path, cell: Cell, works: Sequence[_Work]) -> tuple[Line, ...]:
    """The cell's numbers, from all folds' test samples together and averaged over seeds, then and now."""
    from reports.corpora import read_described, words

    read_described(runs_root)
    chosen = [work for work in works if work.run.id in cell.run_ids]
    known = words(cell.corpus)
    recorded, repeated = ([runs_root / work.run.id for work in chosen], [work.folder for work in chosen])
    seeds = [int(work.run.config["seed"]) for work in chosen]
    old, new = (_pooled_metrics(paths, seeds, cell.selection, known.metrics, known.targets) for paths in (recorded, repeated))
    return tuple(Line(name, old.get(name), new.get(name), None) for name in old)


def _pooled_metrics(
    paths: Sequence[Path], seeds: Sequence[int], selection: str, metrics: Sequence[str], targets: Sequence[str]
) -> dict[str, float]:
    from reports.predictions import pooled, read_predictions

    parts = [read_predictions(path / "predictions.parquet", selection, targets) for path in paths]
    by_seed = [pooled([part for part, own in zip(parts, seeds, strict=True) if own == seed]) for seed in sorted(set(seeds))]
    values = [predictions.metrics(metrics) for predictions in by_seed]
    return {name: sum(each[name] for each in values) / len(values) for name in values[0]}


def show(console: Console, report: Report) -> None:
    """The values side by side, and the verdict in a line."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "value", "recorded", "repeated", "difference", "allowed"):
        table.add_column(name, justify="left" if name in ("run", "value") else "right", no_wrap=name == "value")
    for each in report.comparisons:
        for line in each.lines:
            table.add_row(Text(each.label), *_cells(line))
    for line in report.pooled:
        table.add_row(Text(report.target), *_cells(line))
    console.print(table)
    reasons = dict.fromkeys(line.spread.words for each in report.comparisons for line in each.lines if line.spread)
    console.print(f"allowed: {'; '.join(reasons)}", style="dim", highlight=False, markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    console.print(Text(report.verdict, STYLES[report.verdict]) + Text(f": {_told(report)}"), soft_wrap=True)
    console.print(
        f"repeated: {', '.join(each.folder for each in report.comparisons)}", style="dim", highlight=False, soft_wrap=True
    )
    console.print("they stay there; `hicmae prune --reproduced` removes all repeats", style="dim", highlight=False)


def _cells(line: Line) -> list[Text]:
    values = ["-" if value is None else f"{value:.6g}" for value in (line.recorded, line.repeated)]
    difference = "0" if line.difference == 0 else f"{line.difference:+.3g}"
    allowed = "" if line.spread is None else f"{line.spread.allowed:.3g}"
    return [Text(line.name), *map(Text, values), Text(difference, "" if line.is_within else "red"), Text(allowed)]


def _told(report: Report) -> str:
    count = f"{len(report.comparisons)} run{'s' if len(report.comparisons) > 1 else ''}"
    points = sum(each.points for each in report.comparisons)
    other_points = sum(each.other_points for each in report.comparisons)
    samples = [each.samples for each in report.comparisons if each.samples]
    total, other = sum(each.total for each in samples), sum(each.other_scores + each.unmatched for each in samples)
    answers, largest = sum(each.other_answers for each in samples), max((each.largest for each in samples), default=0.0)
    if report.verdict == IDENTICAL:
        weights = " and the weights" if all(each.weights for each in report.comparisons) else ""
        predicted = f", the scores of {total} test samples" if samples else ""
        return f"{count}; metrics, {points} logged points{predicted}{weights} are equal to the last bit"
    counts = f"{other_points} of {points} logged points and the scores of {other} of {total} test samples differ"
    counts += f" (by at most {largest:.3g}; {answers} other answers)" if other else ""
    reason = next((each.reason + "; " for each in report.comparisons if each.reason), "")
    return f"{count}; {reason}{counts}"
