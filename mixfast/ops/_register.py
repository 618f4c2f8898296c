"""The operators' namespace in torch, `torch.ops.mixfast`, and the one way in which an operator enters it."""

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("mixfast", "DEF")


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Registers an operator and returns it, ready to be called.

    Args:
        schema: "name(Tensor x, ...) -> ...", in torch's schema language. No tensor lists: they cost 100 microseconds
            a call as soon as a gradient is wanted.
        kernel: runs on CPU and CUDA tensors; chooses and calls the backend. Its outputs alias no input.
        fake: makes outputs of the right shape, dtype, device and memory format without reading values.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f"mixfast::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.mixfast, name).default


def refuse_vmap(message: str, *operators: Any) -> None:
    """vmap over any of these operators raises NotImplementedError with this message."""

    def refuse(*_: Any) -> tuple[Any, Any]:
        raise NotImplementedError(message)

    for operator in operators:
        torch.library.register_vmap(operator, refuse, lib=LIBRARY)
