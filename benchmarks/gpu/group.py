"""A group of implementations that are measured in turn on the same inputs: a table of the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import mixfast
from benchmarks.gpu.floors import Work
from benchmarks.gpu.timing import Call


@dataclass(frozen=True)
class Peer:
    prepare: Callable[[Any], Call]  # from one set of inputs
    graph: bool = True  # whether a graph can capture it
    comparable: bool = True  # whether it returns what the others return


@dataclass(frozen=True)
class Group:
    task: str  # operation, pass, shape, dtype
    draw: Callable[[torch.Generator], Any]  # one set of inputs, on the generator's device
    peers: Mapping[str, Peer]
    work: Work
    truth: Callable[[Any], Any]  # what the peers return, in float32
    graph: bool = True  # else eager calls
    cold: bool = True  # else the same inputs again and again
    goals_us: Mapping[str, float] = field(default_factory=dict)  # by implementation, on an H200
    facts: Mapping[str, Any] = field(default_factory=dict)  # for plots
    compiles: bool = False

    @property
    def title(self) -> str:
        conditions = f"{'CUDA graph' if self.graph else 'eager'}, {'cold' if self.cold else 'hot'} L2"
        return f"{self.task}; {conditions}" + ("; compiled code" if self.compiles else "")

    def among(self, *, graph: bool, cold: bool) -> "Group":
        """A copy under other conditions; with a graph, peers that cannot be captured are omitted."""
        peers = {name: peer for name, peer in self.peers.items() if peer.graph or not graph}
        return replace(self, graph=graph, cold=cold, peers=peers)


def usable_backends(operation: str) -> list[str]:
    """The backends for tensors on a GPU; without a GPU, the one that smoke runs use."""
    usable = [name for name, reason in mixfast.backends()[operation].items() if reason is None]
    return [name for name in ("cuda", "triton") if name in usable and torch.cuda.is_available()] or ["cpu"]


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in tensors(item)] if isinstance(value, (tuple, list)) else []


def deviation(result: Any, truth: Any) -> float:
    """|result - truth| / |truth| over all numbers."""
    flat = [torch.cat([tensor.detach().float().flatten() for tensor in tensors(value)]) for value in (result, truth)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()
