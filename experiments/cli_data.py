"""`hicmae data`: the corpora on this machine, from what is known to what is wrong with them.

    hicmae data list
    hicmae data check crema_d

Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments.cli_prepare import prepare_command
from experiments.cli_synthetic import generate_command
from experiments.outputs import writable_file
from hicmae.errors import HicmaeError, UsageError, raise_unknown

if TYPE_CHECKING:
    from hicmae.data.clips import Probe
    from hicmae.data.corpora import Corpus, Sample
    from hicmae.data.manifest import Problem, Streams

CORPUS = Annotated[str, typer.Argument(help="A name that `hicmae data list` shows, or list:PATH, folder:PATH, csv:PATH.")]
JSON = Annotated[bool, typer.Option("--json", help="The answer as JSON.")]
LISTED = 10  # problems in the table; the CSV has all
RATES = 4  # in a row of the table
FORMATS = ("list", "csv")
MODALITIES = ("AV", "A", "V")


def register(app: typer.Typer) -> None:
    """Add `hicmae data` to the command."""
    data = typer.Typer(no_args_is_help=True, help="Corpora: what is here, whether it is whole, and how to prepare it.")
    data.command("list")(list_command)
    data.command("check")(check_command)
    data.command("fingerprint")(fingerprint_command)
    data.command("show")(show_command)
    data.command("export")(export_command)
    data.command("prepare")(prepare_command)
    data.command("generate")(generate_command)
    app.add_typer(data, name="data", rich_help_panel="Data")


def list_command(as_json: JSON = False) -> None:
    """The corpora that are known, and where they are found on this machine."""
    from hicmae.data import corpora, location

    rows = [_known(corpora.get(name), location.find_root(name)) for name in corpora.names()]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table("corpus", "task", "classes", "folds", "metric", box=box.SIMPLE_HEAD)
    table.add_column("found in", overflow="fold")
    for row in rows:
        found = row["root"] if row["there"] else "[dim]not here[/]"
        answers = str(row["outputs"] or "")
        table.add_row(row["name"], row["task"], answers, str(row["folds"] or ""), row["metric"], found)
    console = Console()
    console.print(table)
    console.print(f"Places: $HICMAE_DATA/<corpus>, or lines in {location.config_file()}.", soft_wrap=True, highlight=False)
    console.print("Your own data: list:PATH (the authors' lists), folder:PATH (folders named by class), csv:PATH.")
    console.print("\nWhere their licences are, and where they are asked for:")
    pages = {row["licence"]: row["name"] for row in reversed(rows) if row["licence"]}  # the first name of those that share one
    for page, name in reversed(pages.items()):
        console.print(f"  {name:<12}{page}", soft_wrap=True, highlight=False)


def _known(corpus: Corpus, root: Path | None) -> dict[str, Any]:
    return {
        "name": corpus.name,
        "title": corpus.title,
        "task": corpus.task,
        "outputs": corpus.outputs(),
        "folds": len(corpus.folds),
        "metric": corpus.metrics[0] if corpus.metrics else "",
        "root": str(root) if root else "",
        "there": root is not None and root.exists(),
        "citation": corpus.citation,
        "licence": corpus.licence_url,
    }


def check_command(
    corpus: CORPUS,
    headers: Annotated[bool, typer.Option("--headers", help="A quick look: open files, but decode nothing.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV of the problems.", show_default="CORPUS-problems.csv")
    ] = None,
    modality: Annotated[str, typer.Option(help="Which streams have to be there: AV, A or V.")] = "AV",
    as_json: JSON = False,
) -> None:
    """Every file decodes, labels and folds are as published; exit 1 when something is wrong.

    Streams that a corpus as distributed does not have for a clip are counted and are no problem. Neither are counts other than
    the published ones, which are named, and files of the same content, of which it warns.
    """
    from hicmae.data import corpora, location, manifest

    if modality not in MODALITIES:
        raise_unknown("modality", modality, MODALITIES)
    if output:
        writable_file(output)
    found = corpora.get(corpus)
    samples = found.samples(location.corpus_root(corpus))
    streams = manifest.Streams()
    problems = [*_check_files(samples, not headers, modality, streams), *_check_groups(found, samples)]
    broken = {problem.path for problem in problems}
    same = manifest.duplicates(path for path in manifest.media_paths(samples) if str(path) not in broken)
    facts = {**_facts(found, samples), **_stream_facts(streams), "same_content": [list(map(str, paths)) for paths in same]}
    if as_json:
        typer.echo(json.dumps({"corpus": corpus, "facts": facts, "problems": [vars(item) for item in problems]}, indent=1))
    else:
        _show_check(found, facts, problems)
    if problems:
        place = output or Path(f"{corpus.partition(':')[0]}-problems.csv")
        _write_problems(place, problems)
        raise HicmaeError(f"{corpus}: {len(problems)} problems, all in {place}")


def _check_files(samples: Sequence[Sample], frames: bool, modality: str, streams: Streams) -> Iterator[Problem]:
    from concurrent.futures import ThreadPoolExecutor

    from hicmae.data.clipstore import cores
    from hicmae.data.manifest import problem_of

    def look(sample: Sample) -> tuple[Problem | None, dict[Path, Probe]]:
        there = ("A" if sample.audio else "") + ("V" if sample.video else "")
        seen: dict[Path, Probe] = {}
        return problem_of(sample, "".join(stream for stream in there if stream in modality), frames, seen), seen

    with _progress("decoding clips" if frames else "opening clips") as advance, ThreadPoolExecutor(cores()) as pool:
        for done, (sample, (problem, seen)) in enumerate(zip(samples, pool.map(look, samples), strict=True), start=1):
            advance(done, len(samples))
            streams.add(sample, seen)
            if problem:
                yield problem


def _check_groups(corpus: Corpus, samples: Sequence[Sample]) -> Iterator[Problem]:
    """Groups (actors, sessions) that are on both sides of a fold, and folds without a test part."""
    from hicmae.data.manifest import Problem

    folds: dict[str, set[tuple[int, ...]]] = {}
    for sample in samples:
        folds.setdefault(sample.group, set()).add(sample.test_folds)
    for group, where in folds.items():
        if len(where) > 1:
            yield Problem("", group, f"{corpus.group_word} is in training and in test of the same fold")
    used = {fold for sample in samples for fold in sample.test_folds}
    for fold in corpus.folds:
        if fold not in used:
            yield Problem("", f"fold {fold}", "no clip is in its test part")


def _facts(corpus: Corpus, samples: Sequence[Sample]) -> dict[str, Any]:
    """Counts, beside the published ones where these are known."""
    labels = Counter(sample.label for sample in samples)
    return {
        "samples": len(samples),
        "published_samples": corpus.published.get("samples"),
        "groups": len({sample.group for sample in samples}),
        "published_groups": corpus.published.get("groups"),
        "without_video": sum(sample.video is None for sample in samples),
        "without_sound": sum(sample.audio is None for sample in samples),
        "classes": {name: labels[index] for index, name in enumerate(corpus.classes)},
        "test_clips": {str(fold): sum(fold in sample.test_folds for sample in samples) for fold in corpus.folds},
    }


def _stream_facts(streams: Streams) -> dict[str, Any]:
    """Least, median and greatest duration; how many clips have which rate, most frequent first."""
    durations = {"video_s": streams.video_s, "sound_s": streams.sound_s}
    spans = {name: [min(s), statistics.median(s), max(s)] for name, s in durations.items() if s}
    return {
        **spans,
        "frame_rates": {f"{rate:g}": count for rate, count in streams.fps.most_common()},
        "sample_rates": {str(rate): count for rate, count in streams.sample_rate_hz.most_common()},
    }


def _show_check(corpus: Corpus, facts: dict[str, Any], problems: Sequence[Problem]) -> None:
    table = Table("", "here", "published", title=corpus.title, box=box.SIMPLE_HEAD)
    table.add_row("clips", str(facts["samples"]), _published(facts["published_samples"]))
    if corpus.group_word != "clip":
        table.add_row(f"{corpus.group_word}s", str(facts["groups"]), _published(facts["published_groups"]))
    for stream in ("video", "sound"):
        if facts[f"without_{stream}"]:
            table.add_row(f"clips without {stream}", str(facts[f"without_{stream}"]), "")
    for stream in ("video", "sound"):
        if span := facts.get(f"{stream}_s"):
            table.add_row(f"{stream}, s (least, median, greatest)", ", ".join(f"{seconds:.2f}" for seconds in span), "")
    if rates := facts["frame_rates"]:
        table.add_row("frames per second (clips)", _rates(rates), f"{corpus.fps:g}" if corpus.fps else "")
    if rates := facts["sample_rates"]:
        table.add_row("sample rates, Hz (clips)", _rates(rates), "")
    for name, count in facts["classes"].items():
        table.add_row(f"class {name}", str(count), "")
    for fold, count in facts["test_clips"].items():
        table.add_row(f"test part of fold {fold}", str(count), "")
    if same := facts["same_content"]:
        table.add_row("[yellow]warning: files of the same content[/]", str(sum(map(len, same))), "")
    console = Console()
    console.print(table)
    for line in _differences(corpus, facts):
        console.print(line, soft_wrap=True, highlight=False)
    for paths in same[:LISTED]:
        console.print(f"[yellow]warning, the same content[/]: {escape(', '.join(paths))}", soft_wrap=True, highlight=False)
    for problem in problems[:LISTED]:
        console.print(f"[red]{problem.path}[/]: {problem.reason}", soft_wrap=True, highlight=False)
    if not problems:
        console.print(f"{facts['samples']} clips, no problem found", highlight=False)


def _differences(corpus: Corpus, facts: dict[str, Any]) -> Iterator[str]:
    """Counts that are not the published ones. A part of a corpus is not wrong, so this only informs."""
    for name, word in (("samples", "clip"), ("groups", corpus.group_word)):
        here, published = facts[name], facts[f"published_{name}"]
        if published is not None and here != published:
            more = f"{abs(here - published)} {'more' if here > published else 'fewer'}"
            yield f"for information: {here} {word}s are here, {published} are published ({more}); training uses what is here"


def _rates(counts: dict[str, int]) -> str:
    shown = [f"{rate} ({count})" for rate, count in counts.items()]
    return ", ".join([*shown[:RATES], "..."] if len(shown) > RATES else shown)


def _published(count: int | None) -> str:
    return "" if count is None else str(count)


def _write_problems(path: Path, problems: Sequence[Problem]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "path", "reason"])
        writer.writerows([problem.sample_id, problem.path, problem.reason] for problem in problems)


def fingerprint_command(corpus: CORPUS) -> None:
    """The content hash that goes into run ids: ids, labels, folds, groups, and the bytes of every file."""
    from hicmae.data import manifest

    typer.echo(manifest.fingerprint(corpus))


def show_command(
    clip: Annotated[Path, typer.Argument(help="A video, sound file or folder of pictures.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes.")] = Path("clip.png"),
) -> None:
    """What the model gets of a clip: 16 frames, the waveform and the log-mel picture, as a PNG."""
    from hicmae.data.picture import draw_clip

    typer.echo(draw_clip(clip, output))


def export_command(
    corpus: CORPUS,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the lists.")] = Path("lists"),
    format_: Annotated[str, typer.Option("--format", help="list (the authors' format) or csv.")] = "list",
) -> None:
    """Write a corpus as lists: split01/train.csv and split01/test.csv for every fold, or one table."""
    from hicmae.data import corpora, location

    if format_ not in FORMATS:
        raise_unknown("format", format_, FORMATS)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; --out names the folder of the lists")
    found = corpora.get(corpus)
    samples = found.samples(location.corpus_root(corpus))
    written = _export_lists(found, samples, out) if format_ == "list" else [_export_table(found, samples, out)]
    for path in written:
        typer.echo(path)


def _export_lists(corpus: Corpus, samples: Sequence[Sample], out: Path) -> list[Path]:
    parts: dict[Path, list[Sample]] = {out / "train.csv": list(samples)}
    if corpus.folds:
        parts = {}
        for fold in corpus.folds:
            folder = out / f"split{fold:02d}"
            parts[folder / "train.csv"] = [sample for sample in samples if fold not in sample.test_folds]
            parts[folder / "test.csv"] = [sample for sample in samples if fold in sample.test_folds]
    texts = {path: _text([_line(sample) for sample in chosen], delimiter=" ") for path, chosen in parts.items()}
    for path, text in texts.items():  # nothing is written before all is known to be writable
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return list(parts)


def _text(rows: Iterable[Sequence[object]], delimiter: str = ",") -> bytes:
    """Rows as CSV in UTF-8; what holds the delimiter or quotes stands in double quotes."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _line(sample: Sample) -> list[str]:
    """A line of the authors' lists: a video, its sound and the answer; for pre-training a 0 where the sound is in the video."""
    if sample.video is None or sample.audio is None:
        raise UsageError(f"{sample.sample_id}: the list format needs a video and a sound file; use --format csv")
    video, sound = str(sample.video.absolute()), str(sample.audio.absolute())
    if not (answer := _answer(sample)) and sound == video:
        return [video, "0"]
    return [video, sound, *answer]


def _answer(sample: Sample) -> list[str]:
    if sample.targets is not None:
        return [str(value) for value in sample.targets]
    return [] if sample.label is None else [str(sample.label)]


def _export_table(corpus: Corpus, samples: Iterable[Sample], out: Path) -> Path:
    path = out / "clips.csv"
    answers = [f"target_{name}" for name in corpus.targets] or (["label", "class"] if corpus.classes else [])
    rows: list[Sequence[object]] = [["sample_id", "video", "audio", *answers, "group", "fold", "task_id"]]
    for sample in samples:
        media = ["" if item is None else item.absolute() for item in (sample.video, sample.audio)]
        answer = _answer(sample) if sample.label is None else [sample.label, corpus.classes[sample.label]]
        folds = " ".join(map(str, sample.test_folds))
        rows.append([sample.sample_id, *media, *answer, sample.group, folds, sample.task_id or ""])
    text = _text(rows)
    out.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return path


@contextmanager
def _progress(what: str) -> Iterator[Any]:
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
