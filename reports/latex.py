r"""LaTeX of tables: a fragment for `\input` (booktabs, siunitx), a caption, macros for numbers in the text, and the PDF.

The fragment needs `\usepackage{booktabs,siunitx,amssymb}` and `\usepackage[T1]{fontenc}`. Names print as themselves.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
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
_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_LATIN = re.compile(r"[¡-¬®-ÿĀ-ąĆćČ-ďĐđĒēĔ-ěĞğĪīĬĭĮįİıĹĺĽľŁ-ńŇňŊŋŌ-ŕŘ-śŞ-ťŨ-űŴ-ž]")
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
        f"% Table {_comment(table.name)}, written by `hicmae report`; do not edit.",
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


def _comment(text: str) -> str:
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


def macros(table: Table, study: str) -> str:
    r"""`\newcommand` for every pooled number: `\AblationMafwFullUAR`, digits spelled out."""
    lines, used = [f"% Numbers of {_comment(table.name)}, written by `hicmae report`; do not edit."], set[str]()
    for block in table.blocks:
        for row in block.shown:
            for column, field in zip(table.columns, row.fields, strict=True):
                if column.key.startswith("pooled."):
                    name = _unused(_macro_name(study, block.corpus, row.variant, column.heading), used)
                    value = escape(field.text) or "--" if field.value is None else f"{field.value:.{column.decimals}f}"
                    lines.append(rf"\newcommand{{\{name}}}{{{value}}}")
    return "\n".join([*lines, ""])


def _macro_name(*parts: str) -> str:
    spelled = re.sub(r"\d", lambda digit: f" {_DIGITS[int(digit[0])]} ", " ".join(parts))
    words = re.findall(r"[A-Za-z]+", spelled)
    return "".join(word[0].upper() + word[1:] for word in words)


def _unused(name: str, used: set[str]) -> str:
    """The name, with letters appended where two names differ in other characters only."""
    candidates = (f"{name}{suffix}" for suffix in ("", *("Alt" + "x" * count for count in range(1000))))
    free = next(candidate for candidate in candidates if candidate not in used)
    used.add(free)
    return free


def can_compile() -> bool:
    """Whether LaTeX is installed."""
    return shutil.which("latexmk") is not None and shutil.which("pdflatex") is not None


def compile_pdf(source: Path) -> Path:
    """Run latexmk on a file, in its folder. Raises HicmaeError with LaTeX's own complaint."""
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "-quiet", source.name]
    done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, errors="replace", check=False)
    pdf = source.with_suffix(".pdf")
    if done.returncode or not pdf.exists():
        log = source.with_suffix(".log")
        complaints = _complaints(log.read_text(errors="replace").splitlines() if log.exists() else [])
        raise HicmaeError(f"{source}: LaTeX failed ({complaints or 'see the .log file beside it'})")
    return pdf


def _complaints(lines: Iterable[str]) -> str:
    return "; ".join(line for line in lines if line.startswith("!") or re.match(r"l\.\d+", line))[:300]
