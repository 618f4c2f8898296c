"""multi_queue_infonce and nt_xent on a GPU: the cases of training runs, a sweep of the queue's length."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import mixfast
from benchmarks import infonce
from benchmarks.gpu.floors import Work
from benchmarks.gpu.group import Group, Peer, usable_backends
from benchmarks.gpu.timing import Call
from benchmarks.infonce import Case, Inputs
from mixfast.ops.infonce import gpu_cuda

FIVE = (0, 1, 2, 0, 1)
STEP, LARGE_STEP = Case(FIVE, 512, 4096), Case(FIVE, 512, 65536)
ONE_TERM, LARGE = Case((0,), 4096, 65536), Case(FIVE, 4096, 65536)
# Microseconds on an H200: (cuda, triton). Float32 may take three and five times the goal of 16 bits.
GOALS = {STEP: (15, 25), LARGE_STEP: (140, 200), ONE_TERM: (215, 320), LARGE: (1060, 1600)}
LOSS_GOALS, SIMCLR_GOAL = (80, 120), 130
KEYS = [1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072]
IMAGES = 4096  # of the in-batch loss: 8,192 rows
LIGHTLY = {"graph": False, "comparable": False}  # it waits for the GPU; it normalises rows, and derives that too
EXACT = 3  # products of 16 bits in one of float32


class Views(NamedTuple):
    first: Tensor  # [N, D], requiring gradients
    second: Tensor


def kernels() -> list[str]:
    """The main kernels of multi_queue_infonce in CUDA C++, if this GPU can run several."""
    usable = torch.cuda.is_available() and gpu_cuda.unavailable() is None
    return names if usable and len(names := gpu_cuda.kernels()) > 1 else []


def by_kernel(name: str, call: Call) -> Call:
    def run() -> Any:
        with gpu_cuda.kernel(name):
            return call()

    return run


def small(case: Case, smoke: bool) -> Case:
    return Case(case.index, case.rows // 64, case.keys // 64, 16) if smoke else case


def in_float32(data: Inputs) -> Inputs:
    queries = [query.detach().float().requires_grad_() for query in data.queries]
    return Inputs(queries, *([x.float() for x in rows] for rows in (data.positives, data.queues)), data.index)


def group(case: Case, dtype: torch.dtype, *, gradients: bool = True, sweep: bool = False) -> Group:
    name = str(dtype).removeprefix("torch.")
    run = infonce.with_gradients if gradients else infonce.without_gradients
    rows = case.rows * len(case.index)
    queues = max(case.index) + 1
    factor = (4 if gradients else 2) * (EXACT if dtype == torch.float32 else 1)
    values = queues * case.keys * case.dim + rows * case.dim * (3 if gradients else 2)
    goals = LOSS_GOALS if not gradients else GOALS.get(case)
    if goals and dtype == torch.float32:
        goals = (3 * goals[0], 5 * goals[0])
    fast = usable_backends("multi_queue_infonce")
    peers = {
        f"mixfast {backend}": Peer(lambda data, backend=backend: run(infonce.by_mixfast(backend), data))
        for backend in fast
    }
    if dtype != torch.float32:
        for backend in kernels():
            prepare = lambda data, backend=backend: by_kernel(backend, run(infonce.by_mixfast("cuda"), data))  # noqa: E731
            peers[f"mixfast cuda, {backend} kernel"] = Peer(prepare)
    peers |= rivals(dtype, run, gradients)
    if sweep:
        peers = {key: peer for key, peer in peers.items() if key.startswith("mixfast") or "each queue" in key}
    return Group(
        task=("time against K: " if sweep else "")
        + f"multi_queue_infonce, {'loss and gradients' if gradients else 'loss'}: {case}, {name}",
        draw=lambda generator: infonce.inputs(case, dtype, generator=generator),
        peers=peers,
        work=Work(values * dtype.itemsize, factor * rows * case.keys * case.dim),
        truth=lambda data: run(infonce.eager, in_float32(data))(),
        goals_us=dict(zip(("mixfast cuda", "mixfast triton"), goals, strict=True)) if goals and not sweep else {},
        facts={"terms": len(case.index), "queues": queues, "rows": case.rows, "keys": case.keys, "dim": case.dim}
        | {"dtype": name, **({"sweep": "keys", "curve": f"{len(case.index)} x {case.rows} rows"} if sweep else {})},
    )


def training(case: Case) -> Group:
    """What a step calls under autocast: rows in float32, which the operation casts, and queues of the cast's dtype."""
    base = group(case, torch.float16)

    def draw(generator: torch.Generator) -> Inputs:
        data = infonce.inputs(case, torch.float16, generator=generator)
        return in_float32(data)._replace(queues=data.queues)

    def under_autocast(peer: Peer) -> Peer:
        def prepare(data: Inputs) -> Call:
            call, kind = peer.prepare(data), data.queues[0].device.type

            def run() -> Any:
                with torch.autocast(kind, dtype=torch.bfloat16):
                    return call()

            return run

        return replace(peer, prepare=prepare)

    chosen = {name: peer for name, peer in base.peers.items() if name.startswith("mixfast") or name == "eager"}
    peers = {name: under_autocast(peer) for name, peer in chosen.items()}
    return replace(base, task=f"{base.task} and float32 rows under autocast", draw=draw, peers=peers)


def rivals(dtype: torch.dtype, run: Callable[..., Call], gradients: bool) -> dict[str, Peer]:
    kind = "memory-efficient" if dtype == torch.float32 else "flash"
    pick = 1 if gradients else 0
    rivals_by_name = {
        f"{kind} attention, V = K, each queue": Peer(lambda data: lambda: infonce.attention(data, share=True)[pick]),
        f"{kind} attention, V = K, each term": Peer(lambda data: lambda: infonce.attention(data)[pick]),
        "eager": Peer(lambda data: run(infonce.eager, data)),
    }
    if gradients:
        rivals_by_name["two matrix products"] = Peer(lambda data: lambda: infonce.products(data), comparable=False)
    if importlib.util.find_spec("inf_cl"):
        rivals_by_name["Inf-CL"] = Peer(lambda data: run(infonce.inf_cl, data))
    if importlib.util.find_spec("lightly") and dtype == torch.float32:
        rivals_by_name["lightly NTXentLoss"] = Peer(lambda data: run(infonce.lightly(data), data), **LIGHTLY)
    return rivals_by_name


def step(smoke: bool) -> Iterator[Group]:
    for case in (STEP, LARGE_STEP, ONE_TERM, LARGE):
        yield group(small(case, smoke), torch.bfloat16).among(graph=True, cold=True)
    yield group(small(LARGE_STEP, smoke), torch.bfloat16, gradients=False).among(graph=True, cold=True)
    yield simclr(smoke).among(graph=True, cold=True)
    for case in (STEP, LARGE_STEP):
        yield training(small(case, smoke)).among(graph=True, cold=True)
        yield group(small(case, smoke), torch.float32).among(graph=True, cold=True)


def eager(smoke: bool) -> Iterator[Group]:
    """What a training step calls, without a graph; first so little that the host's part is what shows."""
    yield group(Case(FIVE, 1, 1), torch.bfloat16).among(graph=False, cold=False)
    for case in (STEP, LARGE_STEP):
        for dtype in (torch.float32, torch.bfloat16):
            yield group(small(case, smoke), dtype).among(graph=False, cold=False)
    yield simclr(smoke).among(graph=False, cold=False)


def sweep(smoke: bool) -> Iterator[Group]:
    """Time against the number of keys."""
    for keys in KEYS[:2] if smoke else KEYS:
        yield group(small(Case(FIVE, 512, keys), smoke), torch.bfloat16, sweep=True)


def compiled(smoke: bool) -> Iterator[Group]:
    """Against torch.compile of eager code."""
    cases = [
        (STEP, torch.bfloat16, True),
        (LARGE_STEP, torch.bfloat16, True),
        (ONE_TERM, torch.bfloat16, True),
        (LARGE_STEP, torch.bfloat16, False),
        (LARGE_STEP, torch.float32, True),
    ]
    for case, dtype, gradients in cases[: 1 if smoke else None]:
        base = group(small(case, smoke), dtype, gradients=gradients)
        run = infonce.with_gradients if gradients else infonce.without_gradients
        yield with_compiled(base, infonce.eager, run, smoke)
    yield with_compiled(simclr(smoke), in_batch, both_gradients, smoke)


def with_compiled(base: Group, eager: Callable[..., Tensor], run: Callable[..., Call], smoke: bool) -> Group:
    function = torch.compile(eager, fullgraph=True, backend="eager" if smoke else "inductor")
    peers: Mapping[str, Peer] = {name: peer for name, peer in base.peers.items() if name.startswith("mixfast")}
    return replace(
        base, compiles=True, peers={**peers, "torch.compile of eager": Peer(lambda data: run(function, data))}
    )


def in_batch(data: Views) -> Tensor:
    """NT-Xent of two views as training loops write it: all similarities, the diagonal filled, cross entropy."""
    rows = torch.cat([data.first, data.second])
    logits = (rows @ rows.T / infonce.TEMPERATURE).float()
    logits = logits.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), float("-inf"))
    positive = torch.arange(len(rows), device=rows.device).roll(len(data.first))
    return F.cross_entropy(logits, positive)


def both_gradients(loss: Callable[[Views], Tensor], data: Views) -> Call:
    return lambda: torch.autograd.grad(loss(data), data)


def simclr(smoke: bool) -> Group:
    images, dim, dtype = (16, 16, torch.bfloat16) if smoke else (IMAGES, 128, torch.bfloat16)

    def draw(generator: torch.Generator) -> Views:
        rows = torch.randn(2, images, dim, generator=generator, device=generator.device)
        return Views(*(view.to(dtype).requires_grad_() for view in F.normalize(rows, dim=-1)))

    def loss(backend: str) -> Callable[[Views], Tensor]:
        return lambda data: mixfast.nt_xent(data.first, data.second, temperature=infonce.TEMPERATURE, backend=backend)

    rows = 2 * images
    fast = {name: loss(name) for name in usable_backends("nt_xent")}
    peers: dict[str, Any] = {
        f"mixfast {name}": Peer(lambda data, f=f: both_gradients(f, data)) for name, f in fast.items()
    }
    peers["eager"] = Peer(lambda data: both_gradients(in_batch, data))
    if importlib.util.find_spec("lightly"):
        peers["lightly NTXentLoss"] = Peer(lambda data: both_gradients(infonce.lightly_in_batch(), data), **LIGHTLY)
    return Group(
        task=f"nt_xent, loss and gradients: 2N = {rows}, D = {dim}, bfloat16",
        draw=draw,
        peers=peers,
        work=Work(2 * rows * dim * dtype.itemsize, 6 * rows**2 * dim),
        truth=lambda data: both_gradients(in_batch, Views(*(x.detach().float().requires_grad_() for x in data)))(),
        goals_us={"mixfast triton": SIMCLR_GOAL},
        facts={"rows": rows, "dim": dim, "dtype": "bfloat16"},
    )
