"""Fields that check themselves: what the dataclasses of `hicmae.config` are made of.

@dataclass(frozen=True)
class OptimConfig(Checked):
    batch_size: int = limited(160, 1)

OptimConfig(batch_size=0)   # ConfigError: OptimConfig.batch_size = 0: must be at least 1
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_origin, get_type_hints

from hicmae.errors import ConfigError


def limited(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A number (or None where the type allows it) within closed limits."""
    return field(default=default, metadata={"low": low, "high": high})


def choice(default: Any, *options: Any) -> Any:
    """One of the listed values."""
    return field(default=default, metadata={"options": options})


def part(kind: type) -> Any:
    """A nested part of the configuration with its own defaults."""
    return field(default_factory=kind)


@dataclass(frozen=True)
class Checked:
    """Coerces and checks every field when an instance is built; subclasses add rules across fields in `rules`."""

    def __post_init__(self) -> None:
        for item in fields(self):
            name = f"{type(self).__name__}.{item.name}"
            value = _coerced(name, field_types(type(self))[item.name], getattr(self, item.name))
            object.__setattr__(self, item.name, value)
            _check(name, item, value)
        self.rules()

    def rules(self) -> None:
        """Refuse combinations of fields that cannot run."""

    def refuse(self, name: str, allowed: str) -> None:
        """Raise the ConfigError of one field."""
        raise ConfigError(f"{type(self).__name__}.{name} = {getattr(self, name)!r}: {allowed}")

    def divides(self, whole: str, divisor: str) -> None:
        """Refuse a field that is no multiple of another."""
        if getattr(self, whole) % getattr(self, divisor):
            self.refuse(whole, f"must be a multiple of {divisor} = {getattr(self, divisor)}")


_TYPES: dict[type, dict[str, Any]] = {}


def field_types(kind: type) -> dict[str, Any]:
    """The annotations of a class as types, worked out once."""
    if kind not in _TYPES:
        _TYPES[kind] = get_type_hints(kind)
    return _TYPES[kind]


def _coerced(name: str, kind: Any, value: Any) -> Any:
    """Make equal values equal in JSON: 1 becomes 1.0 in a float field, lists become tuples; wrong types are refused."""
    if value is None and type(None) in get_args(kind):
        return None
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} = {value!r}: must be a list")
        item_kind = get_args(kind)[0]
        return tuple(_coerced(name, item_kind, item) for item in value)
    options = [option for option in get_args(kind) if option is not type(None)] or [kind]
    wanted = options[0]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"{name} = {value!r}: must be of type {wanted.__name__}")
    return value


def _check(name: str, item: dataclasses.Field[Any], value: Any) -> None:
    options, low, high = (item.metadata.get(key) for key in ("options", "low", "high"))
    if options is not None and value not in options:
        raise ConfigError(f"{name} = {value!r}: must be one of {', '.join(map(str, options))}")
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
        raise ConfigError(f"{name} = {value!r}: must be {_limits(low, high)}")


def _limits(low: float | None, high: float | None) -> str:
    if high is None:
        return "finite" if low is None else f"at least {low:g}"
    return f"at most {high:g}" if low is None else f"between {low:g} and {high:g}"
