"""VoxCeleb2 (dev): 1,092,009 unlabelled clips of speakers, for pre-training; `mp4/id00012/21Uxsk56VDQ/00001.mp4`.

Sound is at the same path below `aac` (.m4a, or .wav where converted), else inside the video. Frames are 224x224 at 25 per
second; for an input of 160 pixels the authors cut out rows 0-160 and columns 32-192 (kinetics_av.py, `crop_idxs`).
"""

from __future__ import annotations

from pathlib import Path

from hicmae.data.corpora.base import Corpus, Sample, Tree

CLIP = r"(?:^|/)(id\d{5}/[^/]+/\d{5})"


def listing(tree: Tree) -> list[Sample]:
    """One sample per video; its id is speaker, recording and clip."""
    sounds: dict[str, Path] = {}
    for suffix in ("m4a", "wav"):  # the converted file wins
        sounds |= {match[1]: tree.root / name for name, match in tree.matching(rf"{CLIP}\.{suffix}")}
    samples = []
    for name, match in tree.matching(rf"{CLIP}(?:\.mp4)?"):
        clip, video = match[1], tree.root / name
        sound = sounds.get(clip, video if name.endswith(".mp4") else None)
        samples.append(Sample(clip, video, sound, None, None, clip.split("/")[0]))
    return samples


VOXCELEB2 = Corpus(
    name="voxceleb2",
    title="VoxCeleb2 (dev)",
    task="pretraining",
    listing=listing,
    group_word="speaker",
    fps=25.0,
    citation="Chung, Nagrani and Zisserman, VoxCeleb2: Deep Speaker Recognition, Interspeech 2018",
    licence_url="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox2.html",
    layout="mp4/id00012/21Uxsk56VDQ/00001.mp4 and aac/id00012/21Uxsk56VDQ/00001.m4a",
    published={"samples": 1092009, "groups": 5994},
    folder="voxceleb2",
    crops={160: (0, 160, 32, 192), 192: (0, 192, 16, 208)},
)
