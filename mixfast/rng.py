"""Named random generators: every draw of a run comes from one of these, and all of them are checkpointed."""

import hashlib

import torch
from torch import Tensor


class Generators:
    """One independent `torch.Generator` per purpose, all derived from a single seed.

    Purposes are named by their first use, so that a draw added to one part of a run does not change the
    stream of another: `generators["augment"]`, `["mix"]`, `["shuffle"]`, `["order"]`, `["weights"]`, `["queue"]`.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.seed = seed
        self.device = torch.device(device)
        self._streams: dict[str, torch.Generator] = {}

    def __getitem__(self, name: str) -> torch.Generator:
        if name not in self._streams:
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
            self._streams[name] = torch.Generator(self.device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return self._streams[name]

    def state_dict(self) -> dict[str, Tensor]:
        """The state of every stream used so far (uint8 tensors on the CPU)."""
        return {name: stream.get_state() for name, stream in self._streams.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue every stream where `state_dict` left it."""
        for name, value in state.items():
            self[name].set_state(value)
