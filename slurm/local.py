"""Execute runs on this machine: each a process `python -m hicmae.run RUN_DIR`, so many at once as cores, memory and GPUs allow.

The executor holds nothing that a crash would lose: what a run has done is in its directory. Stopped by Ctrl-C, SIGTERM or a
closed terminal it asks every run to write a checkpoint and waits for them; killed outright, its runs go on, and the next launch
finds them running and waits for them instead of starting them twice.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, Protocol

from hicmae.record import RunRecord
from slurm.machine import Machine, Share, share
from slurm.progress import Progress

POLL_S = 0.1
VIEW_EVERY_S = 0.5
GRACE_S = 120.0  # for the checkpoints when everything is stopped
MAX_ATTEMPTS = 3  # in one launch, of a run that ends without saying that it failed
# Of hicmae.run, without an event in the record: somebody else held the run, or it was stopped before it had begun.
SAYS_INTERRUPTED = (2, 75, 130)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FINAL = ("done", "failed", "blocked", "cancelled", "interrupted")


@dataclass(frozen=True)
class Job:
    """A run to execute, and what the executor and the view need to know of it."""

    run_id: str
    path: Path
    label: str = ""
    stage: str = ""
    depends_on: tuple[str, ...] = ()
    memory_bytes: int = 2 << 30
    expected_s: float | None = None


@dataclass
class Entry:
    """A job on the executor's board. States: waiting, running, elsewhere (another launcher's), and those of FINAL."""

    job: Job
    state: str = "waiting"
    attempts: int = 0
    began: float = 0.0
    ended: float = 0.0
    reason: str = ""
    log: Path | None = None
    gpus: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.progress = Progress(self.job.path)

    @property
    def record(self) -> RunRecord:
        return RunRecord(self.job.path)


class View(Protocol):
    """Shows the board; `changed` is called at every change of state, `refresh` now and then."""

    def changed(self, entry: Entry, board: Sequence[Entry]) -> None: ...
    def refresh(self, board: Sequence[Entry], division: Share) -> None: ...
    def say(self, line: str) -> None: ...


def run_command(path: Path, processes: int = 1) -> list[str]:
    """How a run is executed, here and under SLURM (where every task is a process of its own)."""
    several = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    return [sys.executable, "-m", *several, "hicmae.run", str(path.absolute())]


@dataclass(frozen=True)
class Options:
    """How the executor works; `environment` is added to that of the runs, `code` is the folder that they run from."""

    max_parallel: int | None = None
    gpus_per_run: int = 1
    max_attempts: int = MAX_ATTEMPTS
    grace_s: float = GRACE_S
    environment: Mapping[str, str] = field(default_factory=dict)
    code: Path | None = None
    command: Callable[[Path, int], list[str]] = run_command  # of a run directory and a number of processes


class LocalExecutor:
    """Runs jobs, those of a dependency first, until each has reached a final state."""

    def __init__(self, jobs: Sequence[Job], view: View, options: Options | None = None, machine: Machine | None = None) -> None:
        self.options = options or Options()
        self.machine = machine or Machine.here()
        self.board = [Entry(job) for job in jobs]
        self.view = view
        self.stopping = 0
        memory = max((job.memory_bytes for job in jobs), default=1)
        self.division = share(self.machine, memory, self.options.max_parallel, self.options.gpus_per_run)
        self._by_id = {entry.job.run_id: entry for entry in self.board}
        self._free_gpus = list(self.machine.gpus)

    def execute(self) -> list[Entry]:
        """Work until nothing is left to do or a stop signal has come; returns the board."""
        with on_stop_signals(self._count_stop):
            shown = 0.0
            while self._advance() and not self.stopping:
                if time.monotonic() - shown > VIEW_EVERY_S:
                    self.view.refresh(self.board, self.division)
                    shown = time.monotonic()
                time.sleep(POLL_S)
            if self.stopping:
                self._stop_all()
        self.view.refresh(self.board, self.division)
        return self.board

    def _advance(self) -> bool:
        """One round; False when every run is final."""
        for entry in self.board:
            if entry.state == "running" and entry.process is not None and entry.process.poll() is not None:
                self._reap(entry)
            elif entry.state == "elsewhere" and not entry.record.is_locked():
                self._settle(entry, "done" if _done(entry.job.path) else "waiting")
        free = self.division.at_once - sum(entry.state == "running" for entry in self.board)
        for entry in self.board:
            if entry.state == "waiting" and self._is_ready(entry) and free > 0:
                self._begin(entry)
                free -= entry.state == "running"
        return any(entry.state not in FINAL for entry in self.board)

    def _is_ready(self, entry: Entry) -> bool:
        """Whether all that a run needs is done; a run whose need will never be met is blocked."""
        states = {name: self._state_of(name, entry) for name in entry.job.depends_on}
        broken = [name for name, state in states.items() if state not in ("done", "waiting", "running", "elsewhere")]
        if broken:
            self._block(entry, broken[0], states[broken[0]])
        return all(state == "done" for state in states.values())

    def _begin(self, entry: Entry) -> None:
        """Start a run unless somebody else has done so, finished it or cancelled it since the plan was made."""
        if entry.record.is_locked():
            self._settle(entry, "elsewhere", "another process on this machine executes it")
        elif entry.record.state() in ("done", "cancelled"):
            self._settle(entry, entry.record.state())
        else:
            self._start(entry)

    def _state_of(self, run_id: str, dependant: Entry) -> str:
        known = self._by_id.get(run_id)
        if known is not None:
            return known.state
        return "done" if _done(dependant.job.path.parent / run_id) else "missing"

    def _block(self, entry: Entry, run_id: str, state: str) -> None:
        reason = f"needs {run_id}, which is {state}"
        entry.record.append_event("blocked", reason=reason)
        self._settle(entry, "blocked", reason)

    def _start(self, entry: Entry) -> None:
        entry.gpus = tuple(self._free_gpus[: self.division.gpus_per_run])
        del self._free_gpus[: self.division.gpus_per_run]
        entry.log = next_log(entry.job.path)
        entry.attempts += 1
        entry.began = time.time()
        with entry.log.open("wb") as log:
            entry.process = self._spawn(entry, log)
        self._settle(entry, "running")

    def _spawn(self, entry: Entry, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """A process in a session of its own, so that the terminal's Ctrl-C reaches the executor alone."""
        chosen = {"CUDA_VISIBLE_DEVICES": ",".join(entry.gpus)} if self.machine.gpus else {}
        threads = str(self.division.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1", **chosen, **self.options.environment}
        return subprocess.Popen(
            self.options.command(entry.job.path, max(1, self.division.gpus_per_run)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=self.options.code,
            start_new_session=True,
        )

    def _reap(self, entry: Entry) -> None:
        """Say how a process ended, from its record first and its exit code second."""
        code = entry.process.returncode if entry.process else 0
        self._free_gpus.extend(entry.gpus)
        state, reason = verdict(entry.record, code, entry.began)
        if state == "interrupted" and not self.stopping and entry.attempts < self.options.max_attempts:
            self._settle(entry, "waiting", reason)
            return
        if state in ("failed", "cancelled") and entry.record.state() != state:
            entry.record.append_event(state, reason=reason)
        self._settle(entry, state, reason)

    def _settle(self, entry: Entry, state: str, reason: str = "") -> None:
        entry.state, entry.reason = state, reason
        if state in FINAL:
            entry.ended = time.time()
        self.view.changed(entry, self.board)

    def _stop_all(self) -> None:
        """Ask the runs to write a checkpoint and end; a second stop signal, or the end of patience, kills them."""
        running = [entry for entry in self.board if entry.state == "running"]
        self.view.say(f"stopping: {len(running)} runs write a checkpoint (again to kill them)")
        for entry in running:
            if entry.process and entry.process.poll() is None:
                entry.process.terminate()  # not its group: processes that read data would die of it
        deadline, asked = time.monotonic() + self.options.grace_s, self.stopping
        while any(entry.process and entry.process.poll() is None for entry in running):
            if time.monotonic() > deadline or self.stopping > asked:
                for entry in running:
                    _kill(entry)
            time.sleep(POLL_S)
        for entry in running:
            self._reap(entry)

    def _count_stop(self) -> None:
        self.stopping += 1


@contextmanager
def on_stop_signals(call: Callable[[], None]) -> Iterator[None]:
    """Inside, a signal that asks to stop calls `call` instead of ending this process; afterwards all is as before."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        call()

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def verdict(record: RunRecord, exit_code: int, began: float) -> tuple[str, str]:
    """The state in which an attempt left its run, and why.

    A run that ends without a word (killed, out of memory) is interrupted: it continues from its last checkpoint. One that ends
    by an uncaught error is failed, with the last line of its log as the reason.
    """
    if _done(record.path):
        return "done", ""
    if record.is_locked():
        return "elsewhere", "another process on this machine executes it"
    said = [event for event in record.events() if float(event.get("time", 0.0)) >= began]
    if any(event.get("event") == "cancelled" for event in said):
        return "cancelled", "by request"
    last: dict[str, Any] = next((event for event in reversed(said) if event.get("event") in ("failed", "preempted")), {})
    if last.get("event") == "failed":
        return "failed", str(last.get("reason", "no reason given"))
    if last.get("event") == "preempted":
        return "interrupted", "asked to stop"
    if exit_code < 0:
        return "interrupted", f"killed by {_signal_name(-exit_code)}"
    if exit_code in SAYS_INTERRUPTED:
        return "interrupted", last_line(record.path)
    return "failed", last_line(record.path) or f"exit code {exit_code}"


def last_line(path: Path) -> str:
    """The last line that says something in the newest log of a run."""
    logs = logs_of(path)
    if not logs:
        return ""
    tail = logs[-1].read_bytes()[-4096:].decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(tail) if line.strip()), "")


def logs_of(path: Path) -> list[Path]:
    """The logs of a run's attempts, oldest first."""
    return sorted((path / "log").glob("attempt-*.log"), key=lambda log: int(log.stem.partition("-")[2]))


def next_log(path: Path) -> Path:
    """The file for the output of the next attempt: log/attempt-N.log."""
    (path / "log").mkdir(exist_ok=True)
    logs = logs_of(path)
    number = int(logs[-1].stem.partition("-")[2]) + 1 if logs else 1
    return path / "log" / f"attempt-{number}.log"


def local_process(record: RunRecord) -> int | None:
    """The process id of the run's last attempt, when it was started on this machine."""
    started = [event for event in record.events() if event.get("event") == "started"]
    if not started or started[-1].get("host") != socket.gethostname():
        return None
    return int(started[-1]["pid"])


def _done(path: Path) -> bool:
    return (path / "result.json").exists()


def _kill(entry: Entry) -> None:
    """The whole group, for a killed process cannot end its children."""
    if entry.process and entry.process.poll() is None:
        os.killpg(entry.process.pid, signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"{name} (out of memory?)" if name == "SIGKILL" else name
