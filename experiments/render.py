"""The plan and the list of studies as a person reads them on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from experiments.cost import CORE_FLOPS, GPU_FLOPS, UNIT, Cost
from experiments.experiment import Experiment, Run
from experiments.plan import Change, Plan
from slurm.view import STYLES

MAX_LINES = 60  # of the graph; larger ones are cut, with a word on where to see all
MAX_FIELDS = 12  # of a difference
STATE_ORDER = ("done", "running", "submitted", "interrupted", "planned", "new", "failed", "blocked", "cancelled", "unknown")


def size_text(count: float) -> str:
    """`1.2 GB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable: the last unit takes everything")


def hours_text(hours: float) -> str:
    """`9 s`, `4 min`, `2.5`, `310`: hours, or less where hours would read as zero."""
    if hours * 3600 < 90:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"


def show_plan(console: Console, plan: Plan, graph: bool) -> None:
    """Counts by stage and state, what is shared, what it costs, what changed; with `graph` also which run needs which."""
    experiment = plan.experiment
    console.print(f"[bold]{escape(experiment.name)}[/bold]  {escape(experiment.title)}" + _in_brackets(experiment.source))
    console.print(_facts(plan), style="dim", highlight=False)
    console.print(_counts(plan))
    if graph:
        console.print(_graph(plan))
    for line in (*_shared(plan), *_cost(plan)):
        console.print(line, highlight=False, soft_wrap=True)
    for change in plan.changes:
        _show_change(console, change)
    if plan.orphans:
        console.print(
            f"{len(plan.orphans)} recorded runs no longer belong to the study; `hicmae prune` can remove them", highlight=False
        )
    for line in _missing(plan):
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def show_studies(console: Console, experiments: Sequence[Experiment]) -> None:
    """The studies that the project knows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("experiment", "what it studies", "repeats", "variants", "corpora"):
        table.add_column(name, no_wrap=name == "experiment", justify="right" if name == "variants" else "left")
    for experiment in experiments:
        corpora = ", ".join(experiment.corpora) if len(experiment.corpora) < 3 else str(len(experiment.corpora))
        table.add_row(experiment.name, experiment.title, experiment.source, str(len(experiment.variants)), corpora)
    console.print(table)


def _in_brackets(text: str) -> str:
    return f" [dim]({escape(text)})[/dim]" if text else ""


def _facts(plan: Plan) -> str:
    runs = [run for run in plan.selected if run.stage == "finetune"]
    corpora = dict.fromkeys(run.corpus for run in runs)
    folds = sorted({run.fold for run in runs if run.fold is not None})
    seeds = sorted({run.seed for run in runs})
    variants = dict.fromkeys(name for run in runs for name in run.variants)
    return (
        f"{_plural(len(variants), 'variant')}; {'corpora' if len(corpora) != 1 else 'corpus'} {', '.join(corpora) or '-'}; "
        f"{'folds' if len(folds) != 1 else 'fold'} {_numbers(folds)}; {'seeds' if len(seeds) != 1 else 'seed'} {_numbers(seeds)}"
    )


def _counts(plan: Plan) -> Table:
    counts = plan.counts()
    states = [state for state in STATE_ORDER if any(counter[state] for counter in counts.values())]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    for name in ("runs", *states, "to do", "time to do"):
        table.add_column(name, justify="right", style=STYLES.get(name, ""))
    for stage, counter in counts.items():
        to_do = sum(run.stage == stage for run in plan.to_do)
        cells = [str(counter[state]) if counter[state] else "·" for state in states]
        table.add_row(stage, str(counter.total()), *cells, str(to_do), hours_text(plan.cost(stage).hours) if to_do else "-")
    return table


def _graph(plan: Plan) -> Tree:
    """Pre-trainings with the fine-tunings that start from them, folds and seeds of a variant on one line."""
    tree = Tree("runs", hide_root=True)
    lines = 0
    roots = [run for run in plan.selected if not run.depends_on]
    for root in roots:
        branch = tree.add(_root_line(plan, root)) if root.stage == "pretrain" else tree
        children = [run for run in plan.selected if root.run_id in run.depends_on] if root.stage == "pretrain" else [root]
        for line in _grouped(plan, children):
            branch.add(line)
        lines += 1 + len(children)
        if lines > MAX_LINES:
            tree.add("… more; --json lists every run")
            break
    return tree


def _root_line(plan: Plan, run: Run) -> str:
    return f"{run.stage} {escape(run.corpus)} [dim]{run.run_id}[/dim] {_styled(plan.state(run))}  {escape(_names(run.variants))}"


def _grouped(plan: Plan, runs: Sequence[Run]) -> list[str]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((" / ".join(run.variants), run.corpus), []).append(run)
    lines = []
    for (variants, corpus), members in groups.items():
        states = Counter(plan.state(run) for run in members)
        told = ", ".join(f"{states[state]} {_styled(state)}" for state in STATE_ORDER if states[state])
        lines.append(f"{members[0].stage} {escape(corpus)} [bold]{escape(variants)}[/bold]  {told}")
    return lines


def _names(variants: Sequence[str]) -> str:
    return f"shared by {len(variants)} variants" if len(variants) > 1 else variants[0]


def _styled(state: str) -> str:
    style = STYLES.get(state)
    return f"[{style}]{state}[/{style}]" if style else state


def _shared(plan: Plan) -> list[str]:
    shared = plan.shared()
    if not shared:
        return []
    saved = sum(len(run.variants) - 1 for run in shared)
    stages = Counter(run.stage for run in shared)
    told = " and ".join(_plural(count, f"{stage} run") for stage, count in stages.items())
    return [f"{told} {'serve' if len(shared) > 1 else 'serves'} several variants: {_plural(saved, 'run')} saved"]


def _cost(plan: Plan) -> list[str]:
    cost = plan.cost()
    if not plan.to_do:
        return []
    unit = UNIT[plan.costs.device].removesuffix("-hours")  # GPU or core
    lines = [f"predicted: {hours_text(cost.hours)} of {unit} time ({_basis(plan, cost)}), {size_text(cost.disk_bytes)} of disk"]
    if cost.unknown:
        lines.append(f"not in it: {_plural(cost.unknown, 'run')} on a corpus whose size is not known here")
    return lines


def _basis(plan: Plan, cost: Cost) -> str:
    guessed = len(plan.to_do) - cost.measured
    if not guessed:
        return "from recorded runs of the same shape"
    rate = GPU_FLOPS if plan.costs.device == "gpu" else CORE_FLOPS
    estimate = f"a rough estimate from FLOPs at {rate / 1e9:,.0f} GFLOP/s"
    return (
        f"{_plural(cost.measured, 'run')} from recorded ones of the same shape, {guessed:,} {estimate}"
        if cost.measured
        else estimate
    )


def _missing(plan: Plan) -> list[str]:
    """The first corpus that is not here with its remedies, the others by name."""
    names = list(plan.missing)
    lines = [f"missing corpus {plan.missing[names[0]]}"] if names else []
    return [*lines, f"missing likewise: {', '.join(names[1:])}"] if len(names) > 1 else lines


def _show_change(console: Console, change: Change) -> None:
    console.print(f"[yellow]changed[/yellow] since the last launch, {_plural(len(change.run_ids), 'run')}:", highlight=False)
    fields = list(change.fields.items())
    for name, (old, new) in fields[:MAX_FIELDS]:
        console.print(f"  {escape(name)}: {escape(_value(old))} → {escape(_value(new))}", highlight=False)
    if len(fields) > MAX_FIELDS:
        console.print(f"  … and {len(fields) - MAX_FIELDS} more", highlight=False)


def _value(value: Any) -> str:
    return "(none)" if value in (None, "") else str(value)


def _numbers(values: Sequence[int]) -> str:
    if len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}-{values[-1]}"
    return ", ".join(map(str, values)) or "-"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
