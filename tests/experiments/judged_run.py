"""A program that keeps the record of a fine-tuning or pre-training as `hicmae.run` does, in milliseconds, with a known metric.

python judged_run.py RUN_DIR

The validation UAR after epoch e of n is TOP * e / n; TOP falls with the distance of the learning rate from 0.01, by decades.
Every epoch that is worked is written down in the order of work, so that a test sees work that was done twice.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
import time
from pathlib import Path

from filelock import Timeout

from hicmae.config import FinetuneConfig
from hicmae.record import RunRecord, append_line, write_json

PAUSE_S = float(os.environ.get("JUDGED_PAUSE_S", "0.01"))


def top(base_lr: float, seed: int = 0) -> float:
    """The UAR at the end."""
    return 90.0 - 30.0 * abs(math.log10(base_lr / 0.01)) - seed


def main(path: Path) -> int:
    record = RunRecord(path)
    try:
        with record.lock():
            return work(record)
    except Timeout:
        print(f"{path}: another process executes this run")
        return 2


def work(record: RunRecord) -> int:
    config = record.config()
    if record.result() is not None:
        return 0
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    checkpoint = record.path / "checkpoints" / "epoch.json"
    first = json.loads(checkpoint.read_text())["epoch"] if checkpoint.exists() else 0
    record.append_event("started", host=socket.gethostname(), pid=os.getpid(), step=first, total_steps=config.optim.epochs)
    if config.optim.base_lr > 1.0:
        record.append_event("failed", reason="loss is nan at step 1", error="DivergedError", step=1)
        return 1
    if config.optim.weight_decay > 0.5:
        record.append_event("failed", reason="the disk is full", error="HicmaeError")
        return 1
    for epoch in range(first + 1, config.optim.epochs + 1):
        time.sleep(PAUSE_S)
        append_line(record.path / "worked.jsonl", {"epoch": epoch})
        if isinstance(config, FinetuneConfig):
            uar = top(config.optim.base_lr, config.seed) * epoch / config.optim.epochs
            record.append_metrics("validation", epoch, epoch, {"UAR": uar, "WAR": uar, "loss": 1.0})
        write_json(checkpoint, {"epoch": epoch})
        if stopped and epoch < config.optim.epochs:
            record.append_event("preempted", step=epoch)
            return 75
    values = {"inner": {"UAR": top(config.optim.base_lr, config.seed), "loss": 1.0}} if isinstance(config, FinetuneConfig) else {}
    record.finish({"status": "done", "stage": config.stage, "metrics": values, "gpu_hours": 0.0, "wall_s": 0.1})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
