"""Repeating recorded runs: real runs on generated clips, executed again from the recorded code, and every reason to refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forge import forge
from typer.testing import CliRunner

from experiments import comparison, experiment, launcher, recorded_code, repeats, study_file
from experiments.cli import app
from experiments.comparison import DIFFERENT, IDENTICAL, WITHIN, Spread, compare, spreads_of
from hicmae import provenance
from hicmae.config import (
    AugmentConfig,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    EngineConfig,
    EvaluationConfig,
    FinetuneConfig,
    HeadConfig,
    InitialWeights,
    ObjectiveConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    change,
    run_id,
)
from hicmae.data import manifest
from hicmae.data.synthetic import generate
from hicmae.errors import HicmaeError, UsageError
from hicmae.record import RunRecord, write_json
from slurm import code

pytestmark = pytest.mark.xdist_group("reproduce")  # its runs are made once

CHECKOUT = Path(__file__).resolve().parents[2]
NAME = "tiny"
TINY = EncoderConfig(
    dim=16, heads=2, depth=2, fusion_depth=1, fusion_heads=2, image_px=32, frames=4, audio_frames=32, mel_bins=32
)
SHORT = OptimConfig(base_lr=0.1, batch_size=8, epochs=1, warmup_epochs=0, drop_path=0.2)


def configs(fingerprint: str) -> dict[str, RunConfig]:
    """A pre-training, and of two variants the first fold; of the one that is deterministic the second fold too."""
    exact = EngineConfig(deterministic=True)
    data = DataConfig(corpus="synthetic", stride_frames=2, fingerprint=fingerprint)
    objective = ObjectiveConfig(levels=(2,), video_mask_ratio=0.5, audio_mask_ratio=0.5)
    pretrain = PretrainConfig(
        encoder=TINY, decoder=DecoderConfig(16, 2, 2), objective=objective, data=data, optim=SHORT, engine=exact
    )
    on = FinetuneConfig(
        encoder=TINY,
        head=HeadConfig(outputs=4),
        initial=InitialWeights("run", run_id(pretrain)),
        data=replace(data, fold=1),
        augment=AugmentConfig(rand_augment="", random_erasing=0.2),
        optim=SHORT,
        engine=exact,
        evaluation=EvaluationConfig(oracle=True),
    )
    off = change(on, {"engine.deterministic": False, "head.feature_fusion": "last"})
    return {"pretrain": pretrain, "on 1": on, "on 2": change(on, {"data.fold": 2}), "off 1": off}


class Place:
    """A runs folder with a study of real, finished runs, and the corpus that they were made from."""

    def __init__(self, root: Path) -> None:
        self.root, self.data = root / "runs", root / "data"
        generate(self.data / "synthetic", speakers=4, clips_per_speaker=4, seconds=0.6, size_px=64, processes=1, folds=2)
        self.environment = {"HICMAE_DATA": str(self.data), "HICMAE_STORE": str(root / "store")}
        os.environ |= self.environment
        self.configs = configs(manifest.fingerprint("synthetic"))
        self.ids = {name: run_id(config) for name, config in self.configs.items()}
        homes = {name: str(root / name) for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
        for config in self.configs.values():
            record = RunRecord.create(self.root, config)
            log = record.path / "log" / "attempt-1.log"
            process = forge().start("hicmae.run:main", [str(record.path)], log, **self.environment, **homes)
            assert process.wait() == 0, log.read_text()
        self.code = code.take(self.root)
        self.write_study()

    def write_study(self) -> None:
        rows = [
            {
                "run_id": self.ids[name],
                "stage": config.stage,
                "variants": ["on", "off"] if name == "pretrain" else [name[:-2]],
                "corpus": "synthetic",
                "fold": config.data.fold,
                "seed": config.seed,
                "depends_on": [] if name == "pretrain" else [self.ids["pretrain"]],
            }
            for name, config in self.configs.items()
        ]
        (self.root / "_studies").mkdir()
        variants = [{"name": name, "columns": {}, "delta": {}} for name in ("on", "off")]
        write_json(
            study_file.path_of(self.root, NAME),
            {"experiment": NAME, "title": "Tiny", "table": {"selection": "last"}, "variants": variants, "runs": rows},
        )

    def record(self, name: str) -> RunRecord:
        return RunRecord(self.root / self.ids[name])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    before = dict(os.environ)
    try:
        return Place(tmp_path_factory.mktemp("reproduce"))
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def place(made: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


def call(place: Place, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["reproduce", *arguments, "--runs", str(place.root)])


def refusal(place: Place, *arguments: str) -> HicmaeError:
    """The one line of an error, after which nothing was executed."""
    ended = call(place, *arguments)
    assert isinstance(ended.exception, HicmaeError), ended.output
    assert "\n" not in str(ended.exception) and "running" not in ended.output
    return ended.exception


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def edited(place: Place) -> Any:
    """Change a JSON file of a record for the length of a test."""
    before: list[tuple[Path, bytes]] = []

    def edit(name: str, file: str, how: Callable[[dict[str, Any]], object]) -> None:
        path = place.record(name).path / file
        before.append((path, path.read_bytes()))
        values = json.loads(path.read_text())
        how(values)
        write_json(path, values)

    yield edit
    for path, content in reversed(before):
        path.write_bytes(content)


# Repeating


@pytest.mark.slow
def test_a_run_comes_out_again_bit_for_bit(place: Place, edited: Any) -> None:
    """Without determinism asked for: on a CPU, with as many threads, it holds all the same; here with --anyway."""
    record = place.record("off 1")
    edited(
        "off 1", "snapshot.json", lambda snapshot: snapshot["environment"]["packages"].update(rich="0.1", pytest="0.1", pip="0.1")
    )
    before = contents(record.path)
    ended = call(place, record.id[:8], "--anyway")
    assert ended.exit_code == 0, (ended.output, ended.exception)
    lines = ended.output.splitlines()
    assert [line.partition(":")[0] for line in lines if " then, " in line] == ["rich"]  # no run imports the other two
    assert [line for line in lines if "running" in line] and [line for line in lines if "done; UAR" in line]
    told = (
        "bit-identical: 1 run; metrics, 2 logged points, the scores of 16 test samples and the weights are equal to the last bit"
    )
    assert told in lines
    repeat = place.root / "_reproduced" / record.id / "1"
    assert (repeat / place.ids["pretrain"]).resolve() == (place.root / place.ids["pretrain"]).resolve()
    started = next(event for event in RunRecord(repeat / record.id).events() if event["event"] == "started")
    assert started["tree"] == record.snapshot()["code"]["tree"]
    assert json.loads((repeat / "verdict.json").read_text())["verdict"] == IDENTICAL
    assert contents(record.path) == before
    assert not list(place.code.path.rglob("*.pyc"))


@pytest.mark.slow
def test_a_cell_comes_out_again_with_its_pre_training(place: Place) -> None:
    ended = call(place, f"{NAME}/on", "--with-pretraining", "--json")
    assert ended.exit_code == 0, (ended.output, ended.exception)
    report = json.loads(ended.stdout)
    assert report["target"] == f"{NAME}/synthetic/on" and report["verdict"] == IDENTICAL
    assert [run["run_id"] for run in report["runs"]] == [place.ids[name] for name in ("pretrain", "on 1", "on 2")]
    assert all(run["weights"] and run["other_points"] == 0 for run in report["runs"])
    assert [line["name"] for line in report["pooled"]] == ["UAR", "WAR"]
    assert all(line["recorded"] == line["repeated"] for line in report["pooled"])
    repeated = place.root / "_reproduced" / place.ids["pretrain"] / "1" / place.ids["pretrain"]
    for name in ("on 1", "on 2"):
        link = place.root / "_reproduced" / place.ids[name] / "1" / place.ids["pretrain"]
        assert link.resolve() == repeated.resolve()


def test_a_repeat_that_was_broken_off_goes_on_and_a_finished_one_is_left(place: Place, tmp_path: Path) -> None:
    run = repeats.read(place.root, place.ids["on 1"])
    first = repeats.place(tmp_path, run, {"code": "a"})
    assert first == tmp_path / "_reproduced" / run.id / "1" / run.id
    assert RunRecord(first).config() == place.configs["on 1"]
    assert repeats.place(tmp_path, run, {"code": "a"}) == first
    assert repeats.place(tmp_path, run, {"code": "b"}).parent.name == "2"
    write_json(first.parent.with_name("2") / run.id / "result.json", {})
    third = repeats.place(tmp_path, run, {"code": "b"})
    assert third.parent.name == "3"
    with RunRecord(third).lock():  # somebody is at it
        pruned = CliRunner().invoke(app, ["prune", "--reproduced", "--yes", "--runs", str(tmp_path)])
    assert "repeats of `hicmae reproduce`" in pruned.output
    assert [path.name for path in (tmp_path / "_reproduced" / run.id).iterdir()] == ["3"]


# What it is called


def test_cells_are_named_as_in_the_provenance_of_a_report(place: Place) -> None:
    from reports.build import compute_pages

    pages, _ = compute_pages(place.root, [NAME])
    assert set(repeats.cells(place.root)) == set(pages[0].provenance["cells"])
    for address, cell in pages[0].provenance["cells"].items():
        assert repeats.choose(place.root, address)[1] == tuple(run["run_id"] for run in cell["runs"])


@pytest.mark.parametrize("name", ["tiny/synthetic/onn", "tiny/onn", "tiny", "", "synthetic/on"])
def test_an_unknown_cell_names_the_nearest(place: Place, name: str) -> None:
    error = refusal(place, name)
    assert isinstance(error, UsageError)
    assert f"unknown run or cell in {place.root} {name!r}; valid, nearest first: tiny/synthetic/o" in str(error)


def test_an_unknown_run_names_the_nearest(place: Place) -> None:
    wanted = place.ids["on 1"][:-1] + ("0" if place.ids["on 1"][-1] != "0" else "1")
    assert f"unknown run '{wanted}'" in str(refusal(place, wanted)) and place.ids["on 1"] in str(refusal(place, wanted))


# Refusals


def test_other_packages_are_listed_and_refused(place: Place, edited: Any) -> None:
    def older(snapshot: dict[str, Any]) -> None:
        snapshot["environment"]["packages"] |= {"torch": "1.0", "gone": "2.0"}
        snapshot["environment"]["python"] = "3.9.1"

    edited("on 1", "snapshot.json", older)
    here = provenance.environment()
    told = str(refusal(place, place.ids["on 1"]))
    assert f"python 3.9.1 then, {here['python']} here; " in told and f"torch 1.0 then, {here['packages']['torch']} here" in told
    assert "gone 2.0 then, not installed here" in told and "--anyway" in told


def test_other_data_are_refused(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(place.data, tmp_path / "data")
    clip = next(path for path in sorted((tmp_path / "data").rglob("*")) if path.suffix == ".mp4")
    clip.write_bytes(clip.read_bytes() + b"x")
    monkeypatch.setenv("HICMAE_DATA", str(tmp_path / "data"))
    told = str(refusal(place, place.ids["on 1"]))
    assert "synthetic: the data here" in told and "are not those of the record" in told


def test_code_that_nobody_has_is_refused_with_the_remedy(place: Place, edited: Any) -> None:
    edited("on 1", "snapshot.json", lambda snapshot: snapshot["code"].update(tree="0" * 64, commit="f" * 40))
    told = str(refusal(place, place.ids["on 1"]))
    assert "commit ffffffffffff" in told and "copy that folder from where it was launched, or fetch the commit" in told


def test_lost_weights_of_the_pre_training_are_refused_with_the_remedy(place: Place) -> None:
    weights = place.record("pretrain").path / "checkpoints" / "final.safetensors"
    weights.rename(weights.with_suffix(".moved"))
    try:
        assert "add --with-pretraining" in str(refusal(place, place.ids["on 1"]))
    finally:
        weights.with_suffix(".moved").rename(weights)


def test_an_unfinished_run_and_an_edited_configuration_are_refused(place: Place, edited: Any) -> None:
    result = place.record("on 1").path / "result.json"
    result.rename(result.with_suffix(".moved"))
    try:
        assert "is not done (interrupted)" in str(refusal(place, place.ids["on 1"]))
    finally:
        result.with_suffix(".moved").rename(result)
    edited("on 1", "config.json", lambda config: config.update(seed=7))
    assert "does not hash to" in str(refusal(place, place.ids["on 1"]))


# The code


def test_code_comes_from_git_when_no_copy_is_left(tmp_path: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=False).stdout.strip()
    if not head:
        pytest.skip("not a git checkout")
    taken = code.of_commit(tmp_path / "a", head)
    assert taken is not None and (taken.path / "hicmae" / "run.py").exists()
    snapshot = {"code": {"commit": head, "tree": provenance.source_digest(taken.path)}}
    assert recorded_code.restore(tmp_path / "b", snapshot, "x") == tmp_path / "b" / "_code" / taken.tree
    shown = subprocess.run(["git", "show", f"{head}:hicmae/run.py"], cwd=CHECKOUT, capture_output=True, check=True).stdout
    assert (tmp_path / "b" / "_code" / taken.tree / "hicmae" / "run.py").read_bytes() == shown


def test_a_copy_that_was_changed_is_not_taken(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.code.path, tmp_path / "_code" / place.code.tree)
    snapshot = {"code": {**place.record("on 1").snapshot()["code"], "commit": None}}
    assert recorded_code.copies(tmp_path)[snapshot["code"]["tree"]].name == place.code.tree
    with (tmp_path / "_code" / place.code.tree / "hicmae" / "run.py").open("a") as file:
        file.write("# changed\n")
    assert snapshot["code"]["tree"] not in recorded_code.copies(tmp_path)


# The verdict


def repeated(place: Place, folder: Path, name: str = "off 1") -> RunRecord:
    """A repeat that came out the same."""
    return RunRecord(Path(shutil.copytree(place.record(name).path, folder / place.ids[name])))


def shift_predictions(record: RunRecord, by: float, rows: int) -> None:
    path = record.path / "predictions.parquet"
    table = pq.read_table(path)
    scores = np.array(table["score_0"].to_pylist())
    scores[:rows] += by
    pq.write_table(table.set_column(table.column_names.index("score_0"), "score_0", pa.array(scores)), path)


def shift_metric(record: RunRecord, by: float) -> None:
    result = record.result() or {}
    result["metrics"]["last"]["UAR"] += by
    write_json(record.path / "result.json", result)


def spreads(allowed: float) -> dict[str, Spread]:
    return {"last UAR": Spread(allowed, "stated")}


def test_equal_bits_are_bit_identical(place: Place, tmp_path: Path) -> None:
    found = compare(place.record("off 1"), repeated(place, tmp_path), spreads(0.0), exact=True)
    assert found.verdict == IDENTICAL and found.weights is True and found.samples is not None
    assert (found.samples.total, found.samples.other_scores, found.points, found.other_points) == (16, 0, 2, 0)


@pytest.mark.parametrize(("by", "exact", "verdict"), [(0.4, False, WITHIN), (-0.6, False, DIFFERENT), (0.4, True, DIFFERENT)])
def test_a_metric_within_the_spread_is_enough_unless_determinism_is_on(
    place: Place, tmp_path: Path, by: float, exact: bool, verdict: str
) -> None:
    repeat = repeated(place, tmp_path)
    shift_metric(repeat, by)
    found = compare(place.record("off 1"), repeat, spreads(0.5), exact)
    assert found.verdict == verdict
    assert [(line.name, round(line.difference, 6)) for line in found.lines] == [("last UAR", by)]


def test_a_single_bit_of_a_score_is_seen(place: Place, tmp_path: Path) -> None:
    repeat = repeated(place, tmp_path)
    shift_predictions(repeat, by=1e-15, rows=1)
    found = compare(place.record("off 1"), repeat, spreads(0.0), exact=False)
    assert found.verdict == WITHIN and found.samples is not None
    assert found.samples.other_scores == 1 and 0 < found.samples.largest < 1e-14


def test_a_logged_point_and_the_weights_count(place: Place, tmp_path: Path) -> None:
    repeat = repeated(place, tmp_path)
    repeat.append_metrics("train", 1, 1.0, {"loss": 1.0})
    assert compare(place.record("off 1"), repeat, spreads(0.0), exact=False).verdict == WITHIN
    other = repeated(place, tmp_path / "b")
    weights = other.path / "checkpoints" / "final.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert compare(place.record("off 1"), other, spreads(0.0), exact=False).verdict == WITHIN
    weights.unlink()
    assert compare(place.record("off 1"), other, spreads(0.0), exact=False).verdict == IDENTICAL


def test_other_samples_or_labels_are_never_within_a_spread(place: Place, tmp_path: Path) -> None:
    repeat = repeated(place, tmp_path)
    path = repeat.path / "predictions.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    found = compare(place.record("off 1"), repeat, spreads(100.0), exact=False)
    assert found.verdict == DIFFERENT and "1 test samples are in one of them only" in found.reason


def test_a_missing_metric_is_a_difference(place: Place, tmp_path: Path) -> None:
    repeat = repeated(place, tmp_path)
    result = repeat.result() or {}
    del result["metrics"]["last"]["UAR"]
    write_json(repeat.path / "result.json", result)
    assert compare(place.record("off 1"), repeat, spreads(100.0), exact=False).verdict == DIFFERENT


# The spread


def write_results(root: Path, values: dict[tuple[int, int], float]) -> dict[tuple[int, int], str]:
    """Runs of one cell by fold and seed with their UAR."""
    ids = {key: f"{number:016x}" for number, key in enumerate(values)}
    rows = [
        {"run_id": ids[fold, seed], "stage": "finetune", "variants": ["v"], "corpus": "c", "fold": fold, "seed": seed}
        for fold, seed in values
    ]
    (root / "_studies").mkdir(parents=True)
    write_json(root / "_studies" / "s.json", {"variants": [{"name": "v"}], "runs": rows})
    for key, value in values.items():
        (root / ids[key]).mkdir()
        write_json(root / ids[key] / "result.json", {"metrics": {"last": {"UAR": value, "loss": 1.0}}})
    return ids


def test_the_spread_is_that_of_the_seeds_where_there_are_several(tmp_path: Path) -> None:
    ids = write_results(tmp_path, {(1, 0): 50.0, (1, 1): 52.0, (1, 2): 51.5, (2, 0): 90.0})
    found = spreads_of(tmp_path, ids[1, 0])
    assert found == {"last UAR": Spread(2.0, "largest difference between 3 seeds")}


def test_else_that_of_the_folds_else_it_is_stated(tmp_path: Path) -> None:
    ids = write_results(tmp_path / "a", {(1, 0): 50.0, (2, 0): 54.0, (3, 0): 52.0})
    assert spreads_of(tmp_path / "a", ids[2, 0]) == {"last UAR": Spread(2.0, "standard deviation over 3 folds")}
    ids = write_results(tmp_path / "b", {(1, 0): 50.0})
    assert spreads_of(tmp_path / "b", ids[1, 0])["last UAR"].allowed == comparison.DEFAULT_POINTS
    assert spreads_of(tmp_path / "b", ids[1, 0], tolerance=0.2)["last UAR"].allowed == 0.2


def test_a_pre_training_is_judged_by_its_loss(place: Place) -> None:
    found = spreads_of(place.root, place.ids["pretrain"])
    loss = (place.record("pretrain").result() or {})["train_loss_last"]
    assert found["loss"].allowed == pytest.approx(0.01 * loss)


# --deterministic


def test_a_deterministic_launch_changes_every_run_and_only_that(tmp_path: Path) -> None:
    request = launcher.Request("ablation_hierarchical", tmp_path, smoke=True)
    plain = launcher.requested(request).runs(lambda name: "f")
    exact = launcher.requested(replace(request, deterministic=True)).runs(lambda name: "f")
    assert len(plain) == len(exact) and not {run.run_id for run in plain} & {run.run_id for run in exact}
    for one, other in zip(plain, exact, strict=True):
        changes = {"engine.deterministic": True}
        if isinstance(one.config, FinetuneConfig):
            changes["initial.reference"] = other.depends_on[0]
        assert change(one.config, changes) == other.config and one.variants == other.variants


def test_a_variant_may_stay_out_of_it() -> None:
    study = replace(experiment.find("ablation_hierarchical").at_smoke_size(), deterministic=True)
    loose = replace(study.variants[0], delta={**study.variants[0].delta, "engine.deterministic": False})
    runs = replace(study, variants=(loose, *study.variants[1:])).runs(lambda name: "f")
    assert {run.config.engine.deterministic for run in runs if loose.name in run.variants} == {False}
    assert {run.config.engine.deterministic for run in runs if loose.name not in run.variants} == {True}


def test_the_study_keeps_the_command_that_was_used(tmp_path: Path) -> None:
    command = ("python", "experiments/launch.py", "ablation_fusion", "--smoke", "--deterministic")
    request = launcher.Request("ablation_fusion", tmp_path, smoke=True, deterministic=True, command=command)
    plan, prints = launcher.plan_for(request, launcher.requested(request))
    launcher.record_study(request, plan, prints, {})
    assert study_file.read(tmp_path, "ablation_fusion_smoke")["command"] == " ".join(command)


def test_a_search_is_not_deterministic() -> None:
    ended = CliRunner().invoke(app, ["launch", "search_finetune", "--smoke", "--deterministic", "--dry-run"])
    assert isinstance(ended.exception, UsageError) and "--deterministic is for studies" in str(ended.exception)
