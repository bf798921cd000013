"""Where the corpora lie on this machine, and where caches go.

$HICMAE_DATA is a folder with one folder per corpus (crema_d, ravdess, ...); data.toml in the user's configuration folder
has one line per corpus: `crema_d = "/data/CREMA-D"`. The environment wins.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import platformdirs

from hicmae.data import corpora
from hicmae.errors import UsageError, raise_unknown


def config_file() -> Path:
    """The TOML file with one line per corpus."""
    return platformdirs.user_config_path("hicmae") / "data.toml"


def cache_root() -> Path:
    """Digests of files, and the clip store unless $HICMAE_STORE says otherwise."""
    return platformdirs.user_cache_path("hicmae")


def store_root() -> Path:
    """Where decoded clips are kept: $HICMAE_STORE, else the user's cache folder."""
    return Path(os.environ.get("HICMAE_STORE") or cache_root() / "store")


def find_root(name: str) -> Path | None:
    """The folder of a corpus, or None when this machine has none. Raises UsageError for an unknown one or a broken data.toml."""
    corpus = corpora.get(name)
    if corpus.root is not None:
        return corpus.root
    folder = Path(os.environ.get("HICMAE_DATA", "")) / corpus.folder
    if os.environ.get("HICMAE_DATA") and folder.is_dir():
        return folder
    lines = _configured()
    line = lines.get(corpus.folder) or lines.get(name)
    return _expanded(line) if line else None


def corpus_root(name: str) -> Path:
    """The folder of a corpus. Raises UsageError with both remedies when it is not found."""
    root = find_root(name)
    if root is None and name == "synthetic":
        return platformdirs.user_data_path("hicmae") / "synthetic"
    if root is None or not root.exists():
        folder = corpora.get(name).folder
        raise UsageError(
            f"{name}: data not found{f' at {root}' if root else ''}; put them in $HICMAE_DATA/{folder} "
            f'or write `{folder} = "/their/folder"` in {config_file()}'
        )
    return root


def _configured() -> dict[str, object]:
    if not config_file().exists():
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with config_file().open("rb") as file:
            lines: dict[str, object] = tomllib.load(file)
    except (OSError, ValueError) as error:  # bad TOML and bad UTF-8 are ValueErrors
        raise UsageError(f'{config_file()}: unreadable ({error}); one line per corpus: name = "/folder"') from None
    known = {*corpora.names(), *(corpora.get(name).folder for name in corpora.names())}
    for name in lines:
        if name not in known:
            raise_unknown(f"corpus in {config_file()}", name, known)
    return lines


def _expanded(line: object) -> Path:
    try:
        return Path(str(line)).expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise UsageError(f"{config_file()}: {line}: {error}; write the whole path") from None
