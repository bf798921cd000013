"""Batches of examples: which samples come together, on which process, in which order.

The global batch of a step is the same for any number of processes and accumulation steps. A process takes from it a mirrored
share (`share`), so that `local.flip(0)` pairs the same samples as `global.flip(0)`; timm's Mixup of a batch is then equal on
any number of processes. An epoch can start at any step.

    for batch in finetune_batches(config, "train", workers=4).epoch(0):
        ...
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from hicmae.config import FinetuneConfig, PretrainConfig
from hicmae.data import corpora, location, manifest, order
from hicmae.data.clipstore import ClipSource, ClipStore, DirectClips
from hicmae.data.corpora import Corpus, Sample
from hicmae.data.dataset import Batch, Clips, Draw, FinetuneClips, PretrainClips
from hicmae.data.finish import finish_batch
from hicmae.data.manifest import Problem
from hicmae.data.order import Turn
from hicmae.errors import ClipError, HicmaeError, UsageError, raise_unknown

Spec = list[Draw]
ON_ERROR = ("fail", "skip")


def share(batch_size: int, slot: int, slots: int) -> list[int]:
    """The positions of a global batch that slot `slot` of `slots` takes: a slice of the first half, and its mirror image.

    A batch that does not divide into 2 * slots is cut into plain slices. Raises UsageError when it does not divide into slots.
    """
    if batch_size % slots:
        raise UsageError(f"a batch of {batch_size} does not divide over {slots} processes and accumulation steps")
    size = batch_size // slots
    if size % 2:
        return list(range(slot * size, (slot + 1) * size))
    first = list(range(slot * size // 2, (slot + 1) * size // 2))
    return first + [batch_size - 1 - position for position in reversed(first)]


class _WholeBatches(Dataset[Batch | HicmaeError]):
    """Makes a whole batch at once, inside one worker; with `packed` frames are bytes, to be finished on a device.

    An error is handed over like a batch: torch would raise it again as a RuntimeError of many lines.
    """

    def __init__(self, clips: Clips, packed: bool) -> None:
        self.make = clips.packed_batch if packed else clips.batch

    def __getitem__(self, spec: Spec) -> Batch | HicmaeError:
        try:
            return self.make(spec)
        except HicmaeError as error:
            return error


class _Order:
    """The specs of the epoch at hand; a DataLoader's sampler that lives as long as its workers."""

    def __init__(self) -> None:
        self.specs: Sequence[Spec] = []

    def __iter__(self) -> Iterator[Spec]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


class Batches:
    """Batches of one part of a corpus for one process: on the CPU, or on a `device`, where frames are finished."""

    def __init__(
        self,
        clips: Clips,
        plan: Callable[[int], list[Spec]],
        steps_per_epoch: int,
        workers: int,
        skipped: Sequence[Problem],
        device: torch.device | str | None = None,
    ) -> None:
        self.clips, self.samples = clips, clips.samples
        self.skipped = list(skipped)  # clips left out under --on-error skip
        self.steps_per_epoch = steps_per_epoch
        self.waiting_s = 0.0  # time spent waiting for data; set to 0 by whoever reports it
        self._plan, self._order = plan, _Order()
        self._device = None if device is None or torch.device(device).type == "cpu" else torch.device(device)
        self._loader: DataLoader[Batch | HicmaeError] = DataLoader(
            _WholeBatches(clips, packed=self._device is not None),
            batch_size=None,
            sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=2 if workers else None,
            pin_memory=torch.cuda.is_available(),
        )

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from a step on; in training, accumulation_steps of them make one step.

        Raises ClipError for a clip that could be used when the batches were planned and cannot be any more.
        """
        specs = self._plan(epoch)
        self._order.specs = specs[start_step * (len(specs) // max(1, self.steps_per_epoch)) :]
        batches = iter(self._loader)
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            self.waiting_s += time.perf_counter() - begun
            if batch is None:
                return
            if isinstance(batch, HicmaeError):
                raise batch
            yield finish_batch(batch, self._device) if self._device else batch


def pretrain_batches(
    config: PretrainConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    on_error: str | None = None,
    device: torch.device | str | None = None,
) -> Batches:
    """Batches of pre-training: video (B,3,T,H,W), audio (B,1,F,M), masked_video (B,N), masked_audio (B,N), sample_id, position.

    Raises ClipError for the first clip that cannot be used unless `on_error` (else $HICMAE_ON_ERROR) is "skip".
    """
    corpus = corpora.get(config.data.corpus)
    wanted = manifest.split(config.data, corpus, "train")
    source, samples, numbers, skipped = _sources(corpus, wanted, config.encoder.image_px, "AV", on_error)
    clips = PretrainClips(config, samples, source, numbers)
    clips.fps = corpus.fps or clips.fps
    plan, steps = _training_plan(config, samples, 1, rank, world_size)
    return Batches(clips, plan, steps, workers, skipped, device)


def finetune_batches(
    config: FinetuneConfig,
    part: str,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    on_error: str | None = None,
    device: torch.device | str | None = None,
) -> Batches:
    """Batches of fine-tuning: video, audio (those of head.modality), label (B,) or targets (B,K), sample_id, position.

    Part "train" is shuffled and augmented; "validation" and "test" go through all views in order, with `view` (B,), the last
    batch kept. Raises ClipError for the first clip that cannot be used unless `on_error` (else $HICMAE_ON_ERROR) is "skip".
    """
    if part not in ("train", "validation", "test"):
        raise_unknown("part", part, ("train", "validation", "test"))
    corpus = corpora.get(config.data.corpus)
    wanted = manifest.split(config.data, corpus, part, config.evaluation, config.seed)
    source, samples, numbers, skipped = _sources(corpus, wanted, config.encoder.image_px, config.head.modality, on_error)
    clips = FinetuneClips(config, samples, source, numbers, views=part != "train")
    clips.fps = corpus.fps or clips.fps
    if part == "train":
        plan, steps = _training_plan(config, samples, config.augment.repeats, rank, world_size)
    else:
        plan, steps = _views_plan(config, len(samples), rank, world_size)
    return Batches(clips, plan, steps, workers, skipped, device)


def _sources(
    corpus: Corpus, wanted: list[Sample], image_px: int, modality: str, on_error: str | None
) -> tuple[ClipSource, list[Sample], list[int], list[Problem]]:
    """Where the clips come from, the samples that can be used with their numbers there, and those that cannot."""
    policy = on_error or os.environ.get("HICMAE_ON_ERROR") or "fail"
    if policy not in ON_ERROR:
        raise_unknown("policy on errors", policy, ON_ERROR)
    problems = [problem for sample in wanted if (problem := _lacks_stream(sample, modality))]
    source: ClipSource
    if os.environ.get("HICMAE_STORE") == "off":
        everything = wanted
        source = DirectClips(everything, corpus, image_px)
        problems += manifest.check_clips(wanted, modality, frames=True)  # as the store would find them
    else:  # all samples of the corpus, so that all folds share the packs
        everything = corpus.samples(location.corpus_root(corpus.name))
        source = ClipStore(everything, corpus, image_px, modality)
        source.build()
        problems += source.problems()
    first = {problem.sample_id: problem for problem in reversed(problems)}  # of every clip
    bad = {sample.sample_id: first[sample.sample_id] for sample in wanted if sample.sample_id in first}
    if bad and policy == "fail":
        _refuse(list(bad.values()), corpus)
    number = {sample.sample_id: index for index, sample in enumerate(everything)}
    good = [sample for sample in wanted if sample.sample_id not in bad]
    return source, good, [number[sample.sample_id] for sample in good], list(bad.values())


def _lacks_stream(sample: Sample, modality: str) -> Problem | None:
    if "V" in modality and sample.video is None:
        return Problem(sample.sample_id, str(sample.audio), "has no video; use modality A")
    if "A" in modality and sample.audio is None:
        return Problem(sample.sample_id, str(sample.video), "has no sound; use modality V")
    return None


def _refuse(problems: list[Problem], corpus: Corpus) -> None:
    more = f"; {len(problems) - 1} more clips cannot be used either" if len(problems) > 1 else ""
    remedy = f"see `hicmae data check {corpus.name}`, or leave them out with --on-error skip"
    raise ClipError(problems[0].path, f"{problems[0].reason}{more}; {remedy}")


def _training_plan(
    config: PretrainConfig | FinetuneConfig, samples: Sequence[Sample], repeats: int, rank: int, world_size: int
) -> tuple[Callable[[int], list[Spec]], int]:
    """The micro-batches of this process in an epoch, in an order drawn by (seed, epoch), and the optimiser steps they make."""
    count = len(samples)
    size, accumulation = config.optim.batch_size, config.optim.accumulation_steps
    distinct, slots = size // repeats, world_size * accumulation
    steps = count // distinct
    if not steps:
        raise UsageError(f"optim.batch_size = {size} needs {distinct} clips in a step; the training part has {count}")
    shares = [share(size, micro * world_size + rank, slots) for micro in range(accumulation)]

    def plan(epoch: int) -> list[Spec]:
        if config.data.sampling == "stratified":
            labels = [-1 if sample.label is None else sample.label for sample in samples]
            turns = order.stratified(labels, distinct, steps, config.seed, epoch)
        else:
            turns = order.shuffled(count, config.seed, epoch)
        return [
            [_draw(turns, step * distinct, at, repeats, epoch) for at in positions]
            for step in range(steps)
            for positions in shares
        ]

    return plan, steps


def _draw(turns: Sequence[Turn], start: int, position: int, repeats: int, epoch: int) -> Draw:
    """The example at a position of the step whose clips begin at `start`; every showing of a clip has its own number."""
    number, times_before = turns[start + position // repeats]
    return Draw(number, epoch, times_before * repeats + position % repeats, position)


def _views_plan(config: FinetuneConfig, count: int, rank: int, world_size: int) -> tuple[Callable[[int], list[Spec]], int]:
    """All views of every world_size-th sample, in order; the last batch may be smaller."""
    views = config.evaluation.segments * (3 if config.evaluation.crops == "three" else 1)
    draws = [
        Draw(number, 0, 0, number * views + view, view) for number in range(rank, count, world_size) for view in range(views)
    ]
    size = max(1, config.optim.batch_size // world_size)
    specs = [draws[start : start + size] for start in range(0, len(draws), size)]
    return lambda epoch: specs, len(specs)
