"""Files that are there whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hicmae.whole import written_whole


def test_a_block_that_fails_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("older")
    with pytest.raises(ZeroDivisionError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert [(left.name, left.read_text()) for left in tmp_path.iterdir()] == [("a.txt", "older")]


def test_threads_that_write_one_file_at_once_leave_the_whole_of_one(tmp_path: Path) -> None:
    texts, together = [letter * 100_000 for letter in "abcd"], threading.Barrier(4)

    def write(text: str) -> None:
        with written_whole(tmp_path / "a.txt") as temporary:
            together.wait()
            temporary.write_text(text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [left.name for left in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() in texts
