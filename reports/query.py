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
from functools import cached_property
from pathlib import Path
from typing import Any

from hicmae.errors import RecordError, UsageError, raise_unknown
from reports.cache import Cache
from reports.corpora import words
from reports.recorded import StudyRun, read_run

STUDIES = "_studies"
SELECTIONS = ("last", "oracle", "validation", "inner")


@dataclass(frozen=True)
class Variant:
    """A row of the study as recorded: what tables show of it and its name among the published numbers."""

    name: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    delta: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""


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
    search: Mapping[str, Any] = field(default_factory=dict)  # of a hyper-parameter search: its trials

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
        return list(self._by_cell.get((variant, corpus), ()))

    def found(self, run_ids: Iterable[str]) -> list[StudyRun]:
        """The runs of these ids, as far as the study has them."""
        return [self._by_id[run_id] for run_id in run_ids if run_id in self._by_id]

    @cached_property
    def _by_id(self) -> dict[str, StudyRun]:
        return {run.run_id: run for run in self.runs}

    @cached_property
    def variants_after(self) -> dict[str, set[str]]:
        """run id -> the variants of the runs that start from it."""
        found: dict[str, set[str]] = {}
        for run in self.runs:
            for run_id in run.depends_on:
                found.setdefault(run_id, set()).update(run.variants)
        return found

    @cached_property
    def _by_cell(self) -> dict[tuple[str, str], list[StudyRun]]:
        cells: dict[tuple[str, str], list[StudyRun]] = {}
        for run in sorted(self.runs, key=lambda run: (run.fold or 0, run.seed)):
            for variant in run.variants if run.stage == "finetune" else ():
                cells.setdefault((variant, run.corpus), []).append(run)
        return cells


def study_names(runs_root: Path) -> list[str]:
    """The studies that were launched into this runs root."""
    return sorted(path.stem for path in (runs_root / STUDIES).glob("*.json") if not path.name.startswith("."))


def load_study(runs_root: Path, name: str) -> Study:
    """Read a study and its runs. Raises UsageError for an unknown name and RecordError for a damaged study file."""
    if name not in study_names(runs_root):
        raise_unknown(f"study in {runs_root}", name, study_names(runs_root))
    study = _read_study(runs_root / STUDIES / f"{name}.json")
    runs = Cache(runs_root, name, [study.selection]).read(
        study.runs, lambda run: read_run(runs_root, run, study.selection, words(run.corpus).targets)
    )
    checked = _check_cells(study, _check_classes(_check_fingerprints(runs)))
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
        table, search, snapshot = (dict(values.get(name) or {}) for name in ("table", "search", "snapshot"))
        _ = [trial["name"] for trial in search.get("trials", ())]
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
    return Study(name, title, description, source, smoke, command, table, variants, runs, snapshot, search=search)


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


def _check_classes(runs: Iterable[StudyRun]) -> list[StudyRun]:
    """Leave out runs whose labels or answers lie outside of the classes of their corpus, where these are known."""
    return [_known_classes(run) for run in runs]


def _known_classes(run: StudyRun) -> StudyRun:
    count, predictions = len(words(run.corpus).classes), run.predictions
    if not count or predictions is None or not predictions.is_classification or not len(predictions):
        return run
    top = max(int(predictions.truth.max()), int(predictions.answers.max()))
    if top < count:
        return run
    return _left_out(run, f"predictions.parquet: class {top}, but the corpus has the classes 0..{count - 1}")


def _check_cells(study: Study, runs: list[StudyRun]) -> list[StudyRun]:
    """Leave out what would be counted twice or mixed inside a cell: selection rules, samples in two folds."""
    by_id = {run.run_id: run for run in runs}
    current = replace(study, runs=tuple(runs))
    sets: dict[int, frozenset[str]] = {}  # of the test lists, which runs share
    for variant in study.variants:
        for corpus in current.corpora:
            usable = [by_id[run.run_id] for run in current.cell_runs(variant.name, corpus) if by_id[run.run_id].predictions]
            for run in [*_mixed_selections(usable), *_repeated_samples(usable, sets)]:
                by_id[run.run_id] = run
    return [by_id[run.run_id] for run in runs]


def _mixed_selections(runs: list[StudyRun]) -> list[StudyRun]:
    rules = Counter(selection_rule(run) for run in runs)
    if len(rules) < 2:
        return []
    usual = rules.most_common(1)[0][0]
    odd = [run for run in runs if selection_rule(run) != usual]
    return [_left_out(run, f"selection rule {selection_rule(run)!r}, the cell's other runs have {usual!r}") for run in odd]


def _repeated_samples(runs: list[StudyRun], sets: dict[int, frozenset[str]]) -> list[StudyRun]:
    """Runs whose test samples were already in another fold of the same seed."""
    seen: dict[int, set[str]] = {}
    repeated = []
    for run in runs:
        ids = run.predictions.sample_ids if run.predictions else None
        if id(ids) not in sets:
            sets[id(ids)] = frozenset() if ids is None else frozenset(ids.tolist())
        samples = sets[id(ids)]
        earlier = seen.setdefault(run.seed, set())
        if not samples.isdisjoint(earlier):
            repeated.append(_left_out(run, f"{len(samples & earlier)} test samples are also in another fold"))
            continue
        earlier |= samples
    return repeated


def selection_rule(run: StudyRun) -> str:
    """The rule that the run was made with: last or validation (the oracle is recorded beside either)."""
    return str(run.result.get("selection") or run.config.get("evaluation", {}).get("selection", "last"))


def _left_out(run: StudyRun, reason: str) -> StudyRun:
    return replace(run, problem=reason, predictions=None)


def _problems(study: Study, runs: list[StudyRun]) -> list[str]:
    pruned = {trial["name"] for trial in study.search.get("trials", ()) if trial.get("state") == "pruned"}
    lines = [f"{run.label}: {run.problem}" for run in runs if run.problem and not pruned.issuperset(run.variants)]
    lines += [f"{run.label}: {remark}" for run in runs for remark in run.remarks]
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
