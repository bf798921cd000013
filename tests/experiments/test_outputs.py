"""Files that a command writes at its end are refused before its work, in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments import cli
from experiments.outputs import writable_file

BENCHES = ("data", "launch", "model", "report", "tracking")


def test_devices_pipes_and_files_in_folders_that_take_no_other_can_be_written(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (Path("/dev/null"), pipe, Path("/proc/self/comm")):
        assert writable_file(path) == path


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
