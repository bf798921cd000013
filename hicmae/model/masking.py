"""Which tokens pre-training hides (paper Sec. 3.1): tube or random masks of video, random, time or frequency masks of sound.

`masked` is True where a token is hidden. Every mask of a configuration hides the same number of tokens, so a batch stacks
and shapes are static. Randomness comes from the generator passed in.

Legend: N tokens of a stream, in the order time, height, width (video) or time, mel frequency (audio).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hicmae.config import EncoderConfig, ObjectiveConfig

Mask = NDArray[np.bool_]


def video_mask(encoder: EncoderConfig, objective: ObjectiveConfig, generator: np.random.Generator) -> Mask:
    """A mask (N,) over video tokens: `tube` hides the same places in every time slice, `random` hides anywhere.

    As TubeMaskingGenerator of the authors' masking_generator.py: int(ratio * places) of the places of one slice.
    """
    time, height, width = encoder.video_grid
    if objective.video_mask == "random":
        return _some(time * height * width, objective.video_mask_ratio, generator)
    return np.tile(_some(height * width, objective.video_mask_ratio, generator), time)


def audio_mask(encoder: EncoderConfig, objective: ObjectiveConfig, generator: np.random.Generator) -> Mask:
    """A mask (N,) over audio tokens: anywhere (`random`), whole time steps (`time`) or whole mel bands (`frequency`).

    As RandomMaskingGenerator2D of the authors' masking_generator.py; the two structured kinds are those of paper Table 8.
    """
    time, mel = encoder.audio_grid
    if objective.audio_mask == "time":
        return np.repeat(_some(time, objective.audio_mask_ratio, generator), mel)
    if objective.audio_mask == "frequency":
        return np.tile(_some(mel, objective.audio_mask_ratio, generator), time)
    return _some(time * mel, objective.audio_mask_ratio, generator)


def hidden_tokens(encoder: EncoderConfig, objective: ObjectiveConfig) -> tuple[int, int]:
    """How many video and audio tokens every mask of this configuration hides."""
    time, height, width = encoder.video_grid
    if objective.video_mask == "random":
        video = int(objective.video_mask_ratio * time * height * width)
    else:
        video = time * int(objective.video_mask_ratio * height * width)
    steps, mel = encoder.audio_grid
    ratio = objective.audio_mask_ratio
    audio = {
        "random": int(ratio * steps * mel),
        "time": int(ratio * steps) * mel,
        "frequency": steps * int(ratio * mel),
    }[objective.audio_mask]
    return video, audio


def _some(units: int, ratio: float, generator: np.random.Generator) -> Mask:
    masked = np.zeros(units, dtype=np.bool_)
    masked[: int(ratio * units)] = True
    return generator.permutation(masked)
