"""Tell somebody how a launch ended: a command or a web hook of the user's (`--notify`, or $HICMAE_NOTIFY).

    hicmae launch ablation_hierarchical --notify 'notify-send hicmae'
    hicmae launch ablation_hierarchical --notify https://hooks.example.org/abc

A command gets one line of text as its last argument and the facts as JSON on its standard input; a web hook gets them as a POST.
On SLURM, where the launcher is gone by then, a small job that waits for all others tells it:

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
from pathlib import Path
from typing import Any

from hicmae.errors import HicmaeError
from slurm import arrays
from slurm.state import read_states

TIMEOUT_S = 30


def notify(receiver: str, study: str, exit_code: int, counts: dict[str, int]) -> None:
    """Send the facts of a launch. Raises HicmaeError, which names the receiver, when they do not get through."""
    outcome = {0: "finished", 130: "stopped"}.get(exit_code, "failed")
    told = ", ".join(f"{number} {state}" for state, number in counts.items())
    facts = {"study": study, "outcome": outcome, "runs": counts, "text": f"{study} {outcome}: {told}"}
    try:
        if receiver.startswith(("http://", "https://")):
            _post(receiver, facts)
        else:
            command = [*shlex.split(receiver), str(facts["text"])]
            subprocess.run(command, input=json.dumps(facts), text=True, check=True, timeout=TIMEOUT_S)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise HicmaeError(f"--notify {receiver.split('?')[0]}: {error}; the launch itself {outcome}") from None


def tell(receiver: str, study: str, runs_root: Path, run_ids: Sequence[str]) -> None:
    """Send how runs that are over have ended. Raises HicmaeError."""
    ended = Counter(state.state for state in read_states(runs_root, run_ids).values())
    notify(receiver, study, 0 if set(ended) <= {"done"} else 1, dict(ended))


def main(folder: Path) -> int:
    """The task of the job that tells; the receiver, which may be a secret, is forgotten once it was told."""
    runs_root = folder.parent.parent
    array = arrays.read(runs_root, folder.name)
    receiver, study, *run_ids = array.resources["arguments"]
    try:
        tell(receiver, study, runs_root, run_ids)
    except HicmaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    arrays.forget_arguments(array)
    return 0


def _post(url: str, facts: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(facts).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310  the user's own address, http or https only
        return


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[-1])))
