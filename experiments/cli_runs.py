"""`hicmae status`, `logs`, `cancel`, `retry`, `diff` and `prune`: looking after recorded runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments import records, render, retrying, study_file
from hicmae.config import differences
from hicmae.errors import HicmaeError, UsageError
from hicmae.record import RunRecord, runs_root
from slurm import arrays, scheduler
from slurm.arrays import Array
from slurm.local import local_process
from slurm.progress import Progress
from slurm.state import RunState, read_states
from slurm.view import STYLES, duration

PANEL = "Runs"
WATCH_EVERY_S = 2.0
CANCEL_WAIT_S = 60.0
PASSING = ("launch.", "code.diff", "code.changed", "data.fingerprint")  # of a snapshot
OPTIONAL = ("corpus", "fold", "seed", "done", "left", "value", "reason")  # columns of `status NAME`
NOTIFY = Annotated[
    str, typer.Option(envvar="HICMAE_NOTIFY", help="Tell a command or a web hook how it ended.", show_default=False)
]
RUNS = Annotated[Path | None, typer.Option(help="Folder of the run directories.", show_default="$HICMAE_RUNS or ./runs")]


def register(app: typer.Typer) -> None:
    """Add the commands about recorded runs."""
    for command in (status, logs, cancel, retry, diff, prune):
        app.command(command.__name__, rich_help_panel=PANEL)(command)


def status(
    name: Annotated[str, typer.Argument(help="A study; all of them when left out.", show_default=False)] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep looking, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    runs: RUNS = None,
) -> None:
    """Show how far runs are: counts by state for every study, every run of one."""
    root, console = runs or runs_root(), Console()
    if as_json:
        typer.echo(json.dumps(_studies_json(root, _studies(root, name)), indent=1))
        return
    if not watch:
        console.print(_status(root, name))
        return
    with Live(_status(root, name), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_EVERY_S)
            live.update(_status(root, name), refresh=True)


def logs(
    run: Annotated[str, typer.Argument(help="A run id, or the beginning of one.")],
    attempt: Annotated[int | None, typer.Option(help="Which attempt.", show_default="the last")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what is added, until the run ends.")] = False,
    runs: RUNS = None,
) -> None:
    """Print what a run wrote to its terminal."""
    record = records.find_run(runs or runs_root(), run)
    path = records.read_log(record, attempt)
    with path.open("rb") as log:
        while True:
            typer.echo(log.read(), nl=False)
            if not follow or not record.is_locked():
                break
            time.sleep(0.5)
        typer.echo(log.read(), nl=False)


def cancel(
    target: Annotated[str, typer.Argument(help="A run id (or its beginning), or a study.")],
    runs: RUNS = None,
) -> None:
    """Stop runs, and a search's workers on SLURM, and take them off the list; a later launch goes on from their last checkpoint.

    A run whose machine died is taken off the list too; one that still writes on another machine is left alone.
    """
    root = runs or runs_root()
    serving, studies = arrays.serving(root, target), study_file.studies(root)
    served = list(dict.fromkeys(name for array in serving for name in array.resources.get("workers_of", ())))
    targets = [target] if target in studies or not serving else [name for name in served if name in studies]
    found = list(dict.fromkeys(record for each in targets for record in records.find_many(root, each)))
    try:
        states = read_states(root, [record.id for record in found], must_answer=True)
        workers = _queued(serving)
    except scheduler.SilentSchedulerError as silent:
        raise HicmaeError(f"nothing was cancelled, for the scheduler does not answer: {silent}") from None
    scheduler.cancel([*workers, *(state.job for state in states.values() if state.is_active and state.job)])
    elsewhere = [record for record in found if _is_elsewhere(states[record.id])]
    stopped = [record for record in found if record not in elsewhere and _cancel(record)]
    for record in stopped:
        _wait_for_end(record)
        record.append_event("cancelled", reason="by request")
    if workers:
        typer.echo(f"cancelled the workers of {', '.join(served) or target}")
    typer.echo(f"cancelled {len(stopped)} of {len(found)} runs; the others were done or never planned")
    for record in elsewhere:
        typer.echo(f"left alone: {record.id} is {states[record.id].state} {states[record.id].reason}; cancel it there")


def retry(
    target: Annotated[str, typer.Argument(help="A study, or a run id.")],
    reason: Annotated[str, typer.Option(help="Why another attempt should end better; it is recorded.", prompt=False)],
    max_parallel: Annotated[int | None, typer.Option(help="At most so many runs at once.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="With runs on SLURM: stay until they are done.")] = False,
    notify: NOTIFY = "",
    runs: RUNS = None,
) -> None:
    """Run again what failed, and what was blocked by it; nothing else. On SLURM with the profile of the last attempt."""
    root = runs or runs_root()
    raise typer.Exit(retrying.retry(root, target, reason, Console(), max_parallel, wait, notify))


def diff(
    first: Annotated[str, typer.Argument(help="A run id, or the beginning of one.")],
    second: Annotated[str, typer.Argument(help="Another.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    runs: RUNS = None,
) -> None:
    """Compare two runs: the fields of their configurations, their code, their results."""
    root = runs or runs_root()
    old, new = records.find_run(root, first), records.find_run(root, second)
    parts = {
        "configuration": {name: list(values) for name, values in differences(old.config(), new.config()).items()},
        "snapshot": _different(_lasting(old.snapshot()), _lasting(new.snapshot())),
        "result": _different(_flat(_metrics(old)), _flat(_metrics(new))),
    }
    if as_json:
        typer.echo(json.dumps(parts, indent=1))
        return
    for title, fields in parts.items():
        Console().print(_difference_table(title, fields, old.id, new.id))


def prune(
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Also the resume points of finished runs (their weights stay).")
    ] = False,
    reproduced: Annotated[bool, typer.Option("--reproduced", help="Also the repeats that `hicmae reproduce` made.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    runs: RUNS = None,
) -> None:
    """Remove run directories that no launched study names, after showing their size and asking."""
    root = runs or runs_root()
    orphans, spared = records.orphans(root)
    chosen = [records.spent_checkpoints] * checkpoints + [records.repeats] * reproduced
    wastes = [waste for waste in (orphans, *(find(root) for find in chosen)) if waste.paths]
    for waste in wastes:
        typer.echo(f"{len(waste.paths):6d}  {render.size_text(waste.bytes):>9}  {waste.why}")
    for reason, count in Counter(spared.values()).items():
        typer.echo(f"{count:6d}  {'spared':>9}  {reason}")
    if not wastes:
        typer.echo("nothing to prune")
    if not wastes or dry_run:
        return
    if not yes and not os.isatty(0):
        raise UsageError("nobody can answer here (not a terminal): add --yes to remove, or --dry-run to look only")
    if not yes:
        typer.confirm(f"Remove {render.size_text(sum(waste.bytes for waste in wastes))} for good?", default=False, abort=True)
    with arrays.launching(root):  # what was launched while somebody made up their mind is spared
        still = {*records.orphans(root)[0].paths, *(path for find in chosen for path in find(root).paths)}
        removed = sum(waste.remove(still) for waste in wastes)
    typer.echo(f"removed {render.size_text(removed)}")


def _studies(root: Path, name: str) -> list[dict[str, Any]]:
    names = [name] if name else study_file.studies(root)
    return [study_file.read(root, each) for each in names]


def _studies_json(root: Path, studies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    states = _states(root, studies)
    return [_study_json(study, states) for study in studies]


def _study_json(study: dict[str, Any], states: Mapping[str, RunState]) -> dict[str, Any]:
    rows = [{**row, **_state_json(states[row["run_id"]])} for row in study["runs"]]
    return {"experiment": study["experiment"], "counts": dict(Counter(row["state"] for row in rows)), "runs": rows}


def _state_json(state: RunState) -> dict[str, Any]:
    return {"state": state.state, "reason": state.reason, "host": state.host, "attempts": state.attempts}


def _status(root: Path, name: str) -> RenderableType:
    studies = _studies(root, name)
    if not studies:
        return Text(f"no study was launched into {root} yet; `hicmae launch --list` shows them")
    if not name:
        return _overview(root, studies)
    return _run_table(root, studies[0])


def _overview(root: Path, studies: list[dict[str, Any]]) -> Table:
    states = _states(root, studies)
    counted = {study["experiment"]: Counter(states[row["run_id"]].state for row in study["runs"]) for study in studies}
    shown = [state for state in render.STATE_ORDER if any(counter[state] for counter in counted.values())]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("study", no_wrap=True)
    for column in ("runs", *shown):
        table.add_column(column, justify="right", style=STYLES.get(column, ""))
    for name, counter in counted.items():
        table.add_row(name, str(sum(counter.values())), *(str(counter[state] or "·") for state in shown))
    return table


def _states(root: Path, studies: list[dict[str, Any]]) -> dict[str, RunState]:
    """The states of the runs of all studies, with one question to the scheduler."""
    return read_states(root, dict.fromkeys(row["run_id"] for study in studies for row in study["runs"]))


def _run_table(root: Path, study: dict[str, Any]) -> RenderableType:
    """Every run of a study; columns that would say the same or nothing in every row are left out."""
    states = _states(root, [study])
    rows = [_run_row(root, row, states[row["run_id"]]) for row in study["runs"]]
    shown = [name for name in rows[0] if name not in OPTIONAL or len({str(row[name]) for row in rows}) > 1]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in shown:
        table.add_column(column, no_wrap=column not in ("variant", "reason"), justify="right" if column == "fold" else "left")
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    counter = Counter(state.state for state in states.values())
    told = ", ".join(f"{counter[state]} {state}" for state in render.STATE_ORDER if counter[state])
    return Group(Text(f"{study['experiment']}: {study['title']}", style="bold"), table, Text(told, style="dim"))


def _run_row(root: Path, row: dict[str, Any], state: RunState) -> dict[str, RenderableType]:
    progress = Progress(root / row["run_id"]).refresh()
    busy = state.state in ("running", "interrupted", "unknown")
    return {
        "run": row["run_id"][:8],
        "stage": row["stage"],
        "corpus": Text(row["corpus"]),
        "fold": str(row["fold"] or ""),
        "seed": str(row["seed"]),
        "variant": Text(" / ".join(row["variants"])),
        "state": Text(state.state, style=STYLES.get(state.state, "")),
        "done": f"{100 * progress.share:.0f} %" if busy else "",
        "left": duration(progress.remaining_s(time.time())) if state.state == "running" else "",
        "value": progress.headline(),
        "reason": Text(state.reason),
    }


def _cancel(record: RunRecord) -> bool:
    """Ask a run to end; False for one that is done or was never planned."""
    if record.state() in ("new", "done", "cancelled"):
        return False
    record.append_event("cancelled", reason="by request")  # read by the launcher, which then does not start it again
    process = local_process(record) if record.is_locked() else None
    if process is not None:
        os.kill(process, signal.SIGTERM)
    return True


def _queued(serving: Sequence[Array]) -> list[str]:
    """The jobs of the arrays that are in the queue. Asked by name, for a scheduler may give an old job's number out again."""
    tasks = {(array.name, index): array.created for array in serving for index in range(int(array.resources["count"]))}
    found = {name: info for (name, _), info in scheduler.ask(tasks).items() if info.state in scheduler.IN_QUEUE}
    return [found[array.name].job_id.partition("_")[0] for array in serving if array.name in found]


def _is_elsewhere(state: RunState) -> bool:
    """Whether a run that is no job writes on another machine, where no signal from here reaches it."""
    return state.state == "running" and not state.job and state.host not in ("", socket.gethostname())


def _wait_for_end(record: RunRecord) -> None:
    deadline = time.monotonic() + CANCEL_WAIT_S
    while record.is_locked() and time.monotonic() < deadline:
        time.sleep(0.2)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _lasting(snapshot: dict[str, Any]) -> dict[str, Any]:
    """A snapshot without what differs between any two runs, or is too long to read here."""
    flat = _flat(snapshot)
    return {name: value for name, value in flat.items() if not name.startswith(PASSING)}


def _metrics(record: RunRecord) -> dict[str, Any]:
    return dict((record.result() or {}).get("metrics") or {})


def _different(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [old.get(name), new.get(name)] for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)


def _difference_table(title: str, fields: dict[str, list[Any]], first: str, second: str) -> RenderableType:
    if not fields:
        return Text(f"{title}: no difference", style="dim")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("field", first[:8], second[:8]):
        table.add_column(column)
    for name, (old, new) in fields.items():
        table.add_row(name, *(Text(_shown(value)) for value in (old, new)))
    return table
