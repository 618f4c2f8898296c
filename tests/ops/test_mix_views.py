"""mix_views against plain loops in float64, by backend; as a citizen of torch; and bad input."""

from typing import Any

import pytest
import torch
from torch import Tensor

import mixfast
from tests.backends import device_of, each_backend, refusal

SIZE = (9, 14)
CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last
# Half a unit in the last place of what is stored; Triton's interpreter truncates, so a whole one.
HALF_ULP = {torch.float64: 2**-53, torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
BOXES = [[2, 1, 9, 6], [0, 0, 0, 0], [13, 8, 14, 9], [0, 0, 14, 9], [-3, 5, 4, 40], [6, 2, 3, 7], [20, 1, 25, 6]]
SHARES = [1.0, 0.3, 0.85, 1.0, 0.0, 0.5, 1.0]


def given(
    rng: torch.Generator, dtype: torch.dtype = torch.float32, channels: int = 3, layout: torch.memory_format = LAST
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (len(BOXES), channels, *SIZE)
    base, donor = (torch.randn(shape, generator=rng).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    return base, donor, torch.tensor(BOXES), torch.tensor(SHARES)


def by_loops(base: Tensor, donor: Tensor, boxes: Tensor, share: Tensor) -> Tensor:
    """float64; a box is what Python's ranges make of it."""
    base, donor, weights = base.double(), donor.double(), share.double().tolist()
    out = base.clone()
    for i, w in enumerate(weights):
        out[i] = w * base[i] + (1 - w) * donor[i]
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        for y in range(max(y0, 0), min(y1, base.shape[2])):
            for x in range(max(x0, 0), min(x1, base.shape[3])):
                out[i, :, y, x] = donor[i, :, y, x]
    return out


def check(inputs: tuple[Tensor, Tensor, Tensor, Tensor], backend: str) -> Tensor:
    base, donor, _, share = inputs
    mixed = mixfast.mix_views(*(each.to(device_of(backend)) for each in inputs), backend=backend).cpu()
    assert mixed.dtype == base.dtype and mixed.shape == base.shape
    computed = HALF_ULP[torch.promote_types(base.dtype, torch.float32)]
    rtol = HALF_ULP[base.dtype] * (2 if backend == "triton" else 1)
    wanted = by_loops(*inputs)
    largest = max(view.abs().max().item() for view in (base, donor)) if base.numel() else 0.0
    # A blend's two products, its sum and 1 - share are each rounded once.
    torch.testing.assert_close(mixed.double(), wanted, rtol=rtol, atol=4 * computed * largest)
    for i, weight in enumerate(share.tolist()):
        if weight in (0, 1):
            assert torch.equal(mixed[i].double(), wanted[i])
    return mixed


@each_backend("augment_views")
@pytest.mark.parametrize("dtype", HALF_ULP, ids=str)
@pytest.mark.parametrize("layout", [CONTIGUOUS, LAST], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_boxes_and_blends(
    backend: str, dtype: torch.dtype, layout: torch.memory_format, channels: int, rng: torch.Generator
) -> None:
    if reason := refusal("augment_views", backend, dtype):
        pytest.skip(reason)
    inputs = given(rng, dtype, channels, layout)
    assert check(inputs, backend).stride() == inputs[0].stride()


@each_backend("augment_views")
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1), (40, 37)], ids=str)
def test_sizes(backend: str, size: tuple[int, int], rng: torch.Generator) -> None:
    base, donor = torch.randn(2, 2, 3, *size, generator=rng).unbind()
    check((base, donor, torch.tensor([[0, 0, 1, 1], [3, 0, 30, 20]]), torch.tensor([1.0, 0.6])), backend)


@each_backend("augment_views")
def test_no_images(backend: str) -> None:
    inputs = torch.zeros(0, 3, *SIZE), torch.zeros(0, 3, *SIZE), torch.zeros(0, 4).long(), torch.zeros(0)
    check(inputs, backend)


@each_backend("augment_views")
def test_strides_change_nothing(backend: str, rng: torch.Generator) -> None:
    """Views of another layout, every second row of a box list, one number for all shares."""
    base, donor, boxes, _ = given(rng)
    wanted, device = check((base, donor, boxes, torch.full((len(base),), 0.4)), backend), device_of(backend)
    base, donor, boxes, wanted = (each.to(device) for each in (base, donor, boxes, wanted))
    wide, sparse = torch.zeros(*base.shape[:3], 20, device=device), boxes.repeat_interleave(2, 0)[::2]
    wide[..., :14] = base
    share = torch.tensor(0.4, device=device).expand(len(base))
    mixed = mixfast.mix_views(wide[..., :14], donor.contiguous(), sparse, share, backend=backend)
    assert torch.equal(mixed, wanted) and mixed.is_contiguous()
    assert torch.equal(mixfast.mix_views(base, donor.contiguous(), boxes, share, backend=backend), wanted)


def test_any_number_of_threads_makes_the_same_bits(rng: torch.Generator) -> None:
    base, donor = torch.randn(2, 40, 3, 64, 64, generator=rng).unbind()
    boxes, share = torch.tensor([[5, 9, 60, 33]]).expand(40, 4), torch.rand(40, generator=rng)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(mixfast.mix_views(base, donor, boxes, share))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@each_backend("augment_views", but=("triton",))
def test_torchs_rules(backend: str, rng: torch.Generator) -> None:
    inputs = given(rng)
    torch.library.opcheck(torch.ops.mixfast.mix_views.default, (*inputs, backend))

    def doubled(*tensors: Tensor) -> Tensor:
        return 2 * mixfast.mix_views(*tensors, backend=backend)

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), doubled(*inputs))
    with pytest.raises(NotImplementedError, match="vmap is not supported"):
        torch.vmap(mixfast.mix_views)(*(each[None] for each in inputs))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"base": [1.0]}, TypeError, "base must be a tensor of float16, .* got list"),
    ({"base": torch.zeros(7, 3, 9, 14).byte()}, TypeError, "base must be a tensor of .* got torch.uint8"),
    ({"base": torch.zeros(7, 3, 9, 14).to(torch.float8_e5m2)}, TypeError, "base must be a tensor .* got torch.float8"),
    ({"base": torch.zeros(3, 9, 14)}, ValueError, r"base must be \[B, C, H, W\]; got \[3, 9, 14\]"),
    ({"donor": torch.zeros(7, 3, 9, 14).half()}, TypeError, "donor must be torch.float32; got torch.float16"),
    ({"donor": torch.zeros(7, 3, 9, 1)}, ValueError, r"donor must be \[7, 3, 9, 14\], as base has it; got"),
    ({"boxes": torch.zeros(7, 4)}, TypeError, "boxes must be torch.int64; got torch.float32"),
    ({"boxes": torch.zeros(1, 4).long()}, ValueError, r"boxes must be \[7, 4\], as base has it; got \[1, 4\]"),
    ({"share": torch.zeros(1)}, ValueError, r"share must be \[7\], as base has it; got \[1\]"),
    ({"share": 0.5}, TypeError, "share must be a tensor; got float"),
    ({"share": torch.zeros(7, device="meta")}, ValueError, "share must be on the device of base, cpu; got meta"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str, rng: torch.Generator) -> None:
    names = ("base", "donor", "boxes", "share")
    with pytest.raises(error, match=f"mix_views: {message}"):
        mixfast.mix_views(**(dict(zip(names, given(rng), strict=True)) | change))
