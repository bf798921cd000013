"""MER-MULTI: the first track of MER 2023. One fold: `train` against `test1`, the 411 clips of the track's test set.

Lists: train-label.csv and test1-label.csv with the columns name, discrete and valence; clips in train/ and test1/.
"""

from __future__ import annotations

from hicmae.data.corpora.base import Corpus, Sample, Tree, column, label_index, listed, media_by_stem, table

CLASSES = ("neutral", "angry", "happy", "sad", "worried", "surprise")


def listing(tree: Tree) -> list[Sample]:
    """One sample per line of the two lists."""
    media = media_by_stem(tree, r"[\w-]+", avoid=r"(^|/)test[23](/|$)")
    samples = []
    for part, test_folds in (("train", ()), ("test1", (1,))):
        name = tree.one(rf"(^|/){part}[-_]label\.csv")
        for row in table(tree.read(name), place=tree.root / name):
            clip = column(row, ("name", "filename"), tree.root / name)
            label = label_index(CLASSES, column(row, ("discrete", "emotion"), tree.root / name), tree.root / name)
            found = listed(media, clip, tree.root / part / f"{clip}.mp4")
            samples.append(Sample(clip, found.video, found.audio, label, None, clip, test_folds))
    return samples


MER_MULTI = Corpus(
    name="mer_multi",
    title="MER-MULTI",
    task="classification",
    listing=listing,
    classes=CLASSES,
    folds=(1,),
    metrics=("WF1", "WAR", "UAR"),
    group_word="clip",
    citation="Lian et al., MER 2023: Multi-label Learning, Modality Robustness, and Semi-Supervised Learning, ACM MM 2023",
    licence_url="http://merchallenge.cn/",
    layout="train-label.csv, test1-label.csv, train/*.mp4 and test1/*.mp4",
    published={"samples": 3784},
    folder="mer_multi",
)
