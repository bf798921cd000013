"""CSV, JSON and HTML of tables. CSV and JSON hold unrounded numbers; nothing is ever read back from them."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from reports import latex
from reports.tables import Column, Field, Table, cell_key

TEMPLATES = Path(__file__).parent / "templates"


@cache
def templates() -> jinja2.Environment:
    """HTML templates, escaping everything; an undefined name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["anchor"] = latex.anchor
    environment.filters["kept_together"] = _kept_together
    environment.globals.update(cell_key=cell_key, shown=shown)
    return environment


@cache
def latex_templates() -> jinja2.Environment:
    r"""LaTeX templates: \VAR{...} prints escaped with the filter `tex`, lines that start with %% are statements."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # noqa: S701 - LaTeX, escaped by the filter below
        undefined=jinja2.StrictUndefined,
        variable_start_string=r"\VAR{",
        variable_end_string="}",
        block_start_string=r"\BLOCK{",
        block_end_string="}",
        comment_start_string=r"\NOTE{",
        comment_end_string="}",
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(tex=latex.escape, anchor=latex.anchor, url=latex.url)
    return environment


def _kept_together(text: str) -> str:
    """A number may stand above its interval, but neither is broken."""
    return text.replace(", ", ",\u00a0").replace(" ± ", "\u00a0±\u00a0")


def to_csv(table: Table) -> str:
    """One line per row; a spread gives two columns, a difference three."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(["corpus", *(name for column in table.columns for name in _names(column))])
    for block in table.blocks:
        for row in block.rows:
            values = [value for column, field in zip(table.columns, row.fields, strict=True) for value in _values(column, field)]
            writer.writerow([block.corpus, *values])
    return output.getvalue()


def effects_csv(table: Table) -> str:
    """One line per effect or interaction, unrounded."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(["corpus", "metric", "kind", "factors", "mean", "low", "high", "p", "folds", "resolved"])
    for row in table.effects:
        numbers = [_plain(value) for value in (row.mean, row.low, row.high, row.p, row.folds)]
        writer.writerow([row.corpus, row.metric, row.kind, " x ".join(row.factors), *numbers, str(row.resolved).lower()])
    return output.getvalue()


def _names(column: Column) -> list[str]:
    suffixes = {"spread": (".mean", ".sd"), "difference": ("", ".low", ".high"), "interval": ("", ".low", ".high")}.get(
        column.kind, ("",)
    )
    return [column.key + suffix for suffix in suffixes]


def _values(column: Column, field: Field) -> list[str]:
    bounds = (field.value, field.low, field.high)
    raw = {"spread": (field.value, field.spread), "difference": bounds, "interval": bounds}.get(column.kind, (field.value,))
    return [field.text if value is None and index == 0 else _plain(value) for index, value in enumerate(raw)]


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, bool) else repr(value)


def to_json(table: Table) -> str:
    """The table with all digits."""
    return json.dumps(without_nan(asdict(table)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def without_nan(values: Any) -> Any:
    """The same nested values with None where a number is not finite: JSON has no other word for it."""
    if isinstance(values, dict):
        return {str(key): without_nan(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def to_html(table: Table, study: str) -> Markup:
    """The `<table>` element; numbers link to the cell's provenance on the same page."""
    return Markup(templates().get_template("table.html.j2").render(table=table, study=study))  # noqa: S704 - escaped by the template


def shown(column: Column, field: Field) -> str:
    """A field as text, rounded."""
    if column.kind == "mark":
        return "–" if field.value is None else "✓" if field.value else "✗"
    if field.value is None:
        return field.text or "–"
    if column.kind == "interval":
        return f"[{field.low:.{column.decimals}f}, {field.high:.{column.decimals}f}]"
    if column.kind == "spread":
        return f"{field.value:.{column.decimals}f} ± {field.spread:.{column.decimals}f}"
    if column.kind == "difference":
        known = field.low is not None and field.high is not None and not math.isnan(field.low)
        interval = f" [{field.low:+.1f}, {field.high:+.1f}]" if known else ""
        return f"{field.value:+.{column.decimals}f}{interval}{field.mark}"
    return f"{field.value:.{column.decimals}f}"
