"""`hicmae bench data`: how fast clips become batches here, on one core, beside what they would cost without the store.

    hicmae bench data synthetic --px 160

Rates are by processor time of this process, so that other work on the machine does not count; wall time stands beside them.
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from experiments import bench_store, outputs
from hicmae.config import AugmentConfig, FinetuneConfig, PretrainConfig
from hicmae.record import write_json

BATCH = 8
GOALS = {
    "pre-training from the store": 150,
    "fine-tuning from the store": 120,
    "pre-training from the store, for a GPU": 150,
    "fine-tuning from the store, for a GPU": 120,
    "pre-training from files": 30,
}


@dataclass(frozen=True)
class Case:
    """Something to time: `run` yields the number of samples of every batch."""

    name: str
    run: Callable[[], Iterator[int]]


def bench_data(
    corpus: Annotated[str, typer.Argument(help="A name that `hicmae data list` shows, or folder:PATH and so on.")] = "synthetic",
    px: Annotated[int, typer.Option(help="Width and height of the frames.", min=16)] = 160,
    seconds: Annotated[float, typer.Option(help="Time for each case.", min=0.01)] = 4.0,
    clips: Annotated[int, typer.Option(help="Clips of the store whose opening is timed; 0: none.", min=0)] = bench_store.CLIPS,
    output: Annotated[Path, outputs.JSON_FILE] = Path("bench-data.json"),
) -> None:
    """Samples per second of one core: from the store, from the files, and the parts of the work side by side."""
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("opening", total=None)

        def show(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=what)

        result = measure(corpus, px, seconds, show)
        if clips:
            result["large_store"] = bench_store.measure(clips, show)
    write_json(output, result)
    for table in tables(result):
        console.print(table)
    console.print(str(output))


def measure(corpus: str, px: int, seconds: float, show: Callable[[int, int, str], None]) -> dict[str, Any]:
    """All cases, one after the other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        opening, whole = _whole_cases(corpus, px)
        cases = [*whole, *_part_cases()]
        rows = []
        for done, case in enumerate(cases):
            show(done, len(cases), case.name)
            rows.append(_timed(case, seconds))
    finally:
        torch.set_num_threads(threads)
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
        "corpus": corpus,
        "px": px,
        "opening_s": opening,
        "cases": rows,
    }


def _timed(case: Case, seconds: float) -> dict[str, Any]:
    batches = case.run()
    next(batches)  # what is done once
    wall, cpu, samples = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        samples += next(batches)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "name": case.name,
        "samples": samples,
        "ms": 1000 * cpu / samples,
        "per_s": samples / cpu,
        "wall_per_s": samples / wall,
        "goal_per_s": GOALS.get(case.name),
    }


def _configs(corpus: str, px: int) -> tuple[PretrainConfig, FinetuneConfig]:
    from hicmae import presets
    from hicmae.config import change
    from hicmae.data import corpora

    delta = {"encoder.image_px": px, "optim.batch_size": BATCH, "data.corpus": corpus, "data.fold": None}
    outputs = max(2, corpora.get(corpus).outputs())
    return change(presets.pretrain("base"), delta), change(presets.finetune("base", outputs=outputs), delta)


def _whole_cases(corpus: str, px: int) -> tuple[float, list[Case]]:
    """Batches as training gets them; the seconds that opening a built store takes."""
    from hicmae.data import corpora, location
    from hicmae.data.clipstore import ClipStore, DirectClips
    from hicmae.data.dataset import Draw, FinetuneClips, PretrainClips

    found = corpora.get(corpus)
    listed = found.samples(location.corpus_root(corpus))
    samples = [replace(sample, label=sample.label or 0) for sample in listed if sample.video and sample.audio]
    ClipStore(samples, found, px).build()
    begun = time.perf_counter()
    store = ClipStore(samples, found, px)
    store.build()
    opening = time.perf_counter() - begun
    pretrain, finetune = _configs(corpus, px)
    numbers = range(len(samples))

    def batches(make: Callable[[list[Draw]], object]) -> Iterator[int]:
        for epoch in itertools.count():
            for start in range(0, len(samples), BATCH):
                draws = [Draw(number, epoch, 0, 0) for number in numbers[start : start + BATCH]]
                make(draws)
                yield len(draws)

    direct = DirectClips(samples, found, px)
    plain = FinetuneConfig(**{**vars(finetune), "augment": AugmentConfig(rand_augment="", random_erasing=0.0)})
    pretraining = PretrainClips(pretrain, samples, store, numbers)
    finetuning = FinetuneClips(finetune, samples, store, numbers, views=False)
    made = {
        "pre-training from the store": pretraining.batch,
        "fine-tuning from the store": finetuning.batch,
        "pre-training from the store, for a GPU": pretraining.packed_batch,  # frames stay bytes and are finished there
        "fine-tuning from the store, for a GPU": finetuning.packed_batch,
        "fine-tuning without RandAugment": FinetuneClips(plain, samples, store, numbers, views=False).batch,
        "pre-training from files": PretrainClips(pretrain, samples, direct, numbers).batch,
    }
    return opening, [Case(name, lambda make=make: batches(make)) for name, make in made.items()]  # type: ignore[misc]


def _part_cases() -> list[Case]:
    """Features of 2.6 s of sound, in a batch and by torchaudio's kaldi module one by one."""
    import torch
    import torchaudio

    from hicmae.data import audio

    waves = list(torch.randn(BATCH, 41600, generator=torch.Generator().manual_seed(0)) * 0.1)

    def ours() -> Iterator[int]:
        while True:
            audio.fbank_batch(waves, 256, 128)
            yield BATCH

    def kaldi() -> Iterator[int]:
        options: dict[str, Any] = {"htk_compat": True, "window_type": "hanning", "num_mel_bins": 128, "dither": 0.0}
        while True:
            for wave in waves:
                torchaudio.compliance.kaldi.fbank(wave[None], sample_frequency=16000.0, **options)
            yield BATCH

    return [Case("features of a batch", ours), Case("features by torchaudio.compliance.kaldi", kaldi)]


def tables(result: dict[str, Any]) -> list[Table]:
    """The rates and, side by side, the ratios."""
    title = f"{result['corpus']} at {result['px']} px, one core; the store opened in {1000 * result['opening_s']:.0f} ms"
    rates = Table("", "ms a sample", "samples/s", "by wall", "goal", title=title, box=box.SIMPLE_HEAD)
    for case in result["cases"]:
        goal = "" if case["goal_per_s"] is None else str(case["goal_per_s"])
        rates.add_row(case["name"], f"{case['ms']:.2f}", f"{case['per_s']:.0f}", f"{case['wall_per_s']:.0f}", goal)
    ratios = Table("", "times as fast as", "", title="Side by side", box=box.SIMPLE_HEAD)
    for name, other in (
        ("pre-training from the store", "pre-training from files"),
        ("fine-tuning without RandAugment", "fine-tuning from the store"),
        ("fine-tuning from the store, for a GPU", "fine-tuning from the store"),
        ("features of a batch", "features by torchaudio.compliance.kaldi"),
    ):
        ms = {case["name"]: case["ms"] for case in result["cases"]}
        ratios.add_row(name, f"{ms[other] / ms[name]:.2f}", other)
    return [rates, ratios, *([_large(result["large_store"])] if "large_store" in result else [])]


def _large(found: dict[str, Any]) -> Table:
    """A store of very many clips, opened in a fresh process."""
    made = Table("", "", "goal", title=f"A store of {found['clips']} clips in a fresh process", box=box.SIMPLE_HEAD)
    made.add_row("opened in, s", f"{found['open_s']:.2f}", f"{found['goal_open_s']:g}")
    made.add_row("processor time of that, s", f"{found['open_cpu_s']:.2f}", "")
    goal = f"{found['goal_bytes'] >> 20}"
    made.add_row("memory of its own, MB", str(found["open_bytes"] >> 20), goal)
    made.add_row(f"the same after {found['reads']} reads, MB", str(found["read_bytes"] >> 20), goal)
    made.add_row("the clips listed before, s", f"{found['list_s']:.2f}", "")
    return made
