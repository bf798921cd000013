"""One example of a batch, made from a clip: frames, features of the sound, masks or labels.

What is drawn by chance depends on (seed, epoch, sample id, repeat) alone; each purpose (start, crop, gain, mask) has its own
stream of random numbers, so that changing one thing leaves the others as they were.

Legend: T frames, H height, W width, F feature frames, M mel bins, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hicmae.config import EncoderConfig, FinetuneConfig, PretrainConfig
from hicmae.data import audio, augment, sampling
from hicmae.data.clipstore import ClipSource
from hicmae.data.corpora import Sample
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


class Clips:
    """What pre-training and fine-tuning share: plans, frames and sound of a sample."""

    def __init__(
        self, samples: Sequence[Sample], source: ClipSource, numbers: Sequence[int], encoder: EncoderConfig, stride: int
    ) -> None:
        self.samples, self.source, self.numbers = list(samples), source, list(numbers)  # numbers: those of the source
        self.encoder, self.stride = encoder, stride
        self.fps = DEFAULT_FPS

    def stream(self, purpose: str, seed: int, draw: Draw) -> np.random.Generator:
        """The random numbers of one purpose for one example."""
        return numpy_generator(purpose, seed, draw.epoch, self.samples[draw.number].sample_id, draw.repeat)

    def example(self, draw: Draw) -> Example:
        """One example, with `video` (3, T, H, W) where frames are wanted."""
        video = self._room(1)[0] if self.has_video() else None
        example = self._example(draw, video)
        return example if video is None else {**example, "video": video}

    def batch(self, draws: Sequence[Draw]) -> Batch:
        """The examples of the draws, stacked; frames are written where they will stay, for they are most of the work."""
        video = self._room(len(draws)) if self.has_video() else None
        examples = [self._example(draw, None if video is None else video[row]) for row, draw in enumerate(draws)]
        batch: Batch = {key: torch.stack([example[key] for example in examples]) for key in examples[0]}
        if video is not None:
            batch["video"] = video
        batch["sample_id"] = [self.samples[draw.number].sample_id for draw in draws]
        batch["position"] = torch.tensor([draw.position for draw in draws])
        return batch

    def has_video(self) -> bool:
        """Whether examples have frames."""
        return True

    def _room(self, count: int) -> Tensor:
        return torch.empty(count, 3, self.encoder.frames, self.encoder.image_px, self.encoder.image_px)

    def _example(self, draw: Draw, video: Tensor | None) -> Example:
        """Writes the frames into `video` (3, T, H, W) and returns the rest."""
        raise NotImplementedError

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

    def _example(self, draw: Draw, video: Tensor | None) -> Example:
        assert video is not None
        seed, encoder, objective = self.config.seed, self.encoder, self.config.objective
        count = self.frame_count(draw, video=True)
        plan = sampling.pretrain_plan(count, encoder.frames, self.stride, self.stream("start", seed, draw))
        frames = augment.channels_first(self.source.frames(self.numbers[draw.number], plan.frames))
        crop = self.stream("crop", seed, draw)
        augment.normalise(augment.multi_scale_crop(frames, encoder.image_px, PRETRAIN_CROP_SCALES, crop), video)
        masks = self.stream("mask", seed, draw)
        return {
            "audio": self.features(draw, plan, count, augment.gain(self.stream("gain", seed, draw)), timed=True),
            "masked_video": torch.from_numpy(video_mask(encoder, objective, masks)),
            "masked_audio": torch.from_numpy(audio_mask(encoder, objective, masks)),
        }


class FinetuneClips(Clips):
    """Examples of fine-tuning: video, audio, and label () or targets (K,); `views`: evaluation without chance, and view ()."""

    def __init__(
        self, config: FinetuneConfig, samples: Sequence[Sample], source: ClipSource, numbers: Sequence[int], views: bool
    ) -> None:
        super().__init__(samples, source, numbers, config.encoder, config.data.stride_frames)
        self.config, self.views = config, views

    def has_video(self) -> bool:
        return "V" in self.config.head.modality

    def _example(self, draw: Draw, video: Tensor | None) -> Example:
        count = self.frame_count(draw, video=video is not None)
        plan = self._plan(draw, count)
        example = self._answer(self.samples[draw.number])
        if video is not None:
            self._write_frames(draw, plan, video)
        if "A" in self.config.head.modality:
            loud = augment.gain(self.stream(f"gain {draw.view}", self.config.seed, draw)) if self._varies_gain() else 1.0
            example["audio"] = self.features(draw, plan, count, loud, timed=False)
        if self.views:
            example["view"] = torch.tensor(draw.view)
        return example

    def _plan(self, draw: Draw, count: int) -> Plan:
        frames, segments = self.encoder.frames, self.config.evaluation.segments
        if self.views:
            return sampling.test_views(count, frames, self.stride, segments)[draw.view % segments]
        return sampling.train_plan(count, frames, self.stride, self.stream("start", self.config.seed, draw))

    def _write_frames(self, draw: Draw, plan: Plan, video: Tensor) -> None:
        frames = self.source.frames(self.numbers[draw.number], plan.frames)
        if self.views:
            augment.normalise(self._crop(augment.channels_first(frames), draw.view), video)
            return
        seed = self.config.seed
        parts = ("rand augment", seed, draw.epoch, self.samples[draw.number].sample_id, draw.repeat)
        augment.augment(frames, video, self.config.augment, self.stream("crop", seed, draw), parts)

    def _crop(self, frames: Tensor, view: int) -> Tensor:
        """Views beyond the segments are the left, middle and right crop of the same frames."""
        if self.config.evaluation.crops == "three":
            frames = augment.side_crop(frames, view // self.config.evaluation.segments)
        return augment.resized(frames, self.encoder.image_px)

    def _varies_gain(self) -> bool:
        return self.config.evaluation.random_gain if self.views else True

    def _answer(self, sample: Sample) -> Example:
        if self.config.head.task == "regression":
            return {"targets": torch.tensor(sample.targets, dtype=torch.float32)}
        return {"label": torch.tensor(sample.label)}
