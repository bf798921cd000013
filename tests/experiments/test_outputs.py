"""Files that a command writes at its end are refused before its work, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import cli

BENCHES = ("data", "launch", "model", "report", "tracking")


@pytest.mark.parametrize("name", BENCHES)
def test_a_measurement_that_could_not_be_written_is_not_begun(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for place, reason in ((tmp_path, "is a folder"), (tmp_path / "file/out.json", "cannot be written")):
        with pytest.raises(SystemExit) as stop:
            cli.main(["bench", name, "-o", str(place)])
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {place}: {reason}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
