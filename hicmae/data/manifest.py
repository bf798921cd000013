"""What a corpus consists of: digests of its files, its fingerprint, its parts for a fold, and a check of every clip.

python -c "from hicmae.data.manifest import fingerprint; print(fingerprint('synthetic'))"
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from hicmae.config import DataConfig, EvaluationConfig
from hicmae.data import corpora, location
from hicmae.data.corpora import Corpus, Sample
from hicmae.errors import ClipError, UsageError
from hicmae.record import write_json
from hicmae.seeding import numpy_generator
from hicmae.waiting import mapped

if TYPE_CHECKING:
    from hicmae.data.clips import Probe

FINGERPRINT_LENGTH = 32
MISSING = "missing"
_NO_BYTES = {errno.ENOENT: MISSING, errno.ENOTDIR: MISSING, errno.ENAMETOOLONG: "name too long"}  # a digest for each reason
_BLOCK = 1 << 20
_CACHE_FORMAT = 2


@dataclass(frozen=True)
class Problem:
    """A clip that cannot be used and why."""

    sample_id: str
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass
class Streams:
    """Durations and rates of clips as their headers say; folders of pictures have none."""

    video_s: list[float] = field(default_factory=list)
    sound_s: list[float] = field(default_factory=list)
    fps: Counter[float] = field(default_factory=Counter)
    sample_rate_hz: Counter[int] = field(default_factory=Counter)

    def add(self, sample: Sample, seen: dict[Path, Probe]) -> None:
        """Count a clip whose files were probed."""
        video, sound = (seen.get(path) if path else None for path in (sample.video, sample.audio))
        if video and video.fps:
            self.fps[round(video.fps, 2)] += 1
        if video and video.video_s is not None:
            self.video_s.append(video.video_s)
        if sound and sound.sample_rate_hz:
            self.sample_rate_hz[sound.sample_rate_hz] += 1
        if sound and sound.sound_s is not None:
            self.sound_s.append(sound.sound_s)


def fingerprint(name: str) -> str:
    """A hash of what the corpus `name` holds on this machine: ids, labels, folds, groups, and the bytes of the files.

    Digests of files are cached by path, size and time of change. A file that is not there counts as missing and changes the hash.
    """
    samples = corpora.get(name).samples(location.corpus_root(name))
    return fingerprint_of(samples, file_digests(media_paths(samples)))


def fingerprint_of(samples: Iterable[Sample], digests: dict[Path, str]) -> str:
    """The fingerprint of samples whose files have these digests; where the files lie does not count."""
    total = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: sample.sample_id):
        media = [digests[path] if path else None for path in (sample.video, sample.audio)]
        what = [sample.sample_id, sample.label, sample.targets, sample.group, sample.test_folds, sample.task_id, media]
        total.update(json.dumps(what, ensure_ascii=False).encode() + b"\n")
    return total.hexdigest()[:FINGERPRINT_LENGTH]


def media_paths(samples: Iterable[Sample]) -> list[Path]:
    """Every file and folder of frames of the samples, once."""
    return list(dict.fromkeys(path for sample in samples for path in (sample.video, sample.audio) if path))


def duplicates(paths: Iterable[Path]) -> list[list[Path]]:
    """Files and folders of frames that hold the same bytes. Only those of equal size are read, by `file_digests`."""
    sizes: dict[int, list[Path]] = {}
    for path in paths:
        with suppress(OSError):  # what is not there or may not be looked at is told by `check_clips`
            sizes.setdefault(_size(path), []).append(path)
    suspects = [path for same in sizes.values() if len(same) > 1 for path in same]
    groups: dict[str, list[Path]] = {}
    for path, digest in file_digests(suspects).items():
        groups.setdefault(digest, []).append(path)
    return [same for same in groups.values() if len(same) > 1]


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)


def file_digests(paths: Sequence[Path]) -> dict[Path, str]:
    """The digest of every path's bytes; `MISSING` where there is nothing. Only files that changed are read again."""
    cache = _DigestCache(paths)
    known = dict(zip(paths, mapped(cache.known, paths), strict=True))
    unread = [path for path, digest in known.items() if digest is None]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = dict(zip(unread, pool.map(cache.digest, unread), strict=True))
    cache.save()
    return {path: read[path] if digest is None else digest for path, digest in known.items()}


def fresh_digest(path: Path) -> str:
    """The digest of a path's bytes as they are now, read whatever is cached. Raises OSError when they cannot be read."""
    return _digest_of(path, lambda file, _: _hash_file(file))


def _digest_of(path: Path, one: Callable[[Path, os.stat_result], str]) -> str:
    """The digest of a file, or of a folder of frames as the digest of its pictures' names and digests."""
    try:
        state = path.stat()
        if not stat.S_ISDIR(state.st_mode):
            return one(path, state)
        files = sorted(entry for entry in path.iterdir() if entry.is_file())
        return _hash(json.dumps([[file.name, one(file, file.stat())] for file in files]).encode())
    except OSError as error:
        if error.errno not in _NO_BYTES:
            raise
        return _NO_BYTES[error.errno]


class _DigestCache:
    """Digests on disk, one file per top folder: path -> "size time-of-change digest"."""

    def __init__(self, paths: Sequence[Path]) -> None:
        names = [str(path) for path in paths]
        ends = [Path(end).absolute().parent for end in (min(names), max(names))] if names else []
        top = os.path.commonpath(ends) if ends else ""  # what the first and the last share, all share; only a name hangs on it
        name = hashlib.blake2b(f"{_CACHE_FORMAT} {top}".encode(), digest_size=8).hexdigest()
        self._file = location.cache_root() / "digests" / f"{name}.json"
        self._known = self._read()
        self._new: dict[str, str] = {}

    def known(self, path: Path) -> str | None:
        """The digest of a path, None when its bytes have to be read for it. Raises ClipError for one that cannot be read."""
        try:
            return self._looked(path, self._kept)
        except KeyError:
            return None

    def digest(self, path: Path) -> str:
        """The digest of a path, whose bytes are read where they are not known. Raises ClipError when they cannot be."""
        return self._looked(path, self._read_or_kept)

    def _looked(self, path: Path, one: Callable[[Path, os.stat_result], str]) -> str:
        try:
            return _digest_of(path, one)
        except OSError as error:
            raise ClipError(path, f"unreadable ({error.strerror})") from None

    def _kept(self, path: Path, state: os.stat_result) -> str:
        stamp, _, digest = self._known[str(path.absolute())].rpartition(" ")
        if stamp != f"{state.st_size} {state.st_mtime_ns}":
            raise KeyError(path)
        return digest

    def _read_or_kept(self, path: Path, state: os.stat_result) -> str:
        try:
            return self._kept(path, state)
        except KeyError:
            digest = _hash_file(path)
            self._new[str(path.absolute())] = f"{state.st_size} {state.st_mtime_ns} {digest}"
            return digest

    def save(self) -> None:
        """Add what was read to the file on disk, beside what other processes added meanwhile."""
        if not self._new:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self._file.with_suffix(".lock"))):
            write_json(self._file, self._read() | self._new)

    def _read(self) -> dict[str, str]:
        try:
            values = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _hash_file(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def split(
    config_data: DataConfig, corpus: Corpus, part: str, evaluation: EvaluationConfig | None = None, seed: int = 0
) -> list[Sample]:
    """The samples of a part (train, validation or test) of the configured fold; all of them for train when there is no fold.

    With evaluation.selection "validation" or "inner" whole groups (actors, sessions) are cut out of the training part by `seed`.
    Raises UsageError for a fold that the corpus does not have, and for a part that is empty.
    """
    samples = corpus.samples(location.corpus_root(corpus.name))
    return split_samples(samples, corpus, config_data.fold, part, evaluation, seed)


def split_samples(
    samples: list[Sample], corpus: Corpus, fold: int | None, part: str, evaluation: EvaluationConfig | None, seed: int
) -> list[Sample]:
    """`split` of samples that are at hand."""
    if fold is not None and fold not in corpus.folds:
        folds = ", ".join(map(str, corpus.folds)) or "none"
        raise UsageError(f"{corpus.name}: there is no fold {fold}; folds: {folds}")
    test = [sample for sample in samples if fold in sample.test_folds]
    train = [sample for sample in samples if fold not in sample.test_folds]
    held: set[str] = set()
    if evaluation is not None and evaluation.selection in ("validation", "inner") and part != "test":
        held = validation_groups(train, evaluation.validation_fraction, seed)
    parts: dict[str, Callable[[], list[Sample]]] = {
        "test": lambda: test,
        "train": lambda: [sample for sample in train if sample.group not in held],
        "validation": lambda: [sample for sample in train if sample.group in held],
    }
    chosen = parts[part]()
    if not chosen:
        raise UsageError(
            f"{corpus.name}: the {part} part of fold {fold} is empty; check it with `hicmae data check {corpus.name}`"
        )
    return chosen


def validation_groups(train: Sequence[Sample], fraction: float, seed: int) -> set[str]:
    """Groups drawn by `seed` until they hold at least `fraction` of the samples; at least one group stays for training."""
    sizes = Counter(sample.group for sample in train)
    groups = sorted(sizes)
    if len(groups) < 2:
        raise UsageError("a validation part needs at least 2 groups in the training part; use selection = 'last'")
    held: set[str] = set()
    count = 0
    for group in numpy_generator("validation", seed).permutation(groups)[: len(groups) - 1]:
        if count >= fraction * len(train):
            break
        held.add(str(group))
        count += sizes[str(group)]
    return held


def check_clips(samples: Sequence[Sample], modality: str = "AV", frames: bool = False) -> list[Problem]:
    """Every clip that cannot be used: file missing, unreadable, without the stream that is wanted, no or too short sound.

    Only headers are read unless `frames`, which decodes everything.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda sample: problem_of(sample, modality, frames), samples, chunksize=16)
        return [problem for problem in found if problem]


def problem_of(
    sample: Sample, modality: str = "AV", frames: bool = False, seen: dict[Path, Probe] | None = None
) -> Problem | None:
    """Why a clip cannot be used, or None. `seen` gets what the headers say."""
    seen = {} if seen is None else seen
    try:
        if "V" in modality:
            _check_video(sample, frames, seen)
        if "A" in modality:
            _check_sound(sample, frames, seen)
    except ClipError as error:
        return Problem(sample.sample_id, error.path, error.reason)
    return None


def _probe(path: Path, seen: dict[Path, Probe]) -> Probe:
    from hicmae.data import clips

    if path not in seen:
        seen[path] = clips.probe(path)
    return seen[path]


def _check_video(sample: Sample, frames: bool, seen: dict[Path, Probe]) -> None:
    from hicmae.data import clips

    if sample.video is None:
        raise ClipError(sample.sample_id, "has no video; use modality A")
    if frames:
        for _ in clips.all_frames(clips.open_frames(sample.video)):
            pass
    if _probe(sample.video, seen).width is None:
        raise ClipError(sample.video, "no video stream")


def _check_sound(sample: Sample, frames: bool, seen: dict[Path, Probe]) -> None:
    from hicmae.data import clips

    if sample.audio is None:
        raise ClipError(sample.video or sample.sample_id, "has no sound; use modality V")
    if frames:
        clips.read_sound(sample.audio)
    facts = _probe(sample.audio, seen)
    if facts.sample_rate_hz is None:
        raise ClipError(sample.audio, "no sound stream")
    if not frames and facts.sound_s is not None and facts.sound_s * clips.SAMPLE_RATE_HZ <= clips.SHORTEST_SAMPLES:
        raise ClipError(sample.audio, f"sound of {facts.sound_s:.3f} s is empty or too short")
