"""The README's promises that can be looked up: every test that its table of faults names is there."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
SECTION = "## What happens when something breaks"


def named_tests() -> list[tuple[str, str]]:
    """File and test function (empty for a whole file) of each row; `...` stands for the file of the row above."""
    text = (CHECKOUT / "README.md").read_text().partition(SECTION)[2].partition("\n## ")[0]
    found: list[tuple[str, str]] = []
    for row in text.splitlines():
        if not row.startswith("|") or set(row) <= set("|- ") or row.endswith("| test |"):
            continue
        named = re.findall(r"`(\.\.\.|tests/[\w/.]+\.py)(?:::(\w+))?`", row.split("|")[-2])
        assert named, f"names no test: {row}"
        found += [(found[-1][0] if file == "..." else file, function) for file, function in named]
    return found


def test_every_row_of_the_table_of_faults_names_a_test_that_is_there() -> None:
    tests = named_tests()
    assert len(tests) > 20
    for file, function in tests:
        assert (CHECKOUT / file).is_file(), file
        assert f"def {function or 'test_'}" in (CHECKOUT / file).read_text(), f"{file}::{function}"
