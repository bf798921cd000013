"""Keeps a search on SLURM going: waits in the queue for the workers' end and, while a budget is left, submits workers again.

    python -m experiments.search.keeper --array FOLDER      # written into a job script by experiments/search/cluster.py

When all budgets are spent it draws the figures. Exit codes: 0 nothing left to do, 1 gave up, 2 bad usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from experiments import cluster as clusters
from experiments.available import Fingerprints
from experiments.search import report, worker
from experiments.search.cluster import MAX_BARREN, Past, Queue, Workers
from hicmae.errors import HicmaeError
from slurm import arrays, code
from slurm.arrays import Array

INHERITED = ("SLURM_", "SLURMD_", "SBATCH_")  # of this job; sbatch would take them for its own
KEPT = ("SLURM_CONF",)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.search.keeper", description="Submits workers again.")
    parser.add_argument("--array", type=Path, required=True, help="the task's own folder, which has its arguments")
    folder = parser.parse_args(arguments).array.absolute()
    for name in [name for name in os.environ if name.startswith(INHERITED) and name not in KEPT]:
        del os.environ[name]
    try:
        return keep(arrays.read(folder.parent.parent, folder.name), Console())
    except HicmaeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def keep(me: Array, console: Console) -> int:
    """Do what is left to do. Raises HicmaeError when submitting again leads nowhere."""
    parser = worker.parser_of("python -m experiments.search.keeper")
    parser.add_argument("--profile")
    for name in ("--workers", "--fruits", "--barren"):
        parser.add_argument(name, type=int)
    options = parser.parse_args(me.resources["arguments"])
    request = worker.request_of(options)
    prints = Fingerprints()
    studies = [worker.opened(part, request.runs_root, prints) for part in worker.requested(request).parts()]
    for study in studies:
        report.record(study.search, study, request.runs_root, prints)
        if study.is_spent():
            study.draw_found()
    if all(study.is_spent() for study in studies):
        console.print("all budgets are spent")
        return 0
    target = replace(clusters.target(options.profile, options.workers, request.label), code=code.ROOT)
    workers = Workers(studies, request.runs_root, request, options.workers, target, console)
    with arrays.launching(request.runs_root):
        return _submit_again(workers, me, Past(options.fruits, options.barren), console)


def _submit_again(workers: Workers, me: Array, past: Past, console: Console) -> int:
    queue = Queue(workers.runs_root, workers.names)
    if queue.has_keeper(newer_than=me.created):
        console.print("another keeper waits for the workers that were submitted since")
        return 0
    if not queue.at_work and queue.was_cancelled():
        console.print("the workers were cancelled; launch the search again to go on")
        return 0
    fruits = workers.fruits()
    barren = past.barren + 1 if fruits == past.fruits and not queue.at_work else 0
    if barren >= MAX_BARREN:
        raise HicmaeError(
            f"{barren} submissions in a row ended without a trial done or pruned, so this was the last; "
            f"read the workers' output in {workers.runs_root}/{arrays.FOLDER}, mend it and launch again"
        )
    workers.fill(queue, Past(fruits, barren), newer_than=me.created)
    return 0


if __name__ == "__main__":
    sys.exit(main())
