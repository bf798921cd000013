"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from hicmae.whole import sync, written_whole


def test_a_block_that_fails_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("older")
    with pytest.raises(ZeroDivisionError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert [(left.name, left.read_text()) for left in tmp_path.iterdir()] == [("a.txt", "older")]


def test_nothing_takes_the_place_of_a_device_or_a_pipe(tmp_path: Path) -> None:
    """As root `-o /dev/null` would put a file there."""
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    with written_whole(pipe) as place:
        place.write_text("words")
    reader.join()
    assert heard == ["words"] and pipe.is_fifo()
    with written_whole(Path("/dev/null")) as place, place.open("w") as file:
        file.write("words")
        sync(file)
    assert Path("/dev/null").is_char_device()


def test_a_file_in_a_folder_that_takes_no_other_is_written_in_place(tmp_path: Path) -> None:
    path, user = tmp_path / "closed" / "a.txt", os.geteuid()
    path.parent.mkdir()
    path.touch()
    path.chmod(0o666)
    path.parent.chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    os.seteuid(user or 65534)
    try:
        with written_whole(path) as place:
            place.write_text("new")
    finally:
        os.seteuid(user)
    assert path.read_text() == "new"


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
