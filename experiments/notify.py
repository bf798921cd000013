"""Tell somebody how a launch ended: a command or a web hook of the user's (`--notify`, or $HICMAE_NOTIFY).

    hicmae launch ablation_hierarchical --notify 'notify-send hicmae'
    hicmae launch ablation_hierarchical --notify https://hooks.example.org/abc

A command gets one line of text as its last argument and the facts as JSON on its standard input; a web hook gets them as a POST.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import urllib.request
from typing import Any

from hicmae.errors import HicmaeError

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


def _post(url: str, facts: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(facts).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310  the user's own address, http or https only
        return
