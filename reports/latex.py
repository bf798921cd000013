r"""LaTeX of tables: a fragment for `\input` (booktabs, siunitx), a caption, a PDF of the table alone, and the report's PDF.

The fragment needs `\usepackage{booktabs,siunitx,amssymb}` and `\usepackage[T1]{fontenc}`. Names print as themselves.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hicmae.errors import HicmaeError
from reports.tables import Column, Field, Row, Table, cell_key

DASH = r"{--}"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "#": r"\#",
    "$": r"\$",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "-": r"{-}",  # no ligatures to dashes
    "[": r"{[}",  # not an optional argument of \\
    "]": r"{]}",
    "*": r"{*}",  # not a starred \\
    "?": r"{?}",
    "!": r"{!}",
    "±": r"\textpm{}",
    "×": r"\texttimes{}",
    "²": r"\texttwosuperior{}",
    "³": r"\textthreesuperior{}",
    "µ": r"\textmu{}",
    "°": r"\textdegree{}",
}
_LATIN = re.compile(r"[¡-¬®-ÿĀ-ąĆćČ-ďĐđĒēĔ-ěĞğĪīĬĭĮįİıĹĺĽľŁ-ńŇňŊŋŌ-ŕŘ-śŞ-ťŨ-űŴ-ž]")
_ALONE = r"""\documentclass[border=4pt,11pt]{standalone}
\pdfinfoomitdate=1 \pdfsuppressptexinfo=-1 \pdftrailerid{}
\usepackage[T1]{fontenc}
\usepackage{lmodern,textcomp,booktabs,siunitx,amssymb}
\usepackage[hidelinks,bookmarks=false]{hyperref}
\NewDocumentCommand{\hicmaelink}{mm}{\rlap{\href{../report.pdf\##1}{\phantom{#2}}}}
\begin{document}
\input{table-fragment.tex}
\end{document}
"""
COMMANDS = r"""\ProvideDocumentCommand{\hicmaelink}{mm}{}
\ProvideDocumentCommand{\hicmaesecond}{m}{\rlap{\underline{\phantom{#1}}}}
"""


def escape(text: str) -> str:
    r"""Text that prints as itself; characters that pdfLaTeX has no glyph for appear as [U+XXXX], controls as spaces."""
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if " " <= character <= "~" or _LATIN.fullmatch(character):
        return character
    return " " if character.isspace() or ord(character) < 32 else f"{{[}}U+{ord(character):04X}{{]}}"


def fragment(table: Table, study: str) -> str:
    r"""The `tabular` of a table, to be read with `\input`."""
    head = " & ".join(_heading(column) for column in table.columns)
    lines = [
        f"% Table {comment(table.name)}, written by `hicmae report`; do not edit.",
        "% Needs booktabs, siunitx, amssymb and T1 fonts.",
    ]
    lines += [COMMANDS.rstrip(), rf"\begin{{tabular}}{{{''.join(_specification(table, i) for i in range(len(table.columns)))}}}"]
    lines += [r"\toprule", rf"{head} \\"]
    for block in table.blocks:
        lines.append(r"\midrule")
        if len(table.blocks) > 1:
            lines.append(rf"\multicolumn{{{_width(table)}}}{{l}}{{\textit{{{escape(block.title)}}}}} \\")
        lines += [_row(table, row, cell_key(study, block.corpus, row.variant)) for row in block.shown]
        if block.verdict:
            lines.append(rf"\multicolumn{{{_width(table)}}}{{l}}{{\footnotesize {escape(block.verdict)}}} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def caption(table: Table) -> str:
    """The caption: title and notes."""
    return escape(" ".join([f"{table.title.rstrip('.')}.", *table.notes])) + "%\n"


def comment(text: str) -> str:
    """Text after a percent sign: on one line, without characters that LaTeX might stumble over."""
    return re.sub(r"[^\x20-\x7e]", " ", text)


def _width(table: Table) -> int:
    return sum(2 if column.kind in ("spread", "difference") else 1 for column in table.columns)


def _heading(column: Column) -> str:
    if column.kind in ("spread", "difference"):
        return rf"\multicolumn{{2}}{{c}}{{{escape(column.heading)}}}"
    return f"{{{escape(column.heading)}}}"


def _specification(table: Table, index: int) -> str:
    column = table.columns[index]
    if column.kind != "number":
        return {"interval": "c", "text": "l", "mark": "c", "spread": r"r@{${}\pm{}$}l", "difference": r"r@{\ }l"}[column.kind]
    values = [row.fields[index].value for block in table.blocks for row in block.shown]
    digits = max((len(f"{abs(value):.{column.decimals}f}".partition(".")[0]) for value in values if value is not None), default=1)
    sign = "-" if any(value is not None and value < 0 for value in values) else ""
    return rf"S[table-format={sign}{digits}.{column.decimals}, detect-weight, mode=text, table-align-text-before=false]"


def _row(table: Table, row: Row, key: str) -> str:
    places = (_place(column, field, key) for column, field in zip(table.columns, row.fields, strict=True))
    return rf"{' & '.join(places)} \\"


def _place(column: Column, field: Field, key: str) -> str:
    if column.kind == "mark":
        return "{--}" if field.value is None else r"$\checkmark$" if field.value else r"$\times$"
    if column.kind == "text":
        return escape(field.text) or DASH
    if column.kind in ("spread", "difference"):
        return _pair(column, field)
    if column.kind == "interval":
        known = field.low is not None and field.high is not None
        return f"{{[}}{field.low:.{column.decimals}f}, {field.high:.{column.decimals}f}{{]}}" if known else DASH
    if field.value is None:
        return f"{{{_link(field, key, field.text)}{escape(field.text)}}}" if field.text else DASH
    number = f"{field.value:.{column.decimals}f}"
    bold = r"\bfseries " if field.rank == "best" else ""
    second = rf"\hicmaesecond{{{number}}}" if field.rank == "second" else ""
    before = _link(field, key, number) + second
    after = rf"{{\rlap{{\textsuperscript{{{escape(field.mark)}}}}}}}" if field.mark else ""
    return f"{bold}{f'{{{before}}} ' if before else ''}{number}{after}"


def _link(field: Field, key: str, shown: str) -> str:
    """A link laid over the number: it has no width, so that the digits stay aligned."""
    return rf"\hicmaelink{{{anchor(key)}}}{{{shown}}}" if field.link else ""


def _pair(column: Column, field: Field) -> str:
    if field.value is None:
        return rf"\multicolumn{{2}}{{c}}{{{DASH}}}"
    if column.kind == "spread":
        return f"{field.value:.{column.decimals}f} & {field.spread:.{column.decimals}f}"
    known = field.low is not None and field.high is not None and field.low == field.low
    interval = f"{{[}}${field.low:+.1f}$, ${field.high:+.1f}${{]}}" if known else ""
    return f"${field.value:+.{column.decimals}f}$ & {interval}{escape(field.mark)}"


def anchor(key: str) -> str:
    """A short name for links that is plain in LaTeX and HTML."""
    return "cell-" + hashlib.sha256(key.encode()).hexdigest()[:10]


def input_path(*parts: str) -> str:
    r"""A relative path for `\input` and `\includegraphics`: names of studies and corpora are made of plain characters."""
    return "/".join(parts).replace("%", r"\%").replace("#", r"\#").replace("~", r"\string~")


def url(address: str) -> str:
    r"""An address for `\href`."""
    return re.sub(r"[%#&_$~^\\{} ]", lambda match: rf"\{match[0]}" if match[0] in "%#&_$" else f"\\%{ord(match[0]):02X}", address)


def can_compile() -> bool:
    """Whether LaTeX is installed."""
    return shutil.which("latexmk") is not None and shutil.which("pdflatex") is not None


def compile_pdf(source: Path, once: bool = False) -> Path:
    """Run latexmk on a file, in its folder, or LaTeX `once` on one without references. Raises HicmaeError with its complaint."""
    program = ["pdflatex"] if once else ["latexmk", "-pdf", "-quiet"]
    command = [*program, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", source.name]
    done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, errors="replace", check=False)
    pdf = source.with_suffix(".pdf")
    if done.returncode or not pdf.exists():
        log = source.with_suffix(".log")
        complaints = _complaints(log.read_text(errors="replace").splitlines() if log.exists() else [])
        raise HicmaeError(f"{source}: LaTeX failed ({complaints or 'see the .log file beside it'})")
    return pdf


def table_pdf(fragment: Path) -> Path:
    r"""A PDF as large as the table, beside its fragment; the same table gives the same bytes.

    Its numbers are links to the cells' runs in `../report.pdf`. Raises HicmaeError with LaTeX's own complaint.
    """
    with tempfile.TemporaryDirectory(prefix="hicmae-") as place:
        shutil.copyfile(fragment, Path(place) / "table-fragment.tex")
        source = Path(place) / "table.tex"
        source.write_text(_ALONE, encoding="utf-8")
        try:
            made = compile_pdf(source, once=True)
        except HicmaeError as error:
            raise HicmaeError(str(error).replace(str(source), str(fragment))) from None
        return Path(shutil.copyfile(made, fragment.with_suffix(".pdf")))


def _complaints(lines: Iterable[str]) -> str:
    return "; ".join(line for line in lines if line.startswith("!") or re.match(r"l\.\d+", line))[:300]
