"""Is the report on disk what the records say, whole and untouched? Reads records and files, writes nothing.

    hicmae report --check

Tables and pages are computed again and compared as text, with the columns that they were made with. Pictures and PDFs are as they
should be when their bytes are those that were written and nothing that they were drawn from has changed since.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from hicmae.errors import RecordError
from reports import manifest
from reports.build import Page, compute_pages, html_of, tex_of
from reports.figures import Picture
from reports.provenance import without_links
from reports.query import require_studies
from reports.trials import is_pruned

_STALE = "stale: the records say something else now; `hicmae report` renews it"
# MLflow's pages, which a sync after the report brings, say nothing about the numbers.
_LINKED = (
    re.compile(r'<a href="[^"#][^"]*">(<code>[0-9a-f]+</code>)</a>'),
    re.compile(r"\\href\{[^}]*\}\{(\\texttt\{[0-9a-f]+\})\}"),
)


def check_report(runs_root: Path, out: Path, name: str | None = None, extras: Sequence[str] | None = None) -> list[str]:
    """What is wrong with the report on disk: stale, edited, damaged or missing files, incomplete cells, damaged records.

    Empty if all is well. `extras` None stands for the columns that each table was made with.
    """
    names = require_studies(runs_root, name)
    try:
        known = manifest.read(out)
    except RecordError as error:
        return [str(error)]
    if known is None:
        return [f"{out / manifest.NAME}: {manifest.MISSING}"]
    pages: list[Page] = []
    problems: list[str] = []
    for study in names:
        part = known.studies.get(study)
        found, wrong = compute_pages(runs_root, [study], extras if extras is not None or part is None else part.columns)
        pages += found
        problems += wrong
    reasons: dict[str, str] = {}
    for page in pages:
        reasons |= _check_files(page, runs_root, out, known.studies.get(page.name, manifest.Part({})))
    reasons |= _check_whole(pages, problems, out, known, name is None, is_sound=not reasons)
    incomplete = [line for page in pages for line in _incomplete(page)]
    return [*problems, *(f"{out / file}: {reason}" for file, reason in reasons.items()), *incomplete]


def _check_files(page: Page, runs_root: Path, out: Path, part: manifest.Part) -> dict[str, str]:
    """file -> what is wrong with it, for a study's folder."""
    reasons = manifest.wrong(out, part)
    for file, text in page.files.items():
        if reason := _stale(out / page.name / file, text):
            reasons[f"{page.name}/{file}"] = reason
    tables = {f"{page.name}/{table.name}.pdf" for table in page.tables}
    is_drawn_anew = part.drawn_from != manifest.drawn_from(runs_root, page.name)
    for file in (file for file in part.files if file.endswith((".png", ".pdf"))):
        if is_drawn_anew if file not in tables else file.replace(".pdf", ".tex") in reasons:
            reasons.setdefault(file, _STALE)
    return reasons


def _incomplete(page: Page) -> list[str]:
    lines: list[str] = []
    for corpus in page.analysis.corpora:
        lines += [
            f"{page.name}: {corpus.title}, {cell.variant} is incomplete ({cell.progress})"
            for cell in corpus.cells
            if not cell.complete and not is_pruned(page.analysis.study, cell.variant)
        ]
    return lines


def _check_whole(
    pages: list[Page], problems: list[str], out: Path, known: manifest.Manifest, is_of_all: bool, is_sound: bool
) -> dict[str, str]:
    """report.html, .tex and .pdf. Their text is compared where this check looks at the studies that they show."""
    reasons = manifest.wrong(out, known.report)
    if [page.name for page in pages] != list(known.shown):
        return {"report.html": _STALE, **reasons} if is_of_all else reasons
    if not is_sound or reasons:
        return reasons  # pages are made of the other files
    for page in pages:
        part = known.studies.get(page.name, manifest.Part({}))
        page.pictures = [Picture(out / page.name / "figures" / stem, caption) for stem, caption in part.pictures]
        page.pdfs = {t.name: out / page.name / f"{t.name}.pdf" for t in page.tables if f"{page.name}/{t.name}.pdf" in part.files}
        problems = [*problems, *part.undrawn]
    texts = {"report.html": html_of(pages, problems), "report.tex": tex_of(pages)}
    stale = [file for file, text in texts.items() if _differs(out / file, text)]
    stale += ["report.pdf"] if "report.tex" in stale and "report.pdf" in known.report.files else []
    return dict.fromkeys(stale, _STALE)


def _differs(path: Path, text: str) -> bool:
    """Whether a page says something else, MLflow's links aside."""
    found = path.read_text(encoding="utf-8")
    for linked in _LINKED:
        found, text = linked.sub(r"\1", found), linked.sub(r"\1", text)
    return found != text


def _stale(path: Path, text: str) -> str:
    try:
        found = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return manifest.MISSING
    if path.name == "provenance.json" and _same_provenance(found, text):
        return ""
    return "" if found == text else _STALE


def _same_provenance(found: str, text: str) -> bool:
    try:
        return bool(without_links(json.loads(found)) == without_links(json.loads(text)))
    except ValueError:
        return False
