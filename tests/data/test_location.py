"""data.toml, by which users say where their corpora lie."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from hicmae.data import location
from hicmae.errors import UsageError


@pytest.fixture
def config() -> Path:
    path = platformdirs.user_config_path("hicmae") / "data.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_corpora_that_share_files_are_found_under_either_name(config: Path, tmp_path: Path) -> None:
    config.write_text(f'crema_d_4 = "{tmp_path}"\n')
    assert location.corpus_root("crema_d_4") == tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'ravdes = "/data"\n', "data.toml 'ravdes'; valid, nearest first: ravdess"),
        (b'[data]\nravdess = "/data"\n', "data.toml 'data'; valid, nearest first"),
        ('ravdess = "/Gefühl"\n'.encode("latin-1"), "data.toml: unreadable"),
        (b'ravdess = "~nobody-of-that-name/x"\n', "~nobody-of-that-name/x: .*; write the whole path"),
    ],
)
def test_a_line_that_means_nothing_is_refused(config: Path, text: bytes, message: str) -> None:
    config.write_bytes(text)
    with pytest.raises(UsageError, match=message):
        location.find_root("ravdess")
