"""Peak memory of each part of a step."""

from pathlib import Path
from typing import Any

import torch

from mixfast.run.clock import Clock

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peaks(Clock):
    """A clock that measures the peak memory of each part in bytes, instead of its time.

    On a GPU it counts the tensors of torch's allocator, on a CPU the resident memory of the process, as Linux reports.
    """

    def __init__(self, device: torch.device):
        self._device = device
        super().__init__(device)

    def _now(self) -> int:
        """The peak since the last call."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            return peak
        peak = resident_bytes("VmHWM")
        CLEAR.write_text("5")
        return peak

    def _charge(self, name: str, start: Any, peak: Any) -> None:
        self._parts[name] = max(self._parts.get(name, 0), peak)

    def bytes(self) -> dict[str, int]:
        """The peaks by part since the last call."""
        parts, self._parts = self._parts, {}
        return {name: int(peak) for name, peak in parts.items()}


def measurable(device: torch.device) -> bool:
    """Whether this machine reports peaks of memory."""
    return device.type == "cuda" or CLEAR.exists()


def held_bytes(device: torch.device) -> int:
    """Bytes allocated now: by tensors on a GPU, by the process on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes("VmRSS")


def resident_bytes(field: str) -> int:
    """Bytes of resident memory of this process: now (field VmRSS) or at its peak (VmHWM)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
