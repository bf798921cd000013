"""The files that a run has in MLflow: record, environment, code difference, pictures, confusion matrix, model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hicmae.config import FinetuneConfig, RunConfig
from hicmae.provenance import dependencies, plain_name
from hicmae.record import RunRecord
from hicmae.tracking.content import Counts, known_corpus
from hicmae.tracking.store import write_mlmodel

COPIED = ("config.json", "snapshot.json", "result.json", "predictions.parquet")
WEIGHTS = "final.safetensors"
REQUIREMENTS = "requirements.txt"
_CELL, _MARGIN, _TEXT = 46, 12, 15  # pixels of the confusion matrix
_PREDICTED = "Predicted, % of the true class"


def write(record: RunRecord, counts: Counts | None, folder: Path) -> None:
    """Lay out what goes to a finished run's artifacts."""
    for name in COPIED:
        if (record.path / name).exists():
            shutil.copyfile(record.path / name, folder / name)
    if (record.path / "pictures").is_dir():
        shutil.copytree(record.path / "pictures", folder / "pictures")
    snapshot = record.snapshot()
    if snapshot.get("environment"):
        (folder / "environment.txt").write_text(environment(snapshot))
    if difference := (snapshot.get("code") or {}).get("diff"):
        (folder / "code.diff").write_text(f"{difference}\n")
    if counts is not None:
        draw_confusion(*counts, folder / "confusion.png")


def environment(snapshot: Mapping[str, Any]) -> str:
    """The environment of a run in the form of a requirements file."""
    found = snapshot.get("environment") or {}
    head = [f"# Python {found.get('python', '?')} on {found.get('platform', '?')}"]
    packages = [f"{name}=={version}" for name, version in (found.get("packages") or {}).items()]
    return "\n".join([*head, *packages, ""])


def requirements(snapshot: Mapping[str, Any]) -> list[str]:
    """What the project depends on, pinned to the versions that the run had; the project itself as a comment."""
    code, packages = snapshot.get("code") or {}, (snapshot.get("environment") or {}).get("packages") or {}
    versions = {plain_name(name): (name, version) for name, version in packages.items()}
    pinned = [versions[name] for name in dependencies() if name in versions]
    head = f"# hicmae {code.get('version', '')} itself: install its checkout, commit {code.get('commit') or 'unknown'}"
    return [head, *(f"{name}=={version}" for name, version in pinned)]


def outputs_of(config: RunConfig, names: Sequence[str]) -> list[str]:
    """The names of the columns that the logged model answers with; none for a pre-trained model, which gives features."""
    if not isinstance(config, FinetuneConfig):
        return []
    fitting = len(names) == config.head.outputs
    return list(names) if fitting else [str(index) for index in range(config.head.outputs)]


def write_model(record: RunRecord, config: RunConfig, folder: Path, model_id: str, run: str) -> Path:
    """Lay out an MLflow model without its weights, and return these: a pyfunc that `hicmae.tracking.predictor` loads.

    Nothing is pickled and nothing resolved: the configuration, the class names and where the weights lie, as text.
    """
    weights = record.path / "checkpoints" / WEIGHTS
    (folder / "data").mkdir(exist_ok=True)
    shutil.copyfile(record.path / "config.json", folder / "data" / "config.json")
    names = outputs_of(config, names_of_outputs(config))
    (folder / "data" / "model.json").write_text(
        json.dumps({"run_id": record.id, "weights": str(weights.resolve()), "outputs": names}, indent=1)
    )
    snapshot = record.snapshot()
    (folder / REQUIREMENTS).write_text("\n".join([*requirements(snapshot), ""]))
    python = str((snapshot.get("environment") or {}).get("python") or "3.10")
    (folder / "python_env.yaml").write_text(f"python: {python}\ndependencies:\n- -r {REQUIREMENTS}\n")
    write_mlmodel(folder, model_id, run, names)
    return weights


def names_of_outputs(config: RunConfig) -> list[str]:
    """Classes or targets of the run's corpus, where it is known here."""
    corpus = known_corpus(config.data.corpus)
    return list(corpus.classes or corpus.targets) if corpus else []


def draw_confusion(names: Sequence[str], counts: Sequence[Sequence[int]], path: Path) -> None:
    """Rows are the true classes, in percent of their samples; darker is more. A hundred times as fast as with matplotlib."""
    from PIL import Image, ImageDraw

    font = _font()
    labels = [f"{name} ({sum(row)})" for name, row in zip(names, counts, strict=True)]
    left = _MARGIN + _TEXT + _MARGIN + max(int(font.getlength(label)) for label in labels) + _MARGIN
    size, under = _CELL * len(names), max(int(font.getlength(name)) for name in names)
    width = max(size, int(font.getlength(_PREDICTED)))
    picture = Image.new("L", (left + width + _MARGIN, size + 3 * _MARGIN + under + _TEXT), 255)
    pen = ImageDraw.Draw(picture)
    for i, row in enumerate(counts):
        y = _MARGIN + i * _CELL
        pen.text((left - _MARGIN, y + _CELL // 2), labels[i], 0, font, "rm")
        for j, count in enumerate(row):
            share, x = count / max(1, sum(row)), left + j * _CELL
            pen.rectangle((x, y, x + _CELL - 2, y + _CELL - 2), round(250 * (1 - share)))
            shade = 255 if share > 0.5 else 0
            pen.text((x + _CELL // 2, y + _CELL // 2), f"{100 * share:.0f}", shade, font, "mm")
    for j, name in enumerate(names):
        _upright(picture, name, (left + j * _CELL + _CELL // 2, size + 2 * _MARGIN), font)
    pen.text((left, size + 2 * _MARGIN + under + _MARGIN // 2), _PREDICTED, 0, font)
    _upright(picture, "True (samples)", (_MARGIN + _TEXT // 2, _MARGIN), font)
    picture.save(path, compress_level=1)


@lru_cache(maxsize=1)
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(_TEXT)


def _upright(picture: Any, text: str, top_centre: tuple[int, int], font: Any) -> None:
    """Write a word that reads from below, ending at `top_centre`."""
    from PIL import Image, ImageDraw

    box = Image.new("L", (int(font.getlength(text)) + 2, _TEXT + 6), 255)
    ImageDraw.Draw(box).text((0, 0), text, 0, font)
    turned = box.rotate(90, expand=True)
    picture.paste(turned, (top_centre[0] - turned.width // 2, top_centre[1]))
