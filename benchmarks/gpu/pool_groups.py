"""masked_upsample_pool on a GPU: the shapes of training runs, all layouts and kinds of region, and a sweep of sizes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks import pooling
from benchmarks.gpu.floors import Work
from benchmarks.gpu.group import Group, Peer, usable_backends
from benchmarks.gpu.timing import Call
from benchmarks.pooling import Inputs, Pooled, Shape

SHAPES = [Shape(512, 128, 4, 32), Shape(512, 512, 4, 32), Shape(256, 2048, 7, 224), Shape(64, 2048, 14, 448)]
SMOKE = [Shape(4, 16, 4, 32), Shape(4, 32, 4, 32), Shape(2, 32, 7, 28), Shape(2, 16, 14, 28)]
PIXELS = [14, 28, 56, 112, 224, 448]  # sides, of the sweep
# Microseconds that each pass should take on an H200; of masks, and of the last two shapes channels last too.
GOALS = {"bfloat16": (3.5, 4.8, 14.6, 14.2), "float32": (4.0, 7.5, 28.0, 27.1)}
MASK_GOAL = 20.0
LARGEST_MAP = 1 << 30  # elements of an upsampled map that the reference is asked to make
Task = Callable[[Callable[[Inputs], Pooled], Inputs], Call]


def group(shape: Shape, dtype: torch.dtype, task: Task, *, sweep: bool = False, **options: Any) -> Group:
    images, channels, side, pixels = shape
    name, passes = str(dtype).removeprefix("torch."), task.__name__
    regions = options.get("regions", "boxes")
    kind = ", channels last" if options.get("channels_last") else "" if regions == "boxes" else f", {regions} masks"
    outputs = 2 * images * channels
    masks = images * pixels**2 * getattr(torch, regions).itemsize if regions != "boxes" else 0
    values = images * channels * side**2 + outputs
    work = Work(values * dtype.itemsize + (masks if passes == "forward" else 0))
    if passes == "both":
        work = Work(2 * values * dtype.itemsize + masks)
    pools: dict[str, Callable[[Inputs], Pooled]] = {
        f"mixfast {backend}": pooling.by_mixfast(backend) for backend in usable_backends("masked_upsample_pool")
    }
    pools["weights and bmm"] = pooling.weights_and_bmm
    if images * channels * pixels**2 <= LARGEST_MAP and not sweep:
        pools["eager reference"] = pooling.interpolated
    peers = {backend: Peer(lambda data, pool=pool: task(pool, data)) for backend, pool in pools.items()}
    peers["copy of the map"] = Peer(lambda data: data.features.detach().clone, comparable=False)
    goal = dict(zip(SHAPES, GOALS[name], strict=True)).get(shape)
    goal = MASK_GOAL if goal and masks else goal
    goals = {backend: goal for backend in peers if backend.startswith("mixfast")} if goal and passes != "both" else {}
    return Group(
        task=("time against H x W: " if sweep else "") + f"masked_upsample_pool, {passes}: {shape}, {name}{kind}",
        draw=lambda generator: pooling.inputs(shape, dtype, generator=generator, **options),
        peers=peers,
        work=work,
        truth=lambda data: task(pooling.weights_and_bmm, in_float32(data))(),
        goals_us=goals,
        facts={**shape._asdict(), "dtype": name, **({"sweep": "pixels", "curve": regions} if sweep else {})},
    )


def in_float32(data: Inputs) -> Inputs:
    features = data.features.detach().float().requires_grad_()
    return data._replace(features=features, grads=(data.grads[0].float(), data.grads[1].float()))


def boxes(smoke: bool) -> Iterator[Group]:
    for dtype in (torch.bfloat16, torch.float32):
        for shape in SMOKE if smoke else SHAPES:
            for task in (pooling.forward, pooling.backward):
                yield group(shape, dtype, task)


def variants(smoke: bool) -> Iterator[Group]:
    """Masks and channels last, at the two large shapes."""
    for options in ({"channels_last": True}, {"regions": "bool"}, {"regions": "uint8"}, {"regions": "float32"}):
        for shape in (SMOKE if smoke else SHAPES)[2:]:
            yield group(shape, torch.bfloat16, pooling.forward, **options)
            if "channels_last" in options:
                yield group(shape, torch.bfloat16, pooling.backward, **options)


def eager(smoke: bool) -> Iterator[Group]:
    """What a training step calls, forward and backward, without a graph; first so little that the host's part shows."""
    for shape in [Shape(1, 1, 1, 1), *(SMOKE if smoke else SHAPES)[:3]]:
        yield group(shape, torch.bfloat16, pooling.both).among(graph=False, cold=False)


def sweep(smoke: bool) -> Iterator[Group]:
    """Time against the number of pixels."""
    images, channels = (2, 8) if smoke else (64, 512)
    for pixels in PIXELS[:2] if smoke else PIXELS:
        for regions in ("boxes", "bool"):
            shape = Shape(images, channels, 7, pixels)
            yield group(shape, torch.bfloat16, pooling.forward, sweep=True, regions=regions)


def compiled(smoke: bool) -> Iterator[Group]:
    """Against torch.compile of the reference, which makes no map in its forward pass, but needs one backward."""
    for number, shape in enumerate(SMOKE[:1] if smoke else SHAPES):
        for task in (pooling.forward, pooling.backward) if number < 2 else (pooling.forward,):
            base = group(shape, torch.bfloat16, task)
            pool = torch.compile(pooling.interpolated, fullgraph=True, backend="eager" if smoke else "inductor")
            peers = {name: peer for name, peer in base.peers.items() if name.startswith("mixfast")}
            peers["torch.compile of the reference"] = Peer(lambda data, pool=pool, task=task: task(pool, data))
            yield replace(base, peers=peers, compiles=True)
