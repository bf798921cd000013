"""Checkpoints: whole or not at all, the last two kept, every kind of damage found, a full disk survived."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hicmae.errors import HicmaeError, RecordError
from hicmae.train import checkpoint

STATE = {"model/w": torch.arange(6.0).reshape(2, 3), "exp_avg/w": torch.full((2, 3), 1e-30), "ema/b": torch.tensor(1.5)}


def save(folder: Path, step: int) -> Path:
    return checkpoint.save(
        folder, step, {name: value + step for name, value in STATE.items()}, {"progress": {"epoch": step / 10}}
    )


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    save(tmp_path, 7)
    read = checkpoint.latest(tmp_path)
    assert read is not None and read.step == 7 and read.numbers == {"progress": {"epoch": 0.7}}
    assert all(torch.equal(read.tensors[name], value + 7) for name, value in STATE.items())


def test_the_last_two_are_kept_and_nothing_else(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "none") is None


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, Path.unlink])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2) / name)
    with pytest.warns(UserWarning, match=r"step-00000002.*going on from the checkpoint before it"):
        read = checkpoint.latest(tmp_path)
    assert read is not None and read.step == 1
    save(tmp_path, 2)  # training comes to the same step again
    read = checkpoint.latest(tmp_path)
    assert read is not None and read.step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_change_of_a_single_bit_goes_unnoticed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bits")
    path = save(folder, 1) / data.draw(st.sampled_from(["state.safetensors", "state.json"]))
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
        read = checkpoint.read(path.parent)
    except RecordError:
        return
    # White space of the JSON is the only thing that may differ without meaning.
    assert path.name == "state.json" and read.numbers == {"progress": {"epoch": 0.1}} and read.step == 1


def test_when_all_are_damaged_nothing_is_thrown_away_unasked(tmp_path: Path) -> None:
    for step in (1, 2):
        truncate(save(tmp_path, step) / "state.safetensors")
    with pytest.warns(UserWarning), pytest.raises(RecordError, match="every checkpoint is damaged"):
        checkpoint.latest(tmp_path)


def test_a_write_that_was_killed_is_passed_over_and_cleaned_up(tmp_path: Path) -> None:
    save(tmp_path, 1)
    half = tmp_path / ".step-00000002.99.tmp"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    read = checkpoint.latest(tmp_path)
    assert read is not None and read.step == 1
    save(tmp_path, 3)
    assert not half.exists()


def test_a_full_disk_leaves_the_older_ones_and_says_so_in_one_line(tmp_path: Path) -> None:
    """A process that may not write files over 20 kB meets what a full disk does: a write that fails half-way."""
    for step in (1, 2):
        save(tmp_path, step)
    big = {"model/w": torch.zeros(20_000)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(HicmaeError, match=r"^cannot write the checkpoint .*step-00000003: .*free space") as caught:
            checkpoint.save(tmp_path, 3, big, {})
        with pytest.raises(HicmaeError, match=r"^cannot write the weights"):
            checkpoint.save_weights(tmp_path / "final.safetensors", big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    assert [checkpoint.read(path).step for path in sorted(tmp_path.iterdir())] == [1, 2]


def test_a_kill_while_writing_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        writer = os.fork()
        if writer == 0:
            for step in itertools.count(1):
                checkpoint.save(folder, step, {"model/w": torch.full((10_000,), float(step))}, {"at": step})
        while not list(folder.glob("step-*")):
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        read = checkpoint.latest(folder)
        assert read is not None and read.numbers["at"] == read.step
        assert torch.equal(read.tensors["model/w"], torch.full((10_000,), float(read.step)))


def test_removing_all_leaves_weights(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "selected").mkdir()
    checkpoint.save_weights(tmp_path / "final.safetensors", {"w": torch.ones(2)}, run="0123")
    checkpoint.remove_all(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["final.safetensors"]


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / "state.json"
    content = json.loads(path.read_text())
    content.pop("sha256")
    content["format"] = 99
    path.write_text(json.dumps({**content, "sha256": checkpoint._digest_of(content)}))
    with pytest.raises(RecordError, match="has format 99"):
        checkpoint.read(path.parent)
