"""The clip store: every clip decoded once, shared by all runs on a machine or a filesystem.

Frames are kept as JPEG at the working size, sound as 16 kHz 16-bit samples, in packs of a few hundred clips (store.py). The
name of a pack is the hash of how it was made and of the bytes of the files that went in, so a pack is never wrong, only absent:
a changed file, another size or another crop is another pack. Any number of jobs may build at once; each pack is built by
one of them, under a lock. With HICMAE_STORE=off clips are decoded at every use, to the same pixels and samples.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from hicmae.data import clips, location, manifest
from hicmae.data.clips import Frames, Waveform
from hicmae.data.corpora import Corpus, Sample
from hicmae.data.recipe import JPEG_QUALITY, SECOND, Recipe, from_jpeg, to_jpegs
from hicmae.data.store import Pack, PackDamaged, Parts, write_pack
from hicmae.errors import ClipError, HicmaeError

FORMAT = 2
PACK_CLIPS, PACKS_WANTED = 256, 32  # clips in a pack at most; packs of a small corpus, so that all cores can build
OPEN_PACKS = 128  # of a kind; each takes one of the files that a process may open, often 1024, and opens in 35 us
ABANDONED_S = 3600.0
T = TypeVar("T")


class ClipSource(Protocol):
    """Frames and sound of samples by their number."""

    def frame_count(self, number: int) -> int: ...

    def times_s(self, number: int) -> NDArray[np.float32] | None:
        """Start of every frame and end of the last, or None for folders of pictures."""

    def frames(self, number: int, indices: Sequence[int]) -> Frames:
        """(n, px, px, 3)"""

    def sample_count(self, number: int) -> int: ...

    def sound(self, number: int, span: slice) -> NDArray[np.float32]:
        """Samples in [-1, 1]."""


class PackedFiles:
    """The records of one kind for a list of files, in as many packs as are needed."""

    def __init__(self, root: Path, recipe: Recipe, files: Sequence[Path], digests: dict[Path, str]) -> None:
        self.recipe, self.files = recipe, list(files)
        self._digests = [digests[path] for path in self.files]
        self.size = max(1, min(PACK_CLIPS, -(-len(self.files) // PACKS_WANTED)))
        self.packs = [self._place(root, start) for start in range(0, len(self.files), self.size)]
        self._open: OrderedDict[int, Pack] = OrderedDict()
        self._errors: dict[int, dict[int, str]] = {}  # of packs that were there
        self._last: tuple[int, Parts] | None = None  # an example asks for several things of one record

    def _place(self, root: Path, start: int) -> Path:
        made_of = [FORMAT, JPEG_QUALITY, self.recipe.kind, self.recipe.image_px, self.recipe.crop]
        made_of.append(self._digests[start : start + self.size])
        name = hashlib.blake2b(json.dumps(made_of).encode(), digest_size=16).hexdigest()
        return root / self.recipe.kind / name[:2] / f"{name}.pack"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict(), "_last": None}  # memory maps stay with their process

    def pack(self, number: int) -> Pack:
        """A pack, opened; built if it is not there, built again if it is damaged."""
        if number not in self._open:
            self._open[number] = self._there(number) or self.build(number)
            if len(self._open) > OPEN_PACKS:  # what is still in use of a pack keeps it open
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def is_there(self, number: int) -> bool:
        """Whether a pack can be used as it is. It is not kept open, for there may be more than a process may open."""
        pack = self._there(number)
        if pack is not None:
            self._errors[number] = pack.errors
        return pack is not None

    def _there(self, number: int) -> Pack | None:
        with _one_line(self.packs[number].parent):
            try:
                return Pack(self.packs[number])
            except (FileNotFoundError, PackDamaged):
                return None

    def build(self, number: int, wait: bool = True) -> Pack:
        """Make a pack unless it is there and whole.

        Raises Timeout when another process makes it and `wait` is False, HicmaeError when the store cannot be written to.
        """
        place = self.packs[number]
        with _one_line(place.parent):
            place.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(str(place.with_suffix(".lock")), timeout=-1 if wait else 0):
                return self._there(number) or self._made(number)

    def _made(self, number: int) -> Pack:
        place = self.packs[number]
        place.unlink(missing_ok=True)  # damaged
        remove_abandoned(place.parent.glob(f".{place.name}.*.tmp"))
        end = min(len(self.files), (number + 1) * self.size)
        write_pack(place, (self._record(which) for which in range(number * self.size, end)))
        return Pack(place)

    def _record(self, number: int) -> bytes | str:
        """The record of a file or why there is none, which is kept only when it is the fault of the file's bytes.

        Raises ClipError when the bytes cannot be read any more or are others by now: the disk's fault, to be tried again.
        """
        path = self.files[number]
        try:
            record = self.recipe.record(path)
            if isinstance(record, bytes):
                return record
            if manifest.fresh_digest(path) == self._digests[number]:
                return self.recipe.record(path)  # once more, for the disk may have failed in between
            why = "it is gone or has other bytes than when it was listed"
        except OSError as error:
            why = error.strerror or str(error)
        raise ClipError(path, f"could not be read while it was packed ({why}); nothing was kept, run again") from None

    def parts(self, number: int) -> Parts:
        """The record of a file. Raises ClipError with the reason when the file could not be decoded."""
        if self._last is None or self._last[0] != number:
            pack = self.pack(number // self.size)
            if reason := pack.errors.get(number % self.size):
                raise ClipError(self.files[number], reason)
            self._last = number, Parts(pack.record(number % self.size))
        return self._last[1]

    def checked(self, number: int, use: Callable[[Parts], T]) -> T:
        """What `use` makes of a file's record; a pack that turns out to be damaged is built again, once."""
        try:
            return use(self.parts(number))
        except PackDamaged:
            self._last = None
            self._open.pop(number // self.size, None)
            self.packs[number // self.size].unlink(missing_ok=True)
            return use(self.parts(number))

    def reasons(self) -> dict[Path, str]:
        """Files without a record, and why."""
        found = {}
        for number in range(len(self.packs)):
            errors = self._errors[number] if number in self._errors else self.pack(number).errors
            for place, reason in errors.items():
                found[self.files[number * self.size + place]] = reason
        return found


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """What is wrong with the store itself."""
    try:
        yield
    except Timeout:  # an OSError that says that another process has the pack in hand
        raise
    except OSError as error:
        raise HicmaeError(f"clip store {folder}: {error.strerror}; set HICMAE_STORE") from None


def remove_abandoned(files: Iterable[Path]) -> None:
    """Remove what killed processes left; of another machine, which a lock may not reach, only what is not being written."""
    for file in files:
        with suppress(FileNotFoundError):
            if f".{platform.node()}." in file.name or time.time() - file.stat().st_mtime > ABANDONED_S:
                file.unlink()


def build_all(kinds: Sequence[PackedFiles], workers: int | None = None) -> None:
    """Make all missing packs on all cores, with a progress bar on a terminal. Can be interrupted; what is done stays."""
    missing = [(files, number) for files in kinds for number in range(len(files.packs)) if not files.is_there(number)]
    if not missing:
        return
    with _progress(sum(files.size for files, _ in missing)) as advance:
        later = [item for item in _build(missing, workers, advance, wait=False) if item]
        for _ in _build(later, workers, advance, wait=True):  # those that other jobs were building meanwhile
            pass


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Task = tuple[PackedFiles, int]


def _build(tasks: list[Task], workers: int | None, advance: Callable[[int], None], wait: bool) -> Iterator[Task | None]:
    def one(task: Task) -> Task | None:
        try:
            task[0].build(task[1], wait)
        except Timeout:
            return task
        advance(task[0].size)
        return None

    pool = ThreadPoolExecutor(workers or cores())  # decord, PyAV and Pillow work without the GIL
    try:
        for future in as_completed([pool.submit(one, task) for task in tasks]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _progress:
    """A rich progress bar on standard error, when that is a terminal."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
        self._task = self._bar.add_task("decoding clips into the store", total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._bar.start()
        return lambda clips_done: self._bar.advance(self._task, clips_done)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


class ClipStore:
    """Samples from the store. `modality` says which streams are needed; `build` makes what is missing."""

    def __init__(
        self, samples: Sequence[Sample], corpus: Corpus, image_px: int, modality: str = "AV", root: Path | None = None
    ) -> None:
        root = root or location.store_root()
        self.samples = list(samples)
        videos = _needed(self.samples, "video") if "V" in modality else []
        sounds = _needed(self.samples, "audio") if "A" in modality else []
        digests = manifest.file_digests(list(dict.fromkeys([*videos, *sounds])))
        self._video = PackedFiles(root, Recipe("video", image_px, corpus.crop(image_px)), videos, digests)
        self._sound = PackedFiles(root, Recipe("sound"), sounds, digests)
        self.kinds = (self._video, self._sound)
        self._video_number = {path: number for number, path in enumerate(videos)}
        self._sound_number = {path: number for number, path in enumerate(sounds)}

    def build(self, workers: int | None = None) -> None:
        """Decode what is not there yet."""
        build_all(self.kinds, workers)

    def problems(self) -> list[manifest.Problem]:
        """The samples whose files could not be decoded."""
        reasons = {**self._sound.reasons(), **self._video.reasons()}
        bad = []
        for sample in self.samples:
            used = (path for path in (sample.video, sample.audio) if path in reasons)
            for path in used:
                bad.append(manifest.Problem(sample.sample_id, str(path), reasons[path]))
                break
        return bad

    def frame_count(self, number: int) -> int:
        return self._on_video(number, lambda parts: parts.count - 1)

    def times_s(self, number: int) -> NDArray[np.float32] | None:
        times = self._on_video(number, lambda parts: np.frombuffer(parts.part(0), "<f4"))
        return times if len(times) else None

    def frames(self, number: int, indices: Sequence[int]) -> Frames:
        return self._on_video(number, lambda parts: _repeated(indices, lambda index: from_jpeg(parts.part(1 + index))))

    def sample_count(self, number: int) -> int:
        return self._on_sound(number, _sample_count)

    def sound(self, number: int, span: slice) -> NDArray[np.float32]:
        return self._on_sound(number, lambda parts: _sound_of(parts, span))

    def _on_video(self, number: int, use: Callable[[Parts], T]) -> T:
        return self._video.checked(self._video_number[_present(self.samples[number], "video")], use)

    def _on_sound(self, number: int, use: Callable[[Parts], T]) -> T:
        return self._sound.checked(self._sound_number[_present(self.samples[number], "audio")], use)


def _needed(samples: Sequence[Sample], stream: str) -> list[Path]:
    return list(dict.fromkeys(path for sample in samples if (path := getattr(sample, stream))))


def _present(sample: Sample, stream: str) -> Path:
    path: Path | None = getattr(sample, stream)
    if path is None:
        raise ClipError(sample.sample_id, f"has no {stream}; use the other modality alone")
    return path


def _repeated(indices: Sequence[int], read: Callable[[int], Frames]) -> Frames:
    """Frames in the order asked for; one that is wanted several times is decoded once.

    Each goes to its place at once: holding all of them first takes fresh memory for every clip, a fifth of the time.
    """
    first = read(indices[0])
    found = np.empty((len(indices), *first.shape), np.uint8)
    places: dict[int, int] = {}
    for place, index in enumerate(indices):
        known = places.setdefault(index, place)
        found[place] = first if place == 0 else found[known] if known != place else read(index)
    return found


def _sample_count(parts: Parts) -> int:
    return int(np.frombuffer(parts.part(0), "<u8")[0])


def _sound_of(parts: Parts, span: slice) -> NDArray[np.float32]:
    start, stop, _ = span.indices(_sample_count(parts))
    pieces = [np.frombuffer(parts.part(1 + second), "<i2") for second in range(start // SECOND, -(-stop // SECOND))]
    joined = np.concatenate(pieces) if pieces else np.zeros(0, np.int16)
    offset = start // SECOND * SECOND
    return joined[start - offset : stop - offset].astype(np.float32) / np.float32(32768.0)


class DirectClips:
    """Samples decoded from their files at every use; pixels and sound equal those of the store."""

    def __init__(self, samples: Sequence[Sample], corpus: Corpus, image_px: int) -> None:
        self.samples, self._image_px, self._crop = list(samples), image_px, corpus.crop(image_px)
        self._last: tuple[int, clips.FrameReader] | None = None
        self._heard: tuple[int, Waveform] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None, "_heard": None}

    def frame_count(self, number: int) -> int:
        return len(self._reader(number))

    def times_s(self, number: int) -> NDArray[np.float32] | None:
        return self._reader(number).times_s()

    def frames(self, number: int, indices: Sequence[int]) -> Frames:
        wanted = sorted(set(indices))
        packed = to_jpegs(self._reader(number).read(wanted), self._image_px, self._crop)
        found = dict(zip(wanted, packed, strict=True))
        return _repeated(indices, lambda index: from_jpeg(found[index]))

    def sample_count(self, number: int) -> int:
        return len(self._sound(number))

    def sound(self, number: int, span: slice) -> NDArray[np.float32]:
        return self._sound(number)[span].astype(np.float32) / np.float32(32768.0)

    def _sound(self, number: int) -> Waveform:
        if self._heard is None or self._heard[0] != number:
            self._heard = number, clips.read_sound(_present(self.samples[number], "audio"))
        return self._heard[1]

    def _reader(self, number: int) -> clips.FrameReader:
        if self._last is None or self._last[0] != number:
            self._last = number, clips.open_frames(_present(self.samples[number], "video"))
        return self._last[1]
