"""What the GPU of a process is doing, for the record's system metrics; nothing on a CPU.

Utilisation comes from NVIDIA's management library. Where that does not answer (no driver, no permission, a part of a card) it is
left out.
"""

from __future__ import annotations

from functools import cache

import torch


def load(device: torch.device) -> dict[str, float]:
    """gpu_bytes (most held by tensors so far), gpu_memory_share (of the card, all programs), gpu_utilisation (percent, now)."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    memory = {"gpu_bytes": float(torch.cuda.max_memory_allocated(device)), "gpu_memory_share": 1 - free / total}
    busy = _utilisation(device)
    return memory if busy is None else {**memory, "gpu_utilisation": busy}


def _utilisation(device: torch.device) -> float | None:
    from pynvml import NVMLError

    try:
        return float(torch.cuda.utilization(device))
    except (NVMLError, RuntimeError, OSError) as error:
        _say_once(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return None


@cache
def _say_once(reason: str) -> None:
    print(f"GPU utilisation is not recorded ({reason})", flush=True)
