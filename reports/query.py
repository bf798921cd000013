"""From run directories to studies: which runs a study wants, which of them count, and why the others do not.

Reads `runs/_studies/<name>.json` and `runs/<run id>/`, never the code of an experiment and never MLflow. A run that cannot
be used (missing, half-written, damaged, of another version of the corpus, of another selection rule) is left out and named
with its reason; nothing is averaged over silently.

    study = load_study(Path("runs"), "ablation_hierarchical")
    study.problems                     # what must be said beside the table
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hicmae.config import to_dict
from hicmae.errors import HicmaeError, RecordError, UsageError, raise_unknown
from hicmae.metrics import METRICS
from hicmae.record import RunRecord
from reports.corpora import words
from reports.predictions import Predictions, read_predictions

STUDIES = "_studies"
SELECTIONS = ("last", "oracle", "validation", "inner")
TOLERANCE = 0.01  # percentage points between a recorded metric and the one computed from its predictions


@dataclass(frozen=True)
class Variant:
    """A row of the study as recorded: what tables show of it and its name among the published numbers."""

    name: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    delta: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""


@dataclass(frozen=True)
class StudyRun:
    """A run that the study wants. `problem` says why it does not count; predictions are there where it does."""

    run_id: str
    stage: str
    variants: tuple[str, ...]
    corpus: str
    fold: int | None
    seed: int
    depends_on: tuple[str, ...] = ()
    state: str = "new"
    problem: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    snapshot: Mapping[str, Any] = field(default_factory=dict)
    predictions: Predictions | None = None

    @property
    def label(self) -> str:
        """For people: `finetune crema_d fold 2 seed 0, all three`."""
        fold = "" if self.fold is None else f" fold {self.fold}"
        return f"{self.stage} {self.corpus}{fold} seed {self.seed}, {' = '.join(self.variants)} ({self.run_id})"

    @property
    def fingerprint(self) -> str:
        return str(self.config.get("data", {}).get("fingerprint", ""))


@dataclass(frozen=True)
class Study:
    """A study as recorded at its last launch, its runs, and everything about them that a reader must know."""

    name: str
    title: str
    description: str
    source: str
    smoke: bool
    command: str
    table: Mapping[str, Any]
    variants: tuple[Variant, ...]
    runs: tuple[StudyRun, ...]
    snapshot: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def corpora(self) -> tuple[str, ...]:
        """The corpora with a test part, in the order of the runs."""
        return tuple(dict.fromkeys(run.corpus for run in self.runs if run.stage == "finetune"))

    @property
    def selection(self) -> str:
        """Which epoch's predictions the tables take: last, oracle or validation."""
        return str(self.table.get("selection") or "last")

    def cell_runs(self, variant: str, corpus: str) -> list[StudyRun]:
        """The fine-tuning runs that a cell wants, usable or not, by fold and seed."""
        wanted = [r for r in self.runs if r.stage == "finetune" and variant in r.variants and r.corpus == corpus]
        return sorted(wanted, key=lambda run: (run.fold or 0, run.seed))


def study_names(runs_root: Path) -> list[str]:
    """The studies that were launched into this runs root."""
    return sorted(path.stem for path in (runs_root / STUDIES).glob("*.json") if not path.name.startswith("."))


def load_study(runs_root: Path, name: str) -> Study:
    """Read a study and its runs. Raises UsageError for an unknown name and RecordError for a damaged study file."""
    if name not in study_names(runs_root):
        raise_unknown(f"study in {runs_root}", name, study_names(runs_root))
    study = _read_study(runs_root / STUDIES / f"{name}.json")
    runs = [_read_run(runs_root, run, study.selection) for run in study.runs]
    checked = _check_cells(study, _check_fingerprints(runs))
    return replace(study, runs=tuple(checked), problems=tuple(_problems(study, checked)))


def run_ids(runs_root: Path, name: str) -> list[str]:
    """The runs of a study, from its file alone; none when that is damaged."""
    try:
        return [run.run_id for run in _read_study(runs_root / STUDIES / f"{name}.json").runs]
    except RecordError:
        return []


def _read_study(path: Path) -> Study:
    try:
        values = json.loads(path.read_text())
        table = dict(values.get("table") or {})
        variants = tuple(
            Variant(v["name"], v.get("columns", {}), v.get("delta", {}), v.get("paper", "")) for v in values["variants"]
        )
        runs = tuple(_wanted(run) for run in values["runs"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: damaged study file ({error!r}); launch the study again to write it anew") from None
    if table.get("selection", "last") not in SELECTIONS:
        raise_unknown(f"selection in {path}", str(table["selection"]), SELECTIONS)
    title, description, source, command = (str(values.get(key, "")) for key in ("title", "description", "source", "command"))
    name, smoke = str(values.get("experiment", path.stem)), bool(values.get("smoke"))
    return Study(name, title, description, source, smoke, command, table, variants, runs, values.get("snapshot") or {})


def _wanted(run: Mapping[str, Any]) -> StudyRun:
    return StudyRun(
        run_id=str(run["run_id"]),
        stage=str(run["stage"]),
        variants=tuple(run["variants"]),
        corpus=str(run["corpus"]),
        fold=None if run.get("fold") is None else int(run["fold"]),
        seed=int(run["seed"]),
        depends_on=tuple(run.get("depends_on", ())),
    )


def _read_run(runs_root: Path, run: StudyRun, selection: str) -> StudyRun:
    """The run with its record, or with the reason why its record does not count."""
    record = RunRecord(runs_root / run.run_id)
    try:
        result = record.result()
        if result is None:
            state = record.state()
            return replace(run, state=state, problem="not launched yet" if state == "new" else f"not done ({state})")
        config, snapshot = to_dict(record.config()), record.snapshot()
        run = replace(run, state="done", result=result, config=config, snapshot=snapshot)
        if run.stage == "pretrain":
            return run
        predictions = read_predictions(record.path / "predictions.parquet", selection, words(run.corpus).targets)
        _agree(run, predictions, selection)
    except HicmaeError as error:
        return replace(run, state="done", problem=str(error))
    return replace(run, predictions=predictions)


def _agree(run: StudyRun, predictions: Predictions, selection: str) -> None:
    """Raise RecordError unless result, predictions and the study's enumeration tell the same story."""
    if run.result.get("run_id") != run.run_id:
        raise RecordError(f"result.json belongs to {run.result.get('run_id')}, not to {run.run_id}")
    data = run.config["data"]
    if (data["corpus"], data["fold"]) != (run.corpus, run.fold) or run.config["seed"] != run.seed:
        raise RecordError("config.json has another corpus, fold or seed than the study")
    if run.result.get("n_test", len(predictions)) != len(predictions) and not predictions.merged_tasks:
        raise RecordError(f"predictions.parquet has {len(predictions)} samples, result.json says {run.result['n_test']}")
    recorded = dict(run.result.get("metrics") or {}).get(selection) or {}
    kinds = dict.fromkeys(name.partition(" ")[0] for name in recorded)
    for metric, value in predictions.metrics([kind for kind in kinds if kind in METRICS]).items():
        if abs(value - recorded.get(metric, value)) > TOLERANCE:
            raise RecordError(f"predictions.parquet gives {metric} {value:.2f}, result.json says {recorded[metric]:.2f}")


def _check_fingerprints(runs: Iterable[StudyRun]) -> list[StudyRun]:
    """Leave out runs on another version of a corpus than most runs of the study (the first version wins a tie)."""
    runs = list(runs)
    versions: dict[str, Counter[str]] = {}
    for run in runs:
        if run.config:
            versions.setdefault(run.corpus, Counter())[run.fingerprint] += 1
    return [_one_version(run, versions.get(run.corpus, Counter())) for run in runs]


def _one_version(run: StudyRun, versions: Counter[str]) -> StudyRun:
    if run.problem or len(versions) < 2 or run.fingerprint == versions.most_common(1)[0][0]:
        return run
    return _left_out(run, f"another version of the corpus (fingerprint {run.fingerprint[:12] or 'none'})")


def _check_cells(study: Study, runs: list[StudyRun]) -> list[StudyRun]:
    """Leave out what would be counted twice or mixed inside a cell: selection rules, samples in two folds."""
    by_id = {run.run_id: run for run in runs}
    current = replace(study, runs=tuple(runs))
    for variant in study.variants:
        for corpus in current.corpora:
            usable = [by_id[run.run_id] for run in current.cell_runs(variant.name, corpus) if by_id[run.run_id].predictions]
            for run in [*_mixed_selections(usable), *_repeated_samples(usable)]:
                by_id[run.run_id] = run
    return [by_id[run.run_id] for run in runs]


def _mixed_selections(runs: list[StudyRun]) -> list[StudyRun]:
    rules = Counter(selection_rule(run) for run in runs)
    if len(rules) < 2:
        return []
    usual = rules.most_common(1)[0][0]
    odd = [run for run in runs if selection_rule(run) != usual]
    return [_left_out(run, f"selection rule {selection_rule(run)!r}, the cell's other runs have {usual!r}") for run in odd]


def _repeated_samples(runs: list[StudyRun]) -> list[StudyRun]:
    """Runs whose test samples were already in another fold of the same seed."""
    seen: dict[int, set[str]] = {}
    repeated = []
    for run in runs:
        samples = set(run.predictions.sample_ids.tolist()) if run.predictions else set()
        earlier = seen.setdefault(run.seed, set())
        if samples & earlier:
            repeated.append(_left_out(run, f"{len(samples & earlier)} test samples are also in another fold"))
        earlier |= samples
    return repeated


def selection_rule(run: StudyRun) -> str:
    """The rule that the run was made with: last or validation (the oracle is recorded beside either)."""
    return str(run.result.get("selection") or run.config.get("evaluation", {}).get("selection", "last"))


def _left_out(run: StudyRun, reason: str) -> StudyRun:
    return replace(run, problem=reason, predictions=None)


def _problems(study: Study, runs: list[StudyRun]) -> list[str]:
    lines = [f"{run.label}: {run.problem}" for run in runs if run.problem]
    if not any(run.stage == "finetune" for run in runs):
        lines.append("the study has no run with a test part")
    for corpus in dict.fromkeys(run.corpus for run in runs if run.predictions):
        rules = sorted({selection_rule(run) for run in runs if run.predictions and run.corpus == corpus})
        if len(rules) > 1:
            lines.append(f"{corpus}: rows were selected by different rules ({', '.join(rules)}) and must not be compared")
    return lines


def require_studies(runs_root: Path, name: str | None) -> list[str]:
    """The named study, or all of them. Raises UsageError when there is nothing to report on."""
    names = study_names(runs_root)
    if not names:
        raise UsageError(f"{runs_root}: no study was launched here; `python experiments/launch.py NAME` launches one")
    if name is not None and name not in names:
        raise_unknown(f"study in {runs_root}", name, names)
    return names if name is None else [name]
