"""The whole report: tables, figures and provenance of every study, `report.html`, and `report.pdf` where LaTeX is installed.

    hicmae report                          # all studies of ./runs into reports/build
    hicmae report ablation_hierarchical    # one study
    hicmae report --check                  # is what lies in reports/build still what the records say?

Everything is computed from run directories; a file of an earlier report is never read, except by `--check` to compare.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hicmae.errors import HicmaeError
from reports import corpora, latex
from reports.analysis import Analysis, analyse
from reports.figures import Picture, draw_all
from reports.findings import findings
from reports.freshness import write_stamp
from reports.provenance import mlflow_links, provenance_of, without_links
from reports.query import load_study, require_studies
from reports.render import latex_templates, templates, to_csv, to_html, to_json
from reports.tables import Table, cell_key, tables_of
from reports.trials import is_pruned

SEED = 0
NO_LATEX = "no PDF: LaTeX is not installed; `make system-packages` installs it, then `make report` makes report.pdf"


@dataclass
class Page:
    """A study's page: what was computed and the pictures drawn of it."""

    analysis: Analysis
    tables: list[Table]
    provenance: dict[str, Any]
    findings: list[str]
    pictures: list[Picture] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.analysis.study.name

    @property
    def shown_cells(self) -> dict[str, Any]:
        """The provenance of the cells that the page's tables show."""
        rows = [(block.corpus, row.variant) for table in self.tables for block in table.blocks for row in block.shown]
        keys = [cell_key(self.name, corpus, variant) for corpus, variant in rows]
        return {key: self.provenance["cells"][key] for key in keys}


@dataclass(frozen=True)
class Report:
    """Where the report lies, and everything that its readers must be told."""

    html: Path
    pdf: Path | None
    pages: tuple[Page, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def build_report(
    runs_root: Path, out: Path, name: str | None = None, extras: Sequence[str] | None = None, pdf: bool = True
) -> Report:
    """Write the report of one study or of all. A study that cannot be read is named in `problems`; the others are reported.

    Raises UsageError for an unknown study and when there is none.
    """
    pages, problems = compute_pages(runs_root, require_studies(runs_root, name), extras)
    for page in pages:
        folder = out / page.name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in study_files(page).items():
            (folder / file).write_text(text, encoding="utf-8")
        page.pictures = draw_all(page.analysis, runs_root, folder / "figures")
    out.mkdir(parents=True, exist_ok=True)
    html = out / "report.html"
    html.write_text(_html(pages, problems), encoding="utf-8")
    (out / "report.tex").write_text(_tex(pages, out), encoding="utf-8")
    made, notes = _pdf(out / "report.tex") if pdf else (None, [])
    write_stamp(runs_root, out, name, extras, pdf)
    return Report(html, made, tuple(pages), tuple(problems), tuple(notes))


def compute_pages(runs_root: Path, names: Iterable[str], extras: Sequence[str] | None = None) -> tuple[list[Page], list[str]]:
    """The pages of the named studies, and every problem met, one line each."""
    pages: list[Page] = []
    problems: list[str] = []
    links = mlflow_links(runs_root)
    corpora.read_described(runs_root)
    for name in names:
        try:
            analysis = analyse(load_study(runs_root, name), study_generator(name))
        except HicmaeError as error:
            problems.append(f"{name}: {error}")
            continue
        pages.append(Page(analysis, tables_of(analysis, extras), provenance_of(analysis, links), findings(analysis)))
        problems += [f"{name}: {problem}" for problem in analysis.problems]
    return pages, problems


def study_generator(name: str) -> np.random.Generator:
    """A study's own random numbers: its report is the same alone and among others."""
    return np.random.default_rng([SEED, zlib.crc32(name.encode())])


def study_files(page: Page) -> dict[str, str]:
    """file name -> text, of everything textual in a study's folder."""
    files: dict[str, str] = {}
    for table in page.tables:
        files |= {
            f"{table.name}.tex": latex.fragment(table, page.name),
            f"{table.name}-caption.tex": latex.caption(table),
            f"{table.name}-numbers.tex": latex.macros(table, page.name),
            f"{table.name}.csv": to_csv(table),
            f"{table.name}.json": to_json(table),
            f"{table.name}.html": to_html(table, page.name) + "\n",
        }
    return {**files, "provenance.json": json.dumps(page.provenance, indent=1, sort_keys=True) + "\n"}


def check_report(runs_root: Path, out: Path, name: str | None = None, extras: Sequence[str] | None = None) -> list[str]:
    """What is wrong with the report on disk: stale or missing files, incomplete cells, damaged records. Empty if all is well."""
    pages, problems = compute_pages(runs_root, require_studies(runs_root, name), extras)
    return [*problems, *(line for page in pages for line in _check_page(page, out / page.name))]


def _check_page(page: Page, folder: Path) -> list[str]:
    lines = [f"{folder / file}: {reason}" for file, text in study_files(page).items() if (reason := _stale(folder / file, text))]
    for corpus in page.analysis.corpora:
        lines += [
            f"{page.name}: {corpus.title}, {cell.variant} is incomplete ({cell.progress})"
            for cell in corpus.cells
            if not cell.complete and not is_pruned(page.analysis.study, cell.variant)
        ]
    return lines


def _stale(path: Path, text: str) -> str:
    try:
        found = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "missing or unreadable; `hicmae report` writes it"
    if path.name == "provenance.json" and _same_provenance(found, text):
        return ""
    return "" if found == text else "stale: the records say something else now; `hicmae report` renews it"


def _same_provenance(found: str, text: str) -> bool:
    try:
        return bool(without_links(json.loads(found)) == without_links(json.loads(text)))
    except ValueError:
        return False


def _html(pages: list[Page], problems: list[str]) -> str:
    shown = [
        {
            "page": page,
            "study": page.analysis.study,
            "tables": [(table, to_html(table, page.name)) for table in page.tables],
            "pictures": [(picture, _inlined(picture.png)) for picture in page.pictures],
        }
        for page in pages
    ]
    return templates().get_template("report.html.j2").render(pages=shown, problems=problems)


def _inlined(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()


def _tex(pages: list[Page], out: Path) -> str:
    shown = [
        {
            "page": page,
            "study": page.analysis.study,
            "tables": [(latex.input_path(page.name, table.name), latex.caption(table).rstrip("%\n")) for table in page.tables],
            "pictures": [
                (latex.input_path(page.name, "figures", picture.pdf.name), picture.caption) for picture in page.pictures
            ],
        }
        for page in pages
    ]
    return latex_templates().get_template("report.tex.j2").render(pages=shown)


def _pdf(source: Path) -> tuple[Path | None, list[str]]:
    if not latex.can_compile():
        return None, [NO_LATEX]
    try:
        return latex.compile_pdf(source), []
    except HicmaeError as error:
        return None, [f"no PDF: {error}"]
