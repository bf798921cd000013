"""What is to be repeated: the run of an id or the runs of a table's cell, what they need here, and where the repeats lie.

A cell's address is that of provenance.json and of the report's links: `<study>/<corpus>/<variant>`; `<study>/<variant>` will do
where the study has one corpus. A repeat lies in `runs/_reproduced/<run id>/<n>/<run id>`, beside a link to its pre-training.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import available, records, study_file
from hicmae import provenance
from hicmae.config import RUN_ID_LENGTH
from hicmae.errors import HicmaeError, RecordError, UsageError, nearest_first, raise_unknown
from hicmae.provenance import plain_name
from hicmae.record import RunRecord, write_json

FOLDER = "_reproduced"
SUGGESTIONS = 8
_HEX = frozenset("0123456789abcdef")
_INSTALLERS = {"hicmae", "pip", "setuptools", "uv", "wheel"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its address, the rule by which its epoch was chosen, and its runs."""

    address: str
    corpus: str
    selection: str
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """A finished run as recorded, with what decides how it is executed again."""

    record: RunRecord
    config: Mapping[str, Any]
    snapshot: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def label(self) -> str:
        data = self.config["data"]
        fold = "" if data.get("fold") is None else f" fold {data['fold']}"
        return f"{self.config['stage']} {data['corpus']}{fold} seed {self.config['seed']} ({self.id[:8]})"

    @property
    def pretraining(self) -> str | None:
        """The run id of the pre-training that it starts from."""
        initial = self.config.get("initial") or {}
        return str(initial["reference"]) if initial.get("source") == "run" else None

    @property
    def tree(self) -> str:
        """The digest of the code that it was executed from."""
        return str((self.snapshot.get("code") or {}).get("tree") or "")

    @property
    def processes(self) -> int:
        return int(self.result.get("processes") or 1)

    @property
    def threads(self) -> int | None:
        found = (self.snapshot.get("hardware") or {}).get("threads")
        return int(found) if found else None

    @property
    def is_deterministic(self) -> bool:
        return bool((self.config.get("engine") or {}).get("deterministic"))

    @property
    def hardware(self) -> dict[str, Any]:
        return hardware_of(self.snapshot)


def hardware_of(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """What can change the last bits of a result: the processor, the cards, the number of threads."""
    found = snapshot.get("hardware") or {}
    cards = ", ".join(str(card.get("name")) for card in found.get("gpus") or [])
    return {"processor": found.get("cpu"), "GPUs": cards or "none", "threads": found.get("threads")}


def cells(runs_root: Path) -> dict[str, Cell]:
    """Every cell of every launched study, by address. Damaged study files are passed over."""
    found: dict[str, Cell] = {}
    for name in study_file.studies(runs_root):
        found |= _cells_of(runs_root, name)
    return found


def _cells_of(runs_root: Path, name: str) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    try:
        study = study_file.read(runs_root, name)
        selection = str((study.get("table") or {}).get("selection") or "last")
        for row in (row for row in study["runs"] if row["stage"] == "finetune"):
            for variant in row["variants"]:
                address = f"{name}/{row['corpus']}/{variant}"
                earlier = found[address].run_ids if address in found else ()
                found[address] = Cell(address, row["corpus"], selection, (*earlier, row["run_id"]))
    except (HicmaeError, KeyError, TypeError):
        return {}
    return found


def choose(runs_root: Path, text: str) -> tuple[Cell | None, tuple[str, ...]]:
    """The cell of an address, if it is one, and the run ids. Raises UsageError, nearest first, when nothing answers to it."""
    if text and set(text) <= _HEX:
        return None, (records.find_run(runs_root, text).id,)
    known = cells(runs_root)
    short: dict[str, list[str]] = {}
    for address, cell in known.items():
        study, variant = address.split("/")[0], address[len(address.split("/")[0]) + len(cell.corpus) + 2 :]
        short.setdefault(f"{study}/{variant}", []).append(address)
    address = short[text][0] if text not in known and len(short.get(text, ())) == 1 else text
    if not known:
        raise UsageError(
            f"{runs_root}: no study was launched here, so there is no cell; name a run, or another folder with --runs"
        )
    if address not in known:
        raise_unknown(f"run or cell in {runs_root}", text, nearest_first(text, known)[:SUGGESTIONS])
    return known[address], known[address].run_ids


def read(runs_root: Path, run_id: str) -> Recorded:
    """A finished run. Raises UsageError when it is not done, and RecordError when its record is damaged.

    Its configuration is taken as it stands: an earlier version of the project, with other fields, may have made it.
    """
    record = RunRecord(runs_root / run_id)
    result = record.result()
    if result is None:
        raise UsageError(
            f"run {run_id} is not done ({record.state()}), so there is nothing to compare with; launch its study first"
        )
    try:
        config = json.loads((record.path / "config.json").read_text())
        text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
        is_own = hashlib.sha256(text.encode()).hexdigest()[:RUN_ID_LENGTH] == run_id
        snapshot, _ = record.snapshot(), (config["stage"], config["data"]["corpus"], config["seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{record.path}/config.json: damaged ({error!r}); restore it from a backup or an archive") from None
    if not is_own:
        raise RecordError(f"{record.path}/config.json: does not hash to {run_id}; it was edited; restore it from an archive")
    if not snapshot:
        raise RecordError(
            f"{record.path}/snapshot.json: missing; nobody knows with which code and packages this run was executed"
        )
    return Recorded(record, config, snapshot, result)


def environment_differences(recorded: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What of the interpreter, the packages and the kind of device is not as recorded: name, then, here.

    Tools that no run imports (installers, the tests') do not count, nor does the project itself: the code is the recorded one.
    """
    found = provenance.environment()
    then = recorded.get("environment") or {}
    differences = [("python", str(then["python"]), found["python"])] if then.get("python") not in (None, found["python"]) else []
    here = {plain_name(name): version for name, version in found["packages"].items()}
    tools = _INSTALLERS.union(provenance.dependencies(extras=True))
    for name, version in (then.get("packages") or {}).items():
        if plain_name(name) not in tools and here.get(plain_name(name)) != version:
            differences.append((str(name), str(version), str(here.get(plain_name(name), "not installed"))))
    cards, cards_here = bool((recorded.get("hardware") or {}).get("gpus")), _has_gpu()
    if cards != cards_here:
        differences.append(("device", "GPU" if cards else "CPU", "GPU" if cards_here else "CPU"))
    return differences


def _has_gpu() -> bool:
    from slurm.machine import visible_gpus

    return bool(visible_gpus())


def require_data(runs: Iterable[Recorded]) -> None:
    """Raise UsageError unless every corpus lies here as it was when the runs were made."""
    from hicmae.data import manifest

    wanted = {(run.config["data"]["corpus"], _fingerprint(run)) for run in runs}
    for name, recorded in sorted(wanted):
        reason = available.why_absent(name)
        if reason is not None:
            raise UsageError(reason)
        found = manifest.fingerprint(name)
        if recorded and found != recorded:
            raise UsageError(
                f"{name}: the data here (fingerprint {found[:12]}) are not those of the record ({recorded[:12]}); restore them "
                f"(see `hicmae data check {name}`), or point HICMAE_DATA to where they are"
            )


def _fingerprint(run: Recorded) -> str:
    return str(run.config["data"].get("fingerprint") or (run.snapshot.get("data") or {}).get("fingerprint") or "")


def require_weights(runs_root: Path, run: Recorded) -> None:
    """Raise HicmaeError when a recorded pre-training has no weights left to start from."""
    if run.pretraining is None:
        return
    epoch = run.config["initial"].get("epoch")
    name = "final" if epoch is None else f"epoch-{epoch:04d}"
    path = runs_root / run.pretraining / "checkpoints" / f"{name}.safetensors"
    if not path.exists():
        raise HicmaeError(
            f"{path}: the weights that {run.label} started from are gone; add --with-pretraining to make them again"
        )


def place(runs_root: Path, run: Recorded, about: Mapping[str, Any]) -> Path:
    """The directory of a repeat: that of one which was broken off and asked for the same, else a new one."""
    parent = runs_root.absolute() / FOLDER / run.id
    parent.mkdir(parents=True, exist_ok=True)
    numbers = sorted(int(path.name) for path in parent.iterdir() if path.name.isdigit())
    if numbers and _can_go_on(parent / str(numbers[-1]), run.id, about):
        return parent / str(numbers[-1]) / run.id
    for number in itertools.count(numbers[-1] + 1 if numbers else 1):
        try:
            (parent / str(number)).mkdir()
            break
        except FileExistsError:  # somebody else repeats it at the same time
            continue
    folder = parent / str(number) / run.id
    for name in ("checkpoints", "log"):
        (folder / name).mkdir(parents=True)
    write_json(folder / "config.json", run.config)
    write_json(folder.parent / "request.json", about)
    return folder


def _can_go_on(folder: Path, run_id: str, about: Mapping[str, Any]) -> bool:
    try:
        same = json.loads((folder / "request.json").read_text()) == about
    except (OSError, ValueError):
        return False
    repeat = RunRecord(folder / run_id)
    return same and not (repeat.path / "result.json").exists() and not repeat.is_locked()


def link_pretraining(folder: Path, run_id: str, target: Path) -> None:
    """Let a repeat find its pre-training beside itself."""
    link = folder.parent / run_id
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(target.absolute(), link.parent))


def linked_pretraining(folder: Path, run_id: str) -> Path | None:
    """Where the pre-training lies that a repeat which was broken off started from."""
    link = folder.parent / run_id
    return link.resolve() if link.is_symlink() else None
