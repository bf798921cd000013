"""HiCMAE: hierarchical contrastive masked autoencoders for audio-visual emotion recognition.

The library part of the project: configuration, model, data, training and the record that a run leaves behind.

    model = hicmae.load("runs/0123456789abcdef")    # or a checkpoint of the authors, or a size such as "base"
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hicmae.model.zoo import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`hicmae.load` brings torch with it, which takes seconds: it is imported when it is first used."""
    if name == "load":
        from hicmae.model.zoo import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
