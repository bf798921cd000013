"""A whole corpus, prepared on all cores; can be interrupted, gone on with, and run by several processes at once.

    hicmae data prepare crema_d --out data/prepared

    <out>/<corpus>/faces/<sample id>.mp4    or a folder of pictures
                   sound/<sample id>.wav
                   prepared.csv             what can be trained from: --corpus csv:<out>/<corpus>/prepared.csv
                   faces.csv                what was found in every clip
                   .prepare/                settings, journal and locks, for going on where it stopped

A clip is done when its files are there under their own names and a line of the journal says that its sources were these.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path
from typing import Any

import av
from filelock import FileLock, Timeout

from hicmae.data import corpora, location
from hicmae.data.clipstore import cores
from hicmae.data.corpora import Corpus, Sample, Tree
from hicmae.data.corpora.base import PREPARED_FACES, PREPARED_SOUND, Part
from hicmae.data.prepare.clip import Files, Found, Settings, files_of, prepare_clip
from hicmae.data.prepare.tables import write_faces, write_manifest
from hicmae.errors import HicmaeError, UsageError, raise_unknown
from hicmae.record import append_line, read_lines, write_json

POLICIES = ("fail", "skip")
OWN = ".prepare"
QUEUED_PER_JOB = 2
HEARD_S = 0.2  # how long Ctrl-C may stay unanswered
BUSY_S = 0.5  # how long to wait for a clip that another process has in hand before turning to the next


@dataclass(frozen=True)
class Task:
    """One clip. `there`: its files lay there before this call, but of other sources or without a line in the journal."""

    sample: Sample
    files: Files
    key: str
    there: bool = False


@dataclass(frozen=True)
class Summary:
    """What a call did. `found` is of all clips done so far, by sample id; `manifest` is None when it was not written."""

    corpus: str
    folder: Path
    clips: int
    done_before: int
    seconds: float
    found: dict[str, Found]
    manifest: Path | None

    @property
    def problems(self) -> dict[str, Found]:
        """The clips that cannot be used, with the reason."""
        return {sample_id: found for sample_id, found in self.found.items() if found.reason}


Progress = Callable[[int, int, str, Found | None], None]  # clips done, clips in all, sample id, what was found
Done = Callable[[int, str, Found | None], None]


def prepare(
    name: str,
    out: Path,
    settings: Settings,
    *,
    jobs: int | None = None,
    on_error: str = "fail",
    limit: int | None = None,
    progress: Progress = lambda *_: None,
) -> Summary:
    """Prepare the corpus `name` below `out`. All clips are tried, whatever `on_error`; a second call does what is missing.

    With "fail" and a clip that cannot be used, the summary's manifest is None and none is written; with "skip" the manifest
    leaves such clips out. Raises UsageError for ids that lead out of the folder and for a folder that holds clips of other
    settings, HicmaeError when it cannot be written to.
    """
    if on_error not in POLICIES:
        raise_unknown("--on-error", on_error, POLICIES)
    started = time.monotonic()
    corpus, samples, parts = _sources(name)
    folder = (out / folder_name(name)).absolute()
    files = [files_of(sample, folder, settings, parts.get(sample.sample_id)) for sample in samples]
    tasks = [Task(sample, of, source_key(sample, of.part)) for sample, of in zip(samples, files, strict=True)]
    with _writing(folder):
        _claim(folder, settings, _source(name))
        wanted = tasks[:limit]
        missing = _missing(wanted, folder)
        done_before = len(wanted) - len(missing)
        _run(missing, folder, settings, jobs, lambda count, *what: progress(done_before + count, len(wanted), *what))
        _run(_unrecorded(missing, folder), folder, settings, jobs)
        found = _recorded(tasks, folder)
        write_faces(folder, found)
        good = [task for task in tasks if task.sample.sample_id in found and not found[task.sample.sample_id].reason]
        whole = good and (on_error == "skip" or len(good) == len(found))
        manifest = write_manifest(folder, corpus, [(task.sample, task.files) for task in good]) if whole else None
    return Summary(name, folder, len(wanted), done_before, time.monotonic() - started, found, manifest)


def folder_name(name: str) -> str:
    """The folder of a corpus; that of csv:, list: and folder: corpora is called after their file or folder."""
    kind, separator, _ = name.partition(":")
    if not separator:
        return kind
    place = _place(name)
    return (place.name if kind == "folder" else place.stem) or kind  # the root folder has no name


def _place(name: str) -> Path:
    return Path(name.partition(":")[2]).resolve()


def _source(name: str) -> str:
    """What tells corpora apart whose folders would be called the same."""
    kind, separator, _ = name.partition(":")
    return f"{kind}:{_place(name)}" if separator else kind


def _sources(name: str) -> tuple[Corpus, list[Sample], Mapping[str, Part]]:
    """The samples as distributed, and where in longer videos some of them are.

    What an earlier preparation wrote into the corpus' own folder is not their source.
    """
    corpus, root = corpora.get(name), location.corpus_root(name)
    if corpus.root is not None:
        return corpus, corpus.samples(root), {}
    tree = Tree.scan(root)
    distributed = tuple(file for file in tree.files if file.split("/")[0] not in (PREPARED_FACES, PREPARED_SOUND))
    tree = replace(tree, files=distributed)
    return corpus, corpus.checked(corpus.listing(tree), root), corpus.parts(tree) if corpus.parts else {}


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A full disk, a missing right: one line."""
    try:
        yield
    except Timeout:  # an OSError that says that another process has the clip in hand
        raise
    except (OSError, av.FFmpegError) as error:
        place, reason = getattr(error, "filename", None) or folder, getattr(error, "strerror", None) or str(error)
        raise HicmaeError(f"{place}: {reason}; mend that and run again, finished clips stay") from None


def _claim(folder: Path, settings: Settings, source: str) -> None:
    """Note the settings and the corpus of a new folder; refuse one that holds clips of others."""
    note, wanted = folder / OWN / "settings.json", {"corpus": source, **asdict(settings)}
    for part in ("journal", "locks"):
        (folder / OWN / part).mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / OWN / "settings.lock")):
        if not note.exists():
            write_json(note, wanted)
        held: dict[str, Any] = {"corpus": source, **json.loads(note.read_text())}  # early notes name none
    other = ", ".join(f"{key} {held.get(key)!r} instead of {value!r}" for key, value in wanted.items() if held.get(key) != value)
    if other:
        moved = f"; where the data have only moved, name their new place in {note}" if held["corpus"] != source else ""
        raise UsageError(
            f"{folder} holds clips made with {other}; use the same options, another --out, or remove that folder{moved}"
        )


def read_journal(folder: Path) -> dict[str, tuple[str, Found]]:
    """The latest line of every clip, by sample id: key of its sources and what was found."""
    lines = [line for file in sorted((folder / OWN / "journal").glob("*.jsonl")) for line in read_lines(file)]
    lines.sort(key=lambda line: float(line["time"]))
    return {line["sample_id"]: (line["key"], Found(**line["found"])) for line in lines}


def _missing(tasks: Sequence[Task], folder: Path) -> list[Task]:
    """Clips of which the journal knows nothing, other sources, or files that are gone."""
    journal = read_journal(folder)
    missing = []
    for task in tasks:
        key, found = journal.get(task.sample.sample_id, ("", Found()))
        there = task.files.there()
        if key != task.key or not (there or found.reason):
            missing.append(replace(task, there=there))
    return missing


def _unrecorded(tasks: Sequence[Task], folder: Path) -> list[Task]:
    """Clips whose files another process wrote meanwhile, but it was killed before it could say so."""
    found = _recorded(tasks, folder)
    return [replace(task, there=True) for task in tasks if task.sample.sample_id not in found]


def _recorded(tasks: Sequence[Task], folder: Path) -> dict[str, Found]:
    """What the journal says of clips whose sources are still the same."""
    journal = read_journal(folder)
    known = ((task.sample.sample_id, task.key) for task in tasks)
    return {name: journal[name][1] for name, key in known if name in journal and journal[name][0] == key}


def source_key(sample: Sample, part: Part | None = None) -> str:
    """Size and time of change of a clip's files as distributed; a clip that cannot be used is tried again when they change."""
    states: list[object] = [[part.start_s, part.end_s, part.side]] if part else []
    for path in (part.video if part else sample.video, sample.audio):
        try:
            state = path.stat() if path else None
        except OSError:
            state = None
        states.append([state.st_size, state.st_mtime_ns] if state else None)
    return hashlib.blake2b(json.dumps(states).encode(), digest_size=8).hexdigest()


def _run(tasks: Sequence[Task], folder: Path, settings: Settings, jobs: int | None, progress: Done = lambda *_: None) -> None:
    """Do the tasks on `jobs` processes. When interrupted, the clips in hand are finished and nothing else is begun."""
    if not tasks:
        return
    jobs = min(jobs or cores(), len(tasks))
    context = multiprocessing.get_context("spawn")  # decord and OpenCV do not survive a fork
    stop = context.Event()
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (folder, settings, stop))
    with _heard() as interrupts:
        try:
            _feed(pool, tasks, jobs * QUEUED_PER_JOB, progress, interrupts)
        except BrokenProcessPool:
            raise HicmaeError(
                "a worker was killed (too little memory?); use fewer --jobs and run again, finished clips stay"
            ) from None
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    if interrupts:
        raise KeyboardInterrupt


@contextmanager
def _heard() -> Iterator[list[int]]:
    """Ctrl-C, pressed any number of times, is only noted: raised while the pool is shut down, it would leave workers waiting."""
    import signal

    interrupts: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):  # nobody hears it here
        yield interrupts
        return
    signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _feed(pool: ProcessPoolExecutor, tasks: Sequence[Task], queued: int, progress: Done, interrupts: Sequence[int]) -> None:
    """Hand out the tasks until all are done or Ctrl-C was heard."""
    waiting, count = deque(tasks), 0
    pending: set[Future[tuple[Task, bool, Found | None]]] = set()
    while (waiting or pending) and not interrupts:
        with _deaf_children():
            while waiting and len(pending) < queued:
                pending.add(pool.submit(_work, waiting.popleft()))  # which may start a worker
        finished, pending = wait(pending, HEARD_S, return_when=FIRST_COMPLETED)
        for future in finished:
            task, busy, found = future.result()
            if busy:
                waiting.append(task)
            else:
                count += 1
                progress(count, task.sample.sample_id, found)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started inside never hear Ctrl-C: one that it killed while importing would take the others with it."""
    import signal

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited; here it waits until the end of the block
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def lock_of(folder: Path, sample_id: str) -> Path:
    """The file whose lock is held by who has the clip in hand; a few clips share one."""
    return folder / OWN / "locks" / hashlib.blake2b(sample_id.encode(), digest_size=2).hexdigest()[:3]


# --- in the workers ---------------------------------------------------------------------------------------------------


class _Worker:
    """What a worker process keeps between clips."""

    folder: Path
    settings: Settings
    stop: Any
    journal: Path


def _start_worker(folder: Path, settings: Settings, stop: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there: the workers are the parallelism
    _Worker.folder, _Worker.settings, _Worker.stop = folder, settings, stop
    _Worker.journal = folder / OWN / "journal" / f"{socket.gethostname()}-{os.getpid()}.jsonl"


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)


def _work(task: Task) -> tuple[Task, bool, Found | None]:
    """Prepare a clip: the task, whether another process has it in hand, and what was found (None when another did it)."""
    if _Worker.stop.is_set():
        return task, True, None
    try:
        with _writing(_Worker.folder), FileLock(str(lock_of(_Worker.folder, task.sample.sample_id)), timeout=BUSY_S):
            if not task.there and task.files.there():
                return task, False, None
            found = prepare_clip(task.sample, task.files, _Worker.settings)
            line = {"sample_id": task.sample.sample_id, "key": task.key, "time": time.time(), "found": asdict(found)}
            append_line(_Worker.journal, line)
            return task, False, found
    except Timeout:
        return task, True, None
