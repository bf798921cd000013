"""One example of a batch, made from a clip: frames, features of the sound, masks or labels.

What is drawn by chance depends on (seed, epoch, sample id, repeat) alone; each purpose (start, crop, gain, mask) has its own
stream of random numbers, so that changing one thing leaves the others as they were.

Legend: T frames, H height, W width, F feature frames, M mel bins, N tokens.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hicmae.config import EncoderConfig, FinetuneConfig, PretrainConfig
from hicmae.data import audio, augment, finish, sampling
from hicmae.data.clips import Frames
from hicmae.data.clipstore import ClipSource
from hicmae.data.corpora import Sample
from hicmae.data.finish import Ending
from hicmae.data.sampling import Plan
from hicmae.model.masking import audio_mask, video_mask
from hicmae.seeding import numpy_generator

Example = dict[str, Tensor]
Batch = dict[str, Any]
DEFAULT_FPS = 25.0
PRETRAIN_CROP_SCALES = (1.0, 0.875, 0.75, 0.66)


@dataclass(frozen=True)
class Draw:
    """Which example: sample `number`, for the `epoch`, as its `repeat`-th repetition or test `view`, at `position` of a step."""

    number: int
    epoch: int
    repeat: int
    position: int
    view: int = 0


class Memory:
    """Memory for the frames of batches, used again when a batch is no longer held: new pages cost a tenth of an example."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.float32]] = []

    def __getstate__(self) -> dict[str, object]:
        return {"_free": []}  # of its own in every process

    def tensor(self, size: tuple[int, ...]) -> Tensor:
        """A float32 tensor of any content, whose memory no other living tensor or view of one has."""
        self._free[:] = [array for array in self._free if array.shape == size]
        array = self._free.pop() if self._free else np.empty(size, np.float32)  # numpy asks for huge pages, at half the cost
        lent = array.view()  # all tensors of this memory hold it, so it ends with the last of them
        weakref.finalize(lent, self._free.append, array).atexit = False
        return torch.from_numpy(lent)


class Clips(ABC):
    """What pre-training and fine-tuning share: plans, frames and sound of a sample."""

    def __init__(
        self, samples: Sequence[Sample], source: ClipSource, numbers: Sequence[int], encoder: EncoderConfig, stride: int
    ) -> None:
        self.samples, self.source, self.numbers = list(samples), source, list(numbers)  # numbers: those of the source
        self.encoder, self.stride = encoder, stride
        self.fps = DEFAULT_FPS
        self._memory = Memory()

    def stream(self, purpose: str, seed: int, draw: Draw) -> np.random.Generator:
        """The random numbers of one purpose for one example."""
        return numpy_generator(purpose, seed, draw.epoch, self.samples[draw.number].sample_id, draw.repeat)

    def batch(self, draws: Sequence[Draw]) -> Batch:
        """The examples of the draws, stacked; frames are written where they will stay, for they are most of the work."""
        if not self.has_video():
            return self._stacked([self._heard(draw)[0] for draw in draws], draws)
        size = (len(draws), 3, self.encoder.frames, self.encoder.image_px, self.encoder.image_px)
        video = self._memory.tensor(size)
        examples = []
        for row, draw in zip(video, draws, strict=True):
            example, plan = self._heard(draw)
            finish.finish_clip(*self._seen(draw, plan), row)
            examples.append(example)
        return {**self._stacked(examples, draws), "video": video}

    def packed_batch(self, draws: Sequence[Draw]) -> Batch:
        """The same examples with their frames as bytes, for `finish.finish_batch` on a device."""
        examples, frames, endings = [], [], []
        for draw in draws:  # all of a clip at once, for without the store its files stay open as long
            example, plan = self._heard(draw)
            examples.append(example)
            if self.has_video():
                clip, ending = self._seen(draw, plan)
                frames.append(clip)
                endings.append(ending)
        batch = self._stacked(examples, draws)
        return {**batch, **finish.packed(frames, endings)} if frames else batch

    def _stacked(self, examples: Sequence[Example], draws: Sequence[Draw]) -> Batch:
        batch: Batch = {key: torch.stack([example[key] for example in examples]) for key in examples[0]}
        batch["sample_id"] = [self.samples[draw.number].sample_id for draw in draws]
        batch["position"] = torch.tensor([draw.position for draw in draws])
        return batch

    def has_video(self) -> bool:
        """Whether examples have frames."""
        return True

    @abstractmethod
    def _heard(self, draw: Draw) -> tuple[Example, Plan]:
        """Everything but the frames, and which frames these are."""

    @abstractmethod
    def _seen(self, draw: Draw, plan: Plan) -> tuple[Frames, Ending]:
        """The frames (T, H, W, 3) at the size of the input, and what is left to do to them."""

    def frame_count(self, draw: Draw, video: bool) -> int:
        """Frames of the clip; without pictures, what its sound would fill at the corpus' frame rate."""
        number = self.numbers[draw.number]
        if video:
            return self.source.frame_count(number)
        return max(1, round(self.source.sample_count(number) / audio.SAMPLE_RATE_HZ * self.fps))

    def features(self, draw: Draw, plan: Plan, count: int, gain: float, timed: bool) -> Tensor:
        """Features (1, F, M) of the sound of a plan, by time in pre-training and by share of the clip in fine-tuning."""
        number = self.numbers[draw.number]
        samples = self.source.sample_count(number)
        times = self.source.times_s(number) if timed else None
        if times is None:
            span = sampling.relative_span(plan, count, samples, audio.MIN_SAMPLES)
        else:
            span = sampling.timed_span(float(times[plan.first]), float(times[plan.last + 1]), audio.SAMPLE_RATE_HZ)
            if min(span.stop, samples) - span.start <= audio.MIN_SAMPLES:
                span = slice(0, samples)  # the sound ends before these frames
        wave = torch.from_numpy(self.source.sound(number, span)) * gain
        return audio.fbank(wave, self.encoder.audio_frames, self.encoder.mel_bins).unsqueeze(0)


class PretrainClips(Clips):
    """Examples of pre-training: video (3, T, H, W), audio (1, F, M), masked_video (N,), masked_audio (N,)."""

    def __init__(self, config: PretrainConfig, samples: Sequence[Sample], source: ClipSource, numbers: Sequence[int]) -> None:
        super().__init__(samples, source, numbers, config.encoder, config.data.stride_frames)
        self.config = config

    def _heard(self, draw: Draw) -> tuple[Example, Plan]:
        seed, encoder, objective = self.config.seed, self.encoder, self.config.objective
        count = self.frame_count(draw, video=True)
        plan = sampling.pretrain_plan(count, encoder.frames, self.stride, self.stream("start", seed, draw))
        masks = self.stream("mask", seed, draw)
        example = {
            "audio": self.features(draw, plan, count, augment.gain(self.stream("gain", seed, draw)), timed=True),
            "masked_video": torch.from_numpy(video_mask(encoder, objective, masks)),
            "masked_audio": torch.from_numpy(audio_mask(encoder, objective, masks)),
        }
        return example, plan

    def _seen(self, draw: Draw, plan: Plan) -> tuple[Frames, Ending]:
        frames = self.source.frames(self.numbers[draw.number], plan.frames)
        random = self.stream("crop", self.config.seed, draw)
        return augment.multi_scale_crop(frames, self.encoder.image_px, PRETRAIN_CROP_SCALES, random), Ending()


class FinetuneClips(Clips):
    """Examples of fine-tuning: video, audio, and label () or targets (K,); `views`: evaluation without chance, and view ()."""

    def __init__(
        self, config: FinetuneConfig, samples: Sequence[Sample], source: ClipSource, numbers: Sequence[int], views: bool
    ) -> None:
        super().__init__(samples, source, numbers, config.encoder, config.data.stride_frames)
        self.config, self.views = config, views

    def has_video(self) -> bool:
        return "V" in self.config.head.modality

    def _heard(self, draw: Draw) -> tuple[Example, Plan]:
        count = self.frame_count(draw, self.has_video())
        plan = self._plan(draw, count)
        example = self._answer(self.samples[draw.number])
        if "A" in self.config.head.modality:
            loud = augment.gain(self.stream(f"gain {draw.view}", self.config.seed, draw)) if self._varies_gain() else 1.0
            example["audio"] = self.features(draw, plan, count, loud, timed=False)
        if self.views:
            example["view"] = torch.tensor(draw.view)
        return example, plan

    def _plan(self, draw: Draw, count: int) -> Plan:
        frames, segments = self.encoder.frames, self.config.evaluation.segments
        if self.views:
            return sampling.test_views(count, frames, self.stride, segments)[draw.view % segments]
        return sampling.train_plan(count, frames, self.stride, self.stream("start", self.config.seed, draw))

    def _seen(self, draw: Draw, plan: Plan) -> tuple[Frames, Ending]:
        frames = self.source.frames(self.numbers[draw.number], plan.frames)
        if self.views:
            return self._crop(frames, draw.view), Ending()
        seed = self.config.seed
        parts = ("rand augment", seed, draw.epoch, self.samples[draw.number].sample_id, draw.repeat)
        return augment.augment(frames, self.encoder.image_px, self.config.augment, self.stream("crop", seed, draw), parts)

    def _crop(self, frames: Frames, view: int) -> Frames:
        """Views beyond the segments are the left, middle and right crop of the same frames."""
        if self.config.evaluation.crops == "three":
            frames = augment.side_crop(frames, view // self.config.evaluation.segments)
        return augment.resized(frames, self.encoder.image_px)

    def _varies_gain(self) -> bool:
        return self.config.evaluation.random_gain if self.views else self.config.augment.random_gain

    def _answer(self, sample: Sample) -> Example:
        if self.config.head.task == "regression":
            return {"targets": torch.tensor(sample.targets, dtype=torch.float32)}
        return {"label": torch.tensor(sample.label)}
