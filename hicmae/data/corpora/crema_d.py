"""CREMA-D: 7,442 clips of 91 actors; `1001_DFA_ANG_XX` is actor, sentence, emotion, intensity.

Five folds of 18 actors in the order of their numbers (19 in the last), as preprocess/creamd_av.py of the authors' release. Four
clips that the corpus' own page calls broken are left out. With four classes only the last fold is used.
"""

from __future__ import annotations

from functools import partial

from hicmae.data.corpora.base import Corpus, Sample, Tree, media_by_stem

CLASSES = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
BROKEN = frozenset({"1076_MTI_NEU_XX", "1076_MTI_SAD_XX", "1064_TIE_SAD_XX", "1064_IEO_DIS_MD"})
FIRST_ACTOR, FOLD_ACTORS, FOLDS = 1001, 18, 5
NAME = rf"1\d{{3}}_[A-Z]{{3}}_({'|'.join(CLASSES)})_[A-Z]{{1,2}}"


def listing(tree: Tree, classes: tuple[str, ...], folds: tuple[int, ...]) -> list[Sample]:
    """One sample per name; emotions outside `classes` and folds outside `folds` are not used."""
    samples = []
    for name, media in media_by_stem(tree, NAME).items():
        actor, _, emotion, _ = name.split("_")
        if name in BROKEN or emotion not in classes:
            continue
        fold = min(FOLDS, (int(actor) - FIRST_ACTOR) // FOLD_ACTORS + 1)
        test_folds = (fold,) if fold in folds else ()
        samples.append(Sample(name, media.video, media.audio, classes.index(emotion), None, actor, test_folds))
    return samples


def _corpus(
    name: str, title: str, classes: tuple[str, ...], folds: tuple[int, ...], metrics: tuple[str, ...], used: int
) -> Corpus:
    return Corpus(
        name=name,
        title=title,
        task="classification",
        listing=partial(listing, classes=classes, folds=folds),
        classes=classes,
        folds=folds,
        metrics=metrics,
        group_word="actor",
        fps=29.97,
        citation="Cao et al., CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset, IEEE Trans. Affective Computing, 2014",
        licence_url="https://github.com/CheyneyComputerScience/CREMA-D/blob/master/LICENSE.txt",
        layout="VideoFlash/1001_DFA_ANG_XX.flv and AudioWAV/1001_DFA_ANG_XX.wav",
        published={"samples": used, "groups": 91},
        folder="crema_d",
    )


CREMA_D = _corpus("crema_d", "CREMA-D", CLASSES, (1, 2, 3, 4, 5), ("UAR", "WAR"), used=7438)
CREMA_D_4 = _corpus("crema_d_4", "CREMA-D with 4 classes", ("ANG", "HAP", "NEU", "SAD"), (5,), ("WAR", "UAR"), used=4897)
