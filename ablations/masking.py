"""What pre-training hides: the share of tokens and the pattern, of each stream (paper's ablation of masking).

python experiments/launch.py ablation_masking
"""

from __future__ import annotations

from experiments.experiment import Experiment, Table, Variant

DEFAULT = {"video_mask": "tube", "video_mask_ratio": 0.9, "audio_mask": "random", "audio_mask_ratio": 0.8}
CHANGES: dict[str, dict[str, object]] = {
    "default": {},
    "video 0.75": {"video_mask_ratio": 0.75},
    "video 0.95": {"video_mask_ratio": 0.95},
    "audio 0.6": {"audio_mask_ratio": 0.6},
    "audio 0.7": {"audio_mask_ratio": 0.7},
    "audio 0.9": {"audio_mask_ratio": 0.9},
    "random video": {"video_mask": "random"},
    "time audio": {"audio_mask": "time"},
    "frequency audio": {"audio_mask": "frequency", "audio_mask_ratio": 0.75},
}
SMOKE = {"frequency audio": {"objective.audio_mask_ratio": 0.5}}  # of two rows of patches


def study() -> Experiment:
    """The default hides 90 % of the picture in tubes and 80 % of the sound at random. No published value is known here.

    Whole frequency bands are hidden at 75 %: sound has eight rows of patches, and 80 % is no whole number of them.
    """
    return Experiment(
        name="ablation_masking",
        title="Masking in pre-training",
        description="Share and pattern of the hidden tokens, one change at a time.",
        source="paper, masking",
        corpora=("mafw",),
        variants=tuple(_variant(name, change) for name, change in CHANGES.items()),
        table=Table(columns=("video mask", "video ratio", "audio mask", "audio ratio"), baseline="default"),
    )


def _variant(name: str, change: dict[str, object]) -> Variant:
    fields = {**DEFAULT, **change}
    columns = {field.replace("_mask_ratio", " ratio").replace("_", " "): value for field, value in fields.items()}
    delta = {f"objective.{field}": value for field, value in fields.items()}
    return Variant(name, delta, columns, smoke=delta | SMOKE.get(name, {}))
