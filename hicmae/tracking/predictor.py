"""What MLflow loads of a run: class probabilities (or features of a pre-trained model) for clips, by path.

    import mlflow
    model = mlflow.pyfunc.load_model("runs:/<MLflow's run>/model")
    model.predict(pandas.DataFrame({"clip": ["clip.mp4"]}))

The files of the logged model are a configuration and weights; nothing in them is code and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hicmae.config import FinetuneConfig, from_dict
from hicmae.errors import HicmaeError
from hicmae.record import runs_root

if TYPE_CHECKING:
    import pandas as pd

    from hicmae.model.zoo import Loaded

COLUMN = "clip"


class Predictor:
    """A trained model that answers for paths of clips."""

    def __init__(self, loaded: Loaded, outputs: Sequence[str]) -> None:
        self.loaded, self.outputs = loaded, list(outputs)

    def predict(self, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One row a clip: probabilities under the classes' names, or regression outputs; features of a pre-trained model.

        `model_input` has the column `clip` with paths; MLflow checks that.
        Raises ClipError, naming the file, for a clip that cannot be used.
        """
        import pandas as pd

        from hicmae.model import inference, zoo

        clips, device = [Path(path) for path in model_input[COLUMN]], zoo.pick_device()
        if isinstance(self.loaded.config, FinetuneConfig):
            return pd.DataFrame(inference.predict(self.loaded, clips, device), columns=self.outputs)
        features = inference.embed(self.loaded, clips, device=device)
        return pd.DataFrame(features, columns=[f"feature_{i}" for i in range(features.shape[1])])


def _load_pyfunc(data_path: str) -> Predictor:
    """MLflow's name for the function that opens the folder `data` of a logged model."""
    from hicmae.model.zoo import open_model

    folder = Path(data_path)
    about = json.loads((folder / "model.json").read_text())
    config = from_dict(json.loads((folder / "config.json").read_text()))
    places = [folder, Path(about["weights"]).parent, runs_root() / about["run_id"] / "checkpoints"]
    weights = next((path for place in places if (path := place / Path(about["weights"]).name).is_file()), None)
    if weights is None:
        raise HicmaeError(
            f"the weights of run {about['run_id']} were not uploaded and are not at {about['weights']}: set HICMAE_RUNS to the "
            "folder of its run directory, or send it with `hicmae sync --upload-models`"
        )
    return Predictor(open_model(weights, config=config), about["outputs"])
