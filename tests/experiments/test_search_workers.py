"""Workers as processes, started by the command: exact budgets under SIGKILL, stopping and going on, every refusal in one line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from experiments.available import Fingerprints
from experiments.cli import main
from experiments.search.launch import counts
from experiments.search.worker import STORAGE, Request, opened, requested

DECLARATION = """
    import json, os, time
    from pathlib import Path
    from experiments.search import Budget, Float, Int, Search
    from hicmae.record import append_line

    LOG = Path({log!r})

    def value(params):
        call = {{"pid": os.getpid(), "params": params}}
        append_line(LOG, {{"at": "begin", **call}})
        time.sleep({pause_s})
        append_line(LOG, {{"at": "end", **call}})
        return (params["x"] - 0.25) ** 2 + (params["k"] - 3) ** 2

    def search():
        return Search(
            name="square", title="A square", objective=value, direction="minimize",
            space={{"x": Float(-1, 1), "k": Int(0, 6)}}, budget=Budget(trials={trials}), sampler={sampler!r},
        )
"""


def declare(folder: Path, trials: int, pause_s: float = 0.0, sampler: str = "TPESampler") -> Path:
    path = folder / "square.py"
    path.write_text(
        textwrap.dedent(DECLARATION.format(trials=trials, pause_s=pause_s, sampler=sampler, log=str(folder / "calls.jsonl")))
    )
    return path


def calls(folder: Path) -> list[dict[str, Any]]:
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def hicmae(*words: str) -> list[str]:
    return [sys.executable, "-m", "experiments.cli", *words]


def worker(path: Path, runs: Path) -> list[str]:
    return [sys.executable, "-m", "experiments.search.worker", str(path), "--runs", str(runs)]


def trials(path: Path, runs: Path) -> list[dict[str, Any]]:
    command = hicmae("search", "status", str(path), "--runs", str(runs), "--json")
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(json.loads(told.stdout)["trials"])


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    told = capsys.readouterr().err
    assert ended.value.code == 2, told
    assert told.startswith("error: ") and told.count("\n") == 1, told
    return told


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    told = capsys.readouterr().out
    assert ended.value.code == 0, told
    return " ".join(told.split())


@pytest.mark.slow
def test_a_search_over_a_function_from_the_command_line(tmp_path: Path) -> None:
    path, runs = declare(tmp_path, 40), tmp_path / "runs"
    words = ("search", "run", str(path), "--workers", "2", "--runs", str(runs), "--yes")
    told = subprocess.run(hicmae(*words), capture_output=True, text=True, check=True).stdout
    found = trials(path, runs)
    assert [trial["number"] for trial in found] == list(range(40)) and {trial["state"] for trial in found} == {"done"}
    best = min(found, key=lambda trial: trial["value"])
    assert best["params"]["k"] == 3 and best["value"] < 0.05
    assert "40 of 40 ended" in told and f"best is {best['name']}" in told
    figures = {file.name for file in (runs / "_studies" / "square" / "figures").iterdir()}
    assert {"history.png", "slice.pdf", "parallel_coordinates.png"} <= figures
    printed = subprocess.run(hicmae("search", "best", str(path), "--runs", str(runs)), capture_output=True, text=True, check=True)
    pasted: dict[str, Any] = {}
    exec(printed.stdout, pasted)
    assert pasted["BEST"] == best["params"]
    again = subprocess.run(hicmae(*words), capture_output=True, text=True, check=True).stdout
    assert "nothing left to do, 40 trials have ended" in again and len(calls(tmp_path)) == 80


@pytest.mark.slow
def test_sixteen_workers_on_one_journal_end_with_exactly_five_hundred_trials(tmp_path: Path) -> None:
    path, runs = declare(tmp_path, 500, sampler="RandomSampler"), tmp_path / "runs"
    workers = [subprocess.Popen(worker(path, runs), stdout=subprocess.PIPE, text=True) for _ in range(16)]
    told = [process.communicate()[0] for process in workers]
    assert [process.returncode for process in workers] == [0] * 16
    found = trials(path, runs)
    assert [trial["number"] for trial in found] == list(range(500)) and {trial["state"] for trial in found} == {"done"}
    counts = Counter(call["at"] for call in calls(tmp_path))
    assert counts == {"begin": 500, "end": 500}, "no trial was worked twice"
    assert sum(int(line.split()[0]) for line in told) == 500
    assert list((runs / "_studies" / "square" / "claims").iterdir()) == []


@pytest.mark.slow
def test_ten_workers_killed_in_the_middle_of_a_trial_lose_and_repeat_no_finished_one(tmp_path: Path) -> None:
    path, runs = declare(tmp_path, 30, pause_s=0.6), tmp_path / "runs"
    words = ("search", "run", str(path), "--workers", "3", "--runs", str(runs), "--yes")
    command = subprocess.Popen(hicmae(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    generator = random.Random(1)
    killed: set[int] = set()
    while len(killed) < 10:
        assert command.poll() is None, command.communicate()[0]
        seen = calls(tmp_path)
        ended = [(call["pid"], str(call["params"])) for call in seen if call["at"] == "end"]
        at_work = {c["pid"] for c in seen if c["at"] == "begin" and (c["pid"], str(c["params"])) not in ended} - killed
        if at_work:
            victim = generator.choice(sorted(at_work))
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
        time.sleep(0.3)
    told = command.communicate()[0]
    assert command.returncode == 0, told
    found = trials(path, runs)
    assert [trial["number"] for trial in found] == list(range(30)) and {trial["state"] for trial in found} == {"done"}
    counts = Counter(json.dumps(call["params"], sort_keys=True) for call in calls(tmp_path) if call["at"] == "end")
    assert counts == {json.dumps(trial["params"], sort_keys=True): 1 for trial in found}, (
        "each was finished once, with its own parameters"
    )
    assert told.count("was killed by SIGKILL; its trial is taken over") == 10


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_search_goes_on_where_it_was(tmp_path: Path, signal_number: signal.Signals) -> None:
    path, runs = declare(tmp_path, 6, pause_s=0.5), tmp_path / "runs"
    words = ("search", "run", str(path), "--workers", "2", "--runs", str(runs), "--yes")
    command = subprocess.Popen(hicmae(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not calls(tmp_path):
        time.sleep(0.05)
    command.send_signal(signal_number)
    told = command.communicate()[0]
    assert command.returncode == 130 and "stopping: 2 workers" in told, told
    before = len([call for call in calls(tmp_path) if call["at"] == "end"])
    assert before < 6
    assert counts(runs, ["square"]) == dict(Counter(trial["state"] for trial in trials(path, runs))), "what a receiver is told"
    subprocess.run(worker(path, runs), capture_output=True, check=True)
    assert {trial["state"] for trial in trials(path, runs)} == {"done"}
    ended = Counter(json.dumps(call["params"]) for call in calls(tmp_path) if call["at"] == "end")
    assert len(ended) == 6 and set(ended.values()) == {1}


def test_workers_that_cannot_work_end_the_command_with_their_reason(tmp_path: Path) -> None:
    path = declare(tmp_path, 9)
    path.write_text(path.read_text().replace("    time.sleep", "    raise ValueError('no such thing')\n    time.sleep"))
    words = ("search", "run", str(path), "--workers", "2", "--runs", str(tmp_path / "runs"), "--yes")
    ended = subprocess.run(hicmae(*words), capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "3 trials in a row failed, the last one by: ValueError: no such thing" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "search_fintune", "--yes"), "unknown search 'search_fintune'; valid, nearest first: search_finetune"),
        (("run", "nowhere.py", "--yes"), "nowhere.py: no such file"),
        (("run", "search_finetune", "--smoke", "--trials", "0"), "must be more than zero"),
        (("run", "search_finetune", "--smoke", "--gpu-hours", "0"), "must be more than zero"),
        (("run", "search_finetune", "--smoke", "--fold", "9"), "synthetic has no fold 9; valid: 1, 2, 3"),
        (("run", "search_finetune", "--smoke", "--cluster", "slrm"), "unknown cluster 'slrm'; valid, nearest first: slurm"),
        (("run", "search_finetune", "--yes"), "crema_d: data not found"),
        (("status", "search_finetune"), "search_finetune_fold1: was never begun"),
        (("best", "search_finetune", "--format", "yaml"), "unknown format 'yaml'"),
        (("figures", "search_finetune", "--smoke"), "was never begun"),
        (("promote", "search_finetune", "3"), "5 outer folds, each with a search of its own: name one with --fold"),
        (("promote", "search_finetune", "3", "--smoke"), "was never begun"),
        (("rnu",), "unknown command 'rnu'; valid, nearest first: run"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.setenv("HICMAE_RUNS", str(tmp_path / "runs"))
    assert message in refusal(capsys, "search", *words)


def test_a_declaration_that_cannot_run_is_refused_before_the_first_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent("""
            from experiments.search import Budget, Float, Search
            def search():
                return Search(name="mine", title="Mine", corpus="synthetic", size="smoke", pretrain_corpus=None, folds=(1,),
                              space={"optim.layer_decay": Float(0.5, 1.5)}, budget=Budget(trials=2))
        """)
    )
    told = refusal(capsys, "search", "run", str(path), "--runs", str(tmp_path / "runs"), "--yes")
    assert "optim.layer_decay = 1.5" in told and "between 0.001 and 1" in told
    assert not (tmp_path / "runs").exists()
    path.write_text(path.read_text().replace("budget=", "objective='test UAR', budget="))
    assert "is judged on 'validation <metric>' alone" in refusal(capsys, "search", "run", str(path), "--yes")
    path.write_text(path.read_text().replace("def search", "def serach"))
    assert "needs a function search() that returns a Search" in refusal(capsys, "search", "run", str(path), "--yes")


def test_a_name_in_use_with_another_space_is_refused_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, runs = declare(tmp_path, 2), tmp_path / "runs"
    subprocess.run(worker(path, runs), capture_output=True, check=True)
    path.write_text(path.read_text().replace("Float(-1, 1)", "Float(-2, 1)"))
    told = refusal(capsys, "search", "run", str(path), "--workers", "1", "--runs", str(runs), "--yes")
    assert "name is in use with another space: x: low: was -1, is -2" in told


def test_a_storage_that_cannot_be_used_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORAGE, "sqlite:////nowhere/at/all.db")
    path = declare(tmp_path, 2)
    assert "storage sqlite:////nowhere/at/all.db: cannot be used" in refusal(
        capsys, "search", "run", str(path), "--runs", str(tmp_path / "runs"), "--yes"
    )


def test_a_pruned_trial_is_promoted_and_run_to_its_end_by_the_next_launch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, runs = declare(tmp_path, 2), tmp_path / "runs"
    study = opened(requested(Request(str(path), runs)), runs, Fingerprints())
    for pruned in (True, False):
        trial = study.claim()
        assert trial is not None
        study.tell(trial, None if pruned else 50.0, pruned=pruned)
    where = ("--runs", str(runs))
    assert "unknown pruned trial of square '1'; valid, nearest first: 0" in refusal(
        capsys, "search", "promote", str(path), "1", *where
    )
    told = printed(capsys, "search", "promote", str(path), "0", *where)
    assert f"trial 0000 will be run to its end by the next `hicmae search run {path}`" in told
    assert "trial 0002 value" in printed(capsys, "search", "run", str(path), "--workers", "1", "--yes", *where)
    found = json.loads(printed(capsys, "search", "status", str(path), "--json", *where))["trials"]
    assert [(trial["state"], trial["place"]) for trial in found] == [("pruned", None), ("done", 2), ("done", 1)]
    assert found[2]["params"] == found[0]["params"] and found[2]["notes"]["promoted"] == 0
    assert [call["params"] for call in calls(tmp_path) if call["at"] == "end"] == [found[0]["params"]], "it alone was run"


def test_edits_of_a_searchs_file_do_not_reach_workers_that_were_launched(tmp_path: Path) -> None:
    path, runs = declare(tmp_path, 8, pause_s=0.2), tmp_path / "runs"
    words = ("search", "run", str(path), "--workers", "1", "--runs", str(runs), "--yes")
    command = subprocess.Popen(hicmae(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not calls(tmp_path):
        time.sleep(0.05)
    declared = path.read_text()
    path.write_text("raise SystemExit('edited')")
    os.kill(calls(tmp_path)[0]["pid"], signal.SIGKILL)  # its replacement reads the definition anew
    told = command.communicate()[0]
    assert command.returncode == 0 and "was killed by SIGKILL" in told, told
    path.write_text(declared)
    assert [trial["state"] for trial in trials(path, runs)] == ["done"] * 8


def test_the_launcher_knows_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = str(Path(__file__).resolve().parents[2] / "experiments" / "launch.py")
    words = [sys.executable, launcher, "search_finetune", "--smoke", "--dry-run", "--runs", str(tmp_path / "runs")]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "largest validation UAR on synthetic" in told and "finetune.optim.base_lr: 0.002 to 0.06, logarithmic" in told
    assert not (tmp_path / "runs").exists()
    assert "was never begun" in refusal(
        capsys, "launch", "search_finetune", "--smoke", "--use-best", "--runs", str(tmp_path / "runs")
    )


def test_the_list_names_the_searches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["search", "list", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [search["name"] for search in told] == ["search_finetune", "search_loss_weight", "search_pretrain"]
