"""What `hicmae bench launch` executes in place of hicmae.run: it keeps a run's record as training does, in milliseconds.

    python -m hicmae.run RUN_DIR       # in the code that the benchmark launches from, where this file is hicmae/run.py

Lock, events, metrics, checkpoints, result, the need of a pre-training, and going on after a kill are as there.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

from filelock import Timeout

from hicmae.config import FinetuneConfig
from hicmae.record import RunRecord, write_json

STEPS = 3
STEP_S = 0.1
HELD = 2  # exit code: another process executes the run


def main(path: Path) -> int:
    record = RunRecord(path)
    try:
        with record.lock():
            return 0 if record.result() else work(record)
    except Timeout:
        print(f"{path}: another process executes this run already")
        return HELD


def work(record: RunRecord) -> int:
    """Some steps with a checkpoint after each, from the last checkpoint on."""
    config = record.config()
    if isinstance(config, FinetuneConfig) and not (record.path.parent / config.initial.reference / "result.json").exists():
        record.append_event("failed", reason=f"needs {config.initial.reference}, which is not done")
        return 1
    checkpoint = record.path / "checkpoints" / "step.json"
    first = int(json.loads(checkpoint.read_text())["step"]) if checkpoint.exists() else 0
    attempt = sum(event.get("event") == "started" for event in record.events()) + 1
    place = {"host": socket.gethostname(), "pid": os.getpid(), "node": os.environ.get("SLURMD_NODENAME", "")}
    record.append_event("started", attempt=attempt, total_steps=STEPS, step=first, world_size=1, **place)
    for step in range(first + 1, STEPS + 1):
        time.sleep(STEP_S)
        record.append_metrics("train", step, step / STEPS, {"loss": 1.0 / step})
        write_json(checkpoint, {"step": step})
        record.append_event("checkpoint", step=step)
    record.finish({"status": "done", "stage": config.stage, "seed": config.seed, "metrics": {}})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
