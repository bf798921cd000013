"""What the parent run of a hyper-parameter search shows: its trials as a table, the best value as metrics, Optuna's figures."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hicmae.tracking.content import NOTE_LENGTH, Point

SHOWN = 20  # trials in the table
PICTURES = (".png", ".pdf")
_ENDED = ("done", "pruned", "failed")


@dataclass(frozen=True)
class Found:
    """What a search has found by now, as its study file and the folder beside it say."""

    name: str
    title: str
    command: str
    search: Mapping[str, Any]
    figures: tuple[Path, ...]

    @classmethod
    def of(cls, runs_root: Path, study: Mapping[str, Any]) -> Found | None:
        """None for a study that is no search."""
        search, name = study.get("search"), str(study["experiment"])
        if not isinstance(search, dict) or not isinstance(search.get("trials"), list):
            return None
        folder = runs_root / "_studies" / name / "figures"
        figures = tuple(sorted(path for path in folder.glob("*") if path.suffix in PICTURES))
        return cls(name, str(study.get("title") or name), str(study.get("command", "")), search, figures)

    @property
    def parent(self) -> str:
        """By what the parent run is found."""
        return f"search:{self.name}"

    @property
    def signature(self) -> str:
        """Changes with the trials and the figures."""
        drawn = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.figures]
        return hashlib.sha256(json.dumps([self.search, drawn], sort_keys=True).encode()).hexdigest()[:16]

    @property
    def is_over(self) -> bool:
        """Whether no trial is left; the figures are drawn when the budget is spent."""
        return bool(self.figures) and all(trial["state"] in _ENDED for trial in self.search["trials"])

    @property
    def ranked(self) -> list[Mapping[str, Any]]:
        """Finished trials, best first, by the place that the search gave them."""
        return sorted((trial for trial in self.search["trials"] if trial.get("place")), key=lambda trial: int(trial["place"]))

    @property
    def markdown(self) -> str:
        """Counts, the best trials with their parameters, and the command."""
        states = [str(trial["state"]) for trial in self.search["trials"]]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trial yet"
        fields = list(self.search.get("space") or {})
        goal = f"{self.search.get('direction', '')} {self.search.get('objective', '')}"
        lines = [f"**{self.title}**", "", f"{goal}: {counts}", ""]
        lines += [f"| trial | value | {' | '.join(fields)} |", f"|{'---|' * (2 + len(fields))}"]
        for trial in self.ranked[:SHOWN]:
            values = [_short(trial["params"].get(field, "")) for field in fields]
            lines.append(f"| {trial['number']} | {trial['value']:.6g} | {' | '.join(values)} |")
        return "\n".join([*lines, "", "```", self.command, "```"])[:NOTE_LENGTH]

    def points(self, step: int) -> list[Point]:
        """The value of every finished trial by its number, and the best one; said again, the first change nothing."""
        trials = [Point("trial", trial["number"], 0, {"trial/value": float(trial["value"])}) for trial in self.ranked]
        if not trials:
            return []
        best = self.ranked[0]
        ended = sum(trial["state"] in _ENDED for trial in self.search["trials"])
        values = {"best/value": float(best["value"]), "best/trial": float(best["number"]), "trials": float(ended)}
        return [*sorted(trials, key=lambda point: point.step), Point("search", step, 0, values)]

    def lay_out(self, folder: Path) -> bool:
        """Copy the figures to `folder`/figures; whether there are any."""
        if self.figures:
            (folder / "figures").mkdir()
        for path in self.figures:
            shutil.copyfile(path, folder / "figures" / path.name)
        return bool(self.figures)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
