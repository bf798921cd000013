"""Cluster profiles: the shipped examples are usable, a user's own come first, and mistakes are told with the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hicmae.errors import UsageError
from slurm import profiles
from slurm.profiles import Profile, as_json, find


def write(text: str) -> Path:
    path = profiles.user_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_shipped_examples_are_complete() -> None:
    for name in ("default", "v100", "a100", "h100"):
        found = find(name)
        assert set(found) == {"pretrain", "finetune"}
    assert find("v100")["pretrain"].tasks == 4
    assert find("v100")["finetune"].tasks == 1
    assert find("v100")["finetune"].partition == "gpu"
    assert find("h100")["pretrain"].nodes == 2


def test_a_users_own_profile_comes_first() -> None:
    write('[a100]\npartition = "mine"\n[a100.finetune]\ntime_h = 1\n')
    assert find("a100")["pretrain"] == Profile(partition="mine")
    assert find("a100")["finetune"] == Profile(partition="mine", time_h=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown profile 'mine'; valid, nearest first:"),
        ('[mine]\npartion = "x"', "unknown field of profile mine 'partion'; valid, nearest first: partition,"),
        ('[mine]\nnodes = "two"', "profile mine: nodes = 'two': must be of type int"),
        ("[mine]\nnodes = true", "must be of type int"),
        ("[mine]\nnodes = 0", "profile mine: nodes = 0: must be more than 0"),
        ("[mine]\nmax_parallel = 0", "profile mine: max_parallel = 0: must be at least 1"),
        ("[mine]\narray_size = -1", "profile mine: array_size = -1: must be at least 1"),
        ("[mine]\ngpus_per_node = -1", "profile mine: gpus_per_node = -1: must be at least 0"),
        ("[mine.finetune]\nsignal_delay_s = -5", "profile mine: signal_delay_s = -5: must be from 0 to 65535"),
        ("[mine]\ntasks_per_node = 0", "profile mine: tasks_per_node = 0: must be at least 1"),
        ("[mine]\ntime_h = nan", "profile mine: time_h = nan: must be more than 0"),
        ('[mine]\nenvironment = { "A;rm" = "1" }', "profile mine: environment: 'A;rm': a name has letters, digits and _"),
        ("[mine]\nsetup = [1]", "must be of type tuple"),
        ("[mine]\nenvironment = { A = 1 }", "must be of type Mapping"),
        ("[mine", "unreadable"),
    ],
)
def test_a_mistake_names_the_field(text: str, message: str) -> None:
    write(text)
    with pytest.raises(UsageError) as refused:
        find("mine")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_memory_doubles_up_to_a_limit() -> None:
    profile = Profile(memory_gb=10, max_memory_gb=35)
    assert [profile.memory_after(failures) for failures in range(4)] == [10, 20, 35, 35]
    assert Profile(memory_gb=10).memory_after(9) == 80


def test_what_is_recorded_has_no_environment() -> None:
    profile = Profile(environment={"TOKEN": "secret"}, setup=("export KEY=secret",), partition="gpu")
    assert "secret" not in str(as_json(profile))
    assert as_json(profile)["partition"] == "gpu"
