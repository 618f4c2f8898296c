"""Named random generators: every draw of a run comes from one of these, and all of them are checkpointed."""

import hashlib

import torch
from torch import Tensor

__all__ = ["Generators"]

COUNTER = "counter/"  # prefix of a counter's name in a saved state


class Generators:
    """One independent `torch.Generator` per purpose on `device`, all derived from the single `seed`.

    The streams of a run are `generators["mix"]`, `["shuffle"]`, `["order"]`, `["weights"]`, `["queue"]` and
    `generators.counter("augment")`. Each is made when its name is used first, from the seed and the name alone, so that
    a draw added to one part of a run does not change the streams of the others.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.seed = seed
        self.device = torch.device(device)
        self._streams: dict[str, torch.Generator] = {}
        self._counters: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> torch.Generator:
        if name not in self._streams:
            self._streams[name] = torch.Generator(self.device).manual_seed(self._seed_of(name))
        return self._streams[name]

    def counter(self, name: str) -> Tensor:
        """The state of the counter-based stream `name` for `mixfast.draw_views`: int64 [2], (key, next draw).

        Each draw advances the tensor in place, so that a captured CUDA graph also draws new numbers at every replay.
        """
        if name not in self._counters:
            self._counters[name] = torch.tensor([self._seed_of(f"{COUNTER}{name}"), 0], device=self.device)
        return self._counters[name]

    def streams(self) -> list[torch.Generator]:
        """Every `torch.Generator` made so far; a CUDA graph must register them."""
        return list(self._streams.values())

    def _seed_of(self, name: str) -> int:
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1

    def state_dict(self) -> dict[str, Tensor]:
        """The state of every stream used so far, on the CPU: uint8 tensors, and int64 [2] for counter-based streams."""
        counters = {f"{COUNTER}{name}": counter.to("cpu", copy=True) for name, counter in self._counters.items()}
        return {name: stream.get_state() for name, stream in self._streams.items()} | counters

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue every stream from `state`, as `state_dict` returned it."""
        for name, value in state.items():
            if name.startswith(COUNTER):
                self.counter(name.removeprefix(COUNTER)).copy_(value)
            else:
                self[name].set_state(value)
