"""The generated corpus on disk: clips/<speaker>/<sample>.mp4 and, last of all, clips.csv.

    hicmae data generate

clips.csv is the completion record: without it a generation was interrupted, and the next call makes what is missing.
recipe.json says what the clips were made from, so that clips of two recipes never mix.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread

from filelock import FileLock

from hicmae.errors import HicmaeError, UsageError
from hicmae.whole import sync, written_whole

GENERATOR_VERSION = 1  # to be raised whenever pictures or sound change
CLASSES = ("calm_negative", "calm_positive", "excited_negative", "excited_positive")
COLUMNS = ("sample_id", "file", "arousal", "valence", "label", "speaker", "test_fold")
MANIFEST, RECIPE = "clips.csv", "recipe.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Recipe:
    """All that decides what the files hold."""

    speakers: int
    clips_per_speaker: int
    seconds: float
    size_px: int
    seed: int
    folds: int
    version: int = GENERATOR_VERSION

    def __post_init__(self) -> None:
        allowed = {
            "clips_per_speaker": (
                self.clips_per_speaker > 0 and self.clips_per_speaker % len(CLASSES) == 0,
                "must be a multiple of 4, the classes",
            ),
            "folds": (2 <= self.folds <= self.speakers, f"must be between 2 and the number of speakers, {self.speakers}"),
            "seconds": (0.5 <= self.seconds <= 60, "must be between 0.5 and 60"),
            "size_px": (64 <= self.size_px <= 1024 and self.size_px % 2 == 0, "must be even and between 64 and 1024"),
            "seed": (self.seed >= 0, "must be at least 0"),
        }
        for name, (holds, rule) in allowed.items():
            if not holds:
                raise UsageError(f"{name} = {getattr(self, name)}: {rule}")


@dataclass(frozen=True)
class Row:
    """One line of clips.csv and the numbers that its clip is made from."""

    sample_id: str
    file: str
    arousal: int
    valence: int
    speaker: str
    test_fold: int
    speaker_index: int
    take: int

    @property
    def label(self) -> int:
        return 2 * self.arousal + self.valence


def generate(
    root: Path,
    speakers: int = 36,
    clips_per_speaker: int = 8,
    seconds: float = 2.0,
    size_px: int = 96,
    seed: int = 0,
    folds: int = 3,
    progress: Progress | None = None,
    processes: int | None = None,
) -> Path:
    """Make the corpus below `root`, or what is missing of it, and return `root`.

    `progress(done, all)` is called in this process as clips get ready; `processes` is the number of cores unless given, and
    changes nothing in the files. Raises UsageError for impossible numbers and for a folder that holds other clips,
    HicmaeError when the files cannot be written.
    """
    recipe = Recipe(speakers, clips_per_speaker, float(seconds), size_px, seed, folds)
    rows = table(recipe)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(str(root / ".lock")):  # a second caller waits, then finds the work done
            _claim(root, recipe)
            missing = [row for row in rows if not _is_there(root / row.file)]
            _make(root, recipe, missing, progress or _silent, processes or _cores())
            if missing or not (root / MANIFEST).exists():
                _write_whole(root / MANIFEST, _manifest(rows))
    except OSError as error:
        raise HicmaeError(f"{root}: cannot write the generated clips ({error}); free the disk or give another folder") from None
    return root


def table(recipe: Recipe) -> list[Row]:
    """All clips in order: the takes of a speaker go through the classes in turn, so every speaker and fold is balanced."""
    rows = []
    for index in range(recipe.speakers):
        speaker = f"s{index + 1:02d}"
        for take in range(recipe.clips_per_speaker):
            name, label = f"{speaker}_{take + 1:02d}", take % len(CLASSES)
            file = f"clips/{speaker}/{name}.mp4"
            rows.append(Row(name, file, label // 2, label % 2, speaker, fold_of(index, recipe.folds), index, take))
    return rows


def fold_of(speaker: int, folds: int) -> int:
    """1, 2, 3, 3, 2, 1, 1 ...: low and high voices alternate over speakers, and so every fold gets both."""
    place = speaker % (2 * folds)
    return 1 + min(place, 2 * folds - 1 - place)


def make_clip(path: Path, recipe: Recipe, row: Row) -> None:
    """Draw, speak and encode one clip."""
    from hicmae.data.synthetic.clip import Take, pictures, sound  # scipy and the codecs: not needed to plan a run
    from hicmae.data.synthetic.write import write_media

    take = Take(recipe.seed, row.speaker_index, row.take, row.arousal, row.valence, recipe.seconds, recipe.size_px)
    write_media(path, pictures(take), sound(take))


def _claim(root: Path, recipe: Recipe) -> None:
    """Write the recipe into an empty folder; refuse one that holds something else. Clear what a kill left half-written."""
    place, text = root / RECIPE, json.dumps(asdict(recipe), indent=1, sort_keys=True) + "\n"
    if not place.exists():
        if any(not path.name.startswith(".") for path in root.iterdir()):
            raise UsageError(f"{root}: is not empty and holds no generated corpus; give another folder")
        _write_whole(place, text)
    elif place.read_text() != text:
        raise UsageError(f"{root}: holds clips of another recipe (see {RECIPE}); delete it or give another folder")
    for leftover in root.rglob(".*.tmp"):
        leftover.unlink()


def _make(root: Path, recipe: Recipe, rows: list[Row], progress: Progress, processes: int) -> None:
    for done, _ in enumerate(_made(root, recipe, rows, min(processes, len(rows))), start=1):
        progress(done, len(rows))


def _made(root: Path, recipe: Recipe, rows: list[Row], processes: int) -> Iterator[None]:
    """Yields once per finished clip."""
    if processes <= 1:
        for row in rows:
            make_clip(root / row.file, recipe, row)
            yield
        return
    # Fresh processes: a fork of one that has started threads (PyTorch's, a codec's) can hang.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_attend_to_parent)
    try:
        for clip in as_completed([pool.submit(make_clip, root / row.file, recipe, row) for row in rows]):
            clip.result()
            yield
    except BrokenExecutor:
        raise HicmaeError(f"{root}: a process that made clips was killed, perhaps out of memory; start again to go on") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _attend_to_parent() -> None:
    """Ctrl-C is for the parent, which lets the clips in hand be finished; when the parent is killed, end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _manifest(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(row, column) for column in COLUMNS] for row in rows)
    return text.getvalue()


def _write_whole(path: Path, text: str) -> None:
    with written_whole(path) as temporary, temporary.open("w") as file:
        file.write(text)
        sync(file)


def _is_there(path: Path) -> bool:
    """Clips are renamed when whole; an empty one is what a power cut may leave."""
    return path.exists() and path.stat().st_size > 0


def _silent(done: int, total: int) -> None:
    """No progress is wanted."""
