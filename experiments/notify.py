"""Tell somebody how a launch ended: a command or a web hook of the user's (`--notify`, or $HICMAE_NOTIFY).

    hicmae launch ablation_hierarchical --notify 'notify-send hicmae'
    hicmae launch ablation_hierarchical --notify https://hooks.example.org/abc

A command gets one line of text as its last argument and the facts as JSON on its standard input; a web hook gets them as a POST.
On SLURM, where the launcher is gone by then, a small job tells it; it waits for all jobs that the study has in the queue:

    srun python -m experiments.notify --array ARRAY_FOLDER      # written into the job script by slurm/dispatch.py
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from experiments.render import STATE_ORDER
from hicmae.errors import HicmaeError
from slurm import arrays
from slurm.state import read_states

TIMEOUT_S = 30


def notify(receiver: str, study: str, exit_code: int, counts: dict[str, int], what: str = "runs") -> None:
    """Send the facts of a launch, with how many runs (or trials) ended how: finished, failed, unfinished (cut off) or stopped.

    Raises HicmaeError, without what may be secret, when they do not get through.
    """
    outcome = {0: "finished", 130: "stopped"}.get(exit_code, "failed" if counts.get("failed") or not counts else "unfinished")
    told = ", ".join(f"{number} {state}" for state, number in counts.items())
    facts = {"study": study, "outcome": outcome, what: counts, "text": f"{study} {outcome}: {told}"}
    try:
        if _is_url(receiver):
            _post(receiver, facts)
        else:
            command = [*shlex.split(receiver), str(facts["text"])]
            subprocess.run(command, input=json.dumps(facts), text=True, check=True, timeout=TIMEOUT_S)
    except (OSError, ValueError, HTTPException, subprocess.SubprocessError) as error:
        raise HicmaeError(f"--notify {_name(receiver)}: {_reason(error)}; the launch itself {outcome}") from None


def tell(receiver: str, study: str, runs_root: Path, run_ids: Sequence[str]) -> None:
    """Send how runs that are over have ended. Raises HicmaeError."""
    found = Counter(state.state for state in read_states(runs_root, run_ids).values())
    ended = {state: found[state] for state in STATE_ORDER if found[state]}
    notify(receiver, study, 0 if set(ended) <= {"done"} else 1, ended)


def main(folder: Path) -> int:
    """The task of the job that tells; the receiver, which may be a secret, is forgotten then, told or not."""
    runs_root = folder.parent.parent
    array = arrays.read(runs_root, folder.name)
    if not array.resources["arguments"]:
        print("told already, or tried to")
        return 0
    receiver, study, *run_ids = array.resources["arguments"]
    try:
        tell(receiver, study, runs_root, run_ids)
    except HicmaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        arrays.forget_arguments(array)
    return 0


def _name(receiver: str) -> str:
    """A receiver for a log: the scheme and host of a web hook, the name of a program; the rest may be a secret."""
    try:
        if _is_url(receiver):
            address = urlsplit(receiver)
            return f"{address.scheme}://{address.hostname}{f':{address.port}' if address.port else ''}"
        return Path(shlex.split(receiver)[0]).name
    except (ValueError, IndexError):
        return "(unreadable)"


def _reason(error: Exception) -> str:
    """Why the receiver was not reached; the errors' own texts may hold the whole address or command."""
    if isinstance(error, HTTPError):
        return f"HTTP error {error.code}"
    if isinstance(error, URLError):
        return str(error.reason)
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit code {error.returncode}"
    if isinstance(error, (subprocess.TimeoutExpired, TimeoutError)):
        return f"no answer in {TIMEOUT_S} s"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "not a command line or an address that can be read"


def _is_url(receiver: str) -> bool:
    return receiver.startswith(("http://", "https://"))


def _post(url: str, facts: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(facts).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310  the user's own address, http or https only
        return


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[-1])))
