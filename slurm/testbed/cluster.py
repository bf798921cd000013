"""The daemons of a one-machine SLURM: written configuration, ordered start, clean stop."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import tenacity
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hicmae.errors import HicmaeError, UsageError

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sinfo")
MAX_ARRAY_SIZE = 101  # small, so that splitting arrays is exercised
GPUS_PER_NODE = 4
START_LIMIT_S = 60


@dataclass(frozen=True)
class Cluster:
    """A cluster whose configuration, logs, state and sockets all live under `state`."""

    state: Path
    nodes: int = 2
    cpus_per_node: int = 8  # declared, not real: the jobs of tests mostly wait
    memory_mib_per_node: int = 8000
    max_array_size: int = MAX_ARRAY_SIZE

    def environment(self) -> dict[str, str]:
        """What SLURM's commands need in order to talk to this cluster."""
        return {"SLURM_CONF": str(self.state / "slurm.conf")}

    def up(self) -> None:
        """Start every daemon and return when all nodes are idle. Raises HicmaeError with the log to read."""
        _require_programs()
        if self.is_up():
            print(f"SLURM is already up ({self.state})")
            return
        self.down()
        self._write_configuration()
        self._start_munge()
        self._start_database()
        self._start_slurm()
        print(f"SLURM is up: {self.nodes} nodes, partitions normal and high")
        print(f"use it: export SLURM_CONF={self.state}/slurm.conf")

    def down(self) -> None:
        """Stop every daemon and every process that its jobs left; the folder keeps logs and configuration."""
        for name in ("slurmctld", "slurmd"):
            _stop([process for process in psutil.process_iter(["name"]) if self._owns(process, name)])
        _stop(_with_children(self._steps("node")), signal.SIGKILL)
        for name in ("slurmdbd", "mariadbd", "munged"):
            _stop([process for process in psutil.process_iter(["name"]) if self._owns(process, name)])
        for folder in ("spool", "munge", "mysql"):
            shutil.rmtree(self.state / folder, ignore_errors=True)

    def is_up(self) -> bool:
        """Whether the controller answers and every node is usable."""
        if not (self.state / "slurm.conf").exists():
            return False
        states = self._ask("sinfo", "--noheader", "--Node", "--partition=normal", "--format=%T") or []
        return len(states) == self.nodes and all(state in ("idle", "mixed", "allocated") for state in states)

    def kill_controller(self) -> None:
        """SIGKILL the controller, as a crash would."""
        _stop([process for process in psutil.process_iter(["name"]) if self._owns(process, "slurmctld")], signal.SIGKILL)

    def start_controller(self) -> None:
        """Start the controller on the state that it saved, and put nodes back that it drains after a crash."""
        self._run(["slurmctld"])
        self._wait_for("all nodes", lambda: self.resume_nodes() and self.is_up(), "log/slurmctld.log")

    def wait_until_saved(self, job: str) -> None:
        """Until the controller has saved what it knows of a job, some seconds after a change; a crash forgets the rest."""
        self._ask("scontrol", "update", f"JobId={job}", "Comment=changed")
        changed, saved = time.time(), self.state / "spool" / "ctld" / "job_state"
        self._wait_for("a save", lambda: saved.stat().st_mtime > changed, "log/slurmctld.log")

    def resume_nodes(self) -> bool:
        """Put drained nodes back, as an administrator does; False while the controller does not answer.

        A controller that was killed forgets the last numbers of jobs, gives them out again, and drains nodes that know them.
        """
        listed = self._ask("sinfo", "--noheader", "--Node", "--partition=normal", "--states=drain,down", "--format=%N")
        if listed:
            self._ask("scontrol", "update", f"NodeName={','.join(sorted(set(listed)))}", "State=RESUME")
        return listed is not None

    def clear(self) -> None:
        """Cancel every job and wait until none is left, so that what comes next finds the nodes free."""
        self._ask("scancel", "--user=root")
        self._wait_for("an empty queue", lambda: self._ask("squeue", "--noheader", "--format=%A") == [], "log/slurmctld.log")
        self.resume_nodes()

    def restart_controller(self) -> None:
        self.kill_controller()
        self.start_controller()

    def stop_node(self, number: int, how: signal.Signals = signal.SIGKILL) -> None:
        """Kill a node's slurmd and every process of the jobs on it at once, as the loss of the machine would."""
        name = f"node{number}"
        daemons = [one for one in psutil.process_iter(["name"]) if self._owns(one, "slurmd") and name in one.cmdline()]
        _stop([*daemons, *_with_children(self._steps(f"{name}.log"))], how)

    def start_node(self, number: int) -> None:
        self._run(["slurmd", "-N", f"node{number}"])

    def _write_configuration(self) -> None:
        for folder in ("log", "spool/ctld", "munge", "mysql", *(f"spool/node{i + 1}" for i in range(self.nodes))):
            (self.state / folder).mkdir(parents=True, exist_ok=True)
        ports = _free_ports(3 + self.nodes)
        values = {
            "state": self.state, "host": socket.gethostname().split(".")[0], "nodes": self.nodes, "cpus": self.cpus_per_node,
            "memory_mib": self.memory_mib_per_node, "max_array_size": self.max_array_size,
            "ports": {"controller": ports[0], "database_daemon": ports[1], "database": ports[2], "nodes": ports[3:]},
        }  # fmt: skip
        templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True,
            autoescape=False,  # noqa: S701  configuration files, not HTML
        )  # fmt: skip
        for name in ("slurm.conf", "slurmdbd.conf"):
            (self.state / name).write_text(templates.get_template(f"{name}.jinja").render(values))
        (self.state / "slurmdbd.conf").chmod(0o600)
        (self.state / "gres.conf").write_text(f"Name=gpu File=/dev/tty[0-{GPUS_PER_NODE - 1}]\n")
        (self.state / "cgroup.conf").write_text("CgroupAutomount=no\n")

    def _start_munge(self) -> None:
        folder = self.state / "munge"
        (folder / "key").write_bytes(secrets.token_bytes(128))
        (folder / "key").chmod(0o400)
        options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        # --force: the folder's parents may belong to somebody else than root, which munged otherwise refuses.
        self._run(["munged", "--force", "--num-threads=2", *(f"--{name}={folder / file}" for name, file in options.items())])

    def _start_database(self) -> None:
        data = self.state / "mysql"
        self._make_database(data)
        port = _setting(self.state / "slurmdbd.conf", "StoragePort")
        log = (self.state / "log" / "mariadbd.log").open("w")
        options = [f"--datadir={data}", f"--socket={data}/socket", "--bind-address=127.0.0.1", f"--port={port}"]
        subprocess.Popen(
            ["mariadbd", "--no-defaults", "--user=root", "--innodb-buffer-pool-size=64M", *options],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._wait_for("MariaDB", lambda: _listens(int(port)), "log/mariadbd.log")
        self._run(["mariadb", "--no-defaults", "--user=root", f"--socket={data}/socket", "--execute",
                   "create user slurm@'127.0.0.1'; grant all on *.* to slurm@'127.0.0.1'; create user slurm@localhost; "
                   "grant all on *.* to slurm@localhost"])  # fmt: skip

    @tenacity.retry(stop=tenacity.stop_after_attempt(3), retry=tenacity.retry_if_exception_type(HicmaeError), reraise=True)
    def _make_database(self, data: Path) -> None:
        """Lay out an empty database; MariaDB's own set-up was seen to crash now and then on a busy machine."""
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        self._run(["mariadb-install-db", f"--datadir={data}", "--user=root", "--auth-root-authentication-method=normal",
                   "--skip-test-db"])  # fmt: skip

    def _start_slurm(self) -> None:
        self._run(["slurmdbd"])
        port = _setting(self.state / "slurmdbd.conf", "DbdPort")
        self._wait_for("slurmdbd", lambda: _listens(int(port)), "log/slurmdbd.log")
        self._run(["slurmctld", "-c"])
        for number in range(1, self.nodes + 1):
            self.start_node(number)
        self._wait_for("all nodes", self.is_up, "log/slurmctld.log")

    def _full_environment(self) -> Mapping[str, str]:
        return {**os.environ, **self.environment(), "SLURM_CONF": str(self.state / "slurm.conf")}

    def _ask(self, *command: str) -> list[str] | None:
        """The words that a command of SLURM answers with; None when it fails."""
        answer = subprocess.run(command, env=self._full_environment(), capture_output=True, text=True, timeout=40, check=False)
        return None if answer.returncode else answer.stdout.split()

    def _run(self, command: list[str]) -> None:
        log = self.state / "log" / f"{command[0]}.start.log"
        with log.open("ab") as file:
            code = subprocess.run(
                command, env=self._full_environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            ).returncode
        if code:
            raise HicmaeError(f"{command[0]} exited with {code}; read {log}")

    def _wait_for(self, what: str, ready: Callable[[], bool], log: str) -> None:
        until = time.monotonic() + START_LIMIT_S
        while not ready():
            if time.monotonic() > until:
                raise HicmaeError(f"{what} did not come up in {START_LIMIT_S} s; read {self.state / log}")
            time.sleep(0.1)

    def _owns(self, process: psutil.Process, name: str) -> bool:
        """Daemons are told apart by name, and by this cluster's folder in their arguments or environment."""
        try:
            if process.name() != name:
                return False
            return str(self.state) in " ".join(process.cmdline()) or process.environ().get("SLURM_CONF") == str(
                self.state / "slurm.conf"
            )
        except psutil.Error:
            return False

    def _steps(self, log: str) -> list[psutil.Process]:
        """The daemons of job steps, known by the log that they write, for they hide their arguments and environment."""
        beginning = str(self.state / "log" / log)
        return [one for one in psutil.process_iter(["name"]) if one.info["name"] == "slurmstepd" and _has_open(one, beginning)]


def _require_programs() -> None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise UsageError(f"missing programs: {', '.join(missing)}; `make system-packages` installs them")
    if os.geteuid() != 0:
        raise UsageError("the testbed must be started as root: slurmd starts jobs as the user who submits them")


def _has_open(process: psutil.Process, beginning: str) -> bool:
    """Whether a process holds a file open whose path begins so."""
    try:
        return any(file.path.startswith(beginning) for file in process.open_files())
    except psutil.Error:
        return False


def _with_children(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Processes, and then all that they started, so that nobody is left to report their end."""
    found = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.extend(process.children(recursive=True))
    return found


def _stop(processes: list[psutil.Process], how: signal.Signals = signal.SIGTERM, patience_s: float = 3) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(how)
    for process in psutil.wait_procs(processes, timeout=patience_s)[1]:
        process.kill()


def _free_ports(count: int) -> list[int]:
    """Free loopback ports, all different: held open together before any is given back."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _setting(path: Path, name: str) -> str:
    return next(line.split("=", 1)[1] for line in path.read_text().splitlines() if line.startswith(f"{name}="))
