"""`hicmae parity`, `summary`, `predict`, `embed`, `weights`, `pictures` and `bench`: models on the command line.

    hicmae parity tests/golden
    hicmae predict clip.mp4 --model runs/0123456789abcdef

Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from experiments import outputs
from experiments.bench_data import bench_data
from experiments.bench_launch import bench_launch
from experiments.bench_report import bench_report
from experiments.bench_tracking import bench_tracking
from hicmae.errors import HicmaeError, UsageError, raise_unknown
from hicmae.presets import ENCODERS, check_size
from hicmae.whole import written_whole

if TYPE_CHECKING:
    from hicmae.model.summary import Summary
    from hicmae.model.zoo import Loaded
    from hicmae.parity import Check

PANEL = "Models"
CLIPS = Annotated[list[Path], typer.Argument(help="Video files (sound files for a model of sound alone).", show_default=False)]
MODEL = Annotated[
    str, typer.Option("--model", "-m", help="A run directory or id, a checkpoint file, or a size.", show_default=False)
]
DEVICE = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
FEATURES = Annotated[Path, typer.Option("--output", "-o", help="A .npz, .csv or .parquet file.", show_default=False)]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
FEATURE_FILES = (".npz", ".csv", ".parquet")
WEIGHT_FILES = (".safetensors", ".pth", ".pt")
METHODS = ("pca", "tsne")
LARGEST_SEED = 2**32 - 1  # scikit-learn's limit


def register(app: typer.Typer) -> None:
    """Add the commands of this topic."""
    commands: tuple[Callable[..., None], ...] = (parity, summary, predict, embed, weights, pictures)
    for command in commands:
        app.command(rich_help_panel=PANEL)(command)
    bench = typer.Typer(no_args_is_help=True, help="Measure how fast models are here, and compare two measurements.")
    bench.command("model")(bench_model)
    bench.command("compare")(bench_compare)
    bench.command("data")(bench_data)
    bench.command("report")(bench_report)
    bench.command("launch")(bench_launch)
    bench.command("tracking")(bench_tracking)
    app.add_typer(bench, name="bench", rich_help_panel=PANEL)


def parity(
    folder: Annotated[Path, typer.Argument(help="A folder of reference numbers, such as tests/golden.", show_default=False)],
    as_json: JSON = False,
) -> None:
    """Compare this installation with numbers made by the authors' release; exit 1 when one lies beyond its tolerance."""
    from hicmae.parity import check_folder

    checks = check_folder(folder)
    failed = [check for check in checks if not check.passed]
    if as_json:
        finite = [check.difference if math.isfinite(check.difference) else None for check in checks]
        rows = [{**vars(c), "difference": value, "passed": c.passed} for c, value in zip(checks, finite, strict=True)]
        typer.echo(json.dumps(rows, indent=1))
        raise typer.Exit(1 if failed else 0)
    console = Console()
    console.print(_parity_table(checks))
    for line in _floor_lines(checks):
        console.print(line, highlight=False, soft_wrap=True)
    files = len({check.file for check in checks})
    console.print(f"{len(checks) - len(failed)} of {len(checks)} quantities in {files} files are equal to the authors' release")
    raise typer.Exit(1 if failed else 0)


def _parity_table(checks: list[Check]) -> Table:
    table = Table("quantity", "largest difference", "tolerance", "", box=box.SIMPLE_HEAD)
    for file, rows in itertools.groupby(checks, key=lambda check: check.file):
        table.add_row(f"[bold]{file}[/]")
        for check in rows:
            mark = "[green]equal[/]" if check.passed else f"[bold red]DIFFERS[/] {check.where}"
            table.add_row(f"  {check.quantity}", f"{check.difference:.2g}", f"{check.tolerance:g}", mark)
    return table


def _floor_lines(checks: list[Check]) -> list[str]:
    """What counts as a tiny gradient, and how many there are; nothing when there are none."""
    from hicmae.parity import TINY_GRADIENT

    counted = [f"{check.below_floor} of {check.quantity} in {check.file}" for check in checks if check.below_floor]
    if not counted:
        return []
    return [
        f"Gradients are sums of absolute values. One below {TINY_GRADIENT:g} of the largest of its file is 0 on paper and "
        f"rounding noise in both programs: its difference is relative to that floor. So it is with {', '.join(counted)}."
    ]


def summary(
    size: Annotated[str, typer.Argument(help="tiny, small, base or smoke.", show_default="all")] = "",
    classes: Annotated[int, typer.Option(help="Outputs of the head in fine-tuning.", min=1)] = 6,
    as_json: JSON = False,
) -> None:
    """Parameters by part, and floating-point operations of one clip, for pre-training and fine-tuning."""
    sizes = [check_size(size)] if size else [name for name in ENCODERS if name != "smoke"]
    from hicmae.model.summary import summarise

    rows = [(name, row) for name in sizes for row in summarise(name, classes)]
    if as_json:
        typer.echo(json.dumps([{"size": name, **vars(row), "total": row.total} for name, row in rows], indent=1))
        return
    Console().print(_summary_table(rows))


def _summary_table(rows: list[tuple[str, Summary]]) -> Table:
    table = Table("", "pre-training", "fine-tuning", box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for size, stages in itertools.groupby(rows, key=lambda row: row[0]):
        both = [row for _, row in stages]
        table.add_row(f"[bold]{size}[/]")
        for part in both[0].parameters:
            table.add_row(f"  {part}", *(f"{row.parameters.get(part, 0):,}" for row in both))
        table.add_row("  all parameters", *(f"[bold]{row.total:,}[/]" for row in both))
        table.add_row("  GFLOP of a clip, forward", *(_giga(row.forward_flops) for row in both))
        table.add_row("  and with backward", *(_giga(row.step_flops) for row in both))
    return table


def _giga(flops: float) -> str:
    """Billions; two digits of less than one."""
    return f"{flops / 1e9:.1f}" if flops >= 1e9 else f"{flops / 1e9:.2g}"


def predict(
    clips: CLIPS,
    model: MODEL,
    corpus: Annotated[str | None, typer.Option(help="Whose class names to print.", show_default="the model's")] = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
) -> None:
    """Print the class probabilities (or regression outputs) of media files."""
    from hicmae.model import inference
    from hicmae.model.zoo import open_model, pick_device

    loaded = open_model(model)
    _, config = inference.with_head(loaded)
    names = inference.class_names(config, corpus, loaded.classes)
    scores = inference.predict(loaded, clips, pick_device(device)).tolist()
    _note(loaded)
    if as_json:
        named = [
            {"clip": str(clip), "scores": dict(zip(names, row, strict=True))} for clip, row in zip(clips, scores, strict=True)
        ]
        typer.echo(json.dumps(named, indent=1))
    elif config.head.task == "classification":
        Console().print(_answers(clips, names, scores))
    else:
        table = Table("clip", *names, box=box.SIMPLE_HEAD)
        for label, row in zip(_labels(clips), scores, strict=True):
            table.add_row(label, *(f"{value:.3f}" for value in row))
        Console().print(table)


def _answers(clips: list[Path], names: list[str], scores: list[list[float]]) -> Table:
    """The most probable class of every clip, then all probabilities in percent, the largest first."""
    table = Table("clip", "answer", "probabilities in percent", box=box.SIMPLE_HEAD)
    for label, row in zip(_labels(clips), scores, strict=True):
        ranked = sorted(zip(row, names, strict=True), key=lambda pair: -pair[0])
        parts = [f"{name}\u00a0{100 * value:.1f}" for value, name in ranked]
        table.add_row(label, f"[bold]{ranked[0][1]}[/]", "  ".join(parts))
    return table


def _labels(clips: list[Path]) -> list[str]:
    """File names, or paths where two files have one name."""
    return [clip.name for clip in clips] if len({clip.name for clip in clips}) == len(clips) else [str(clip) for clip in clips]


def embed(
    clips: CLIPS,
    model: MODEL,
    output: FEATURES,
    modality: Annotated[
        str | None, typer.Option(help="Streams of a pre-trained model: AV, A or V.", show_default="AV; a fine-tuned model's own")
    ] = None,
    device: DEVICE = "auto",
) -> None:
    """Write the features before the head, one row for each media file."""
    _check_file(output, FEATURE_FILES)
    from hicmae.model import inference
    from hicmae.model.zoo import open_model, pick_device

    loaded = open_model(model)
    features = inference.embed(loaded, clips, modality, pick_device(device))
    _write_features(output, clips, features)
    _note(loaded)
    Console().print(f"{features.shape[0]} clips, {features.shape[1]} features each: {output}")


def weights(
    source: Annotated[str, typer.Argument(help="A run directory or id, or a checkpoint file.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="The file to write: .safetensors, .pth or .pt.", show_default=False)],
    epoch: Annotated[int | None, typer.Option(help="Of a pre-training: the epoch kept.", show_default="the last", min=1)] = None,
) -> None:
    """Write a model's weights under the authors' names: .safetensors bare, .pth as their code saves and reads it.

    The configuration of a run and the names of its classes go with them, where `hicmae predict` and `hicmae.load` find them.
    """
    if source in ENCODERS:
        raise UsageError(f"{source} is a size with new, random weights; give a run or a checkpoint file")
    if epoch is not None and Path(source).is_file():
        raise UsageError(f"--epoch is for runs of pre-training; {source} is a file")
    _check_file(output, WEIGHT_FILES)
    from hicmae.model.zoo import open_model, save_model

    loaded = open_model(source, epoch=epoch)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        save_model(loaded, output, _names(loaded))
    except OSError as error:
        raise _unwritable(output, error) from None
    values = sum(parameter.numel() for parameter in loaded.model.parameters())
    Console().print(f"{loaded.config.stage}, {values:,} parameters: {output}", highlight=False, soft_wrap=True)


def _names(loaded: Loaded) -> list[str]:
    """The names of a fine-tuned model's outputs, for the file of its weights."""
    from hicmae.config import FinetuneConfig
    from hicmae.model import inference

    if not isinstance(loaded.config, FinetuneConfig):
        return []
    try:
        return inference.class_names(loaded.config, written=loaded.classes)
    except UsageError:  # the list of a corpus of one's own has changed since
        return []


def pictures(
    clips: CLIPS,
    model: MODEL,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the PNG files.")] = Path("pictures"),
    method: Annotated[str, typer.Option(help="The map of features: pca or tsne.")] = "pca",
    seed: Annotated[int, typer.Option(help="Of the masks and of the map.", min=0, max=LARGEST_SEED)] = 0,
) -> None:
    """Draw what a model does: reconstructions, layer weights, attention between the streams, a map of features."""
    if method not in METHODS:
        raise_unknown("method", method, METHODS)
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: is a file; name a folder for the pictures")
    outputs.writable_file(output / "layer-weights.png")
    from hicmae.model.gallery import draw
    from hicmae.model.zoo import open_model

    loaded = open_model(model)
    drawn = draw(loaded, clips, output, method, seed)
    _note(loaded)
    for path in drawn:
        typer.echo(path)


def bench_model(
    size: Annotated[list[str] | None, typer.Option(help="Sizes; repeatable.", show_default="base; all on a GPU")] = None,
    stage: Annotated[list[str] | None, typer.Option(help="pretrain, finetune; repeatable.", show_default="both")] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Clips in a batch; repeatable.", show_default="4, on a GPU 160 and 56")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, bf16, fp16; repeatable.", show_default="fp32, on a GPU bf16")
    ] = None,
    attention: Annotated[
        list[str] | None, typer.Option(help="auto, flash, efficient, cudnn, math; repeatable.", show_default="auto")
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--eager", help="Only compiled or only eager.", show_default="eager; both on a GPU")
    ] = None,
    steps: Annotated[int, typer.Option(help="Measured steps of each case.", min=1)] = 5,
    changes: Annotated[bool, typer.Option(help="Also time the step with plain attention, ZeRO, checkpointing ...")] = True,
    device: DEVICE = "auto",
    output: Annotated[Path, outputs.JSON_FILE] = Path("bench-model.json"),
) -> None:
    """Clips/s, TFLOP/s, share of the card's peak and peak memory of training steps on ready tensors."""
    from experiments import bench_model as bench
    from experiments import bench_tables
    from hicmae.model.zoo import pick_device

    asked: dict[str, Any] = {"sizes": size, "stages": stage, "batches": batch, "precisions": precision, "attentions": attention}
    settings = bench.settings_for(pick_device(device), compiled=compiled, **asked)
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=None)

        def show(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=what)

        result = bench.measure(settings, steps, changes, show)
    bench_tables.write(result, output)
    for table in bench_tables.tables(result):
        console.print(table)
    console.print(f"{output}")


def bench_compare(
    before: Annotated[Path, typer.Argument(help="A JSON file of `hicmae bench model`.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
) -> None:
    """Compare two measurements, case by case."""
    from experiments import bench_tables

    measured = bench_tables.read(before), bench_tables.read(after)
    Console().print(bench_tables.comparison(*measured, before.name, after.name))


def _write_features(path: Path, clips: list[Path], features: Any) -> None:
    import numpy as np
    import pandas as pd

    path.parent.mkdir(parents=True, exist_ok=True)
    names = [str(clip) for clip in clips]
    table = pd.DataFrame(features, columns=[f"feature_{i}" for i in range(features.shape[1])])
    table.insert(0, "clip", names)
    try:
        with written_whole(path) as temporary, temporary.open("wb") as file:
            if path.suffix == ".npz":
                np.savez(file, clips=np.array(names), features=features)
            elif path.suffix == ".csv":
                table.to_csv(file, index=False)
            else:
                table.to_parquet(file, index=False)
    except OSError as error:
        raise _unwritable(path, error) from None


def _check_file(path: Path, endings: tuple[str, ...]) -> None:
    """Refuse a file that could not be written, before anything is computed."""
    if path.suffix not in endings and not path.is_dir():
        raise UsageError(f"{path}: unknown ending; valid: {', '.join(endings)}")
    outputs.writable_file(path)


def _unwritable(path: Path, error: OSError) -> HicmaeError:
    return HicmaeError(f"{path}: cannot be written ({error.strerror or error}); free space there or choose another place")


def _note(loaded: Loaded) -> None:
    """Say once, beside the answer, what a model is not or what was assumed of it."""
    if loaded.source in ENCODERS:
        note = f"{loaded.source} is a size with new, random weights; give a trained model"
    else:
        note = loaded.assumed
    if note:
        Console(stderr=True).print(Text("note: ", style="yellow") + Text(note), soft_wrap=True)
