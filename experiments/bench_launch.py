"""`hicmae bench launch`: a study of many tiny runs on a real SLURM while launcher and controller are killed at random.

    hicmae bench launch                      # 1,000 runs, as root, with the programs of `make system-packages`
    hicmae bench launch --runs 100 --seed 3

The launcher is `experiments/launch.py` in a copy of the code, the cluster that of slurm/testbed; planning, the record, submission
and tasks are the real ones. Only what a run computes is light: bench_light_run.py stands there in place of hicmae.run.
"""

from __future__ import annotations

import os
import platform
import random
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from experiments import outputs, study_file
from hicmae.errors import HicmaeError, UsageError
from hicmae.record import RunRecord, write_json
from slurm import code
from slurm.testbed.cluster import Cluster

PRETRAININGS = 4  # shared by the fine-tunings, in equal parts
LIGHT_RUN = Path(__file__).with_name("bench_light_run.py")
COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel")
MAX_ARRAY_SIZE = 1001  # SLURM's default
REST_S = (1.0, 20.0)  # between two kills
DOWN_S = (0.0, 3.0)  # that the controller stays away
TELL_EVERY_S = 10.0
WHO = (*["launcher"] * 7, "controller")
STUDY = '''"""Made by `hicmae bench launch`: tiny runs, four pre-trainings among them."""
from experiments.experiment import Experiment, Variant


def study():
    variants = tuple(Variant(f"v{{n}}", {{"pretrain.optim.weight_decay": 0.01 * n}}) for n in range({pretrainings}))
    return Experiment("many", "Many tiny runs", variants, ("synthetic",), folds=(1,), seeds=tuple(range({seeds})), size="smoke",
                      pretrain_corpus="synthetic")
'''
# The time limit is SLURM's shortest, a minute: it ends the jobs that a restarted controller holds for running though they ended.
PROFILE = "[bench]\ncpus_per_task = 1\nmemory_gb = 0.5\ntime_h = 0.0167\nsignal_delay_s = 10\n"


def bench_launch(
    runs: Annotated[int, typer.Option(help="How many, a multiple of four.", min=2 * PRETRAININGS)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the kills.")] = 0,
    limit_min: Annotated[float, typer.Option(help="After so many minutes what is not done counts as lost.")] = 60.0,
    output: Annotated[Path, outputs.JSON_FILE] = Path("bench-launch.json"),
    keep: Annotated[Path | None, typer.Option(help="Work in this folder and keep it.", show_default="a temporary one")] = None,
) -> None:
    """Launch many tiny runs on a real SLURM, kill launcher and controller at random, and count what was lost or done twice."""
    if runs % PRETRAININGS:
        raise UsageError(f"--runs {runs}: must be a multiple of {PRETRAININGS}")
    console = Console()
    with _folder(keep) as folder, _cluster(folder, console) as cluster:
        result = Bench(folder, cluster, runs, seed, console).measure(limit_min * 60)
    write_json(output, result)
    console.print(table(result))
    console.print(str(output))
    chaos = result["killed at random"]
    if chaos["lost"] or chaos["done twice"]:
        raise HicmaeError(f"{chaos['lost']} runs lost, {chaos['done twice']} done twice; see {output}")


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        if keep.exists() and any(keep.iterdir()):
            raise UsageError(f"--keep {keep}: is not empty; name a new folder")
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="hicmae-bench-") as folder:
        yield Path(folder)


@contextmanager
def _cluster(folder: Path, console: Console) -> Iterator[Cluster]:
    cluster = Cluster(folder / "testbed", cpus_per_node=4, max_array_size=MAX_ARRAY_SIZE)
    console.print("starting SLURM on this machine", highlight=False)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@dataclass
class Called:
    """A launcher that has ended: how long it took, how much of that it computed, how often it called which command of SLURM."""

    seconds: float
    cpu_s: float
    calls: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return {"s": round(self.seconds, 2), "cpu_s": round(self.cpu_s, 2), **self.calls}


@dataclass
class Tally:
    """What was done to the launch."""

    launches: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    ended: Counter[int] = field(default_factory=Counter)  # exit codes of launchers that nobody killed


class Bench:
    """The folder of a measurement: code, corpus, study and profile, and the launchers that work there."""

    def __init__(self, folder: Path, cluster: Cluster, runs: int, seed: int, console: Console) -> None:
        self.folder, self.cluster, self.runs, self.seed, self.console = folder, cluster, runs, seed, console
        self.random = random.Random(seed)  # noqa: S311  to kill at random, not to keep a secret
        self.code = code.take(folder / "launch").path
        shutil.copy(LIGHT_RUN, self.code / "hicmae" / "run.py")
        (folder / "home" / "hicmae").mkdir(parents=True)
        (folder / "home" / "hicmae" / "slurm.toml").write_text(PROFILE)
        seeds = (runs - PRETRAININGS) // PRETRAININGS
        (folder / "many.py").write_text(STUDY.format(pretrainings=PRETRAININGS, seeds=seeds))
        self.calls = folder / "calls"
        self.told = 0.0
        self.launcher: subprocess.Popen[bytes] | None = None
        self._count_calls()

    def measure(self, limit_s: float) -> dict[str, Any]:
        """Planning, submission and relaunch undisturbed; then the whole study with kills."""
        from hicmae.data import synthetic

        synthetic.generate(self.folder / "data" / "synthetic", speakers=4, clips_per_speaker=4, seconds=1.0, size_px=64, folds=2)
        result = {"runs": self.runs, "seed": self.seed, "machine": _machine(), "date": time.strftime("%Y-%m-%d")}
        result |= self._undisturbed()
        result["killed at random"] = self._disturbed(limit_s)
        result["launched again when all is done"] = self._call("runs", *self._launch()).to_json()
        return result

    def _undisturbed(self) -> dict[str, Any]:
        """Launches while no job can start: the partition is down, and what was submitted is cancelled at the end."""
        self._call("calm", *self._launch(), "--dry-run")  # hashes the corpus, once for all
        planned = self._call("calm", *self._launch(), "--dry-run")
        self._partition("DOWN")
        submitted = self._call("calm", *self._launch())
        again = self._call("calm", *self._launch())
        cancelled = self._call("calm", "-m", "experiments.cli", "cancel", "many")
        self._partition("UP")
        named = {"planned": planned, "submitted": submitted, "launched again while all wait": again, "cancelled": cancelled}
        for name, called in named.items():
            self.console.print(f"{name}: {called.seconds:.1f} s", highlight=False)
        return {name: called.to_json() for name, called in named.items()}

    def _disturbed(self, limit_s: float) -> dict[str, Any]:
        """Launch until all is done, and kill who works at it."""
        self.calls.unlink(missing_ok=True)
        began, tally = time.monotonic(), Tally()
        try:
            self._start(tally)
            while self._rest(tally, began) < self.runs and time.monotonic() - began < limit_s:
                self._kill(tally)
        finally:
            self._kill_launcher()
        seconds = time.monotonic() - began
        return {"s": round(seconds), **verdict(self.folder / "runs"), **_counted(tally), **self._calls()}

    def _kill(self, tally: Tally) -> None:
        who = self.random.choice(WHO)
        tally.kills[who] += 1
        if who == "launcher":
            self._kill_launcher()
            self._start(tally)
        else:
            self.cluster.kill_controller()
            time.sleep(self.random.uniform(*DOWN_S))
            self.cluster.start_controller()

    def _kill_launcher(self) -> None:
        if self.launcher is not None:
            self.launcher.kill()
            self.launcher.wait()

    def _rest(self, tally: Tally, began: float) -> int:
        """Wait for the next kill, and start a launcher that ended before all was done again; returns how many runs are done."""
        until = time.monotonic() + self.random.uniform(*REST_S)
        while (done := self._done()) < self.runs and time.monotonic() < until:
            if self.launcher is not None and self.launcher.poll() is not None:
                tally.ended[self.launcher.returncode] += 1
                self._start(tally)
            if time.monotonic() - self.told > TELL_EVERY_S:
                self.told = time.monotonic()
                self.cluster.resume_nodes()
                kills = f"{tally.kills['launcher']} launchers and {tally.kills['controller']} controllers killed"
                self.console.print(f"{self.told - began:5.0f} s: {done} of {self.runs} runs are done, {kills}", highlight=False)
            time.sleep(0.2)
        return done

    def _start(self, tally: Tally) -> None:
        tally.launches += 1
        with (self.folder / "launchers.log").open("ab") as log:
            command = [sys.executable, *self._launch(), "--wait"]
            self.launcher = subprocess.Popen(
                command, cwd=self.folder, env=self._environment("runs"), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def _call(self, root: str, *words: str) -> Called:
        """Execute a command of the project to its end. Raises HicmaeError when it fails."""
        self.calls.unlink(missing_ok=True)
        began, computed = time.monotonic(), _children_cpu_s()
        ended = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=self._environment(root), capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise HicmaeError(f"{shlex.join(words)} exited with {ended.returncode}: {(ended.stdout + ended.stderr)[-500:]}")
        return Called(time.monotonic() - began, _children_cpu_s() - computed, self._calls())

    def _launch(self) -> tuple[str, ...]:
        script = str(self.code / "experiments" / "launch.py")
        return script, "many.py", "--cluster", "slurm", "--profile", "bench", "--yes"

    def _environment(self, root: str) -> dict[str, str]:
        homes = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), str(self.folder / "home"))
        places = {"HICMAE_DATA": str(self.folder / "data"), "HICMAE_RUNS": str(self.folder / root), "PYTHONPATH": str(self.code)}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, **homes, **places, **self.cluster.environment(), "PATH": path}

    def _count_calls(self) -> None:
        """Put a line before every command of SLURM that notes its name and then becomes the command."""
        (self.folder / "bin").mkdir()
        for name in COMMANDS:
            real = shutil.which(name)
            if real is None:
                raise UsageError(f"missing program: {name}; `make system-packages` installs it")
            script = self.folder / "bin" / name
            script.write_text(f'#!/bin/sh\necho {name} >>{shlex.quote(str(self.calls))}\nexec {shlex.quote(real)} "$@"\n')
            script.chmod(0o755)

    def _calls(self) -> dict[str, int]:
        return dict(Counter(self.calls.read_text().split())) if self.calls.exists() else {}

    def _done(self) -> int:
        return sum(1 for _ in (self.folder / "runs").glob("[0-9a-f]*/result.json"))

    def _partition(self, state: str) -> None:
        command = ["scontrol", "update", "PartitionName=normal", f"State={state}"]
        subprocess.run(command, env=self._environment("calm"), check=True)


def _children_cpu_s() -> float:
    """Processor time of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def verdict(runs_root: Path) -> dict[str, int]:
    """From the records alone: what is done, lost, done twice (begun again after its end), and how many attempts that took."""
    records = [RunRecord(runs_root / row["run_id"]) for row in study_file.read(runs_root, "many")["runs"]]
    kinds = [[str(event.get("event")) for event in record.events()] for record in records]
    done = sum(record.result() is not None for record in records)
    twice = sum(events.count("finished") > 1 or "started" in events[_first(events, "finished") :] for events in kinds)
    started, submitted = (sum(events.count(kind) for events in kinds) for kind in ("started", "submitted"))
    return {"done": done, "lost": len(records) - done, "done twice": twice, "attempts": started, "runs submitted": submitted}


def _first(events: list[str], kind: str) -> int:
    return events.index(kind) if kind in events else len(events)


def _counted(tally: Tally) -> dict[str, Any]:
    kills = {f"{who}s killed": tally.kills[who] for who in ("launcher", "controller")}
    return {**kills, "launches": tally.launches, "launchers that failed": sum(tally.ended.values()) - tally.ended[0]}


def _machine() -> dict[str, Any]:
    return {"cores": len(os.sched_getaffinity(0)), "processor": platform.processor() or platform.machine()}


def table(result: dict[str, Any]) -> Table:
    """Every measurement as a line, goals beside those that have one."""
    shown = Table(
        "what", "measured", "goal", title=f"{result['runs']} runs on a real SLURM, seed {result['seed']}", box=box.SIMPLE_HEAD
    )
    goals = {
        "planned": "2 s",
        "submitted": "15 s",
        "launched again while all wait": "2 s",
        "launched again when all is done": "2 s",
    }
    for name in ("planned", "submitted", "launched again while all wait", "cancelled", "launched again when all is done"):
        calls = ", ".join(f"{number} {what}" for what, number in result[name].items() if what in COMMANDS) or "no scheduler call"
        shown.add_row(
            name, f"{result[name]['s']:.1f} s ({result[name]['cpu_s']:.1f} s of processor), {calls}", goals.get(name, "")
        )
    shown.add_section()
    for name, value in result["killed at random"].items():
        shown.add_row(name if name != "s" else "seconds", str(value), "0" if name in ("lost", "done twice") else "")
    return shown
