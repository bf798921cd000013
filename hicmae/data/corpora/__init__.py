"""The registry of corpora: one module each, found by name. `list:PATH`, `folder:PATH` and `csv:PATH` are anybody's own data."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

from hicmae.config import FinetuneConfig
from hicmae.data.corpora.base import Corpus, Sample, Tree
from hicmae.errors import UsageError, raise_unknown

__all__ = ["OWN_DATA", "Corpus", "Sample", "Tree", "check_head", "get", "names"]

# Name: module and attribute. A new corpus is one file and one line here.
_CORPORA: dict[str, tuple[str, str]] = {
    "crema_d": ("crema_d", "CREMA_D"),
    "crema_d_4": ("crema_d", "CREMA_D_4"),
    "ravdess": ("ravdess", "RAVDESS"),
    "msp_improv": ("msp_improv", "MSP_IMPROV"),
    "iemocap": ("iemocap", "IEMOCAP"),
    "mafw": ("mafw", "MAFW"),
    "mafw_43": ("mafw", "MAFW_43"),
    "dfew": ("dfew", "DFEW"),
    "mer_multi": ("mer_multi", "MER_MULTI"),
    "werewolf_xl": ("werewolf_xl", "WEREWOLF_XL"),
    "avcaffe": ("avcaffe", "AVCAFFE_AROUSAL"),
    "avcaffe_valence": ("avcaffe", "AVCAFFE_VALENCE"),
    "voxceleb2": ("voxceleb2", "VOXCELEB2"),
    "synthetic": ("synthetic", "SYNTHETIC"),
}
OWN_DATA: dict[str, str] = {"list": "listfile", "folder": "folder", "csv": "csvfile"}


def names() -> tuple[str, ...]:
    """The corpora with a published protocol, and the generated one."""
    return tuple(_CORPORA)


@cache
def get(name: str) -> Corpus:
    """The corpus of that name. Raises UsageError, naming the corpora nearest first, when there is none."""
    kind, separator, path = name.partition(":")
    if separator and kind in OWN_DATA:
        make: Callable[[str, Path], Corpus] = import_module(f"{__name__}.{OWN_DATA[kind]}").corpus
        return make(name, Path(path))
    if kind == "parquet" and separator:
        raise UsageError(f"{name}: a parquet table is read as csv:{path}")
    if name not in _CORPORA:
        raise_unknown("corpus", name, [*_CORPORA, *(f"{kind}:PATH" for kind in OWN_DATA)])
    module, attribute = _CORPORA[name]
    found: Corpus = getattr(import_module(f"{__name__}.{module}"), attribute)
    return found


def check_head(config: FinetuneConfig) -> None:
    """Raise ConfigError when the head answers another question than the corpus asks, or has another number of outputs."""
    corpus, head = get(config.data.corpus), config.head
    if corpus.task != head.task:
        head.refuse("task", f"{corpus.name} is a corpus for {corpus.task}; choose that task or another corpus")
    if corpus.outputs() != head.outputs:
        kind = "classes" if head.task == "classification" else "targets"
        head.refuse("outputs", f"must be {corpus.outputs()}, the {kind} of {corpus.name}")
