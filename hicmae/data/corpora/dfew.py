"""DFEW: 16,372 film clips, 11,697 of them with one label and in the corpus' own five folds.

Lists: `EmoLabel_DataSplit/{train,test}(single-labeled)/set_k.csv` with the columns video_name (a number) and label (1 to 7).
"""

from __future__ import annotations

from hicmae.data.corpora.base import Corpus, Media, Sample, Tree, column, listed, media_by_stem, table
from hicmae.errors import ClipError

CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
FOLDS = (1, 2, 3, 4, 5)
LISTS = r"(train|test)\(single-labeled\)/set_([1-5])\.csv"


def listing(tree: Tree) -> list[Sample]:
    """One sample per clip of the lists."""
    labels: dict[str, int] = {}
    tests: dict[str, list[int]] = {}
    for name, match in tree.matching(LISTS):
        for row in table(tree.read(name), place=tree.root / name):
            clip, label = _clip(tree, name, row)
            if labels.setdefault(clip, label) != label:
                raise ClipError(tree.root / name, f"clip {clip} has another label in another list")
            if match[1] == "test":
                tests.setdefault(clip, []).append(int(match[2]))
    media = media_by_stem(tree, r"\d{1,5}", key=lambda stem: f"{int(stem):05d}", avoid=r"_16f")
    return [_sample(tree, clip, label, tuple(tests.get(clip, ())), media) for clip, label in labels.items()]


def _clip(tree: Tree, name: str, row: dict[str, str]) -> tuple[str, int]:
    place = tree.root / name
    number, label = column(row, ("video_name",), place), column(row, ("label",), place)
    if not number.isdigit() or not label.isdigit() or not 1 <= int(label) <= len(CLASSES):
        raise ClipError(place, f"unknown label {label!r} of clip {number!r}; labels are 1 to {len(CLASSES)}")
    return f"{int(number):05d}", int(label) - 1


def _sample(tree: Tree, clip: str, label: int, test_folds: tuple[int, ...], media: dict[str, Media]) -> Sample:
    found = listed(media, clip, tree.root / "Clip/original" / f"{clip}.mp4")
    return Sample(clip, found.video, found.audio, label, None, clip, test_folds)


DFEW = Corpus(
    name="dfew",
    title="DFEW",
    task="classification",
    listing=listing,
    classes=CLASSES,
    folds=FOLDS,
    metrics=("UAR", "WAR"),
    group_word="clip",
    citation="Jiang et al., DFEW: A Large-Scale Database for Recognizing Dynamic Facial Expressions in the Wild, ACM MM 2020",
    licence_url="https://dfew-dataset.github.io/",
    layout="EmoLabel_DataSplit/train(single-labeled)/set_1.csv and Clip/original/00001.mp4",
    published={"samples": 11697},
    folder="dfew",
)
