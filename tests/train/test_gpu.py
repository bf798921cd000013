"""What is recorded of a GPU, with torch's answers in place of a card: none is there where these tests run."""

from __future__ import annotations

import pytest
import torch
from pynvml import NVML_ERROR_NOT_SUPPORTED, NVMLError

from hicmae.train import gpu

CARD = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 30, 4 << 30))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1 << 29)
    return monkeypatch


def test_a_cpu_has_nothing_to_say() -> None:
    assert gpu.load(torch.device("cpu")) == {}


def test_memory_and_utilisation_of_a_card(card: pytest.MonkeyPatch) -> None:
    card.setattr(torch.cuda, "utilization", lambda device: 73)
    assert gpu.load(CARD) == {"gpu_bytes": float(1 << 29), "gpu_memory_share": 0.25, "gpu_utilisation": 73.0}


@pytest.mark.parametrize("error", [NVMLError(NVML_ERROR_NOT_SUPPORTED), RuntimeError("no driver")])
def test_where_the_library_does_not_answer_memory_is_recorded_and_the_reason_said_once(
    card: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def refuse(device: torch.device) -> int:
        raise error

    card.setattr(torch.cuda, "utilization", refuse)
    assert [set(gpu.load(CARD)) for _ in range(2)] == [{"gpu_bytes", "gpu_memory_share"}] * 2
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and str(error) in said[0]
