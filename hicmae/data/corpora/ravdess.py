"""RAVDESS speech: 1,440 clips of 24 actors.

`02-01-06-01-02-01-12` is modality, channel, emotion, intensity, statement, repetition, actor.

Six folds of four consecutive actors. A performance is there as picture and sound (01), picture (02) and sound (03); its id
is the name of the picture file, as in the authors' lists.
"""

from __future__ import annotations

from hicmae.data.corpora.base import Corpus, Media, Sample, Tree, media_by_stem

CLASSES = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
FOLD_ACTORS = 4
NAME = r"0[123]-01-0[1-8]-0[12]-0[12]-0[12]-(0[1-9]|1\d|2[0-4])"
NOTHING = Media(None, None)


def listing(tree: Tree) -> list[Sample]:
    """One sample per performance: pictures from 02 (else 01), sound from 03 (else 01)."""
    media = media_by_stem(tree, NAME)
    return [_sample(performance, media) for performance in sorted({name[3:] for name in media})]


def _sample(performance: str, media: dict[str, Media]) -> Sample:
    both, picture, sound = (media.get(f"{modality}-{performance}", NOTHING) for modality in ("01", "02", "03"))
    emotion, actor = int(performance[3:5]), int(performance[-2:])
    fold = (actor - 1) // FOLD_ACTORS + 1
    video, audio = picture.video or both.video, sound.audio or both.audio
    return Sample(f"02-{performance}", video, audio, emotion - 1, None, f"Actor_{actor:02d}", (fold,))


RAVDESS = Corpus(
    name="ravdess",
    title="RAVDESS",
    task="classification",
    listing=listing,
    classes=CLASSES,
    folds=(1, 2, 3, 4, 5, 6),
    metrics=("WAR", "UAR"),
    group_word="actor",
    fps=29.97,
    citation="Livingstone and Russo, The Ryerson Audio-Visual Database of Emotional Speech and Song, PLoS ONE 13(5), 2018",
    licence_url="https://zenodo.org/records/1188976",
    layout="Actor_05/02-01-06-01-02-01-05.mp4 and Actor_05/03-01-06-01-02-01-05.wav (or 01-01-*.mp4 with both)",
    published={"samples": 1440, "groups": 24},
    folder="ravdess",
)
