"""Imports go one way, every third-party service has one module, and what a command needs at its start is light.

The rules are read from the source with `ast`; a forbidden arrow fails with the file and the import.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("hicmae", "experiments", "ablations", "slurm", "reports")
# From the bottom up; a module imports from its own layer and those below. The longest matching prefix counts.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        *("hicmae", "hicmae.checked", "hicmae.config", "hicmae.errors"),
        *("hicmae.seeding", "hicmae.record", "hicmae.presets", "hicmae.waiting", "hicmae.whole"),
    ),
    ("hicmae.model", "hicmae.data", "hicmae.metrics"),
    ("hicmae.train", "hicmae.tracking", "hicmae.provenance"),
    ("hicmae.run", "hicmae.parity"),
    ("experiments", "ablations", "slurm", "reports"),
)
# Inside the top layer, beside imports from the same package.
TOP_MAY = {
    "experiments": {"slurm", "ablations", "reports"},
    "ablations": {"experiments.experiment", "experiments.recipes"},
    "reports": {"experiments.experiment", "experiments"},
    "slurm": set(),
}
ONLY_IN = {
    "deepspeed": "hicmae/train/engine.py",
    "mlflow": "hicmae/tracking",
    "optuna": "experiments/search",
    "submitit": "slurm/dispatch.py",
}
LIGHT = (
    "experiments.cli",
    "experiments.launcher",
    "experiments.plan",
    "slurm.local",
    "slurm.state",
    "hicmae.data.corpora",
    "hicmae.record",
)
HEAVY = ("torch", "deepspeed", "mlflow", "pandas", "optuna", "sklearn", "scipy", "matplotlib", "submitit")


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, also inside functions; typing-only imports do not run and do not count."""
    tree = ast.parse(path.read_text())
    skipped = {id(inner) for node in ast.walk(tree) if _is_type_checking(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            yield from ((node.lineno, _imported(node.module or "", alias.name)) for alias in node.names)


def _imported(module: str, name: str) -> str:
    """`from experiments import plan` imports experiments.plan; `from experiments.plan import Plan` imports experiments.plan."""
    place = CHECKOUT.joinpath(*module.split("."))
    is_module = (place / f"{name}.py").exists() or (place / name).is_dir()
    return f"{module}.{name}" if is_module else module


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def layer(module: str) -> int:
    matches = [(len(name), index) for index, names in enumerate(LAYERS) for name in names if is_in(module, name)]
    return max(matches)[1]


def is_in(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def problem(importer: str, imported: str) -> str | None:
    """Why an import is not allowed; None when it is."""
    package, other = importer.split(".")[0], imported.split(".")[0]
    if other not in PACKAGES or importer == "hicmae":  # the package's own face hands out names from below it, late
        return None
    if layer(imported) > layer(importer):
        return "imports upward"
    top = len(LAYERS) - 1
    if layer(importer) == layer(imported) == top and package != other:
        allowed = TOP_MAY[package]
        return (
            None if other in allowed or imported in allowed else f"{package} may import {sorted(allowed) or 'none'} of its layer"
        )
    return None


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_imports_go_one_way(path: Path) -> None:
    wrong = [f"{path}:{line}: {name} {why}" for line, name in imports(path) if (why := problem(module_of(path), name))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_third_party_services_have_one_module(path: Path) -> None:
    place = str(path.relative_to(CHECKOUT))
    wrong = [
        f"{path}:{line}: {name}" for line, name in imports(path) if not place.startswith(ONLY_IN.get(name.split(".")[0], ""))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), f"{path} opens without a docstring"


def test_the_rules_see_a_forbidden_arrow() -> None:
    assert problem("hicmae.data.loader", "hicmae.train.loop") == "imports upward"
    assert problem("hicmae.run", "experiments.plan") == "imports upward"
    assert problem("slurm.local", "experiments.plan") is not None
    assert problem("ablations.fusion", "experiments.plan") is not None
    assert problem("experiments.plan", "slurm.state") is None
    assert problem("hicmae.run", "hicmae.record") is None


def test_starting_a_command_imports_nothing_heavy() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert ended.stdout.split() == []
