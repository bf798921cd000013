"""The command as a user meets it: exit codes, one line for every mistake, answers without waiting for heavy imports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import hicmae
from experiments import cli, cli_runs, execution, experiment, study_file
from hicmae.errors import UsageError
from hicmae.record import RunRecord
from slurm import scheduler
from slurm.state import read_states

CHECKOUT = Path(__file__).resolve().parents[2]
LAUNCH = (sys.executable, str(CHECKOUT / "experiments" / "launch.py"))
HICMAE = (sys.executable, "-m", "experiments.cli")
Complaint = Callable[..., str]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to call from: it has its own runs, and no corpus."""
    (tmp_path / "home").mkdir()
    return tmp_path


def call(place: Path, *command: str, keyboard: str | None = None) -> subprocess.CompletedProcess[str]:
    home = {name: str(place / "home") for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    environment = {**os.environ, **home, "HICMAE_RUNS": str(place / "runs"), "PYTHONPATH": str(CHECKOUT), "COLUMNS": "120"}
    stdin = subprocess.DEVNULL if keyboard is None else None
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=place, timeout=120, stdin=stdin, input=keyboard, check=False
    )


@pytest.fixture
def complaint(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complaint:
    """The one line of a usage error, which must end with exit code 2 and print nothing else; without a process of its own."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HICMAE_RUNS", str(place / "runs"))

    def called(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        told = capsys.readouterr()
        assert (ended.value.code, told.out) == (2, ""), told
        assert len(told.err.strip().splitlines()) == 1
        return told.err

    return called


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ablation_hierachical"], "unknown experiment 'ablation_hierachical'; valid, nearest first: ablation_hierarchical,"),
        (["ablation_fusion", "--smok"], "unknown option '--smok'; valid, nearest first: --smoke,"),
        (["ablation_fusion", "--size", "bse"], "unknown size 'bse'; valid, nearest first: base,"),
        (["ablation_fusion", "--corpus", "crema-d"], "unknown corpus 'crema-d'; valid, nearest first: crema_d,"),
        (["ablation_fusion", "--cluster", "slrum"], "unknown cluster 'slrum'; valid, nearest first: slurm,"),
        (
            ["ablation_fusion", "--smoke", "--dry-run", "--only", "variant=audio"],
            "unknown variant 'audio'; valid, nearest first:",
        ),
        (
            ["ablation_fusion", "--smoke", "--dry-run", "--only", "variants=x"],
            "unknown filter 'variants'; valid, nearest first: variant,",
        ),
        (["ablation_fusion", "--smoke", "--size", "base"], "exclude each other"),
        (["ablation_fusion", "--max-parallel", "many"], "--max-parallel"),
        (["absent.py"], "absent.py: no such file"),
        (["ablation_fusion", "--max-parallel", "0", "--cluster", "slurm"], "--max-parallel 0: must be at least 1"),
        (["ablation_fusion", "--use-best"], "--use-best is for searches"),
        (["search_finetune", "--json"], "--json is for studies: see --dry-run"),
        (["search_finetune", "--seed", "3"], "--seed is for studies: "),
        (["search_finetune", "--corpus", "ravdess"], "--corpus is for studies: "),
        (["search_finetune", "--size", "tiny"], "--size is for studies: "),
        (["search_finetune", "--use-best", "--size", "tiny"], "--size does not go with --use-best"),
        (["search_finetune", "--only", "corpus=x"], "'corpus=x': of a search, --only takes outer folds"),
        (["search_finetune", "--only", "fold=99"], "crema_d has no fold 99; valid: 1,"),
        (["search_finetune", "--cluster", "slurm", "--notify", "true"], "--notify (or HICMAE_NOTIFY) needs --wait"),
        ([], "launch needs an experiment"),
    ],
)
def test_a_mistake_gives_one_line_with_what_is_valid_and_exit_code_2(
    complaint: Complaint, arguments: list[str], message: str
) -> None:
    assert message in complaint("launch", *arguments)


def test_unknown_commands_name_the_nearest(complaint: Complaint) -> None:
    assert "unknown command 'lanch'; valid, nearest first: launch," in complaint("lanch")
    assert "see `hicmae retry --help`" in complaint("retry", "x")


def test_version_and_help(place: Path) -> None:
    assert call(place, *HICMAE, "--version").stdout == f"hicmae {hicmae.__version__}\n"
    for arguments in ([], ["--help"]):
        ended = call(place, *HICMAE, *arguments)
        assert ended.returncode == 0
        assert ended.stderr == ""
        assert "launch" in ended.stdout
        assert "status" in ended.stdout


def commands_below(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, below in getattr(command, "commands", {}).items():
        yield (*path, name)
        yield from commands_below(below, (*path, name))


COMMANDS = tuple(commands_below(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_each_of_its_options_explains_itself(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli.app, [*path, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert " ".join(path) in shown.output
    command: Any = typer.main.get_command(cli.app)
    for name in path:
        command = command.commands[name]
    unexplained = [parameter.name for parameter in command.params if not parameter.help]
    assert command.help[0].isupper(), command.help
    assert command.help.splitlines()[0].endswith("."), command.help
    assert unexplained == []


def test_the_list_names_every_study(place: Path) -> None:
    told = call(place, *LAUNCH, "--list").stdout
    assert all(name in told for name in experiment.names())
    listed = json.loads(call(place, *LAUNCH, "--list", "--json").stdout)
    assert [study["experiment"] for study in listed] == list(experiment.names())


def test_a_dry_run_plans_without_data_and_says_what_is_missing(place: Path) -> None:
    ended = call(place, *LAUNCH, "ablation_hierarchical", "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert "pretrain     4    4" in ended.stdout
    assert "finetune    40   40" in ended.stdout
    assert "missing corpus voxceleb2: data not found; put them in $HICMAE_DATA/voxceleb2" in ended.stdout
    assert "missing likewise: mafw" in ended.stdout
    assert "of GPU time" in ended.stdout
    assert not (place / "runs").exists()


def test_the_generated_corpus_is_not_made_before_somebody_agreed(place: Path) -> None:
    ended = call(place, *LAUNCH, "ablation_fusion", "--smoke")
    assert ended.returncode == 2
    assert "add --yes" in ended.stderr
    assert sorted(path.name for path in place.rglob("*")) == ["home"]


def test_a_launch_without_data_refuses_with_where_to_put_them(place: Path) -> None:
    ended = call(place, *LAUNCH, "ablation_hierarchical", "--yes")
    assert ended.returncode == 2
    assert "put them in $HICMAE_DATA" in ended.stderr.splitlines()[-1]
    assert not (place / "runs").exists()


def test_a_dry_run_makes_nothing_not_even_the_generated_corpus(place: Path) -> None:
    ended = call(place, *LAUNCH, "ablation_hierarchical", "--smoke", "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert "missing corpus synthetic: not made yet" in ended.stdout
    assert list((place / "home").rglob("*.mp4")) == []
    assert not (place / "runs").exists()


def test_a_search_takes_the_folds_of_only(place: Path) -> None:
    whole = call(place, *LAUNCH, "search_finetune", "--dry-run")
    part = call(place, *LAUNCH, "search_finetune", "--dry-run", "--only", "fold=1")
    assert whole.returncode == part.returncode == 0, part.stderr
    assert "50 trials for each of 5 outer folds" in whole.stdout
    assert "50 trials\n" in part.stdout


def test_the_end_of_a_search_is_told(place: Path, complaint: Complaint) -> None:
    (place / "mine.py").write_text(
        "from experiments.search import Budget, Float, Search\n"
        "def search(): return Search(name='mine', title='', space={'x': Float(0.0, 1.0)}, budget=Budget(trials=2),\n"
        "    objective=lambda params: params['x'], direction='minimize')\n"
    )
    ended = call(place, *LAUNCH, "mine.py", "--yes", "--max-parallel", "1", "--notify", "sh -c 'cat > told.json'")
    assert ended.returncode == 0, ended.stderr
    assert json.loads((place / "told.json").read_text())["trials"] == {"done": 2}
    assert "has no outer folds" in complaint("launch", "mine.py", "--only", "fold=1")


def test_only_and_json(place: Path) -> None:
    command = [*LAUNCH, "ablation_hierarchical", "--json", "--only", "variant=none", "fold=2", "corpus=mafw"]
    plan = json.loads(call(place, *command).stdout)
    assert [(run["stage"], run["fold"]) for run in plan["runs"]] == [("pretrain", None), ("finetune", 2)]


def test_corpora_and_seeds_can_be_asked_for(place: Path) -> None:
    command = [*LAUNCH, "ablation_fusion", "--json", "--corpus", "ravdess", "--corpus", "crema_d", "--seed", "3", "--seed", "4"]
    plan = json.loads(call(place, *command).stdout)
    finetunes = [run for run in plan["runs"] if run["stage"] == "finetune"]
    assert {run["corpus"] for run in finetunes} == {"ravdess", "crema_d"}
    assert {run["seed"] for run in finetunes} == {3, 4}
    assert len(finetunes) == 5 * (6 + 5) * 2


def recorded_study(place: Path) -> list[str]:
    """A launched study of two variants with a done, a failed and an untouched run."""
    study = experiment.find("ablation_hierarchical").at_smoke_size()
    runs = [run for run in study.runs(lambda _: "x") if set(run.variants) & {"none"}]
    root = place / "runs"
    study_file.write(root, study, runs, {}, ["hicmae"], {})
    records = [RunRecord.create(root, run.config) for run in runs]
    for record in records:
        record.append_event("planned")
    records[0].finish({"metrics": {}, "wall_s": 3.0})
    records[1].append_event("failed", reason="the loss is nan at step 7")
    (records[1].path / "log" / "attempt-1.log").write_text("line one\nline two\n")
    return [record.id for record in records]


def test_status_counts_and_tells_why(place: Path, complaint: Complaint) -> None:
    ids = recorded_study(place)
    overview = call(place, *HICMAE, "status")
    assert overview.stdout.split("\n")[0].split() == ["study", "runs", "done", "planned", "failed"]
    assert overview.stdout.split("\n")[1].split() == ["ablation_hierarchical_smoke", "3", "1", "1", "1"]
    one = call(place, *HICMAE, "status", "ablation_hierarchical_smoke")
    assert "the loss is nan at step 7" in one.stdout
    assert ids[1][:8] in one.stdout
    values = json.loads(call(place, *HICMAE, "status", "--json").stdout)
    assert values[0]["counts"] == {"done": 1, "failed": 1, "planned": 1}
    assert "unknown study" in complaint("status", "ablation_hierarchical")


def test_the_scheduler_is_asked_once_for_the_runs_of_all_studies(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded_study(place)
    other = experiment.find("ablation_fusion").at_smoke_size()
    study_file.write(place / "runs", other, other.runs(lambda _: "x"), {}, ["hicmae"], {})
    asked: list[int] = []

    def ask(wanted: Collection[str]) -> dict[str, Any]:
        asked.append(len(wanted))
        return {}

    monkeypatch.setattr(scheduler, "ask", ask)
    cli_runs.status(runs=place / "runs")
    cli_runs.status(as_json=True, runs=place / "runs")
    assert len(asked) == 2


def test_logs_print_an_attempt(place: Path, complaint: Complaint) -> None:
    ids = recorded_study(place)
    assert call(place, *HICMAE, "logs", ids[1][:6]).stdout == "line one\nline two\n"
    assert "has no attempt 4; valid: 1" in complaint("logs", ids[1], "--attempt", "4")
    assert "unknown run 'ffff'" in complaint("logs", "ffff")
    ended = call(place, *HICMAE, "logs", ids[0])
    assert (ended.returncode, "no attempt was made yet" in ended.stderr) == (1, True)


def test_diff_tells_the_fields(place: Path) -> None:
    ids = recorded_study(place)
    told = call(place, *HICMAE, "diff", ids[1], ids[2], "--json")
    assert json.loads(told.stdout)["configuration"] == {"data.fold": [1, 2]}
    assert "data.fold" in call(place, *HICMAE, "diff", ids[1], ids[2]).stdout


def test_cancel_takes_waiting_runs_off_the_list(place: Path) -> None:
    ids = recorded_study(place)
    assert "cancelled 1 of 1 runs" in call(place, *HICMAE, "cancel", ids[2]).stdout
    assert RunRecord(place / "runs" / ids[2]).state() == "cancelled"
    assert "cancelled 0 of 1 runs" in call(place, *HICMAE, "cancel", ids[0]).stdout


def test_cancel_does_nothing_while_the_scheduler_is_silent(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "bin").mkdir()
    (place / "bin" / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: no answer' >&2; exit 1\n")
    (place / "bin" / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")
    ids = recorded_study(place)
    RunRecord(place / "runs" / ids[2]).append_event("submitted", array="a-1", index=0, resources={})
    ended = call(place, *HICMAE, "cancel", ids[2])
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "nothing was cancelled, for the scheduler does not answer: squeue: " in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert RunRecord(place / "runs" / ids[2]).state() == "submitted"


def test_prune_shows_bytes_asks_and_spares_what_studies_name(place: Path) -> None:
    ids = recorded_study(place)
    other = stray(place, 0)
    (other.path / "checkpoints" / "weights").write_bytes(b"x" * 5000)
    looked = call(place, *HICMAE, "prune", "--dry-run")
    assert "runs that no study names" in looked.stdout
    assert other.path.exists()
    assert "add --yes" in call(place, *HICMAE, "prune").stderr
    assert other.path.exists()
    assert "removed" in call(place, *HICMAE, "prune", "--yes").stdout
    assert not other.path.exists()
    assert all((place / "runs" / run_id).exists() for run_id in ids)
    assert "nothing to prune" in call(place, *HICMAE, "prune").stdout


def stray(place: Path, number: int) -> RunRecord:
    """A run that no study names."""
    study = experiment.find("ablation_hierarchical").at_smoke_size()
    return RunRecord.create(place / "runs", study.runs(lambda _: f"other {number}")[0].config)


@pytest.mark.parametrize("scheduler_answers", [True, False])
def test_prune_spares_what_is_queued_or_runs_anywhere(
    place: Path, monkeypatch: pytest.MonkeyPatch, scheduler_answers: bool
) -> None:
    """Of runs that no study names: queued, known to no scheduler, on another machine, locked here; and dead, failed, done."""
    recorded_study(place)
    queued, lost, far, locked, dead, failed, done = records = [stray(place, number) for number in range(7)]
    for index, record in enumerate((queued, lost)):
        record.append_event("submitted", array="study-1", index=index, resources={}, time=1.0)
    far.append_event("started", host="another-machine", pid=1)
    dead.append_event("started", host=socket.gethostname(), pid=1)
    failed.append_event("failed", reason="the loss is nan")
    done.finish({"metrics": {}})
    listing = "echo '12_0|study-1|PENDING|Priority|'" if scheduler_answers else "echo 'no answer' >&2; exit 1"
    for name, script in {"squeue": listing, "sacct": "true"}.items():
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    with locked.lock():
        told = call(place, *HICMAE, "prune", "--yes")
    assert told.returncode == 0, told.stderr
    removed = [record for record in records if not record.path.exists()]
    assert removed == ([dead, failed, done] if scheduler_answers else [done])
    known = ("submitted waits: Priority", "no end of its job is known", "running on another-machine", "a process holds its lock")
    why = known if scheduler_answers else ("no answer",)
    assert all(text in told.stdout for text in why)
    assert far.path.exists()


def test_a_run_whose_machine_died_is_given_up_by_cancel_one_that_still_writes_is_not(place: Path) -> None:
    ids = recorded_study(place)
    record = RunRecord(place / "runs" / ids[2])
    record.append_event("started", host="another-machine", pid=1)
    assert f"left alone: {ids[2]} is running on another-machine; cancel it there" in call(place, *HICMAE, "cancel", ids[2]).stdout
    assert record.state() == "interrupted"
    for file in record.path.glob("*.jsonl"):
        os.utime(file, (1e9, 1e9))
    (told,) = (row for row in json.loads(call(place, *HICMAE, "status", "--json").stdout)[0]["runs"] if row["run_id"] == ids[2])
    assert told["state"] == "unknown"
    remedy = told["reason"].partition("`hicmae ")[2].partition("`")[0]
    assert "cancelled 1 of 1 runs" in call(place, *HICMAE, *remedy.split()).stdout
    assert not read_states(place / "runs", [ids[2]])[ids[2]].is_active, "the next launch takes it"


def test_prune_checkpoints_keeps_the_weights(place: Path) -> None:
    ids = recorded_study(place)
    folder = place / "runs" / ids[0] / "checkpoints"
    (folder / "final.safetensors").write_bytes(b"w")
    (folder / "step-10").mkdir()
    (folder / "step-10" / "state").write_bytes(b"s" * 2000)
    assert "2.0 kB" in call(place, *HICMAE, "prune", "--checkpoints", "--yes").stdout
    assert [path.name for path in folder.iterdir()] == ["final.safetensors"]


def test_a_damaged_study_file_says_how_to_mend_it(place: Path) -> None:
    recorded_study(place)
    (place / "runs" / "_studies" / "ablation_hierarchical_smoke.json").write_text('{"runs": [')
    ended = call(place, *HICMAE, "status")
    assert ended.returncode == 1
    assert "damaged; launch ablation_hierarchical_smoke again" in ended.stderr


def test_the_name_of_a_study_of_ones_own_may_hold_odd_characters(place: Path) -> None:
    folder = place / "my; studies $(touch hacked)"
    folder.mkdir()
    copy = folder / "a study.py"
    copy.write_text((CHECKOUT / "experiments" / "template.py").read_text())
    ended = call(place, *LAUNCH, str(copy), "--smoke", "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert "my_study_smoke" in ended.stdout
    assert not (place / "hacked").exists()


def test_a_study_without_a_corpus_is_refused() -> None:
    with pytest.raises(UsageError, match="corpus 'moon'"):
        experiment.Experiment("s", "t", (experiment.Variant("a"),), ("moon",)).runs(lambda _: "")


def test_folders_reach_runs_whole_and_the_word_off_stays_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HICMAE_DATA", "off")
    monkeypatch.setenv("HICMAE_STORE", "off")
    environment = execution.environment_of_runs()
    assert (environment["HICMAE_DATA"], environment["HICMAE_STORE"]) == (str(tmp_path / "off"), "off")


def test_the_policy_on_clips_that_cannot_be_used_reaches_every_run_and_changes_no_id(
    complaint: Complaint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the environment that launches here, on SLURM and of a search's workers give their runs."""
    monkeypatch.setenv("HICMAE_ON_ERROR", "fail")
    ids = {}
    for policy in ("fail", "skip"):
        shown = CliRunner().invoke(cli.app, ["launch", "ablation_fusion", "--smoke", "--json", "--on-error", policy])
        ids[policy] = [run["run_id"] for run in json.loads(shown.stdout)["runs"]]
        assert execution.environment_of_runs()["HICMAE_ON_ERROR"] == policy
    assert ids["skip"] == ids["fail"]
    assert "unknown --on-error 'drop'; valid, nearest first:" in complaint("launch", "ablation_fusion", "--on-error", "drop")
