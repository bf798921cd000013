"""Which frames and which sound of a clip are seen: training and pre-training starts, and test views.

As in the authors' release: `load_video` and the test branch of kinetics_av.py (fine-tuning), `_sample_train_indices` of the
same file (pre-training). Randomness comes from the generator passed in, which the data set names by sample and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """Frame numbers of a clip, and the frames between which its sound lies."""

    frames: tuple[int, ...]
    first: int
    last: int


def test_views(frame_count: int, frames: int, stride: int, segments: int) -> list[Plan]:
    """Evenly spread views of a clip (2 in the release): every `stride`-th frame, the last one repeated in short clips."""
    every = list(range(0, frame_count, stride))
    every += [every[-1]] * (frames - len(every))
    step = (len(every) - frames) / (segments - 1) if segments > 1 else 0.0
    views = []
    for segment in range(segments):
        start = int(segment * step)
        seen = every[start : start + frames]
        views.append(Plan(tuple(seen), seen[0], min(seen[-1] + stride, frame_count - 1)))
    return views


def train_plan(frame_count: int, frames: int, stride: int, random: np.random.Generator) -> Plan:
    """A random stretch of frames * stride frames; a shorter clip is read whole and its last frame repeated."""
    wanted = frames * stride
    if frame_count <= wanted:
        spread = np.linspace(0, frame_count, num=frame_count // stride)
        spread = np.concatenate([spread, np.full(frames - frame_count // stride, frame_count)])
        seen = np.clip(spread, 0, frame_count - 1).astype(np.int64)
    else:
        end = int(random.integers(wanted, frame_count))
        seen = np.clip(np.linspace(end - wanted, end, num=frames), end - wanted, end - 1).astype(np.int64)
    first = int(seen[0])
    return Plan(tuple(int(frame) for frame in seen), first, min(first + wanted, frame_count - 1))


def pretrain_plan(frame_count: int, frames: int, stride: int, random: np.random.Generator) -> Plan:
    """Every `stride`-th frame from a random start; where a clip ends early its last reachable frame is repeated."""
    starts = frame_count - frames * stride + 1
    frame = int(random.integers(starts)) if starts > 0 else 0
    seen = []
    for _ in range(frames):
        seen.append(frame)
        if frame + 1 + stride < frame_count:
            frame += stride
    return Plan(tuple(seen), seen[0], min(seen[-1] + stride, frame_count - 1))


def relative_span(plan: Plan, frame_count: int, sample_count: int, shortest: int) -> slice:
    """The samples of a plan's sound, by its share of the clip, as in fine-tuning; all of it when that is too short."""
    if frame_count <= 1:
        return slice(0, sample_count)
    start, end = (int(frame / (frame_count - 1.0) * sample_count) for frame in (plan.first, plan.last))
    return slice(start, end) if end - start > shortest else slice(0, sample_count)


def timed_span(start_s: float, end_s: float, rate_hz: int) -> slice:
    """The samples between two times, as in pre-training."""
    start = int(start_s * rate_hz)
    return slice(start, start + int((end_s - start_s) * rate_hz))
