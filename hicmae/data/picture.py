"""A picture of what the model gets of one clip: its frames, the waveform, and the log-mel features of its sound.

hicmae data show clip.mp4
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hicmae.config import EncoderConfig
from hicmae.data import clips, sampling
from hicmae.errors import ClipError, UsageError
from hicmae.whole import write_png

STRIDE = 4  # frames, as in the published input


def draw_clip(path: Path, output: Path) -> Path:
    """Write the PNG of a clip's first test view, without the streams that it lacks; returns its path.

    Raises ClipError for a broken file, UsageError for an output that is no PNG.
    """
    from matplotlib.figure import Figure

    output = _png(output)
    encoder = EncoderConfig()
    facts = clips.probe(path)
    if facts.width is None and facts.sample_rate_hz is None:
        raise ClipError(path, "neither video nor sound")
    rows = (2 if facts.width else 0) + (2 if facts.sample_rate_hz else 0)
    figure = Figure(figsize=(10, 1.5 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, encoder.frames // 2)
    if facts.width:
        _draw_frames(figure, grid, path, encoder)
    if facts.sample_rate_hz:
        _draw_sound(figure, grid[rows - 2 :, :].subgridspec(2, 1), path, encoder)
    figure.suptitle(_title(path, facts), fontsize="small", parse_math=False)  # a name may have two dollar signs
    return write_png(figure, output, dpi=120)


def _png(output: Path) -> Path:
    placed = output if output.suffix else output.with_suffix(".png")
    if placed.suffix.lower() != ".png" or output.is_dir():
        example = output / "clip.png" if output.is_dir() else output.with_suffix(".png")
        raise UsageError(f"{output}: the picture is a PNG; give the name of a file, such as {example}")
    return placed


def _title(path: Path, facts: clips.Probe) -> str:
    parts = [path.name]
    if facts.width:
        rate = f", {facts.fps:.2f} frames/s" if facts.fps else ""
        parts.append(f"{facts.width}x{facts.height}, {facts.frames or '?'} frames{rate}")
    if facts.sample_rate_hz:
        parts.append(f"{facts.sample_rate_hz} Hz, {facts.channels} channel(s), {facts.sound_s or 0:.2f} s")
    return "   ".join(parts)


def _draw_frames(figure: Any, grid: Any, path: Path, encoder: EncoderConfig) -> None:
    reader = clips.open_frames(path)
    plan = sampling.test_views(len(reader), encoder.frames, STRIDE, segments=1)[0]
    for place, (number, frame) in enumerate(zip(plan.frames, reader.read(plan.frames), strict=True)):
        axes = figure.add_subplot(grid[place // (encoder.frames // 2), place % (encoder.frames // 2)])
        axes.imshow(frame)
        axes.set_axis_off()
        axes.set_title(str(number), fontsize="x-small")


def _draw_sound(figure: Any, grid: Any, path: Path, encoder: EncoderConfig) -> None:
    import torch

    from hicmae.data import audio

    wave = clips.read_sound(path).astype(np.float32) / 32768
    seconds = np.arange(len(wave)) / clips.SAMPLE_RATE_HZ
    top = figure.add_subplot(grid[0])
    top.plot(seconds, wave, linewidth=0.3)
    seen_s = encoder.audio_frames / 100
    top.axvspan(0, seen_s, color="tab:orange", alpha=0.2)  # what the picture below shows
    top.set_xlim(0, max(seconds[-1], seen_s))
    top.set_xlabel("s", fontsize="x-small")
    features = audio.fbank(torch.from_numpy(wave), encoder.audio_frames, encoder.mel_bins)
    bottom = figure.add_subplot(grid[1])
    bottom.imshow(features.T.numpy(), origin="lower", aspect="auto", extent=(0, seen_s, 0, encoder.mel_bins))
    bottom.set_ylabel("mel bin", fontsize="x-small")
