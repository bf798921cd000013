"""What the tests of `list:`, `folder:` and `csv:` share."""

from __future__ import annotations

from pathlib import Path

from hicmae.data import corpora
from hicmae.data.corpora import Corpus, Sample


def read(name: str) -> tuple[Corpus, dict[str, Sample]]:
    """The corpus as it is on the disk now, and its samples by id."""
    corpora.get.cache_clear()
    corpus = corpora.get(name)
    assert corpus.root is not None
    return corpus, {sample.sample_id: sample for sample in corpus.samples(corpus.root)}


def write(path: Path, *lines: str) -> Path:
    """A text file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path
