"""Where every cell of a table comes from: its runs with configuration, code, data, compute and MLflow page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reports.analysis import Analysis, CorpusAnalysis
from reports.cells import Cell
from reports.query import StudyRun
from reports.render import without_nan
from reports.shared import shared_pretraining
from reports.skipped import skipped_clips, skipped_of
from reports.tables import cell_key

Links = Mapping[str, Mapping[str, str]]


def mlflow_links(runs_root: Path) -> dict[str, dict[str, str]]:
    """study -> run id -> page, as the last `hicmae sync` left them; empty before it."""
    try:
        values = json.loads((runs_root / "_mlflow" / "links.json").read_text())
    except (OSError, ValueError):
        return {}
    return {str(study): dict(pages) for study, pages in values.items()}


def provenance_of(analysis: Analysis, links: Links) -> dict[str, Any]:
    """cell key -> what the cell is made of."""
    pages = links.get(analysis.study.name, {})
    cells = {
        cell_key(analysis.study.name, corpus.corpus, cell.variant): _cell(analysis, corpus, cell, pages)
        for corpus in analysis.corpora
        for cell in corpus.cells
    }
    study = analysis.study
    shared = shared_pretraining(study, [cell for corpus in analysis.corpora for cell in corpus.cells])
    about = {"study": study.name, "command": study.command, "snapshot": dict(study.snapshot)}
    return {**about, "pretraining": asdict(shared), "cells": without_nan(cells)}


def _shared(analysis: Analysis, cell: Cell) -> dict[str, Any]:
    """What the pre-trainings before a cell's runs took, and which other variants start from them too."""
    others = {name for run_id in cell.before for name in analysis.study.variants_after[run_id]} - {cell.variant}
    return {**asdict(shared_pretraining(analysis.study, [cell])), "shared_with": sorted(others)}


def _cell(analysis: Analysis, corpus: CorpusAnalysis, cell: Cell, pages: Mapping[str, str]) -> dict[str, Any]:
    earlier = analysis.study.found(cell.before)
    return {
        "variant": cell.variant,
        "corpus": cell.corpus,
        "complete": cell.complete,
        "progress": cell.progress,
        "pooled": cell.pooled,
        "folds": {metric: {str(fold): value for fold, value in folds.items()} for metric, folds in cell.folds.items()},
        "test_samples": cell.samples,
        "skipped_clips": skipped_clips([*cell.used, *earlier]),
        "gpu_hours": cell.total("gpu_hours"),
        "cpu_hours": cell.total("cpu_hours"),
        "pretraining_hours": _shared(analysis, cell),
        "data_fingerprints": sorted({run.fingerprint for run in cell.used}),
        "code": sorted({_commit(run) for run in cell.used}),
        "runs": [_run(run, pages) for run in cell.wanted],
        "pretraining": [_run(run, pages) for run in earlier],
        "problems": [run.label + ": " + run.problem for run in cell.wanted if run.problem],
    }


def _run(run: StudyRun, pages: Mapping[str, str]) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "fold": run.fold,
        "seed": run.seed,
        "counts": not run.problem,
        "problem": run.problem,
        "config_sha256": _digest(run.config) if run.config else None,
        "commit": _commit(run),
        "data_fingerprint": run.fingerprint,
        "skipped_clips": len(skipped_of(run)),
        "gpu_hours": run.result.get("gpu_hours"),
        "cpu_hours": run.result.get("cpu_hours"),
        "mlflow": pages.get(run.run_id),
    }


def _digest(config: Mapping[str, Any]) -> str:
    """The SHA-256 of the canonical JSON, of which the run id is the beginning."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def _commit(run: StudyRun) -> str:
    """The commit, marked when files differed from it."""
    code = run.snapshot.get("code", {})
    return f"{code.get('commit') or 'unknown'}{'+changes' if code.get('dirty') else ''}"


def without_links(provenance: Any) -> Any:
    """The same without MLflow pages, which say nothing about the numbers."""
    if isinstance(provenance, dict):
        return {key: without_links(value) for key, value in provenance.items() if key != "mlflow"}
    return [without_links(value) for value in provenance] if isinstance(provenance, list) else provenance
