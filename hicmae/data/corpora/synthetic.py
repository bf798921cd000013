"""The generated corpus: two binary factors, arousal only in the voice and valence only in the face, so four classes need both.

The clips are written by hicmae.data.synthetic, at the latest when their samples are first asked for; `clips.csv` beside them
says what they are.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hicmae.data.corpora.base import Corpus, Sample, Tree

CLASSES = ("calm_negative", "calm_positive", "excited_negative", "excited_positive")
MANIFEST = "clips.csv"
FOLDS = (1, 2, 3)


def listing(tree: Tree) -> list[Sample]:
    """One sample per line of clips.csv: sample_id,file,arousal,valence,label,speaker,test_fold."""
    return [_sample(tree, row) for row in csv.DictReader(io.StringIO(tree.read(tree.one(MANIFEST))))]


def _sample(tree: Tree, row: dict[str, str]) -> Sample:
    path = tree.root / row["file"]
    return Sample(row["sample_id"], path, path, int(row["label"]), None, row["speaker"], (int(row["test_fold"]),))


class GeneratedCorpus(Corpus):
    """Makes its clips when they are not there."""

    def samples(self, root: Path) -> list[Sample]:
        if not (root / MANIFEST).exists():
            from hicmae.data.synthetic import generate

            generate(root)
        return super().samples(root)


SYNTHETIC = GeneratedCorpus(
    name="synthetic",
    title="the generated corpus",
    task="classification",
    listing=listing,
    classes=CLASSES,
    folds=FOLDS,
    metrics=("UAR", "WAR"),
    group_word="speaker",
    stride_frames=2,
    fps=25.0,
    citation="Generated on this machine by hicmae.data.synthetic; no recordings of people.",
    layout="clips.csv and clips/*.mp4, as written by hicmae.data.synthetic",
    folder="synthetic",
)
