"""augment_views and draw_views as citizens of torch: compile, autocast, vmap, versions, no waiting; and bad input."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mixfast
from mixfast.ops.views import reference
from mixfast.ops.views._layout import Options, law
from tests.backends import each_backend
from tests.ops.augmenting import RECIPES, byte_images, new_state, options

pytestmark = pytest.mark.slow

zeros, uint8 = torch.zeros, torch.uint8
PLAIN: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


def both(images: Tensor, state: Tensor, name: str, backend: str, **others: Any) -> list[Tensor]:
    cfg, size = RECIPES[name], (images.shape[2], images.shape[3])
    parameters = mixfast.draw_views(state, images.shape[0], size, [cfg] * 2, backend=backend)
    return mixfast.augment_views(images, parameters, backend=backend, **options(cfg, **others))


@each_backend("augment_views", but=("triton",))
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_whole_graph(backend: str, dynamic: bool, rng: torch.Generator) -> None:
    def step(images: Tensor, state: Tensor) -> list[Tensor]:
        first = both(images, state, "v2", backend)
        return first + both(images, state, "v2", backend, memory_format=torch.channels_last)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for count in (5, 3) if dynamic else (5,):  # a static graph is made anew for every size
        images, state = byte_images(count, rng, (16, 16)), new_state(rng)
        other = state.clone()
        for view, wanted in zip(compiled(images, state), step(images, other), strict=True):
            assert torch.equal(view, wanted) and view.stride() == wanted.stride()
        assert torch.equal(state, other) and state[1] == 2


@each_backend("augment_views", but=("triton",))
def test_operators_keep_torchs_rules(backend: str, rng: torch.Generator) -> None:
    images, cfg = byte_images(3, rng, (9, 8)), RECIPES["ref"]
    parameters = mixfast.draw_views(new_state(rng), 3, (9, 8), [cfg])
    operator = torch.ops.mixfast.augment_views.default
    for index in (None, torch.tensor([2, 0, 1])):
        given = (parameters, index, 7, 5, [0.5] * 3, [0.2] * 3, "bicubic", False, True, 2, torch.float32, True, backend)
        torch.library.opcheck(operator, (images, *given))
    numbers = [float(number) for number in law(cfg, (9, 8))]
    torch.library.opcheck(torch.ops.mixfast.draw_views.default, (new_state(rng), 3, 9, 8, numbers, backend))


@each_backend("augment_views", but=("triton",))
def test_drawing_counts_as_a_change_of_the_state(backend: str, rng: torch.Generator) -> None:
    state = new_state(rng)
    before = state._version
    mixfast.draw_views(state, 2, (8, 8), [RECIPES["demo"]], backend=backend)
    assert state._version > before and state[1] == 1


@each_backend("augment_views", but=("triton",))
def test_autocast_does_not_reach_the_pixels(backend: str, rng: torch.Generator) -> None:
    images, state = byte_images(4, rng), new_state(rng)
    plain = both(images, state.clone(), "v2", backend)
    with torch.autocast("cpu", torch.bfloat16):
        cast = both(images, state.clone(), "v2", backend)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_parameters_that_require_a_gradient_are_refused(rng: torch.Generator) -> None:
    images = byte_images(2, rng)
    parameters = mixfast.draw_views(new_state(rng), 2, (32, 32), [RECIPES["demo"]]).requires_grad_()
    with pytest.raises(ValueError, match=r"parameters receives no gradient, but it requires one"):
        mixfast.augment_views(images, parameters, **PLAIN)
    with torch.no_grad():
        (view,) = mixfast.augment_views(images, parameters, **PLAIN)
    (plain,) = mixfast.augment_views(images, parameters.detach(), **PLAIN)
    assert torch.equal(view, plain)


def test_vmap_is_refused(rng: torch.Generator) -> None:
    images = byte_images(2, rng)[None]
    parameters = torch.zeros(1, 2, 16)
    with pytest.raises(NotImplementedError, match="augment_views: vmap is not supported"):
        torch.vmap(lambda x: mixfast.augment_views(x, parameters, **PLAIN)[0])(images)


class NoHost(TorchDispatchMode):
    """Fails on every operation that hands a value to the host or has a shape that depends on data."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(word in str(func) for word in self.FORBIDDEN), func
        if "index.Tensor" in str(func):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", RECIPES)
def test_the_reference_never_waits_for_the_device(name: str, rng: torch.Generator) -> None:
    """So that a CUDA graph can capture it. Called as the operator calls it, for what it does to be seen."""
    cfg, images = RECIPES[name], byte_images(4, rng)
    how = options(cfg)
    reach = how.pop("blur_reach")
    given = Options(32, 32, **how, blur_reach=reach, dtype=torch.float32, channels_last=False)
    with NoHost():
        parameters = reference.draw_views(torch.tensor([5, 0]), 4, (32, 32), (law(cfg, (32, 32)),))
        reference.augment_views(images, parameters, torch.tensor([0, 1, 2, 3]), given)
    with pytest.raises(AssertionError), NoHost():
        images.sum().item()


BAD_VIEWS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"images": [1]}, TypeError, "images must be a tensor; got list"),
    ({"images": zeros(2, 3, 8, 8)}, TypeError, "images must be torch.uint8; got torch.float32"),
    ({"images": zeros(2, 1, 8, 8, dtype=uint8)}, ValueError, r"images must be \[N, 3, H, W\], RGB; got \[2, 1, 8, 8\]"),
    ({"images": zeros(2, 8, 8, 3, dtype=uint8).permute(0, 3, 1, 2)}, ValueError, "images must be contiguous"),
    ({"parameters": zeros(1, 2, 16).double()}, TypeError, "parameters must be torch.float32; got torch.float64"),
    ({"parameters": zeros(1, 2, 15)}, ValueError, r"parameters must be \[V, 2, 16\].*got \[1, 2, 15\]"),
    ({"parameters": zeros(1, 3, 16)}, ValueError, r"parameters must be \[V, 2, 16\].*got \[1, 3, 16\]"),
    ({"parameters": zeros(0, 2, 16)}, ValueError, r"parameters must be \[V, 2, 16\].*got \[0, 2, 16\]"),
    ({"parameters": zeros(1, 2, 16, device="meta")}, ValueError, "parameters must be on the device of images, cpu"),
    ({"index": zeros(2)}, TypeError, "index must be torch.int64; got torch.float32"),
    ({"index": zeros(1, 2, dtype=torch.int64)}, ValueError, r"index must be \[B\], rows of images; got \[1, 2\]"),
    ({"index": torch.tensor([0, 2])}, IndexError, r"index must be in \[0, 2\), rows of images; index\[1\] is 2"),
    ({"index": torch.tensor([-1, 0])}, IndexError, r"index\[0\] is -1"),
    ({"size": 0}, ValueError, r"size must be a side or \(height, width\), at least 1; got 0"),
    ({"size": (3, 4, 5)}, ValueError, r"size must be a side or \(height, width\), at least 1; got \(3, 4, 5\)"),
    ({"mean": (0.5,)}, ValueError, r"mean must be three numbers.*got \(0.5,\)"),
    ({"mean": "abc"}, ValueError, r"mean must be three numbers.*got 'abc'"),
    ({"mean": (0.5, 0.5, 10**400)}, ValueError, r"mean must be three numbers, one for each channel"),
    ({"std": ("a", 0.5, 0.5)}, ValueError, r"std must be three numbers, one for each channel; got \('a'"),
    ({"size": True}, ValueError, r"size must be a side or \(height, width\), at least 1; got True"),
    ({"std": (0.5, 0.0, 0.5)}, ValueError, "std must be positive"),
    ({"interpolation": "area"}, ValueError, "interpolation must be 'bilinear' or 'bicubic'; got 'area'"),
    ({"blur_reach": -1}, ValueError, r"blur_reach must be from 0 to below 2\^24 pixels; got -1"),
    ({"blur_reach": 2**70}, ValueError, r"blur_reach must be from 0 to below 2\^24 pixels; got 11805"),
    ({"backend": []}, TypeError, r"augment_views: backend must be auto, .*; got \[\]"),
    ({"dtype": torch.float64}, TypeError, "dtype must be float32, bfloat16 or float16; got torch.float64"),
    ({"memory_format": torch.preserve_format}, ValueError, "memory_format must be contiguous_format or channels_last"),
    ({"backend": "best"}, ValueError, "augment_views: backend must be auto, .*; got 'best'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD_VIEWS, ids=[case[2][:30] for case in BAD_VIEWS])
def test_bad_views_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"images": zeros(2, 3, 8, 8, dtype=uint8), "parameters": zeros(1, 2, 16), **PLAIN, **change}
    if "index" in change:
        given["backend"] = "cpu"
    with pytest.raises(error, match=message):
        mixfast.augment_views(**given)


BAD_DRAWS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"state": 3}, TypeError, "state must be a tensor; got int"),
    ({"state": zeros(2)}, TypeError, "state must be torch.int64; got torch.float32"),
    ({"state": zeros(3, dtype=torch.int64)}, ValueError, r"state must be contiguous \[2\], \(key, .*; got \[3\]"),
    ({"batch": -1}, ValueError, r"batch must be a number of images, below 2\^31; got -1"),
    ({"batch": 2**70}, ValueError, r"batch must be a number of images, below 2\^31; got 11805"),
    ({"recipes": [None]}, TypeError, r"recipes\[0\].crop_scale must be two numbers; got None of None"),
    ({"recipes": [SimpleNamespace(crop_scale=(0.1, 1), crop_ratio=(0, 1))]}, TypeError, r"recipes\[0\].crop_ratio"),
    ({"size": (0, 8)}, ValueError, r"size must be a side or \(height, width\), at least 1; got \(0, 8\)"),
    ({"recipes": []}, ValueError, r"recipes must be a sequence, one for each view; got \[\]"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD_DRAWS, ids=[case[2][:30] for case in BAD_DRAWS])
def test_bad_draws_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    state = zeros(2, dtype=torch.int64)
    given = {"state": state, "batch": 2, "size": (8, 8), "recipes": [RECIPES["demo"]], **change}
    with pytest.raises(error, match=f"draw_views: {message}"):
        mixfast.draw_views(**given)
    assert state[1] == 0
