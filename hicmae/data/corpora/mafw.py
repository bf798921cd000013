"""MAFW: 10,045 film clips; single labels (11) and compound labels (43) with the corpus' own five folds.

Lists: `Train & Test Set/{single,compound}/no_caption/set_k/{train,test}.txt`, lines `00025.mp4 anger`. 21 clips have
no sound; where sound files lie beside the clips, a clip without one is left out, as in the authors' preprocess/mafw_av.py.
"""

from __future__ import annotations

import re
from functools import partial

from hicmae.data.corpora.base import SOUND_SUFFIXES, Corpus, Media, Sample, Tree, label_index, listed, media_by_stem
from hicmae.errors import ClipError

SINGLE = (
    "anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "contempt", "anxiety", "helplessness",
    "disappointment",
)  # fmt: skip
# Every label of the compound lists: the single ones, then combinations in the order of their parts.
COMPOUND = (
    *SINGLE,
    "anger_disgust", "anger_sadness", "anger_surprise", "anger_anxiety", "anger_helplessness", "disgust_sadness",
    "disgust_surprise", "disgust_contempt", "disgust_anxiety", "disgust_helplessness", "disgust_disappointment", "fear_sadness",
    "fear_surprise",
    "fear_anxiety", "happiness_surprise", "happiness_contempt", "sadness_surprise", "sadness_anxiety", "sadness_helplessness",
    "sadness_disappointment", "surprise_anxiety", "anxiety_helplessness", "helplessness_disappointment", "anger_disgust_contempt",
    "anger_disgust_anxiety", "disgust_anxiety_helplessness", "disgust_helplessness_disappointment", "fear_sadness_anxiety",
    "fear_surprise_anxiety", "sadness_anxiety_helplessness", "sadness_helplessness_disappointment",
    "anxiety_helplessness_disappointment",
)  # fmt: skip
NAME = r"\d{5}"
FOLDS = (1, 2, 3, 4, 5)
LINE = re.compile(r"^(\d{5})\.mp4\s+(\S+)", re.MULTILINE)


def listing(tree: Tree, kind: str, classes: tuple[str, ...]) -> list[Sample]:
    """One sample per line of the lists of a kind (single, compound)."""
    labels: dict[str, int] = {}
    tests: dict[str, list[int]] = {}
    for name, match in tree.matching(rf"{kind}/no_caption/set_([1-5])/(train|test)\.txt"):
        fold, part = int(match[1]), match[2]
        for clip, label in LINE.findall(tree.read(name)):
            index = label_index(classes, label, tree.root / name)
            if labels.setdefault(clip, index) != index:
                raise ClipError(tree.root / name, f"{clip} is {label} here and {classes[labels[clip]]} in another list")
            if part == "test":
                tests.setdefault(clip, []).append(fold)
    media = _media(tree)
    samples = [_sample(tree, clip, label, tuple(tests.get(clip, ())), media) for clip, label in sorted(labels.items())]
    return [sample for sample in samples if sample.audio]


def _media(tree: Tree) -> dict[str, Media]:
    has_sound_files = any(name.lower().endswith(tuple(SOUND_SUFFIXES)) for name in tree.files)
    return media_by_stem(tree, NAME, sound_in_video=not has_sound_files)


def _sample(tree: Tree, clip: str, label: int, test_folds: tuple[int, ...], media: dict[str, Media]) -> Sample:
    found = listed(media, clip, tree.root / "data/clips" / f"{clip}.mp4")
    return Sample(clip, found.video, found.audio, label, None, clip, test_folds)


def _corpus(name: str, title: str, kind: str, classes: tuple[str, ...], published: dict[str, int]) -> Corpus:
    return Corpus(
        name=name,
        title=title,
        task="classification",
        listing=partial(listing, kind=kind, classes=classes),
        classes=classes,
        folds=FOLDS,
        metrics=("UAR", "WAR"),
        group_word="clip",
        citation="Liu et al., MAFW: A Large-scale, Multi-modal, Compound Affective Database, ACM Multimedia 2022",
        licence_url="https://mafw-database.github.io/MAFW/",
        layout=f"Train & Test Set/{kind}/no_caption/set_1/train.txt and data/clips/00001.mp4",
        published=published,
        folder="mafw",
    )


MAFW = _corpus("mafw", "MAFW", "single", SINGLE, {"samples": 9156})
MAFW_43 = _corpus("mafw_43", "MAFW with 43 compound classes", "compound", COMPOUND, {})
