"""Starts and stops a real SLURM on one machine: munge, slurmdbd with MariaDB, slurmctld and two slurmd.

    make slurm-up                                  # or: python -m slurm.testbed up [--state FOLDER] [--nodes 2]
    eval "$(python -m slurm.testbed environment)"  # then sinfo, sbatch, squeue and `--cluster slurm` work
    make slurm-down

Everything lives in one folder and listens on loopback alone. Needs root, for slurmd starts jobs as the user who submits
them, and the programs that `make system-packages` installs. Partitions: `normal`, and `high`, which preempts it by requeueing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hicmae.errors import HicmaeError
from slurm.testbed.cluster import Cluster

DEFAULT_STATE = Path(__file__).parent / "state"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m slurm.testbed", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("action", choices=["up", "down", "environment", "restart-controller"])
    parser.add_argument("--state", type=Path, default=DEFAULT_STATE, help="folder of the cluster (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=2, help="how many slurmd (default: %(default)s)")
    options = parser.parse_args(arguments)
    cluster = Cluster(options.state.resolve(), nodes=options.nodes)
    try:
        {
            "up": cluster.up,
            "down": cluster.down,
            "environment": lambda: print("\n".join(f"export {name}={value}" for name, value in cluster.environment().items())),
            "restart-controller": cluster.restart_controller,
        }[options.action]()
    except HicmaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
