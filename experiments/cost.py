"""What runs will cost in time and disk: from runs of the same shape recorded by any study here, else from FLOPs.

The FLOPs are those of the matrix products of the transformers (2 per multiply and add); backward counts twice forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import median

from experiments import durations, recipes
from experiments.available import why_absent
from experiments.durations import Took, shape_of
from experiments.experiment import Run
from hicmae.config import DataConfig, DecoderConfig, EncoderConfig, PretrainConfig, RunConfig
from slurm.machine import visible_gpus

GPU_FLOPS = 100e12  # per second, sustained in mixed precision by a card of the A100's class; an assumption, printed as such
CORE_FLOPS = 25e9  # per second, sustained in float32 by one core
START_S = 10.0  # of a process, before its first step
UNIT = {"gpu": "GPU-hours", "cpu": "core-hours"}


@dataclass(frozen=True)
class Cost:
    """Hours (of GPUs, or of cores) and bytes on disk; `measured` counts the runs that are known from recorded ones."""

    hours: float
    disk_bytes: int
    measured: int
    wall_s: float
    unknown: int = 0  # runs on a corpus of unknown size, counted with their start alone


class Costs:
    """Predicts costs from the runs recorded under a root, which are read when the first question comes."""

    def __init__(self, runs_root: Path, device: str | None = None) -> None:
        self.device = device or ("gpu" if visible_gpus() else "cpu")
        self._runs_root = runs_root
        self._known: dict[str, Cost] = {}

    def of(self, run: Run) -> Cost:
        """The cost of a run from its beginning."""
        if run.run_id not in self._known:
            self._known[run.run_id] = self._predicted(run.config)
        return self._known[run.run_id]

    def _predicted(self, config: RunConfig) -> Cost:
        disk_bytes = disk(config)
        if alike := self._recorded.get(shape_of(config)):
            return Cost(median(took.hours for took in alike), disk_bytes, 1, median(took.wall_s for took in alike))
        wall_s = START_S + flops(config) / (GPU_FLOPS if self.device == "gpu" else CORE_FLOPS)
        return Cost(wall_s / 3600, disk_bytes, 0, wall_s, unknown=int(clips_of(config.data) == 0))

    @cached_property
    def _recorded(self) -> dict[str, list[Took]]:
        """What runs took on devices of this kind, by their shape."""
        found: dict[str, list[Took]] = {}
        for took in durations.recorded(self._runs_root):
            if took.device == self.device:
                found.setdefault(took.shape, []).append(took)
        return found


def flops(config: RunConfig) -> float:
    """Of the training steps of a run, forward and backward, over all its epochs; evaluation is left out."""
    clips = clips_of(config.data)
    if isinstance(config, PretrainConfig):
        return 3 * _pretrain_flops(config) * clips * config.optim.epochs
    tokens = _tokens(config.encoder)
    per_clip = sum(_encoder_flops(config.encoder, count) for count in tokens) + _fusion_flops(config.encoder, *tokens)
    return 3 * per_clip * clips * config.optim.epochs * config.augment.repeats


def parameters(config: RunConfig) -> int:
    """Weights of the transformers, to a few percent: what checkpoints and memory are made of."""
    encoder = config.encoder
    count = 2 * encoder.depth * _block(encoder.dim, encoder.mlp_ratio) + encoder.fusion_depth * 2 * _cross_block(encoder)
    if isinstance(config, PretrainConfig):
        decoder = config.decoder
        count += 2 * decoder.depth * _block(decoder.dim, encoder.mlp_ratio) + 4 * decoder.dim * encoder.dim
    return int(count)


def disk(config: RunConfig) -> int:
    """Bytes that a finished run leaves: the final weights and those kept. (Its resume points go when it is done.)"""
    kept = len(config.keep_epochs) if isinstance(config, PretrainConfig) else 0
    return 4 * parameters(config) * (1 + kept)


def memory(config: RunConfig) -> int:
    """Bytes of main memory that a run on the CPU wants: the interpreter, weights with gradient and moments, activations."""
    tokens = sum(_tokens(config.encoder))
    activations = (
        4 * tokens * config.encoder.dim * config.encoder.depth * 40 * config.optim.batch_size // config.optim.accumulation_steps
    )
    if isinstance(config, PretrainConfig):
        activations //= 3  # hidden tokens never enter the encoders
    return int((1 << 30) + 16 * parameters(config) + activations)


def clips_of(data: DataConfig) -> int:
    """Clips in the training part: found on this machine, else as published; 0 when neither is known."""
    return _clips(data.corpus, data.fold is not None)


@cache
def _clips(corpus_name: str, with_test_part: bool) -> int:
    from hicmae.data import location

    corpus = recipes.corpus(corpus_name)
    if why_absent(corpus_name) is None:
        total = len(corpus.samples(location.corpus_root(corpus_name)))
    else:
        total = corpus.published.get("samples", 0)
    folds = max(len(corpus.folds), 2)
    return round(total * (folds - 1) / folds) if with_test_part else total


def _tokens(encoder: EncoderConfig) -> tuple[int, int]:
    """Video and audio tokens of a clip."""
    time, height, width = encoder.video_grid
    audio_time, audio_mel = encoder.audio_grid
    return time * height * width, audio_time * audio_mel


def _block(dim: int, mlp_ratio: float) -> float:
    return (4 + 2 * mlp_ratio) * dim * dim


def _cross_block(encoder: EncoderConfig) -> float:
    return _block(encoder.dim, encoder.mlp_ratio) + 4 * encoder.dim * encoder.dim


def _encoder_flops(encoder: EncoderConfig, tokens: float) -> float:
    attention = 4 * tokens * tokens * encoder.dim
    return encoder.depth * (2 * tokens * _block(encoder.dim, encoder.mlp_ratio) + attention)


def _fusion_flops(encoder: EncoderConfig, video: float, audio: float) -> float:
    attention = 4 * encoder.dim * (video * video + audio * audio + 2 * video * audio)
    return encoder.fusion_depth * (2 * (video + audio) * _cross_block(encoder) + attention)


def _decoder_flops(decoder: DecoderConfig, mlp_ratio: float, tokens: float) -> float:
    return decoder.depth * (2 * tokens * _block(decoder.dim, mlp_ratio) + 4 * tokens * tokens * decoder.dim)


def _pretrain_flops(config: PretrainConfig) -> float:
    video, audio = _tokens(config.encoder)
    seen_video, seen_audio = video * (1 - config.objective.video_mask_ratio), audio * (1 - config.objective.audio_mask_ratio)
    encoders = _encoder_flops(config.encoder, seen_video) + _encoder_flops(config.encoder, seen_audio)
    decoders = sum(_decoder_flops(config.decoder, config.encoder.mlp_ratio, tokens) for tokens in (video, audio))
    return encoders + _fusion_flops(config.encoder, seen_video, seen_audio) + decoders
