"""The trials of a search: an exact budget, one owner for each, nothing lost when workers die or journals are torn."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.search import Budget, Choice, Float, Int, Search
from experiments.search import claims as claims_module
from experiments.search.claims import Claims, SharedLock
from experiments.search.judge import FunctionJudge
from experiments.search.study import JOURNAL, MAX_TAKEOVERS, Study
from experiments.search.worker import work
from hicmae.errors import HicmaeError, UsageError

OPTIMUM = {"x": 0.3, "k": 4, "kind": "a"}


def bowl(params: Mapping[str, Any]) -> float:
    """Its smallest value is 0, at OPTIMUM."""
    kind = 0.0 if params["kind"] == "a" else 1.0 + params["extra"]
    return float((params["x"] - 0.3) ** 2 + 0.1 * (params["k"] - 4) ** 2 + kind)


def searching(objective: Callable[[Mapping[str, Any]], float] = bowl, **changes: Any) -> Search:
    space = {
        "x": Float(-1, 1),
        "k": Int(0, 9),
        "kind": Choice(("a", "b")),
        "extra": Float(0, 1, when={"kind": "b"}),
    }
    declared = {"name": "bowl", "title": "A bowl", "space": space, "objective": objective, "direction": "minimize"}
    return Search(**{**declared, "budget": Budget(trials=12), **changes})


def opened(folder: Path, search: Search | None = None, url: str | None = None) -> Study:
    search = search or searching()
    return Study.open(search, folder / "runs" / "_studies" / search.name, url, search.identity(str))


def worked(study: Study) -> Study:
    assert study.search.function is not None
    work(study, FunctionJudge(study.search.function))
    return study


def states(study: Study) -> dict[str, int]:
    found = [row.state for row in study.rows()]
    return {state: found.count(state) for state in found}


def test_a_search_finds_a_known_optimum(tmp_path: Path) -> None:
    study = worked(opened(tmp_path, searching(budget=Budget(trials=60))))
    best = study.best()
    assert states(study) == {"done": 60}
    assert best.params["kind"] == "a" and "extra" not in best.params
    assert best.value == bowl(best.params) < 0.02
    assert best.value == min(row.value for row in study.rows() if row.value is not None)


def test_maximising_is_minimising_the_negative(tmp_path: Path) -> None:
    down = worked(opened(tmp_path / "down"))
    up = worked(opened(tmp_path / "up", searching(lambda params: -bowl(params), direction="maximize")))
    assert [row.params for row in up.rows()] == [row.params for row in down.rows()]
    assert up.best().number == down.best().number


def test_random_trials_are_the_same_however_many_ask(tmp_path: Path) -> None:
    search = searching(sampler="RandomSampler")
    alone = worked(opened(tmp_path / "alone", search))
    one, other = opened(tmp_path / "two", search), opened(tmp_path / "two", search)
    owned = [asker.claim() for asker in (one, other) * 6]
    assert [trial.params for trial in owned if trial] == [row.params for row in alone.rows()]
    assert one.claim() is None and other.claim() is None, "all are owned, and the budget is given out"
    assert one.is_spent() is False


@pytest.mark.parametrize("sampler", ["TPESampler", "RandomSampler", "QMCSampler", "BruteForceSampler", "NSGAIISampler"])
def test_samplers_by_name_meet_the_budget(tmp_path: Path, sampler: str) -> None:
    space = {"k": Int(0, 9), "kind": Choice(("a", "b"))}
    search = searching(lambda params: float(params["k"]), space=space, sampler=sampler, budget=Budget(trials=15))
    study = worked(opened(tmp_path, search))
    assert states(study) == {"done": 15} and study.is_spent()


def test_a_finite_space_that_is_used_up_ends_the_search(tmp_path: Path) -> None:
    space = {"k": Int(0, 3), "kind": Choice(("a", "b"))}
    grid = {"k": [0, 1, 2, 3], "kind": ["a", "b"]}
    search = searching(
        lambda params: float(params["k"]),
        space=space,
        sampler="GridSampler",
        sampler_options={"search_space": grid},
        budget=Budget(trials=100),
    )
    rows = worked(opened(tmp_path, search)).rows()
    assert len(rows) == 8 and len({json.dumps(row.params, sort_keys=True) for row in rows}) == 8


def test_a_dead_workers_trial_goes_on_under_its_number_with_its_parameters(tmp_path: Path) -> None:
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_search_study import opened
        trial = opened(Path({str(tmp_path)!r})).claim()
        trial.note(runs=["abc"])
        print(trial.params, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    study = opened(tmp_path)
    assert states(study) == {"running": 1}
    taken = study.claim()
    assert taken is not None and (taken.number, str(taken.params)) == (0, died.stdout.strip())
    assert taken.notes["runs"] == ["abc"], "what the dead worker had written down is known"
    following = study.claim()
    assert following is not None and following.number == 1, "an owned trial is not given out twice"
    study.tell(taken, 1.0)
    study.tell(following, 2.0)
    assert states(worked(study)) == {"done": 12}


def test_a_living_workers_trial_is_not_taken(tmp_path: Path) -> None:
    study = opened(tmp_path)
    first, second = study.claim(), opened(tmp_path).claim()
    assert first is not None and second is not None
    assert (first.number, second.number) == (0, 1)
    first.give_back()
    again = opened(tmp_path).claim()
    assert again is not None and again.number == 0


def test_another_machines_trial_is_taken_only_when_it_gives_no_sign_of_life(tmp_path: Path) -> None:
    claims = Claims(tmp_path, silent_s=60)
    claim = claims.take(3)
    assert claim is not None
    claim.release(finished=False)  # as if the lock did not reach from that machine to this one
    owner = tmp_path / "0003.json"
    owner.write_text(json.dumps({**json.loads(owner.read_text()), "host": "elsewhere"}))
    assert claims.take(3) is None
    long_ago = time.time() - 61
    os.utime(owner, (long_ago, long_ago))
    taken = claims.take(3)
    assert taken is not None and taken.takeovers == 1


def test_a_worker_gives_signs_of_life_while_it_works(tmp_path: Path) -> None:
    claim = Claims(tmp_path).take(0)
    assert claim is not None
    owner = tmp_path / "0000.json"
    os.utime(owner, (0, 0))
    claim._over.set()  # the thread of the ordinary rhythm ends; one of a faster rhythm takes its place
    claim._over = threading.Event()
    claim.begin(beat_s=0.01)
    while owner.stat().st_mtime == 0:
        time.sleep(0.01)
    claim.release(finished=True)
    assert list(tmp_path.iterdir()) == []


def test_a_trial_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for _ in range(MAX_TAKEOVERS + 1):
        trial = study.claim()
        assert trial is not None and trial.number == 0
        trial.give_back()
    trial = study.claim()
    assert trial is not None and trial.number == 1
    assert study.rows()[0].state == "failed" and "workers died over it" in study.rows()[0].notes["reason"]


def test_a_result_that_comes_late_does_not_count_twice(tmp_path: Path) -> None:
    study = opened(tmp_path)
    trial = study.claim()
    assert trial is not None
    assert study.tell(trial, 1.0) is True
    assert study.tell(trial, 2.0) is False
    assert study.rows()[0].value == 1.0


def test_a_torn_journal_line_is_cut_off_and_the_search_goes_on(tmp_path: Path) -> None:
    study = opened(tmp_path)
    trial = study.claim()
    assert trial is not None
    study.tell(trial, 1.0)
    with (study.folder / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 4, "worker_id"')
    finished = worked(opened(tmp_path))
    assert states(finished) == {"done": 12} and finished.rows()[0].value == 1.0
    for line in (study.folder / JOURNAL).read_text().splitlines():
        json.loads(line)


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "SILENT_S", 3600.0)
    code = f"""
        import os, signal
        from pathlib import Path
        from experiments.search.claims import SharedLock
        SharedLock(Path({str(tmp_path / "lock")!r})).acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    died = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    os.waitid(os.P_PID, died.pid, os.WEXITED | os.WNOWAIT)  # dead, but not buried: its process id is still there
    with SharedLock(tmp_path / "lock"):
        pass
    assert died.wait() == -signal.SIGKILL


def test_a_name_in_use_with_another_space_is_refused(tmp_path: Path) -> None:
    worked(opened(tmp_path))
    wider = {**searching().space, "x": Float(-2, 1)}
    with pytest.raises(UsageError, match="name is in use with another space: x: low: was -1, is -2") as refused:
        opened(tmp_path, searching(space=wider))
    assert "give the search another name" in str(refused.value)
    with pytest.raises(UsageError, match='direction: was "minimize", is "maximize"'):
        opened(tmp_path, searching(direction="maximize"))
    more = worked(opened(tmp_path, searching(budget=Budget(trials=14), sampler="RandomSampler", pruner="NopPruner")))
    assert states(more) == {"done": 14}, "budget, sampler and pruner may change"


def test_trials_on_another_base_are_neither_added_to_a_search_nor_read_as_its_own(tmp_path: Path) -> None:
    def judged(**base: Any) -> Search:
        space = {"finetune.optim.base_lr": Float(1e-4, 1e-2, log=True)}
        return Search("judged", "Judged", space, Budget(trials=1), base=base, corpus="synthetic", size="smoke", fold=1)

    folder = opened(tmp_path, judged()).folder
    other = judged(**{"finetune.optim.epochs": 3})
    with pytest.raises(UsageError, match=r"name is in use with another base: finetune\.optim\.epochs: was null, is 3"):
        opened(tmp_path, other)
    with pytest.raises(UsageError, match="was launched with another base"):
        Study.look(other, folder)
    assert Study.look(judged(), folder).search == judged()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "TPSampler"}, "unknown sampler 'TPSampler'; valid, nearest first: TPESampler"),
        ({"pruner": "MedianPrunner"}, "unknown pruner 'MedianPrunner'; valid, nearest first: MedianPruner"),
        ({"sampler_options": {"n_startup": 3}}, "TPESampler: refuses its options {'n_startup': 3}"),
        ({"pruner": "PercentilePruner", "pruner_options": {"percentile": 300.0}}, "refuses its options"),
    ],
)
def test_wrong_samplers_and_pruners_are_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        opened(tmp_path, searching(**changes))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_database_can_hold_the_trials(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/trials.db"
    study = worked(opened(tmp_path, url=url))
    assert states(study) == {"done": 12} and not (study.folder / JOURNAL).exists()
    assert [row.params for row in Study.look(searching(), study.folder, url).rows()] == [row.params for row in study.rows()]
    with pytest.raises(UsageError, match="in use with another folder"):  # its claims would not be seen from there
        opened(tmp_path / "elsewhere", url=url)


@pytest.mark.parametrize("url", ["sqlite:////nowhere/trials.db", "nonsense", "postgresql+nodriver://me:secret@host/db"])
def test_a_database_that_cannot_be_used_is_one_line_without_the_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError) as refused:
        opened(tmp_path, url=url)
    assert "\n" not in str(refused.value) and "secret" not in str(refused.value)


def test_a_search_never_begun_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bowl: was never begun in .*hicmae search run"):
        Study.look(searching(), tmp_path / "runs" / "_studies" / "bowl")
    with pytest.raises(UsageError, match="no trial is finished yet"):
        opened(tmp_path).best()


def test_a_function_that_fails_is_recorded_and_one_that_always_fails_ends_the_search(tmp_path: Path) -> None:
    def sometimes(params: Mapping[str, Any]) -> float:
        if params["kind"] == "b":
            raise RuntimeError("b is broken")
        return math.nan if params["k"] == 0 else bowl(params)

    study = opened(tmp_path / "some", searching(sometimes, sampler="RandomSampler", budget=Budget(trials=20), seed=5))
    while not study.is_spent():
        try:
            worked(study)
        except HicmaeError as error:
            assert "3 trials in a row failed" in str(error)
    rows = study.rows()
    assert len(rows) == 20 and {row.state for row in rows} == {"done", "failed"}
    for row in rows:
        broken = row.params["kind"] == "b" or row.params["k"] == 0
        assert (row.state == "failed") == broken == ("reason" in row.notes)
    always = opened(tmp_path / "all", searching(lambda params: 1 / 0))
    with pytest.raises(HicmaeError, match=r"3 trials in a row failed, the last one by: ZeroDivisionError"):
        worked(always)
    assert states(always) == {"failed": 3}


def test_a_budget_in_hours_is_kept(tmp_path: Path) -> None:
    budget = Budget(gpu_hours=10.0)
    assert budget.allows_another([], [])
    assert budget.allows_another([2.0, 2.0], [0.5]), "4 spent, 2 foreseen for the one that runs, 2 for the next"
    assert not budget.allows_another([2.0, 2.0], [0.5, 0.5, 0.5])
    assert not budget.allows_another([5.0], [5.5])
    assert not budget.allows_another([1.0] + [0.0] * 50, []), "nothing new was proposed 50 times"
    assert not Budget(trials=3, gpu_hours=10.0).allows_another([0.1, 0.1], [0.1])
    study = opened(tmp_path, searching(budget=Budget(gpu_hours=1e-9)))
    worked(study)
    assert 1 <= len(study.rows()) <= 50


def test_a_pruned_trial_is_promoted_once_beyond_the_budget(tmp_path: Path) -> None:
    search = searching(budget=Budget(trials=2), sampler="RandomSampler")
    study = opened(tmp_path, search)
    first, second = study.claim(), study.claim()
    assert first is not None and second is not None
    study.tell(first, pruned=True)
    study.tell(second, 0.5)
    assert study.is_spent()
    with pytest.raises(UsageError, match="unknown pruned trial of bowl '1'; valid, nearest first: 0"):
        study.promote(1)
    study.promote(0)
    study.promote(0)
    assert not study.is_spent()
    promoted = study.claim()
    assert promoted is not None and promoted.params == first.params and promoted.notes["promoted"] == 0
    assert promoted.report(1e9, 0) is False, "it is not pruned again"
    study.tell(promoted, 0.1)
    assert study.claim() is None and study.best().number == 2 and study.is_spent()


def test_figures_show_all_trials_as_png_and_pdf(tmp_path: Path) -> None:
    study = worked(opened(tmp_path, searching(budget=Budget(trials=25))))
    files = study.draw(tmp_path / "figures")
    assert {file.name for file in files} == {
        f"{name}{suffix}" for name in ("history", "slice", "parallel_coordinates", "importance") for suffix in (".png", ".pdf")
    }
    assert all(file.stat().st_size > 5000 for file in files)
    importance = study.importance()
    assert set(importance) == {"x", "k", "kind", "extra"} and next(iter(importance)) != "x"


def test_importance_needs_trials_that_differ(tmp_path: Path) -> None:
    study = worked(opened(tmp_path, searching(lambda params: 1.0)))
    assert study.importance() == {}
    assert len(study.draw(tmp_path / "figures")) == 6


def test_the_seed_decides_the_trials(tmp_path: Path) -> None:
    def params(name: str, seed: int) -> list[Any]:
        return [row.params for row in worked(opened(tmp_path / name, replace(searching(), seed=seed))).rows()]

    first = params("first", 0)
    assert params("again", 0) == first and params("other", 1) != first
