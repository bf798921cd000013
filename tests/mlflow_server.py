"""Waiting for a real MLflow server that a test has started."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest
import requests

PATIENCE_S = 90


def wait_for(address: str, server: subprocess.Popen[Any]) -> None:
    """Return when the server answers; fail the test when it ends or says nothing for long."""
    for _ in range(10 * PATIENCE_S):
        assert server.poll() is None, "the server ended"
        try:
            if requests.get(f"{address}/health", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.1)
    pytest.fail("the server does not answer")
