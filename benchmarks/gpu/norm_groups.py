"""split_batch_norm on a GPU, forward and backward, at the maps of ResNets: alone, and with sum and ReLU after it."""

from collections.abc import Iterator

import torch

from benchmarks import norm
from benchmarks.gpu.floors import Work
from benchmarks.gpu.group import Group, Peer, usable_backends
from benchmarks.norm import Inputs, Layer, by_mixfast, chunked, followed, ordinary

# The maps of a ResNet-18 for small images, and of a ResNet-50: behind the first layers, and of the last stage.
SHAPES = [(512, 64, 32, 32), (512, 512, 4, 4), (256, 64, 112, 112), (256, 2048, 7, 7)]
SMOKE = [(16, 4, 3, 3), (16, 8, 2, 2), (8, 4, 5, 5), (8, 16, 3, 3)]
# Maps that forward and backward pass read or write, each once: x, y; x, dy, dx; and with sum and ReLU also the
# residual, y and the residual's gradient.
ALONE, WITH_SUM = 5, 8
ORDINARY = "ordinary batch norm"  # whose statistics are those of the whole batch


def group(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, residual: bool = False) -> Group:
    backends = usable_backends("split_batch_norm")
    others: dict[str, Layer] = {
        ORDINARY: ordinary,
        "view as more channels": by_mixfast("reference"),
        "a call for each group": chunked,
    }
    if residual:
        others |= {f"mixfast {name}, then torch": by_mixfast(name) for name in backends}
        others = {name: followed(layer) for name, layer in others.items()}
    layers = {**{f"mixfast {name}": by_mixfast(name, relu=residual) for name in backends}, **others}
    numbers = torch.Size(shape).numel()
    name, last = str(dtype).removeprefix("torch."), layout == torch.channels_last
    sizes = " x ".join(map(str, shape))
    return Group(
        task=f"split_batch_norm{', sum and ReLU' if residual else ''}, both, {norm.SPLITS} groups: {sizes}, {name}"
        + (", channels last" if last else ""),
        draw=lambda generator: norm.inputs(shape, dtype, layout, residual=residual, generator=generator),
        peers={
            key: Peer(lambda data, layer=layer: norm.both(layer, data), comparable=key != ORDINARY)
            for key, layer in layers.items()
        },
        work=Work((WITH_SUM if residual else ALONE) * numbers * dtype.itemsize),
        truth=lambda data: norm.both(by_mixfast("reference", relu=residual), in_float32(data))(),
        facts={**dict(zip(("images", "channels", "height", "width"), shape, strict=True)), "dtype": name},
    )


def in_float32(data: Inputs) -> Inputs:
    maps = {name: getattr(data, name).detach().float() for name in ("x", "upstream")}
    residual = None if data.residual is None else data.residual.detach().float().requires_grad_()
    return data._replace(x=maps["x"].requires_grad_(), upstream=maps["upstream"], residual=residual)


def step(smoke: bool) -> Iterator[Group]:
    """As encoders call it in a training step."""
    shapes = SMOKE if smoke else SHAPES
    for shape in shapes:
        for residual in (True, False):
            yield group(shape, torch.bfloat16, torch.channels_last, residual)
    for shape in shapes[:2]:
        yield group(shape, torch.bfloat16, torch.contiguous_format)
    yield group(shapes[0], torch.float32, torch.channels_last, residual=True)
