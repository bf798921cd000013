r"""LaTeX: names print as themselves, fragments and the report compile with a real LaTeX, numbers stand where they should."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from study_records import CorpusOnDisk, StudyOnDisk, VariantOnDisk, factorial_variants

from hicmae.errors import HicmaeError
from reports import build, latex, macros
from reports.render import shown
from reports.tables import Block, Column, Field, Row, Table

NASTY = r"50% & \input{x}_#"
NAMES = [
    NASTY,
    r"\\[2cm] *",
    "a--b ---c",
    "``x'' ?` !`",
    '$x^2$ ~ <y> | "q"',
    "{unbalanced",
    r"\end{tabular}",
    "é ü ß Ł ž ± × µ °",
    "^^41 %",
]
PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{lmodern,booktabs,siunitx,amssymb}
\pagestyle{empty}
\begin{document}
"""

# An independent reading of LaTeX: what each command prints.
PRINTS = {
    r"\textbackslash{}": "\\",
    r"\textasciicircum{}": "^",
    r"\textasciitilde{}": "~",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textquotedbl{}": '"',
    r"\textquotesingle{}": "'",
    r"\textasciigrave{}": "`",
    r"\textpm{}": "±",
    r"\texttimes{}": "×",
    r"\texttwosuperior{}": "²",
    r"\textthreesuperior{}": "³",
    r"\textmu{}": "µ",
    r"\textdegree{}": "°",
    **{f"\\{character}": character for character in "{}#$%&_"},
    **{f"{{{character}}}": character for character in "-[]*?!"},
}
_TOKEN = re.compile("|".join(re.escape(command) for command in sorted(PRINTS, key=len, reverse=True)) + r"|[^\\{}#$%&_^~]")


def printed(source: str) -> str:
    """What LaTeX prints for an escaped text; fails on anything that is not plain text or a known command."""
    assert "".join(match[0] for match in _TOKEN.finditer(source)) == source, source
    return "".join(PRINTS.get(match[0], match[0]) for match in _TOKEN.finditer(source))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
@example(NASTY)
def test_every_name_prints_as_itself(name: str) -> None:
    assert printed(latex.escape(name)) == name


@given(st.text())
def test_characters_without_a_glyph_are_shown_by_their_number(name: str) -> None:
    text = printed(latex.escape(name))
    assert not re.search(r"[\x00-\x1f]", text)
    assert re.sub(r"\[U\+[0-9A-F]{4,}\]", "", text).count("\n") == 0
    assert latex.escape("漢") == "{[}U+6F22{]}"


@given(st.text(), st.text())
def test_link_names_are_plain_and_distinct(first: str, second: str) -> None:
    assert re.fullmatch(r"cell-[0-9a-f]+", latex.anchor(first))
    assert (latex.anchor(first) == latex.anchor(second)) == (first == second)


def table_of(names: list[str]) -> Table:
    columns = (
        Column("variant", "Variant", "text"),
        Column("variant.skips", "50% #", "mark"),
        Column("pooled.UAR", "UAR", "number"),
        Column("spread.UAR", "UAR over folds", "spread"),
        Column("baseline.UAR", "to baseline", "difference"),
    )
    rows = [Row(name, True, (Field(text=name), Field(value=index % 2 == 0), *numbers(index))) for index, name in enumerate(names)]
    return Table("nasty", NASTY, columns, (Block("x", NASTY, tuple(rows)), Block("y", "Second", tuple(rows))), (NASTY,))


def numbers(index: int) -> tuple[Field, ...]:
    if index == 2:
        return Field(text="3/5", link="x"), Field(), Field()
    rank = {0: "best", 1: "second"}.get(index, "")
    value = 80.125 / (1 + 10 * (index == 3))
    return (
        Field(value=value, rank=rank, link="x", mark="a" if index == 4 else ""),
        Field(value=value, spread=1.5),
        Field(value=-value, low=-9.0, high=2.0, mark="*"),
    )


def compiled(tmp_path: Path, body: str) -> str:
    """The text of a document's pages, read with pdftotext."""
    source = tmp_path / "document.tex"
    source.write_text(PREAMBLE + body + r"\end{document}", encoding="utf-8")
    pdf = latex.compile_pdf(source)
    done = subprocess.run(["pdftotext", "-layout", str(pdf), "-"], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.system("pdflatex", "latexmk", "pdftotext")
def test_real_latex_prints_nasty_names_and_aligns_numbers(tmp_path: Path) -> None:
    text = compiled(tmp_path, latex.fragment(table_of(NAMES), "study"))
    squeezed = re.sub(r"\s+", "", text)
    for name in NAMES:
        assert squeezed.count(re.sub(r"\s+", "", name)) >= 2, (name, text)
    points = {
        line.index(match[0]) + len(match[0])
        for line in text.splitlines()
        for match in [re.search(r"\b(80|7)\.\d\d\b", line)]
        if match
    }
    assert len(points) <= 2, text  # numbers end in one column (a character of slack for bold)


@pytest.mark.system("pdflatex", "latexmk", "pdftotext")
def test_real_latex_knows_every_letter_that_is_not_escaped(tmp_path: Path) -> None:
    letters = [chr(code) for code in range(0xA1, 0x180) if latex.escape(chr(code)) == chr(code)]
    assert len(letters) > 170
    compiled(tmp_path, r"\noindent " + r"\\ ".join(letters))  # fails where LaTeX does not know a letter
    assert "Missing character" not in (tmp_path / "document.log").read_text(errors="replace")


@pytest.mark.system("pdflatex", "latexmk")
def test_latex_error_is_one_line_with_its_reason(tmp_path: Path) -> None:
    source = tmp_path / "bad.tex"
    source.write_text(PREAMBLE + r"\nosuchcommand\end{document}")
    with pytest.raises(HicmaeError, match="Undefined control sequence") as error:
        latex.compile_pdf(source)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.system("pdflatex", "latexmk", "pdftotext", "pdftoppm")
def test_report_of_a_study_with_a_nasty_name_becomes_a_pdf(tmp_path: Path) -> None:
    variants = factorial_variants()
    variants[3] = VariantOnDisk(NASTY, 0.5, variants[3].columns, variants[3].delta)
    corpora = {"synthetic": CorpusOnDisk()}
    about: dict[str, Any] = {"table": {"baseline": "none"}, "title": NASTY}
    skipped = ("fusion", "synthetic", 2, 0)
    StudyOnDisk(tmp_path / "runs", "ablation_smoke", variants, corpora, skip=lambda *run: run == skipped, **about).write()
    report = build.build_report(tmp_path / "runs", tmp_path / "out")
    assert report.pdf is not None, report.notes
    text = subprocess.run(["pdftotext", "-layout", str(report.pdf), "-"], capture_output=True, text=True, check=True).stdout
    assert NASTY in text
    assert text.count("[") >= 7  # intervals
    subprocess.run(["pdftoppm", "-r", "40", "-png", str(report.pdf), str(tmp_path / "page")], check=True)
    assert list(tmp_path.glob("page*.png"))
    log = report.pdf.with_suffix(".log").read_text(errors="replace")
    assert "Overfull \\hbox" not in log or max(map(float, re.findall(r"Overfull \\hbox \(([\d.]+)pt", log))) < 20
    _assert_macros_print_their_values(report.pages[0], tmp_path)


def _assert_macros_print_their_values(page: build.Page, folder: Path) -> None:
    """All of a study's macros in one text, among them those of a cell that is not complete."""
    [found] = macros.macros_of(page.analysis, page.tables).values()
    shutil.copy(folder / "out" / page.name / f"{page.name}-numbers.tex", folder / "numbers.tex")
    lines = [rf"\noindent {number}: \{name}\par" for number, name in enumerate(found)]
    text = compiled(folder, "\n".join([r"\input{numbers.tex}", *lines]))
    printed_values = dict(re.findall(r"(\d+): *(\S+)", text.replace("\u2212", "-").replace("\u2013", "--")))
    assert printed_values == {str(place): number.value for place, number in enumerate(found.values())}
    kinds = Counter(number.kind for number in found.values())
    assert kinds["Mean"] == kinds["Sd"] == 16 and kinds["Diff"] == kinds["DiffLow"] == kinds["DiffHigh"] == 7
    values = {number.value for number in found.values()}
    assert {"4/5", "--", "200"} <= values and any(value.startswith("-") and value != "--" for value in values)
    listed = (folder / "out" / page.name / f"{page.name}-numbers.txt").read_text().splitlines()[1:]
    assert [re.split(r"  +", line)[0] for line in listed] == [f"\\{name}" for name in found]
    assert all(line.endswith(number.cell) and number.value in line for line, number in zip(listed, found.values(), strict=True))


def test_without_latex_one_line_says_what_makes_the_pdf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StudyOnDisk(tmp_path / "runs", "a_smoke", [VariantOnDisk("a", 0.5)], {"synthetic": CorpusOnDisk(folds=2)}).write()
    monkeypatch.setattr(shutil, "which", lambda program: None)
    report = build.build_report(tmp_path / "runs", tmp_path / "out")
    assert report.pdf is None and not list((tmp_path / "out" / "a_smoke").glob("*.pdf"))
    assert len(report.notes) == 1 and "make system-packages" in report.notes[0] and "a PDF of each table" in report.notes[0]
    assert (tmp_path / "out" / "report.html").exists()


def test_macros_have_names_of_letters_only_that_differ_and_do_not_depend_on_their_neighbours(tmp_path: Path) -> None:
    def macros_with(names: list[str]) -> dict[str, macros.Number]:
        variants = [VariantOnDisk(name, 0.5, {}, {"augment.label_smoothing": i / 100}) for i, name in enumerate(names)]
        study = StudyOnDisk(tmp_path / str(len(names)), "study_2", variants, {"synthetic": CorpusOnDisk(folds=1)}).write()
        page = build.compute_pages(study.root, ["study_2"])[0][0]
        return macros.macros_of(page.analysis, page.tables)["study_2"]

    found = macros_with(["a1", "a 1", "a_1", "ä", "b"])
    assert all(re.fullmatch("[A-Za-z]+", name) for name in found)
    cells = {(number.cell, number.metric, number.kind) for number in found.values()}
    assert len(cells) == len(found) and {number.kind for number in found.values()} >= {"", "Low", "High", "Samples"}
    fewer = macros_with(["b", "a_1", "a1"])
    assert all(found[name].cell == number.cell for name, number in fewer.items())


def test_html_text_of_a_field() -> None:
    difference = Column("d", "d", "difference")
    assert shown(difference, Field(value=1.188, low=-1.48, high=3.86, mark="*")) == "+1.19 [-1.5, +3.9]*"
    assert shown(difference, Field(value=1.0, low=float("nan"), high=float("nan"))) == "+1.00"
    assert shown(Column("m", "m", "mark"), Field(value=True)) == "✓"
    assert shown(Column("n", "n", "number"), Field(text="3/5")) == "3/5"
