"""IEMOCAP: utterances of five dyadic sessions with four classes, happy taken together with excited.

Labels are in `SessionK/dialog/EmoEvaluation/*.txt`, lines `[6.29 - 8.23]<tab>Ses01F_impro01_F000<tab>neu<tab>[...]`.
Five folds, one session each. The corpus has pictures of whole dialogues only, `SessionK/dialog/avi/DivX/Ses01F_impro01.avi`, with
both actors side by side: on the left the one who wears the markers, whose letter stands behind the session's number. `hicmae data
prepare` cuts the utterances out; clips that were cut out otherwise have the utterance's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hicmae.data.corpora.base import Corpus, Media, Part, Sample, Tree, media_by_stem

CLASSES = ("angry", "happy", "neutral", "sad")
LABELS = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
NAME = r"Ses0[1-5][FM]_(impro|script)\w+_[FM]\d+"
LINE = re.compile(rf"^\[([\d.]+) - ([\d.]+)\]\s+({NAME})\s+([a-z]{{3}})\s", re.MULTILINE)


def listing(tree: Tree) -> list[Sample]:
    """One sample per utterance with one of the five labels."""
    media = media_by_stem(tree, NAME)
    samples = []
    for _, _, utterance, label in _lines(tree):
        samples.append(_sample(tree, utterance, LABELS[label], media))
    return samples


def parts(tree: Tree) -> dict[str, Part]:
    """Where every utterance is in the video of its dialogue, for the dialogues whose video is there."""
    dialogues = {match[1]: tree.root / name for name, match in tree.matching(r"dialog/avi/(?:DivX/)?(Ses[^/]+)\.(?:avi|mp4)$")}
    found = {}
    for start_s, end_s, name, _ in _lines(tree):
        dialogue, turn = name.rsplit("_", 1)
        if dialogue in dialogues:
            side = "left" if turn[0] == dialogue[5] else "right"
            found[name] = Part(dialogues[dialogue], float(start_s), float(end_s), side)
    return found


def _lines(tree: Tree) -> Iterator[tuple[str, str, str, str]]:
    """Start and end in seconds, utterance and label, of the utterances with one of the labels."""
    for name, _ in tree.matching(r"EmoEvaluation/Ses[^/]+\.txt"):
        for start_s, end_s, utterance, _, label in LINE.findall(tree.read(name)):
            if label in LABELS:
                yield start_s, end_s, utterance, label


def _sample(tree: Tree, name: str, label: str, media: dict[str, Media]) -> Sample:
    session, dialogue = int(name[3:5]), name.rsplit("_", 1)[0]
    sound = tree.root / f"Session{session}/sentences/wav/{dialogue}/{name}.wav"
    found = media.get(name, Media(None, sound))
    return Sample(name, found.video, found.audio, CLASSES.index(label), None, f"Session{session}", (session,))


IEMOCAP = Corpus(
    name="iemocap",
    title="IEMOCAP",
    task="classification",
    listing=listing,
    parts=parts,
    classes=CLASSES,
    folds=(1, 2, 3, 4, 5),
    metrics=("WAR", "UAR"),
    group_word="session",
    fps=29.97,
    citation="Busso et al., IEMOCAP: Interactive Emotional Dyadic Motion Capture Database, LREV 42, 2008",
    licence_url="https://sail.usc.edu/iemocap/",
    layout="Session1/dialog/EmoEvaluation/*.txt and Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav",
    published={"samples": 5531, "groups": 5},
    folder="iemocap",
)
