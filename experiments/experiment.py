"""Experiments: named studies that enumerate runs.

A study is a function `study() -> Experiment` in a Python file: in `ablations/` (called `ablation_<file>`), in
`experiments/main_results.py`, or in any file of one's own (`python experiments/launch.py path/to/my_study.py`; start from
`experiments/template.py`). It names variants, each a delta of dotted fields on the base recipe of a size; the folds are those
of the corpora.

    experiment = find("ablation_hierarchical")
    runs = experiment.runs()          # pre-trainings first; variants that resolve to the same configuration are one run
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import recipes
from hicmae.config import STAGES, C, Checked, FinetuneConfig, PretrainConfig, RunConfig, change, flatten, run_id
from hicmae.errors import UsageError, raise_unknown

SMOKE = "_smoke"  # ends the name of a study at smoke size, so that its results never mix with the real ones
SMOKE_FOLDS = (1, 2)
_OWN = ("main_results",)  # studies of this package; those of `ablations` are found by their files
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Variant:
    """One row of a study: dotted changes to the base, for whichever stages have the field.

    `pretrain.` or `finetune.` in front of a name restricts it to that stage. `columns` is what tables show of the variant.
    `smoke` replaces `delta` at smoke size where the values depend on the size. `paper` is the variant's name among the
    published numbers.
    """

    name: str
    delta: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    smoke: Mapping[str, Any] | None = None
    paper: str = ""


@dataclass(frozen=True)
class Table:
    """How the study becomes a table: one row per variant; no metrics means those of each corpus."""

    columns: tuple[str, ...] = ()  # keys of the variants' `columns`, in order
    metrics: tuple[str, ...] = ()
    baseline: str = ""  # the variant that others are compared with
    selection: str = "last"


@dataclass(frozen=True)
class Run:
    """One stage with one resolved configuration, and the variants that share it."""

    config: RunConfig
    run_id: str
    experiment: str
    variants: tuple[str, ...]
    corpus: str
    fold: int | None
    seed: int
    depends_on: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        return self.config.stage

    @property
    def label(self) -> str:
        """For people: `finetune mafw fold 2: skips + fusion`; a shared run names all its variants."""
        fold = f" fold {self.fold}" if self.fold is not None else ""
        seed = f" seed {self.seed}" if self.seed else ""
        return f"{self.stage} {self.corpus}{fold}{seed}: {' / '.join(self.variants)}"


@dataclass(frozen=True)
class Experiment:
    """A study. Raises UsageError for duplicate or unusable names and for fields that no stage has."""

    name: str
    title: str
    variants: tuple[Variant, ...]
    corpora: tuple[str, ...]
    description: str = ""
    source: str = ""  # the table of the paper that it repeats
    folds: tuple[int, ...] | None = None  # None: all that the corpus has
    seeds: tuple[int, ...] = (0,)
    pretrain_seed: int | None = 0  # None: every seed pre-trains too, not only fine-tunes
    size: str = "base"
    pretrain_corpus: str | None = "voxceleb2"  # None: from scratch
    table: Table = field(default_factory=Table)
    deterministic: bool = False  # of all runs, unless a variant says otherwise

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"experiment name {self.name!r}: use letters, digits, '_', '-', '+' and '.' only (it names files)")
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) < len(names) or "" in names:
            raise UsageError(f"{self.name}: variants need distinct names, found {names}")
        if self.table.baseline and self.table.baseline not in names:
            raise_unknown(f"baseline of {self.name}", self.table.baseline, names)

    @property
    def is_smoke(self) -> bool:
        return self.size == "smoke"

    def at_smoke_size(self) -> Experiment:
        """The same experiment at a size for one CPU core, on the generated corpus."""
        variants = tuple(replace(v, delta=v.delta if v.smoke is None else v.smoke) for v in self.variants)
        pretrain_corpus = "synthetic" if self.pretrain_corpus else None
        return replace(
            self,
            name=self.name + SMOKE,
            variants=variants,
            corpora=("synthetic",),
            folds=SMOKE_FOLDS,
            size="smoke",
            pretrain_corpus=pretrain_corpus,
        )

    def used_corpora(self) -> tuple[str, ...]:
        """All corpora that the runs read, that of pre-training first."""
        return tuple(dict.fromkeys([*([self.pretrain_corpus] if self.pretrain_corpus else []), *self.corpora]))

    def runs(self, fingerprint: Callable[[str], str]) -> list[Run]:
        """All runs, each after those that it depends on. `fingerprint` gives a corpus' content hash (`data.fingerprints`)."""
        prints = {name: fingerprint(name) for name in self.used_corpora()}
        merged: dict[str, Run] = {}
        for run in self._every(prints):
            known = merged.get(run.run_id)
            merged[run.run_id] = run if known is None else replace(known, variants=_union(known.variants, run.variants))
        return sorted(merged.values(), key=lambda run: run.stage != "pretrain")  # stable: declaration order inside a stage

    def describe(self) -> dict[str, Any]:
        """What readers of the study file need to know of it, as JSON."""
        variants = [{"name": v.name, "columns": dict(v.columns), "delta": dict(v.delta), "paper": v.paper} for v in self.variants]
        return {
            "experiment": self.name,
            "title": self.title,
            "description": self.description,
            "source": self.source,
            "smoke": self.is_smoke,
            "table": {"rows": [v.name for v in self.variants], **asdict(self.table)},
            "variants": variants,
        }

    def _every(self, prints: Mapping[str, str]) -> Iterator[Run]:
        for variant in self.variants:
            deltas = split_delta(variant.delta)
            pretrains = {seed: self._pretrain(variant, deltas["pretrain"], seed, prints) for seed in self.seeds}
            for corpus in self.corpora:
                base = self._base(recipes.finetune(self.size, corpus), prints[corpus])
                for fold in self._folds(corpus):
                    for seed in self.seeds:
                        pretrain = pretrains[seed]
                        yield from [pretrain] if pretrain else []
                        config = _finetune(base, deltas["finetune"], fold, seed, pretrain)
                        yield self._run(variant, config, (pretrain.run_id,) if pretrain else ())

    def _pretrain(self, variant: Variant, delta: Mapping[str, Any], seed: int, prints: Mapping[str, str]) -> Run | None:
        if self.pretrain_corpus is None or "initial.source" in split_delta(variant.delta)["finetune"]:
            return None
        config = self._base(recipes.pretrain(self.size, self.pretrain_corpus), prints[self.pretrain_corpus])
        config = change(config, {"keep_epochs": (), "seed": seed if self.pretrain_seed is None else self.pretrain_seed, **delta})
        if "keep_epochs" not in delta:
            config = change(config, {"keep_epochs": recipes.kept_epochs(config.optim.epochs)})
        return self._run(variant, config, ())

    def _base(self, recipe: C, fingerprint: str) -> C:
        determinism = {"engine.deterministic": True} if self.deterministic else {}
        return change(recipe, {"data.fingerprint": fingerprint, **determinism})

    def _folds(self, corpus: str) -> tuple[int, ...]:
        known = recipes.corpus(corpus).folds
        for fold in self.folds or ():
            if fold not in known:
                raise UsageError(f"{self.name}: {corpus} has no fold {fold}; valid: {', '.join(map(str, known))}")
        return known if self.folds is None else self.folds

    def _run(self, variant: Variant, config: RunConfig, depends_on: tuple[str, ...]) -> Run:
        return Run(
            config, run_id(config), self.name, (variant.name,), config.data.corpus, config.data.fold, config.seed, depends_on
        )


def split_delta(delta: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The changes of each stage, without the stage's prefix. Raises UsageError, nearest first, for a field that no stage has."""
    parts: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
    for name, value in delta.items():
        stage, _, rest = name.partition(".")
        wanted = {stage: rest} if stage in STAGES else dict.fromkeys(STAGES, name)
        having = {stage: inner for stage, inner in wanted.items() if inner in _FIELDS[stage]}
        if not having:
            raise_unknown("field in a delta", name, {inner for stage in wanted for inner in _FIELDS[stage]})
        for stage, inner in having.items():
            parts[stage][inner] = value
    return parts


def size_delta(size: str, of: str = "base") -> dict[str, Any]:
    """The fields in which a size's encoder and decoder differ from those of the size `of`."""
    old, new = recipes.pretrain(of), recipes.pretrain(size)
    before, after = flatten(old), flatten(new)
    return {name: after[name] for name in after if name.startswith(("encoder.", "decoder.")) and before[name] != after[name]}


def names() -> tuple[str, ...]:
    """The studies that the project knows by name."""
    import ablations

    found = sorted(f"ablation_{module.name}" for module in pkgutil.iter_modules(ablations.__path__))
    return (*_OWN, *found)


def find(name: str) -> Experiment:
    """The study of a name, or of a Python file that defines `study()`. Raises UsageError when there is none."""
    if is_file(name):
        return _study(load_file(Path(name)))
    if name not in names():
        raise_unknown("experiment", name, names())
    module = f"experiments.{name}" if name in _OWN else f"ablations.{name.removeprefix('ablation_')}"
    return _study(importlib.import_module(module))


def is_file(name: str) -> bool:
    """Whether a study is named by its file."""
    return name.endswith(".py") or "/" in name


def _study(module: ModuleType) -> Experiment:
    make = getattr(module, "study", None)
    experiment = make() if callable(make) else None
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{module.__file__}: needs a function study() that returns an Experiment; see experiments/template.py")
    return experiment


def load_file(path: Path) -> ModuleType:
    """Execute a user's Python file as a module. Raises UsageError when it is none."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; an experiment is a name ({', '.join(names())}) or a Python file")
    module = ModuleType(f"hicmae_study_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        # Not by import: that would take cached bytecode for a file edited within the same second, and leave some beside it.
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the user's own file, named by the user
    except SyntaxError as error:
        raise UsageError(f"{path}:{error.lineno}: {error.msg}; is it a Python file with a function study()?") from None
    return module


def _finetune(base: FinetuneConfig, delta: Mapping[str, Any], fold: int, seed: int, pretrain: Run | None) -> FinetuneConfig:
    start = {"initial.source": "run", "initial.reference": pretrain.run_id} if pretrain else {}
    return change(base, {"data.fold": fold, "seed": seed, **delta, **start})


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *second]))


def _fields(config: Checked) -> frozenset[str]:
    return frozenset(flatten(config))


_FIELDS = {"pretrain": _fields(PretrainConfig()), "finetune": _fields(FinetuneConfig())}
