"""The choice of a backend: order, refusals, the environment variable, and what a named backend promises."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mixfast
from mixfast.ops import _dispatch, _native


def backend(reason: str | None = None, call: str | None = None, **attributes: Any) -> SimpleNamespace:
    return SimpleNamespace(unavailable=lambda: reason, why_not=lambda *facts: call, **attributes)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, SimpleNamespace]]:
    """Backends of an operation "op", to be filled in by the test."""
    found: dict[str, SimpleNamespace] = {}
    monkeypatch.setattr(_dispatch, "load", lambda operation, name: found.get(name))
    monkeypatch.delenv("MIXFAST_BACKEND", raising=False)
    caches = _dispatch.module, _dispatch._choose, _dispatch._warn_once
    for cache in caches:
        cache.cache_clear()
    yield found
    for cache in caches:
        cache.cache_clear()


def test_auto_takes_the_first_that_does_not_refuse(modules: dict[str, SimpleNamespace]) -> None:
    modules.update(cuda=backend("no GPU"), triton=backend(), cpu=backend(), reference=backend())
    assert _dispatch.choose("op", "auto", "cuda") == "triton"
    assert _dispatch.choose("op", "auto", "cpu") == "cpu"


def test_auto_stays_with_the_backends_of_the_device(modules: dict[str, SimpleNamespace]) -> None:
    modules.update(cuda=backend(), triton=backend(), cpu=backend(), reference=backend())
    chosen = {device: _dispatch.choose("op", "auto", device) for device in ("cuda", "cpu", "meta")}
    assert chosen == {"cuda": "cuda", "cpu": "cpu", "meta": "reference"}
    del modules["cuda"]  # an operation without such a backend
    assert _dispatch.choose("op", "auto", "cuda", "another call") == "triton"


def test_auto_falls_to_the_reference_with_the_reasons(modules: dict[str, SimpleNamespace]) -> None:
    modules.update(cuda=backend("not compiled"), triton=backend(call="no float64"), cpu=backend(), reference=backend())
    with pytest.warns(UserWarning, match=r"reference implementation \(cuda: not compiled; triton: no float64\)"):
        assert _dispatch.choose("op", "auto", "cuda", torch.float64) == "reference"


def test_a_named_backend_never_falls_back(modules: dict[str, SimpleNamespace]) -> None:
    modules.update(cuda=backend("no GPU"), cpu=backend(), reference=backend())
    with pytest.raises(RuntimeError, match=r"op: no backend can run this call\n  cuda: no GPU"):
        _dispatch.choose("op", "cuda")


def test_an_unknown_name_lists_the_known_ones(modules: dict[str, SimpleNamespace]) -> None:
    modules.update(cpu=backend(), reference=backend())
    with pytest.raises(ValueError, match="op: backend must be auto, cpu, reference; got 'gpu'"):
        _dispatch.choose("op", "gpu")


def test_facts_reach_the_backend(modules: dict[str, SimpleNamespace]) -> None:
    def why_not(device: str, dtype: torch.dtype) -> str | None:
        return None if dtype == torch.float32 else f"{dtype} on {device}"

    modules.update(cpu=SimpleNamespace(unavailable=lambda: None, why_not=why_not))
    assert _dispatch.choose("op", "cpu", "cpu", torch.float32) == "cpu"
    with pytest.raises(RuntimeError, match=r"cpu: torch.float16 on cpu"):
        _dispatch.choose("op", "cpu", "cpu", torch.float16)


def test_the_environment_replaces_auto_only(
    modules: dict[str, SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    modules.update(cpu=backend(), reference=backend())
    monkeypatch.setenv("MIXFAST_BACKEND", "reference")
    assert _dispatch.choose("op", "auto", "cpu") == "reference"
    assert _dispatch.choose("op", "cpu", "cpu") == "cpu"
    monkeypatch.setenv("MIXFAST_BACKEND", "warp")
    with pytest.raises(ValueError, match=r"got 'warp' \(MIXFAST_BACKEND, which is for all"):
        _dispatch.choose("op", "auto", "cpu")


def test_falling_to_the_reference_warns_once(modules: dict[str, SimpleNamespace]) -> None:
    modules.update(cpu=backend("not compiled"), reference=backend())
    with pytest.warns(UserWarning, match=r"slow reference implementation \(cpu: not compiled\)"):
        assert _dispatch.choose("op", "auto", "cpu") == "reference"
    assert _dispatch.choose("op", "auto", "cpu", "another call") == "reference"  # warnings are errors here


def test_choice_is_a_constant_of_a_compiled_graph() -> None:
    torch._dynamo.reset()

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * (2 if _dispatch.choose("masked_upsample_pool", "cpu", "cpu", x.dtype) == "cpu" else 3)

    compiled = torch.compile(double, fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).tolist() == [2, 2]


def test_every_operation_has_a_reference_and_says_why_others_are_missing() -> None:
    listed = mixfast.backends()
    assert set(listed) >= {
        "augment_views",
        "masked_upsample_pool",
        "multi_queue_infonce",
        "nt_xent",
        "split_batch_norm",
    }
    for reasons in listed.values():
        assert reasons["reference"] is None
        assert list(reasons) == [name for name in _dispatch.FILES if name in reasons]
        assert all(reason is None or (isinstance(reason, str) and reason) for reason in reasons.values())


@pytest.mark.parametrize(
    ("archs", "capabilities", "runs"),
    [
        ("80-real,90-real", [(7, 5)], False),  # a T4
        ("80-real,90-real", [(8, 0)], True),
        ("80-real,90-real", [(8, 6)], True),  # machine code of the same generation
        ("86-real", [(8, 0)], False),
        ("80-real,90-real", [(12, 0)], False),
        ("80-real,90-real,90-virtual", [(12, 0)], True),  # the driver compiles PTX
        ("90-virtual", [(8, 9)], False),
        ("90-real", [(7, 5), (9, 0)], True),
    ],
)
def test_cuda_serves_the_gpus_that_it_is_built_for(
    archs: str, capabilities: list[tuple[int, int]], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "cuda", SimpleNamespace(archs=archs))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    reason = mixfast.backends()["multi_queue_infonce"]["cuda"]
    assert reason is None if runs else f"it is built for {archs}; the GPUs here are" in str(reason)


def test_environment_variable_reaches_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXFAST_BACKEND", "no such")
    with pytest.raises(ValueError, match="masked_upsample_pool: backend must be auto"):
        mixfast.masked_upsample_pool(torch.zeros(1, 1, 2, 2), torch.zeros(4, dtype=torch.int64), (2, 2))
