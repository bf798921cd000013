"""What a prepared folder says about itself: prepared.csv, from which is trained, and faces.csv, what was found in every clip."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from hicmae.data.corpora import Corpus, Sample
from hicmae.data.prepare.clip import Files, Found

MANIFEST, FACES = "prepared.csv", "faces.csv"


def write_manifest(folder: Path, corpus: Corpus, prepared: Iterable[tuple[Sample, Files]]) -> Path:
    """The samples that can be used, with the columns that `csv:` corpora read; paths are relative to the folder."""
    answers = ["label", "class"] if corpus.classes else [f"target_{name}" for name in corpus.targets]
    columns = ["sample_id", "video", "audio", *answers, "group", "fold", "task_id"]
    return _write(folder / MANIFEST, columns, (_row(sample, files, corpus, folder) for sample, files in prepared))


def _row(sample: Sample, files: Files, corpus: Corpus, folder: Path) -> dict[str, object]:
    media = {name: path.relative_to(folder).as_posix() for name, path in (("video", files.video), ("audio", files.audio)) if path}
    named = corpus.classes and sample.label is not None
    label = {"label": sample.label, "class": corpus.classes[sample.label or 0]} if named else {}
    targets = {f"target_{name}": value for name, value in zip(corpus.targets, sample.targets or (), strict=bool(sample.targets))}
    folds = " ".join(map(str, sample.test_folds))
    row = {"sample_id": sample.sample_id, "group": sample.group, "fold": folds, "task_id": sample.task_id or ""}
    return {**row, **media, **label, **targets}


def write_faces(folder: Path, found: Mapping[str, Found]) -> Path:
    """What was found in every clip, by sample id; `reason` says why a clip is not in prepared.csv."""
    columns = ["sample_id", "detection_rate", *(field.name for field in fields(Found))]
    rows = [
        {"sample_id": sample_id, "detection_rate": f"{clip.rate:.3f}" if clip.examined else "", **asdict(clip)}
        for sample_id, clip in sorted(found.items())
    ]
    return _write(folder / FACES, columns, rows)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
