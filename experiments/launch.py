"""The script that launches a study; the same as `hicmae launch NAME`.

python experiments/launch.py NAME [--smoke] [--dry-run] [--yes]
python experiments/launch.py --list
python experiments/launch.py path/to/my_study.py --only variant=base fold=1
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # for a script Python puts its folder there instead of the checkout

    from experiments.cli import main

    main(["launch", *sys.argv[1:]])
