"""Notifications reach a real command and a real web server, and say so when they do not."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from experiments.notify import main, notify
from hicmae.errors import HicmaeError
from slurm import arrays


class Hook(BaseHTTPRequestHandler):
    received: list[dict[str, object]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append(json.loads(body))
        self.send_response(500 if self.path.startswith("/broken") else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hook.received.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_web_hook_gets_the_facts(address: str) -> None:
    notify(f"{address}/x", "ablation_fusion", 0, {"done": 30})
    expected = {"study": "ablation_fusion", "outcome": "finished", "runs": {"done": 30}}
    assert Hook.received == [{**expected, "text": "ablation_fusion finished: 30 done"}]


@pytest.mark.parametrize(
    ("counts", "outcome"),
    [
        ({"done": 3, "failed": 1, "blocked": 2}, "failed"),
        ({"done": 3, "interrupted": 1, "cancelled": 1, "blocked": 2}, "unfinished"),
        ({"done": 3, "submitted": 1}, "unfinished"),
    ],
)
def test_what_was_cut_off_or_blocked_is_unfinished_not_failed(address: str, counts: dict[str, int], outcome: str) -> None:
    notify(address, "s", 1, counts)
    (told,) = Hook.received
    assert (told["outcome"], told["runs"]) == (outcome, counts)


def test_a_command_gets_the_text_and_the_facts(tmp_path: Path) -> None:
    program = tmp_path / "a tell.py"
    program.write_text(
        f"import pathlib, sys\npathlib.Path({str(tmp_path / 'told')!r}).write_text('|'.join([*sys.argv[1:], sys.stdin.read()]))\n"
    )
    notify(f"{sys.executable} '{program}' --loud", "s $(touch hacked)", 1, {"done": 1, "failed": 2})
    option, text, facts = (tmp_path / "told").read_text().split("|")
    assert (option, text) == ("--loud", "s $(touch hacked) failed: 1 done, 2 failed")
    assert json.loads(facts)["outcome"] == "failed"


@pytest.mark.parametrize("receiver", ["no-such-program-here", "false", "'unclosed", "http://127.0.0.1:9/x"])
def test_a_receiver_that_cannot_be_reached_is_named(receiver: str) -> None:
    with pytest.raises(HicmaeError, match="the launch itself stopped"):
        notify(receiver, "s", 130, {})


def test_a_web_hook_that_answers_with_an_error_is_named_by_its_host_alone(address: str) -> None:
    with pytest.raises(HicmaeError) as failed:
        notify(f"{address}/broken/secret?token=secret", "s", 0, {})
    assert str(failed.value) == f"--notify {address}: HTTP error 500; the launch itself finished"


@pytest.mark.parametrize(
    ("receiver", "told"),
    [
        ("false --token secret", "false: exit code 1"),
        ("/bin/no-such-program secret", "no-such-program: No such file or directory"),
        ("http://me:secret@127.0.0.1:9/secret", "http://127.0.0.1:9: "),
        ("http://127.0.0.1:secret/secret", "(unreadable): not a command line or an address that can be read"),
        ("--token 'secret", "(unreadable): not a command line"),
    ],
)
def test_errors_keep_secrets(receiver: str, told: str) -> None:
    with pytest.raises(HicmaeError) as failed:
        notify(receiver, "s", 1, {})
    assert told in str(failed.value)
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize(("receiver", "exit_code"), [("true", 0), ("false --token secret", 1)])
def test_a_job_that_tells_forgets_its_receiver_in_any_case(tmp_path: Path, receiver: str, exit_code: int) -> None:
    array = arrays.create(tmp_path, "notify-s", [], {"arguments": [receiver, "s"], "count": 1})
    assert main(array.folder) == exit_code
    assert arrays.read(tmp_path, array.name).resources["arguments"] == []
    assert main(array.folder) == 0
