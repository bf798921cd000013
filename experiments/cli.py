"""The command `hicmae`: launching, runs, data, models, reports. Each topic's commands live in `cli_<topic>.py` beside this file.

    hicmae --help
    hicmae launch ablation_hierarchical --smoke

Nothing here imports torch: help and plans answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

import hicmae
from experiments import cli_data, cli_launch, cli_model, cli_report, cli_reproduce, cli_runs, cli_search
from hicmae.errors import HicmaeError, UsageError, nearest_first, raise_unknown

TOPICS = (cli_launch, cli_search, cli_runs, cli_report, cli_reproduce, cli_data, cli_model)  # in the order of the help
_BadUsage: Any = typer.BadParameter.__mro__[1]  # the parser's UsageError, which typer does not export
INTERRUPTED = 130

app = typer.Typer(
    name="hicmae",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    help="HiCMAE: audio-visual emotion recognition with planned, reproducible studies.",
    epilog="Start with [bold]hicmae launch --list[/bold], then [bold]hicmae launch ablation_hierarchical --smoke[/bold].",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hicmae {hicmae.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit: 0 done, 1 failed, 2 wrong usage, 130 stopped. Errors are one line on stderr."""
    try:
        code = app(args=arguments, prog_name="hicmae", standalone_mode=False)
    except HicmaeError as error:
        code = _complain(str(error), error.exit_code)
    except _BadUsage as error:
        code = _complain(_usage_text(error), 2) if error.format_message().strip() else 0  # without words: help was shown
    except (typer.Abort, KeyboardInterrupt):
        code = _complain("stopped", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output left: nothing to say
        code = 0
    except OSError as error:  # a full disk, a folder that may not be written: the machine's state, so a line says it all
        code = _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except UnicodeEncodeError as error:
        code = _complain(_unwritable_text(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _unwritable_text(error: UnicodeEncodeError) -> str:
    if error.encoding == "utf-8":
        return f"{error.object[:200]!a}: a name that is not UTF-8; rename the file"
    return f"the encoding {error.encoding} has no {error.object[error.start]!a}; set PYTHONIOENCODING=utf-8"


def _complain(message: str, code: int) -> int:
    Console(stderr=True).print(Text("error: ", style="bold red") + Text(message), soft_wrap=True)
    return code


def _usage_text(error: Any) -> str:
    """The parser's complaint, with all valid names, nearest first, where a name was unknown."""
    context = getattr(error, "ctx", None)
    wrong = getattr(error, "option_name", None)
    text = str(error.format_message()).strip()
    if context is None:
        return text
    if wrong and "such option" in text.lower():
        valid = [
            name
            for parameter in context.command.params
            for name in (*parameter.opts, *parameter.secondary_opts)
            if name[0] == "-"
        ]
        return _unknown("option", wrong, [*valid, "--help"])
    if "no such command" in text.lower():
        return _unknown("command", text.split("'")[1], list(context.command.commands))
    return f"{text} (see `{context.command_path} --help`)"


def _unknown(kind: str, name: str, valid: list[str]) -> str:
    try:
        raise_unknown(kind, name, nearest_first(name, valid))
    except UsageError as error:
        return str(error)


for topic in TOPICS:
    topic.register(app)

if __name__ == "__main__":
    main()
