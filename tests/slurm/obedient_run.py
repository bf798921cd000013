"""A program that keeps a run's record as `hicmae.run` does, in milliseconds, and misbehaves as behaviour.json says.

    python obedient_run.py RUN_DIR

Behaviour: steps, pause_s (a step), fail_at, kill_at (first attempt, or always), cancel_at, crash, memory_mib (to take hold of).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from filelock import Timeout

from hicmae.record import RunRecord, write_json

STOPPED = 75


def main(path: Path) -> int:
    record = RunRecord(path)
    try:
        with record.lock():
            return work(record, json.loads((path / "behaviour.json").read_text()))
    except Timeout:
        print(f"{path}: another process executes this run")
        return 2


def work(record: RunRecord, wanted: dict[str, Any]) -> int:
    """Steps with a checkpoint after every second one."""
    if record.result() is not None:
        return 0
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, _frame: stopped.append(received))
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HICMAE_DATA", "SLURM_JOB_NUM_NODES", "ODD")
    write_json(record.path / "environment.json", {name: os.environ.get(name, "") for name in names})
    checkpoint = record.path / "checkpoints" / "step.json"
    first = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
    steps = wanted.get("steps", 3)
    attempt = sum(event["event"] == "started" for event in record.events()) + 1
    record.append_event("started", host=socket.gethostname(), pid=os.getpid(), attempt=attempt, total_steps=steps, step=first)
    held = b"x" * (wanted.get("memory_mib", 0) << 20)
    if "crash" in wanted:
        raise ValueError("crashed on purpose")
    for step in range(first + 1, steps + 1):
        time.sleep(wanted.get("pause_s", 0.0))
        if stopped:
            write_json(checkpoint, {"step": step - 1})
            record.append_event("preempted", step=step - 1)
            return STOPPED
        if wanted.get("kill_at") == step and (attempt == 1 or wanted.get("always")):
            os.kill(os.getpid(), signal.SIGKILL)
        if wanted.get("cancel_at") == step:
            record.append_event("cancelled", reason="by request")
            os.kill(os.getpid(), signal.SIGTERM)
        if wanted.get("fail_at") == step:
            record.append_event("failed", reason=f"the loss is nan at step {step}", step=step)
            return 1
        record.append_metrics("train", step, step / steps, {"loss": 1.0 / step})
        if step % 2 == 0:
            write_json(checkpoint, {"step": step})
            record.append_event("checkpoint", step=step)
    record.finish({"status": "done", "held": len(held)})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
