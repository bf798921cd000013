"""What all tests share: the marks `system` and `recordings`, and an isolated place for data, caches and runs.

@pytest.mark.system("pdflatex", "pdftoppm")   # programs; a missing one skips, and fails where CI=true
@pytest.mark.recordings                        # needs the real recordings beside the checkout
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from filelock import FileLock

CHECKOUT = Path(__file__).resolve().parent.parent
RECORDINGS = CHECKOUT.parent / "shared" / "clips"
REFERENCE = CHECKOUT.parent / "shared" / "reference"
MISSING_PROGRAM = "missing system program"

# Debian puts the servers' programs where an ordinary PATH does not look.
os.environ["PATH"] += os.pathsep + os.pathsep.join(
    ["/usr/sbin", "/sbin", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
)

# A shell's background job ignores Ctrl-C, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("system"):
        missing = [program for program in mark.args if shutil.which(program) is None]
        if missing and os.environ.get("CI") == "true":
            pytest.fail(f"{MISSING_PROGRAM}: {', '.join(missing)} (make system-packages installs it)", pytrace=False)
        if missing:
            pytest.skip(f"{MISSING_PROGRAM}: {', '.join(missing)} (make system-packages installs it)")
    if item.get_closest_marker("recordings") and not RECORDINGS.is_dir():
        pytest.skip("the real recordings are not beside this checkout")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long ones first, lest a process is left alone with them at the end: groups (SLURM before others), then slow ones."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> tuple[bool, bool, bool]:
    group = item.get_closest_marker("xdist_group")
    return group is None, group is not None and "slurm" not in group.args[0], item.get_closest_marker("slow") is None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if MISSING_PROGRAM in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests were skipped for want of a system program: make system-packages")


@pytest.fixture
def recordings() -> Path:
    """The folder of real recordings; use together with the mark of the same name."""
    return RECORDINGS


@pytest.fixture
def reference() -> Path:
    """The folder of numbers made with the authors' release; skips where it is absent."""
    if not REFERENCE.is_dir():
        pytest.skip("the reference numbers are not beside this checkout")
    return REFERENCE


@pytest.fixture(scope="session")
def generated_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the generated corpus at its default size, made once for all test processes; only to be read."""
    from hicmae.data.synthetic import generate

    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    with FileLock(place / "generated.lock"):
        generate(place / "generated" / "synthetic")  # makes only what is missing
    return place / "generated"


@pytest.fixture(autouse=True)
def unmeasured_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No coverage of processes that slow tests start: it costs each a second, and other tests go through the same lines."""
    if request.node.get_closest_marker("slow"):
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(autouse=True)
def isolated_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's configuration, caches, data or runs; runs draw no pictures, launches leave MLflow be."""
    home = tmp_path_factory.mktemp("home")
    for name in ("HICMAE_DATA", "HICMAE_RUNS", "HICMAE_STORE", "HICMAE_CHECKPOINTS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HICMAE_PICTURES", "HICMAE_SYNC"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
