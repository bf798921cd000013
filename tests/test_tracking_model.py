"""A real run in MLflow: its pictures, and its model, which a new process loads and which answers as `hicmae predict`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from experiments.cli import main
from hicmae import presets
from hicmae.config import change, to_dict
from hicmae.data.synthetic import CLASSES, generate
from hicmae.errors import HicmaeError
from hicmae.record import RunRecord, write_json
from hicmae.run import execute
from hicmae.tracking import default_uri, sync
from hicmae.tracking.predictor import _load_pyfunc

SHORT = {"optim.epochs": 1, "optim.warmup_epochs": 0, "optim.batch_size": 8}
LOAD = """
import sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
clips = sys.argv[3:]
table = model.predict(pandas.DataFrame({"clip": clips}))
print("answer", table.to_json(orient="records", double_precision=15))
"""


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, RunRecord]:
    """A pre-training and a fine-tuning, one epoch each, as a study, in MLflow."""
    for name, folder in {"HICMAE_DATA": "data", "HICMAE_STORE": "store", "HICMAE_RUNS": "runs"}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv("HICMAE_PICTURES")
    generate(tmp_path / "data" / "synthetic", speakers=6, clips_per_speaker=4, seconds=0.8, size_px=64, processes=1)
    configs = {
        "pretrain": change(presets.pretrain("smoke", "synthetic"), SHORT),
        "finetune": change(presets.finetune("smoke", "synthetic", 4), {**SHORT, "data.fold": 1}),
    }
    made = {stage: RunRecord.create(tmp_path / "runs", config) for stage, config in configs.items()}
    for record in made.values():
        execute(record.path, threads=1)
    place = {"variants": ["all"], "corpus": "synthetic", "fold": 1, "seed": 0, "depends_on": []}
    rows = [{"run_id": record.id, "stage": stage, **place} for stage, record in made.items()]
    (tmp_path / "runs" / "_studies").mkdir()
    write_json(tmp_path / "runs" / "_studies" / "one.json", {"experiment": "one", "command": "", "runs": rows})
    assert sync(tmp_path / "runs", say=lambda line: None).sent_runs == 2
    return made


@pytest.mark.slow
def test_run_draws_and_its_model_answers_from_mlflow_as_on_the_command_line(
    records: dict[str, RunRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = default_uri(tmp_path / "runs")
    client = MlflowClient(uri)
    [experiment] = [found for found in client.search_experiments() if found.name == "one"]
    runs = {run.data.tags["hicmae.run_id"]: run for run in client.search_runs([experiment.experiment_id])}
    pretrained, finetuned = (runs[records[stage].id].info.run_id for stage in ("pretrain", "finetune"))
    _are_pictures(client, pretrained, {"reconstruction-1.png", "reconstruction-2.png"}, tmp_path)
    _are_pictures(client, finetuned, {"layer-weights.png", "features.png"}, tmp_path)

    clips = sorted(map(str, (tmp_path / "data").rglob("*.mp4")))[:3]
    loaded = _answers(uri, f"runs:/{finetuned}/model", clips)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["predict", *clips, "--model", str(records["finetune"].path), "--device", "cpu", "--json"])
    assert ended.value.code in (0, None)
    expected = [line["scores"] for line in json.loads(capsys.readouterr().out)]
    assert [list(row) for row in loaded] == [list(CLASSES)] * 3
    np.testing.assert_allclose([list(row.values()) for row in loaded], [list(row.values()) for row in expected], atol=1e-12)

    broken = RunRecord.create(tmp_path / "runs", change(records["finetune"].config(), {"seed": 1}))
    (broken.path / "pictures").write_text("in the way")
    assert execute(broken.path, threads=1)["status"] == "done"
    assert f"run {broken.id}: drew no pictures: " in capsys.readouterr().out

    [output] = client.get_run(pretrained).outputs.model_outputs
    features = _answers(uri, f"models:/{output.model_id}", clips[:1])
    assert set(features[0]) >= {"feature_0", "feature_1"}


def test_model_without_weights_says_where_they_should_be(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", to_dict(presets.finetune("smoke")))
    write_json(tmp_path / "model.json", {"run_id": "abc", "weights": "/gone/final.safetensors", "outputs": []})
    with pytest.raises(HicmaeError, match=r"run abc .* /gone/final.safetensors: set HICMAE_RUNS .*--upload-models"):
        _load_pyfunc(str(tmp_path))


def _are_pictures(client: MlflowClient, run: str, names: set[str], folder: Path) -> None:
    assert {Path(item.path).name for item in client.list_artifacts(run, "pictures")} == names
    for name in names:
        path = client.download_artifacts(run, f"pictures/{name}", str(folder))
        assert np.asarray(Image.open(path).convert("L")).std() > 5


def _answers(uri: str, model: str, clips: list[str]) -> list[dict[str, float]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, uri, model, *clips], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.rpartition("answer ")[2]))
