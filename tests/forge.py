"""Real processes in milliseconds: a server that has imported everything forks one for each call, from a test's side a `Process`.

    process = forge().start("hicmae.run:main", [str(run_dir)], log)
    assert process.wait() == 0

torch, deepspeed and the rest take seconds to import, and tests of kills and of several processes need dozens of processes.
The server runs this file; it has no threads and no process group when it forks. No compiler is to be found on its PATH.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
# For a server and its processes: what a run needs of a user's environment and nothing more, as it was before the first test.
KEPT = ("HOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "LD_LIBRARY_PATH", "COVERAGE_PROCESS_CONFIG")
KEPT_ENVIRONMENT = {name: os.environ[name] for name in KEPT if name in os.environ}


@dataclass(frozen=True)
class Process:
    """A process that the server has forked."""

    pid: int
    log: Path
    server: Server

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        return int(self.server.ask({"wait": self.pid})["code"])


class Server:
    """The tests' end of the server."""

    def __init__(self) -> None:
        environment = {
            **KEPT_ENVIRONMENT,
            "OMP_NUM_THREADS": "1",
            "PATH": "/nowhere",
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS / "train")]),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        atexit.register(self._process.kill)

    def start(self, call: str, arguments: list[str], log: Path, file_limit: int | None = None, **environment: str) -> Process:
        """Fork a process that calls `module:function` with a list of arguments; both its outputs are added to `log`."""
        wanted = {"call": call, "arguments": arguments, "log": str(log), "file_limit": file_limit, "environment": environment}
        return Process(self.ask(wanted)["pid"], log, self)

    def start_several(self, count: int, call: str, arguments: list[str], log: Path, **environment: str) -> list[Process]:
        """As torchrun would start `count` processes of one run."""
        together = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **environment}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **together} for rank in range(count)]
        return [self.start(call, arguments, log, **one) for one in ranks]

    def ask(self, wanted: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))


@functools.cache
def forge() -> Server:
    """The server of this test session, started when first asked for."""
    return Server()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def import_all() -> None:
    """Everything that a run imports sooner or later."""
    import torch

    from hicmae.train.engine import _deepspeed

    _deepspeed()
    for name in ("run", "provenance", "data.loader", "data.manifest", "train.loop", "train.initial", "train.objective"):
        importlib.import_module(f"hicmae.{name}")
    for name in ("pyarrow.parquet", "timm.data.mixup", "deepspeed.runtime.zero.muon.original_muon"):
        importlib.import_module(name)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True).step()  # imports more when it first steps


def serve(answers: int) -> None:
    """Fork and wait as asked, line by line, until the tests are gone."""
    import_all()
    with os.fdopen(answers, "w") as out:
        for line in sys.stdin:
            wanted = json.loads(line)
            if "wait" in wanted:
                answer = {"code": os.waitstatus_to_exitcode(os.waitpid(wanted["wait"], 0)[1])}
            else:
                answer = {"pid": os.fork()}
                if answer["pid"] == 0:
                    os._exit(be_the_process(wanted))
            out.write(json.dumps(answer) + "\n")
            out.flush()


def be_the_process(wanted: dict[str, Any]) -> int:
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(wanted["environment"])
    if wanted["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (wanted["file_limit"], resource.RLIM_INFINITY))
    module, function = wanted["call"].split(":")
    try:
        code = int(getattr(importlib.import_module(module), function)(wanted["arguments"]) or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # coverage writes at the end
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    own = os.dup(1)  # answers go there; whatever else is printed goes with the errors
    os.dup2(2, 1)
    serve(own)
