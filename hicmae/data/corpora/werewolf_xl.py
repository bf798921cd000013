"""Werewolf-XL: speakers of 30 games of Werewolf, rated for arousal, valence (pleasure) and dominance.

`07_01_200` is game, speaker, clip. Five folds of six games in their order. Labels are in a CSV with the columns VideoName,
Mean_A_1_2, Mean_P_1_2 and Mean_D_1_2.
"""

from __future__ import annotations

import re

from hicmae.data.corpora.base import Corpus, Sample, Tree, column, listed, media_by_stem, table
from hicmae.errors import ClipError, UsageError

TARGETS = ("arousal", "valence", "dominance")
COLUMNS = {
    "arousal": ("mean_a_1_2", "arousal_average", "arousal"),
    "valence": ("mean_p_1_2", "pleasure_average", "valence", "pleasure"),
    "dominance": ("mean_d_1_2", "dominance_average", "dominance"),
}
FOLD_GAMES = 6
NAME = re.compile(r"(\d{2})_\d{2}_\d+")


def listing(tree: Tree) -> list[Sample]:
    """One sample per line of the label files."""
    media = media_by_stem(tree, NAME.pattern)
    samples: dict[str, Sample] = {}
    for name, _ in tree.matching(r"\.csv"):
        text = tree.read(name)
        if not {"videoname", "sample", "name"} & set(re.findall(r"\w+", text.partition("\n")[0].lower())):
            continue  # some other table
        for row in table(text, place=tree.root / name):
            clip = column(row, ("videoname", "sample", "name"), tree.root / name)
            match = NAME.fullmatch(clip)
            if not match:
                raise ClipError(tree.root / name, f"{clip!r} is not a clip's name; expected game_speaker_clip")
            found = listed(media, clip, tree.root / "Werewolf-XL_Speaker_Video" / f"{clip}.mp4")
            game, targets = int(match[1]), _targets(row, tree.root / name)
            fold = (game - 1) // FOLD_GAMES + 1
            samples[clip] = Sample(clip, found.video, found.audio, None, targets, f"game{game:02d}", (fold,))
    if not samples:
        raise UsageError(f"{tree.root}: no CSV with the column VideoName; the labels of Werewolf-XL are missing")
    return list(samples.values())


def _targets(row: dict[str, str], place: object) -> tuple[float, ...]:
    values = [column(row, COLUMNS[target], place) for target in TARGETS]
    try:
        return tuple(float(value) for value in values)
    except ValueError:
        raise ClipError(place, f"ratings {values} are not numbers") from None


WEREWOLF_XL = Corpus(
    name="werewolf_xl",
    title="Werewolf-XL",
    task="regression",
    listing=listing,
    targets=TARGETS,
    folds=(1, 2, 3, 4, 5),
    metrics=("PCC", "CCC"),
    group_word="game",
    stride_frames=3,
    citation="Zhang et al., Werewolf-XL: A Database for Identifying Spontaneous Affect in Large Competitive Group Interactions, "
    "IEEE Trans. Affective Computing, 2021",
    licence_url="https://github.com/Xinda-Wu/Werewolf-XL-Baseline",
    layout="a CSV with VideoName, Mean_A_1_2, Mean_P_1_2, Mean_D_1_2 and clips named 07_01_200.mp4",
    published={"samples": 14457, "groups": 30},
    folder="werewolf_xl",
)
