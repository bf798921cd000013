"""Writes complete study records whose truth is known, through hicmae.record, for tests of reports and tracking.

    study = StudyOnDisk(tmp_path / "runs", "ablation_hierarchical_smoke", factorial_variants(), {"synthetic": CORPUS})
    study.write()

Every run has all files of a real one. Correct answers are drawn per sample from a variant's accuracy, so a table's numbers can
be worked out again from the files by other means.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hicmae import presets
from hicmae.config import FinetuneConfig, PretrainConfig, change, run_id
from hicmae.metrics import compute
from hicmae.record import RunRecord, append_line, write_json

EPOCHS = 4
CREATED = 1_700_000_000.0  # a fixed time, so that records are the same in every test run


@dataclass(frozen=True)
class CorpusOnDisk:
    """A small corpus: classes (or regression targets) and, per fold, its test samples."""

    classes: int = 4
    targets: tuple[str, ...] = ()
    folds: int = 5
    samples_per_fold: int = 40
    groups_per_fold: int = 5
    n_train: int = 160
    metrics: tuple[str, ...] = ("UAR", "WAR")
    tasks: bool = False


@dataclass(frozen=True)
class VariantOnDisk:
    name: str
    accuracy: float  # share of right answers
    columns: Mapping[str, Any] = field(default_factory=dict)
    delta: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""


def factorial_variants(base: float = 0.4, gains: Sequence[float] = (0.1, 0.05, 0.15)) -> list[VariantOnDisk]:
    """The 2x2x2 of the three modules; each module that is on adds its gain to the accuracy."""
    factors = {
        "skips": {True: {}, False: {"decoder.skip_connections": False}},
        "contrast": {True: {}, False: {"objective.contrastive": "last"}},
        "fusion": {True: {}, False: {"head.feature_fusion": "last"}},
    }
    variants = []
    for levels in itertools.product([False, True], repeat=3):
        columns = dict(zip(factors, levels, strict=True))
        delta = {key: value for name, level in columns.items() for key, value in factors[name][level].items()}
        name = " + ".join(name for name, level in columns.items() if level) or "none"
        accuracy = base + sum(gain for gain, level in zip(gains, levels, strict=True) if level)
        variants.append(VariantOnDisk(name, accuracy, columns, delta))
    return variants


@dataclass
class StudyOnDisk:
    """A study to be written below `root`; `skip` says which runs are left undone."""

    root: Path
    name: str
    variants: list[VariantOnDisk]
    corpora: dict[str, CorpusOnDisk]
    seeds: tuple[int, ...] = (0,)
    table: dict[str, Any] = field(default_factory=dict)
    title: str = "A study"
    description: str = "What the modules do."
    size: str = "smoke"
    skip: Callable[[str, str, int, int], bool] = lambda variant, corpus, fold, seed: False
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self) -> StudyOnDisk:
        for variant in self.variants:
            stages = _split(variant.delta)
            pretrain = change(
                presets.pretrain(self.size, "synthetic"), {"data.fingerprint": _print("synthetic"), **stages["pretrain"]}
            )
            pretrain_id = self._add(pretrain, variant, "synthetic", None, 0, ())
            self._write_pretrain(pretrain)
            for corpus, about in self.corpora.items():
                for fold, seed in itertools.product(range(1, about.folds + 1), self.seeds):
                    config = _finetune(self.size, corpus, about, fold, seed, stages["finetune"], pretrain_id)
                    self._add(config, variant, corpus, fold, seed, (pretrain_id,))
                    if not self.skip(variant.name, corpus, fold, seed):
                        self._write_finetune(config, variant, about)
        (self.root / "_studies").mkdir(parents=True, exist_ok=True)
        write_json(self.study_file, self._study())
        return self

    @property
    def study_file(self) -> Path:
        return self.root / "_studies" / f"{self.name}.json"

    def path(self, variant: str, corpus: str, fold: int, seed: int = 0) -> Path:
        """The run directory of a fine-tuning."""
        wanted = [
            run["run_id"]
            for run in self.runs.values()
            if variant in run["variants"]
            and (run["stage"], run["corpus"], run["fold"], run["seed"]) == ("finetune", corpus, fold, seed)
        ]
        assert len(wanted) == 1, wanted
        return self.root / wanted[0]

    def _add(
        self,
        config: PretrainConfig | FinetuneConfig,
        variant: VariantOnDisk,
        corpus: str,
        fold: int | None,
        seed: int,
        needs: tuple[str, ...],
    ) -> str:
        name = run_id(config)
        run = self.runs.setdefault(
            name,
            {
                "run_id": name,
                "stage": config.stage,
                "variants": [],
                "corpus": corpus,
                "fold": fold,
                "seed": seed,
                "depends_on": list(needs),
            },
        )
        if variant.name not in run["variants"]:
            run["variants"].append(variant.name)
        return name

    def _study(self) -> dict[str, Any]:
        variants = [{"name": v.name, "columns": dict(v.columns), "delta": dict(v.delta), "paper": v.paper} for v in self.variants]
        columns = list(self.variants[0].columns)
        table = {"rows": [v.name for v in self.variants], "columns": columns, "metrics": [], "baseline": "", "selection": "last"}
        return {
            "experiment": self.name,
            "title": self.title,
            "description": self.description,
            "source": "Table 13",
            "smoke": self.size == "smoke",
            "command": f"python experiments/launch.py {self.name.removesuffix('_smoke')} --smoke",
            "created": CREATED,
            "snapshot": {"code": {"commit": "0" * 40, "dirty": False}},
            "table": {**table, **self.table},
            "variants": variants,
            "runs": sorted(self.runs.values(), key=lambda run: run["stage"] != "pretrain"),
        }

    def _write_pretrain(self, config: PretrainConfig) -> None:
        record = RunRecord.create(self.root, config)
        if (record.path / "result.json").exists():
            return
        _write_history(record, {"loss": 2.0, "loss_video": 1.0, "loss_audio": 0.9, "loss_contrastive": 0.1, "lr": 1e-3}, ())
        write_json(record.path / "snapshot.json", _snapshot(config))
        _finish(record, _result(config, {}, 0, 160))

    def _write_finetune(self, config: FinetuneConfig, variant: VariantOnDisk, about: CorpusOnDisk) -> None:
        record = RunRecord.create(self.root, config)
        if (record.path / "result.json").exists():
            return
        table, metrics = _predictions(config, variant, about)
        pq.write_table(table, record.path / "predictions.parquet")
        _write_history(record, {"loss": 1.5, "lr": 1e-3, "grad_norm": 2.0}, tuple(metrics["last"].items()))
        write_json(record.path / "snapshot.json", _snapshot(config))
        _finish(record, _result(config, metrics, about.samples_per_fold, about.n_train))


def _split(delta: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    pretrain = {key: value for key, value in delta.items() if key.split(".")[0] in ("decoder", "objective")}
    return {"pretrain": pretrain, "finetune": {key: value for key, value in delta.items() if key not in pretrain}}


def _finetune(
    size: str, corpus: str, about: CorpusOnDisk, fold: int, seed: int, delta: Mapping[str, Any], pretrain_id: str
) -> FinetuneConfig:
    if about.targets:
        config = presets.finetune_regression(size, corpus, len(about.targets))
    else:
        config = presets.finetune(size, corpus, about.classes)
    common = {"data.fold": fold, "data.fingerprint": _print(corpus), "seed": seed, "evaluation.oracle": True}
    return change(config, {**common, **delta, "initial.source": "run", "initial.reference": pretrain_id})


def _print(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _predictions(
    config: FinetuneConfig, variant: VariantOnDisk, about: CorpusOnDisk
) -> tuple[pa.Table, dict[str, dict[str, float]]]:
    """The table of both selections and their metrics; labels and samples depend on the corpus and fold alone."""
    fold, count = config.data.fold or 1, about.samples_per_fold
    truth = np.random.default_rng([fold, count, about.classes])
    common = {
        "sample_id": [f"f{fold}_s{index:05d}" for index in range(count)],
        "group": [f"actor_{fold}_{index % about.groups_per_fold}" for index in range(count)],
        "task_id": [f"f{fold}_t{index // 2}" if about.tasks else None for index in range(count)],
    }
    labels = (
        truth.integers(about.classes, size=count // 2).repeat(2)
        if about.tasks
        else truth.permutation(np.minimum(np.arange(count) % (about.classes + 1), about.classes - 1))
    )
    wanted = truth.normal(size=(count, len(about.targets)))
    tables, metrics = [], {}
    for selection, extra in (("last", 0.0), ("oracle", 0.03)):
        generator = np.random.default_rng(
            [zlib.crc32(f"{variant.name}/{config.data.corpus}".encode()), fold, config.seed, bool(extra)]
        )
        if about.targets:
            scores = (variant.accuracy + extra) * wanted + 0.5 * generator.normal(size=wanted.shape)
            columns: dict[str, Any] = {f"target_{k}": wanted[:, k] for k in range(len(about.targets))}
            metrics[selection] = compute(about.metrics, wanted, scores, about.targets)
        else:
            scores = _scores(generator, labels, variant.accuracy + extra, about.classes)
            columns = {"label": labels, "prediction": scores.argmax(1)}
            metrics[selection] = compute(about.metrics, *_answered(labels, scores, common["task_id"] if about.tasks else None))
        columns |= {f"view_{v}_{k}": scores[:, k] for v in range(2) for k in range(scores.shape[1])}
        columns |= {f"score_{k}": scores[:, k] for k in range(scores.shape[1])}
        tables.append(pa.table({**common, **columns, "selection": [selection] * count}))
    return pa.concat_tables(tables, promote_options="permissive"), metrics


def _answered(labels: np.ndarray, scores: np.ndarray, tasks: list[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Labels and answers; with tasks, one per task from the mean scores of its two clips."""
    if tasks is None:
        return labels, scores.argmax(1)
    assert tasks[0::2] == tasks[1::2]
    return labels[::2], (scores[0::2] + scores[1::2]).argmax(1)


def _scores(generator: np.random.Generator, labels: np.ndarray, accuracy: float, classes: int) -> np.ndarray:
    right = generator.random(len(labels)) < accuracy
    answers = np.where(right, labels, (labels + generator.integers(1, classes, size=len(labels))) % classes)
    scores = generator.random((len(labels), classes)) * 0.5 / classes
    scores[np.arange(len(labels)), answers] = 1.0
    return scores / scores.sum(axis=1, keepdims=True)


def _write_history(record: RunRecord, losses: Mapping[str, float], finals: tuple[tuple[str, float], ...]) -> None:
    """metrics.jsonl and events.jsonl with fixed times; one write each, for thousands of runs."""
    lines, events = (
        [],
        [
            {
                "event": "started",
                "time": CREATED,
                "host": "node1",
                "pid": 1,
                "attempt": 1,
                "total_steps": 10 * EPOCHS,
                "world_size": 1,
            }
        ],
    )
    for epoch in range(1, EPOCHS + 1):
        step, now = 10 * epoch, CREATED + 60 * epoch
        lines.append(
            {"split": "train", "step": step, "epoch": epoch, "time": now, "values": {k: v / epoch for k, v in losses.items()}}
        )
        lines.append(
            {"split": "system", "step": step, "epoch": epoch, "time": now, "values": {"samples_per_s": 12.5, "rss_bytes": 1e9}}
        )
        if finals:
            values = {name: value * epoch / EPOCHS for name, value in finals}
            lines.append({"split": "test", "step": step, "epoch": epoch, "time": now, "values": values})
        events.append({"event": "checkpoint", "time": now, "step": step})
    for name, items in (("metrics.jsonl", lines), ("events.jsonl", events)):
        (record.path / name).write_text("".join(json.dumps(item, sort_keys=True) + "\n" for item in items))


def _finish(record: RunRecord, result: Mapping[str, Any]) -> None:
    """As record.finish, at a fixed time, so that two writings of a study are equal."""
    write_json(record.path / "result.json", {"run_id": record.id, **result})
    append_line(record.path / "events.jsonl", {"event": "finished", "time": CREATED + 60 * (EPOCHS + 1)})


def _snapshot(config: PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    return {
        "code": {"commit": "0" * 40, "dirty": False, "tree": "1" * 40},
        "environment": {"python": "3.11.7", "packages": {"torch": "2.11.0"}},
        "data": {"corpus": config.data.corpus, "fingerprint": config.data.fingerprint},
        "seeds": {"seed": config.seed},
        "hardware": {"cpus": 2, "gpus": []},
    }


def _result(
    config: PretrainConfig | FinetuneConfig, metrics: Mapping[str, Mapping[str, float]], n_test: int, n_train: int
) -> dict[str, Any]:
    return {
        "stage": config.stage,
        "status": "done",
        "seed": config.seed,
        "fold": config.data.fold,
        "corpus": config.data.corpus,
        "selection": "last",
        "metrics": {selection: dict(values) for selection, values in metrics.items()},
        "headline": next(iter(metrics.get("last", {})), None),
        "epochs": EPOCHS,
        "steps": 10 * EPOCHS,
        "wall_s": 240.0,
        "gpu_hours": 0.0,
        "cpu_hours": 0.5,
        "parameters": 20_500_000,
        "n_train": n_train,
        "n_test": n_test,
        "skipped_clips": [],
        "train_loss_first": 1.5,
        "train_loss_last": 0.4,
    }
