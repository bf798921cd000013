"""How long a store of very many clips takes to open, and the memory: a part of `hicmae bench data`.

    python -m experiments.bench_store TABLE READS opening     # what the fresh process of the measurement does

The clips are few real ones under very many names (hard links), and so are the packs of the store; what is measured, finding
the files and their packs, depends on the names alone. What a pack holds is real, and some of it is read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hicmae.data.clipstore import ClipStore

CLIPS = 100_000
READS = 5_000
DIFFERENT = 4  # real clips; divides the clips of a pack, so that whole packs are alike
IMAGE_PX = 160
OPENING_GOAL_S, MEMORY_GOAL_BYTES = 1.0, 200 << 20
Show = Callable[[int, int, str], None]


def measure(count: int, show: Show, reads: int = READS) -> dict[str, Any]:
    """Build a store of `count` clips, open it in a fresh process, read from it there. Everything is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="hicmae-bench-") as folder:
        place = Path(folder)
        environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache"), "HICMAE_STORE": str(place / "store")}
        table = _write_corpus(place / "data", count, show)
        words = [sys.executable, "-m", "experiments.bench_store", str(table), str(reads)]
        for number, step in enumerate(("packing", "opening")):
            show(number, 2, f"{step} {count} clips")
            ended = subprocess.run([*words, step], env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, Any] = json.loads(ended.stdout)
        return found


def _write_corpus(root: Path, count: int, show: Show) -> Path:
    """A `csv:` corpus of `count` names of few clips of 0.4 s; returns the table."""
    from hicmae.data.synthetic.clip import Take, pictures, sound
    from hicmae.data.synthetic.write import write_media

    real = []
    for number in range(DIFFERENT):
        take = Take(0, number, 0, 0, number % 2, 0.4, 96)
        real.append(write_media(root / f"real{number}.mp4", pictures(take), sound(take)))
    lines = ["sample_id,video,label"]
    for number in range(count):
        path = root / "clips" / f"{number // 1000:03d}" / f"{number:06d}.mp4"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
            show(number, count, f"naming {count} clips")
        os.link(real[number % DIFFERENT], path)
        lines.append(f"c{number:06d},{path.relative_to(root)},{number % 2}")
    table = root / "clips.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def _pack(store: ClipStore) -> None:
    """Make the first pack of every kind and link it for the others that hold as many clips; those that do not are made too."""
    for files in store.kinds:
        files.build(0)
        for number, place in enumerate(files.packs):
            if (number + 1) * files.size <= len(files.files) and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                os.link(files.packs[0], place)
    store.build()


def main(table: Path, reads: int, step: str) -> None:
    """Pack or open the store of a table; opening prints seconds and bytes as JSON."""
    import numpy as np
    import psutil

    from hicmae.data import corpora
    from hicmae.data.clipstore import ClipStore

    begun = time.perf_counter()
    corpus = corpora.get(f"csv:{table}")
    samples = corpus.samples(table.parent)
    listed, listed_cpu = time.perf_counter(), time.process_time()

    def own_bytes() -> int:
        """Memory of this process alone; pages of the packs belong to the page cache, which all readers share."""
        memory = psutil.Process().memory_info()
        return int(memory.rss - getattr(memory, "shared", 0))

    before = own_bytes()
    store = ClipStore(samples, corpus, IMAGE_PX)
    if step == "packing":
        _pack(store)
        return
    store.build()
    opened, opened_cpu = time.perf_counter(), time.process_time()
    after = own_bytes()
    for number in np.random.default_rng(0).integers(len(samples), size=reads).tolist():
        store.frames(number, [0])
        store.sound(number, slice(0, 1600))
    result = {
        "clips": len(samples),
        "list_s": listed - begun,
        "open_s": opened - listed,
        "open_cpu_s": opened_cpu - listed_cpu,
        "reads": reads,
        "read_ms": 1000 * (time.perf_counter() - opened) / max(1, reads),
        "open_bytes": after - before,
        "read_bytes": own_bytes() - before,
        "goal_open_s": OPENING_GOAL_S,
        "goal_bytes": MEMORY_GOAL_BYTES,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
