"""The whole report: tables, figures and provenance of every study, `report.html`, and `report.pdf` where LaTeX is installed.

    hicmae report                          # all studies of ./runs into reports/build
    hicmae report ablation_hierarchical    # one study
    hicmae report --check                  # is what lies in reports/build still what the records say?

Everything is computed from run directories; a file of an earlier report is never read, except by reports.check to compare.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hicmae.errors import HicmaeError
from reports import corpora, latex, macros, manifest
from reports.analysis import Analysis, analyse
from reports.figures import Picture, draw_all
from reports.findings import findings
from reports.freshness import write_stamp
from reports.manifest import Part
from reports.provenance import mlflow_links, provenance_of
from reports.query import load_study, require_studies
from reports.render import effects_csv, latex_templates, templates, to_csv, to_html, to_json
from reports.tables import Table, cell_key, tables_of

SEED = 0
NO_LATEX = (
    "no PDF: LaTeX is not installed; `make system-packages` installs it, then `make report` "
    "makes report.pdf and a PDF of each table"
)


@dataclass
class Page:
    """A study's page: what was computed and the pictures drawn of it."""

    analysis: Analysis
    tables: list[Table]
    provenance: dict[str, Any]
    findings: list[str]
    pictures: list[Picture] = field(default_factory=list)
    pdfs: dict[str, Path] = field(default_factory=dict)  # table -> its own PDF, where LaTeX is installed

    @property
    def name(self) -> str:
        return self.analysis.study.name

    @cached_property
    def files(self) -> dict[str, str]:
        """file name -> text, of everything textual in the study's folder."""
        return study_files(self)

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
    notes: list[str] = [] if latex.can_compile() or not pdf else [NO_LATEX]
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Part] = {}
    for page in pages:
        drawn_from = manifest.drawn_from(runs_root, page.name)  # before drawing: what changes meanwhile is drawn again
        undrawn = _write_study(page, runs_root, out)
        problems += undrawn
        notes += _table_pdfs(page, out) if pdf and not notes else []
        parts[page.name] = _part_of(page, out, extras, drawn_from, undrawn)
    html, tex = out / "report.html", out / "report.tex"
    html.write_text(html_of(pages, problems), encoding="utf-8")
    tex.write_text(tex_of(pages), encoding="utf-8")
    made, complaints = _pdf(tex) if pdf and not notes else (None, [])
    manifest.write(out, [page.name for page in pages], Part(manifest.digests(out, filter(None, (html, tex, made)))), parts)
    write_stamp(runs_root, out, name, extras, pdf)
    return Report(html, made, tuple(pages), tuple(problems), (*notes, *complaints))


def _write_study(page: Page, runs_root: Path, out: Path) -> list[str]:
    """Everything in a study's folder but the PDFs of its tables; returns why pictures are missing."""
    folder = out / page.name
    folder.mkdir(exist_ok=True)
    for file, text in page.files.items():
        (folder / file).write_text(text, encoding="utf-8")
    try:
        page.pictures = draw_all(page.analysis, runs_root, folder / "figures")
    except HicmaeError as error:
        return [f"{page.name}: not all figures could be drawn ({error})"]
    return []


def _table_pdfs(page: Page, out: Path) -> list[str]:
    """A PDF of each table alone; returns LaTeX's complaints."""
    try:
        for table in page.tables:
            page.pdfs[table.name] = latex.table_pdf(out / page.name / f"{table.name}.tex")
    except HicmaeError as error:
        return [f"no PDF of a table: {error}"]
    return []


def _part_of(page: Page, out: Path, extras: Sequence[str] | None, drawn_from: str, undrawn: list[str]) -> Part:
    files = [out / page.name / file for file in page.files]
    files += [*page.pdfs.values(), *(path for picture in page.pictures for path in (picture.png, picture.pdf))]
    captions = [(picture.stem.name, picture.caption) for picture in page.pictures]
    columns = None if extras is None else list(extras)
    return Part(manifest.digests(out, files), columns, drawn_from, captions, undrawn)


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
    numbers = macros.macros_of(page.analysis, page.tables)
    for table in page.tables:
        files |= {
            f"{table.name}.tex": latex.fragment(table, page.name),
            f"{table.name}-caption.tex": latex.caption(table),
            f"{table.name}-numbers.tex": macros.to_tex(table.name, numbers[table.name]),
            f"{table.name}-numbers.txt": macros.listing(numbers[table.name]),
            f"{table.name}.csv": to_csv(table),
            f"{table.name}.json": to_json(table),
            f"{table.name}.html": to_html(table, page.name) + "\n",
        }
        if table.effects:
            files[f"{table.name}-effects.csv"] = effects_csv(table)
    return {**files, "provenance.json": json.dumps(page.provenance, indent=1, sort_keys=True) + "\n"}


def html_of(pages: list[Page], problems: list[str]) -> str:
    """The self-contained page: pictures and the files of the tables are in it."""
    shown = [
        {
            "page": page,
            "study": page.analysis.study,
            "tables": [(table, to_html(table, page.name), _downloads(page, table)) for table in page.tables],
            "pictures": [(picture, _inlined(picture.png, "image/png")) for picture in page.pictures],
        }
        for page in pages
    ]
    return templates().get_template("report.html.j2").render(pages=shown, problems=problems)


def _downloads(page: Page, table: Table) -> list[tuple[str, str, str]]:
    """What, file name and contents of the files that a reader of the page may want of a table."""
    found = [("PDF", path.name, _inlined(path, "application/pdf")) for path in filter(None, [page.pdfs.get(table.name)])]
    texts = {"LaTeX": ".tex", "CSV": ".csv", "effects as CSV": "-effects.csv", "macros for a text": "-numbers.tex"}
    texts["list of the macros"] = "-numbers.txt"
    names = [(what, f"{table.name}{suffix}") for what, suffix in texts.items() if f"{table.name}{suffix}" in page.files]
    return found + [(what, name, _as_url(page.files[name].encode(), "text/plain;charset=utf-8")) for what, name in names]


def _inlined(path: Path, kind: str) -> str:
    return _as_url(path.read_bytes(), kind)


def _as_url(contents: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(contents).decode()}"


def tex_of(pages: list[Page]) -> str:
    """The source of report.pdf."""
    shown = [
        {
            "page": page,
            "study": page.analysis.study,
            "tables": [
                (latex.input_path(page.name, table.name), latex.caption(table).rstrip("%\n"), table.name in page.pdfs)
                for table in page.tables
            ],
            "pictures": [
                (latex.input_path(page.name, "figures", picture.pdf.name), picture.caption) for picture in page.pictures
            ],
        }
        for page in pages
    ]
    return latex_templates().get_template("report.tex.j2").render(pages=shown)


def _pdf(source: Path) -> tuple[Path | None, list[str]]:
    try:
        return latex.compile_pdf(source), []
    except HicmaeError as error:
        return None, [f"no PDF: {error}"]
