"""The cost of a method's step, measured on a few random images: encoder passes, and memory for the backward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixfast import methods
from mixfast.augment import Views
from mixfast.config.options import RunConfig
from mixfast.data import Images, kind_of
from mixfast.errors import OutOfMemoryError
from mixfast.models import Encoder, build_encoder
from mixfast.models.config import RESNET
from mixfast.models.heads import build_head
from mixfast.models.resnet import ResNet
from mixfast.rng import Generators
from mixfast.run import machine

BACKWARD_COST = 2  # of a backward pass, in forward passes


@dataclass(frozen=True)
class StepCost:
    """The cost of a training step per image of the batch."""

    trained: int  # forward passes of encoders that are followed by a backward pass
    forward_only: int  # forward passes of encoders without gradients
    saved_bytes: int  # of tensors kept between forward and backward, in float32

    @property
    def encoder(self) -> int:
        """The cost in forward passes; a pass with its backward counts as 1 + BACKWARD_COST."""
        return self.forward_only + self.trained * (1 + BACKWARD_COST)


def step_cost(config: RunConfig[Any], side: int) -> StepCost:
    """The cost of one step of a run's method on images of `side` pixels, from a step on a few random ones (CPU)."""
    generators = Generators(config.seed)
    make_encoder = partial(build_encoder, config.model, generators["weights"])
    method = methods.load(config.method_name)(config.method, make_encoder, generators).train()
    count = 2 * config.model.bn_splits
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generators["probe"])
    passes = {True: 0, False: 0}  # images that entered an encoder, by whether gradients are enabled
    saved: dict[int, int] = {}  # storage address: bytes

    def counted(maps: Callable[[Tensor, Sequence[int]], list[Tensor]]) -> Callable[..., list[Tensor]]:
        def counted_maps(images: Tensor, layers: Sequence[int]) -> list[Tensor]:
            passes[torch.is_grad_enabled()] += len(images)
            return maps(images, layers)

        return counted_maps

    def record_storage(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for module in method.modules():
        if isinstance(module, Encoder):
            module.backbone.maps = counted(module.backbone.maps)  # type: ignore[method-assign]
    views = method.views(images, whole_images, generators)
    with torch.autograd.graph.saved_tensors_hooks(record_storage, lambda tensor: tensor):
        output = method.step(views, generators)
    permanent = {tensor.untyped_storage().data_ptr() for tensor in (*method.parameters(), *method.buffers())}
    activations = sum(size for address, size in saved.items() if address not in permanent)
    del output
    return StepCost(passes[True] // count, passes[False] // count, activations // count)


def whole_images(images: Tensor, count: int = 2) -> Views:
    """`count` views that are the images themselves, as float32 in 0 to 1, with crops that show all of them."""
    height, width = images.shape[2:]
    crops = torch.tensor([0.0, 0.0, height, width, 0.0]).expand(count, len(images), 5)
    return Views([images.float() / 255 for _ in range(count)], crops)


def check_memory(config: RunConfig[Any], device: torch.device) -> None:
    """Refuse a configuration whose images, network and queue do not fit into the device's memory.

    Raises:
        OutOfMemoryError: a lower bound of the memory of the images, one network and one queue exceeds that of the
            device. The message lists the three, and the options that decide them.
    """
    data, model = config.data, config.model
    queue = getattr(config.method, "queue_size", 0)
    queue_bytes = 2 * queue * model.dim if isinstance(queue, int) else 0  # float16 on a GPU, twice that elsewhere
    counts = (data.scenes, data.test_scenes) if data.kind == "scenes" else kind_of(data.kind).counts or ()
    weights = 0
    if model.backbone == RESNET:
        with torch.device("meta"):
            backbone = ResNet(model.depth, model.width, model.stem, 1)
            parts = (backbone, build_head(model.head, backbone.out_channels, model.dim, model.hidden))
        weights = 4 * sum(weight.numel() for part in parts for weight in part.parameters())
    moments = 2 if config.optim.name == "adam" else 1
    needed = {
        f"{sum(counts):,} images of {data.size} px (--data.scenes, --data.size)": 3 * data.size**2 * sum(counts),
        f"a {model.title} in training (--model.width, --model.dim, --model.hidden)": weights * (2 + moments),
        f"a queue of {queue} keys of {model.dim} (--method.queue_size, --model.dim)": queue_bytes,
    }
    least, total = sum(needed.values()), machine.memory_bytes(device)
    if least > total:
        listing = ", ".join(f"{name} {size / 2**30:,.1f}" for name, size in needed.items() if size > least / 100)
        raise OutOfMemoryError(
            f"the run does not fit into the {total / 2**30:,.1f} GiB of {device}. It needs at least (GiB): {listing}. "
            "Reduce these options."
        )


def state_bytes(method: nn.Module, moments: int = 1) -> dict[str, int]:
    """Bytes that a run needs all the time: of weights, of gradients and momentum, of queues and statistics.

    Args:
        method: the module.
        moments: numbers that the optimiser keeps per trained weight: 1, or 2 for Adam.
    """
    weights = sum(p.numel() * p.element_size() for p in method.parameters())
    trained = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    buffers = sum(b.numel() * b.element_size() for b in method.buffers())
    return {"weights": weights, "gradients and momentum": (1 + moments) * trained, "queues and statistics": buffers}


def explain_out_of_memory(
    config: RunConfig[Any], method: nn.Module, images: Images, total_bytes: int, part: str
) -> str:
    """The message of a run that is out of memory: what uses it, an estimate of the largest batch, options that help.

    Args:
        config, method, images: of the run.
        total_bytes: memory of the device.
        part: the last part of a step that ended, as in `mixfast.run.clock.Clock.part`.
    """
    cost = step_cost(config, images.shape[-1])
    state = {"images": images.nbytes, **state_bytes(method, 2 if config.optim.name == "adam" else 1)}
    batch, micro = config.train.batch_size, config.train.accumulate
    parts = {**state, f"activations of {batch // micro} images": cost.saved_bytes * batch // micro}
    unit = config.model.bn_splits
    # 4 / 3: forward and backward were observed to allocate a third more and free it again.
    fits = max(0, int((total_bytes - sum(state.values())) / (cost.saved_bytes * 4 / 3))) // unit * unit
    listing = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in parts.items())
    return (
        f"out of memory after part {part!r}: {total_bytes / 2**20:.0f} MiB in all; needed at least: {listing}.\n"
        f"Estimated largest batch that fits at once: {fits} images. Options that help: --train.accumulate "
        f"{2 * micro} (same batch, half the activations), a smaller --train.batch_size, --train.precision bf16, "
        f"a smaller --model.{'width' if config.model.backbone == RESNET else 'backbone'}."
    )
