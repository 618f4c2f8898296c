"""torch's global state: the states of its generators for a checkpoint, and a fresh state while a command runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


def torch_generators(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's own generators, from which torchvision and a user's method may draw."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


@contextmanager
def fresh_torch_state() -> Iterator[None]:
    """Run the block with float32 and the CPU as defaults, with gradients, and without autocast or inference mode.

    After the block these settings are restored, and so are torch's global generators, the number of threads,
    deterministic algorithms, cuDNN's benchmark and the current GPU. The precision of matrix products
    (`torch.set_float32_matmul_precision`) is the caller's inside the block too.
    """
    dtype, threads, benchmark = torch.get_default_dtype(), torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic, warn_only = _deterministic()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    gpu = torch.cuda.current_device() if gpus else None
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # the context costs microseconds in every call
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
            torch.backends.cudnn.benchmark = benchmark
            if gpu is not None:
                torch.cuda.set_device(gpu)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            if _deterministic() != (deterministic, warn_only):  # the call imports torch's compiler: seconds
                torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
