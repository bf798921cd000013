"""MSP-IMPROV: clips of six dyadic sessions; `MSP-IMPROV-S01A-F02-P-FM01` is sentence, speaker (of session 2), kind, turn.

Labels are the raters' consensus in the corpus' `Evalution.txt` (spelt so), lines `UTD-IMPROV-S01A-F02-P-FM01.avi; N; A:...`.
Six folds, one session each.
"""

from __future__ import annotations

import re

from hicmae.data.corpora.base import Corpus, Media, Sample, Tree, listed, media_by_stem

LETTERS = "AHNS"
NAME = r"MSP-IMPROV-S\d\d[AHNS]-[FM]0[1-6]-[PRST]-[FM]{2}\d\d"
LINE = re.compile(r"^(?:UTD|MSP)-IMPROV-(\S+?)\.avi\s*;\s*(\w)\s*;", re.MULTILINE)


def listing(tree: Tree) -> list[Sample]:
    """One sample per clip whose consensus is angry, happy, neutral or sad."""
    media = media_by_stem(tree, NAME)
    samples = []
    for turn, letter in LINE.findall(tree.read(tree.one(r"[Ee]val[a-z]*\.txt"))):
        if letter in LETTERS:
            samples.append(_sample(tree, f"MSP-IMPROV-{turn}", letter, media))
    return samples


def _sample(tree: Tree, name: str, letter: str, media: dict[str, Media]) -> Sample:
    speaker = name.split("-")[3]
    session = int(speaker[1:])
    found = listed(media, name, tree.root / f"session{session}" / f"{name}.avi")
    return Sample(name, found.video, found.audio, LETTERS.index(letter), None, f"session{session}", (session,))


MSP_IMPROV = Corpus(
    name="msp_improv",
    title="MSP-IMPROV",
    task="classification",
    listing=listing,
    classes=("angry", "happy", "neutral", "sad"),
    folds=(1, 2, 3, 4, 5, 6),
    metrics=("WAR", "UAR"),
    group_word="session",
    fps=29.97,
    citation="Busso et al., MSP-IMPROV: An Acted Corpus of Dyadic Interactions to Study Emotion Perception, IEEE TAC 8(1), 2017",
    licence_url="https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Improv.html",
    layout="Evalution.txt and session1/S01A/P/MSP-IMPROV-S01A-F01-P-FM01.avi with .wav of the same names",
    published={"samples": 7787, "groups": 6},
    folder="msp_improv",
)
