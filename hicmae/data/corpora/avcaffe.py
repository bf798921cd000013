"""AVCAffe: 58,112 clips of 106 people at remote-work tasks, who rated arousal and valence on five levels after each task.

Labels: ground_truths/{arousal,valence}.txt, lines `aiim001_task_1, Calm`. One fold: the people of info/val.txt, which are
the 20 of the corpus' own loader. The scores of a task's clips are averaged. info/no_audio_files.txt names clips without sound.
"""

from __future__ import annotations

import re
from functools import partial

from hicmae.data.corpora.base import Corpus, Sample, Tree, label_index, media_by_stem

LEVELS = {
    "arousal": ("Excited", "Wide-awake", "Neutral", "Dull", "Calm"),
    "valence": ("Pleasant", "Pleased", "Neutral", "Unsatisfied", "Unpleasant"),
}
TEST_PEOPLE = (1, 2, 13, 14, 43, 44, 53, 54, 57, 58, 63, 64, 67, 68, 77, 78, 99, 100, 107, 108)
NAME = re.compile(r"(aiim\d{3})_(task_\d)_clip_\d+")
PERSON = re.compile(r"aiim\d{3}")
LINE = re.compile(r"^(aiim\d{3}_task_\d)\s*,\s*(\S+)", re.MULTILINE)


def listing(tree: Tree, rating: str) -> list[Sample]:
    """One sample per clip with sound whose task has a rating."""
    name = tree.one(rf"ground_truths/{rating}\.txt")
    levels = {task: label_index(LEVELS[rating], level, tree.root / name) for task, level in LINE.findall(tree.read(name))}
    test, silent = _test_people(tree), _silent(tree)
    samples = []
    for clip, media in media_by_stem(tree, NAME.pattern).items():
        person, task = clip[:7], clip.rsplit("_clip_", 1)[0]
        if task in levels and clip not in silent:
            folds = (1,) if person in test else ()
            samples.append(Sample(clip, media.video, media.audio, levels[task], None, person, folds, task_id=task))
    return samples


def _test_people(tree: Tree) -> set[str]:
    for name, _ in tree.matching(r"info/val\.txt"):
        return set(PERSON.findall(tree.read(name)))
    return {f"aiim{number:03d}" for number in TEST_PEOPLE}


def _silent(tree: Tree) -> set[str]:
    return {match[0] for name, _ in tree.matching(r"info/no_audio_files\.txt") for match in NAME.finditer(tree.read(name))}


def _corpus(name: str, rating: str) -> Corpus:
    return Corpus(
        name=name,
        title=f"AVCAffe ({rating})",
        task="classification",
        listing=partial(listing, rating=rating),
        classes=LEVELS[rating],
        folds=(1,),
        metrics=("WF1", "WAR", "UAR"),
        group_word="person",
        fps=25.0,
        citation="Sarkar, Posen and Etemad, AVCAffe: A Large Scale Audio-Visual Dataset of Cognitive Load and Affect for "
        "Remote Work, AAAI 2023",
        licence_url="https://pritamsarkar.com/AVCAffe/LICENSE.html",
        layout=f"ground_truths/{rating}.txt and videos/shorter_segments/aiim001/task_1/aiim001_task_1_clip_001.avi",
        published={"groups": 106},
        folder="avcaffe",
    )


AVCAFFE_AROUSAL = _corpus("avcaffe", "arousal")
AVCAFFE_VALENCE = _corpus("avcaffe_valence", "valence")
