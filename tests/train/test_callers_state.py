"""The training command called from Python: the caller's global state of torch decides nothing and comes back."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast.train.__main__ import main
from tests.tiny_run import assert_same, last_state, process_settings_kept, records, rendered, words

pytestmark = pytest.mark.slow


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def threads_and_benchmark() -> Iterator[None]:
    """What the command sets for itself."""
    with process_settings_kept():
        torch.set_num_threads(2)
        torch.backends.cudnn.benchmark = False
        yield


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "threads-and-benchmark": threads_and_benchmark,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "meta-in-a-block": lambda: torch.device("meta"),
    "no-grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def state() -> dict[str, Any]:
    """What a caller may have set."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "generator": torch.get_rng_state().tolist(),
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    with process_settings_kept():
        assert main(words(out, train__epochs=1)) == 0
    return out


@pytest.mark.parametrize("names", [*zip(list(STATES)[::2], list(STATES)[1::2], strict=True)], ids="-".join)
def test_the_callers_state_decides_nothing_and_comes_back(names: tuple[str, str], plain: Path, tmp_path: Path) -> None:
    """Two at once: whatever decided anything would change the bits."""
    with process_settings_kept(), ExitStack() as states:
        for name in names:
            states.enter_context(STATES[name]())
        before = state()
        rendered.cache_clear()  # scenes are drawn in that state as well
        assert main(words(tmp_path / "run", train__epochs=1)) == 0
        assert state() == before
    assert_same(last_state(tmp_path / "run"), last_state(plain))
    assert records(tmp_path / "run") == records(plain)
