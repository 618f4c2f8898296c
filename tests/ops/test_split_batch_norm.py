"""split_batch_norm: values, gradients and running statistics of every backend, judged against float64; its bits."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixfast.ops import split_batch_norm
from mixfast.ops.norm import cpu_native
from tests.backends import device_of, each_backend, refusal, skip_if_refused
from tests.ops.compare import generator
from tests.ops.splitnorm import CASES, DTYPES, FORMATS, NAMES, Case, draw, judge, names, results, truth

PARTS = [(True, False), (False, True), (True, True)]  # relu, and whether there is a residual


def check(
    backend: str,
    case: Case,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    rng: torch.Generator,
    **parts: bool,
) -> None:
    """Everything is no worse than the reference's in the same precision, and maps lie in memory as x does."""
    skip_if_refused("split_batch_norm", backend, dtype)
    inputs = draw(case, dtype, memory_format, rng, **parts)
    ours = results(inputs, backend)
    judge(ours, inputs)
    laid_out = ("y",) if backend == "reference" else ("y", "d_x")
    assert all(ours[name].is_contiguous(memory_format=memory_format) for name in laid_out)


@each_backend("split_batch_norm")
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_no_worse_than_the_reference(
    backend: str, name: str, dtype: torch.dtype, memory_format: torch.memory_format, rng: torch.Generator
) -> None:
    check(backend, CASES[name], dtype, memory_format, rng)


@each_backend("split_batch_norm")
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("relu", "added"), PARTS)
def test_with_relu_and_residual(
    backend: str,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    relu: bool,
    added: bool,
    rng: torch.Generator,
) -> None:
    for name in ("odd", "several-pieces"):
        check(backend, CASES[name], dtype, memory_format, rng, relu=relu, added=added)


@pytest.mark.skipif(cpu_native.unavailable() is not None, reason="the cpu backend is not built")
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("relu", "added"), PARTS)
def test_bits_are_those_of_the_parts_one_after_the_other(
    dtype: torch.dtype, memory_format: torch.memory_format, relu: bool, added: bool, rng: torch.Generator
) -> None:
    """A residual of the other memory format included."""
    inputs = draw((16, 77, 9, 5, 8), dtype, memory_format, rng, relu=relu, added=added)
    if added:
        inputs["residual"] = inputs["residual"].contiguous(memory_format=FORMATS[memory_format == FORMATS[0]])
    fused = results(inputs, "cpu")
    leaves = {name: inputs[name].clone().requires_grad_() for name in names(inputs)}
    residual, running = leaves.pop("residual", None), [inputs[name].clone() for name in ("running_mean", "running_var")]
    y = split_batch_norm(*leaves.values(), *running, num_splits=8, backend="cpu")
    y = y if residual is None else y + residual
    y = y.relu() if relu else y
    grads = torch.autograd.grad(y, [*leaves.values(), *([] if residual is None else [residual])], inputs["upstream"])
    for name, value in zip(NAMES, (y, *grads[:3], *running, *grads[3:]), strict=False):
        assert torch.equal(fused[name], value), name


@each_backend("split_batch_norm")
def test_zeros_pass_no_gradient_and_bad_numbers_do(backend: str) -> None:
    """As torch's ReLU has it. A weight of zero leaves the bias and the residual, of exact numbers."""
    device = device_of(backend)
    x, upstream = (torch.arange(1.0, 7, device=device).view(6, 1, 1, 1) for _ in range(2))
    weight, bias = torch.zeros(1, device=device), torch.ones(1, device=device).requires_grad_()
    residual = torch.tensor([-2.0, -1, -1, 0, torch.nan, 3], device=device).requires_grad_()
    maps, options = residual.view(6, 1, 1, 1), {"num_splits": 2, "relu": True, "backend": backend}
    y = split_batch_norm(x, weight, bias, residual=maps, **options)
    assert y.flatten().tolist() == pytest.approx([0, 0, 0, 1, torch.nan, 4], abs=0, nan_ok=True)
    y.backward(upstream)
    assert residual.grad.tolist() == [0, 0, 0, 4, 5, 6] and bias.grad.item() == 15
    (d_bias,) = torch.autograd.grad(split_batch_norm(x, weight, bias * 0, **options).sum(), bias)
    assert d_bias.item() == 0


@each_backend("split_batch_norm")
def test_what_relu_saves_is_what_the_next_layer_saves(backend: str, rng: torch.Generator) -> None:
    """x and y, not a mask, nor the sum; y must stay as it is, as after torch's ReLU."""
    inputs = draw((8, 6, 4, 4, 4), torch.float32, torch.channels_last, rng, added=True)
    saved: list[Tensor] = []
    leaves = {name: inputs[name].to(device_of(backend)).requires_grad_() for name in names(inputs)}
    options = {"num_splits": 4, "relu": True, "backend": backend}
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each) or each, lambda each: each):
        y = split_batch_norm(**leaves, **options)
    if backend != "reference":
        maps = [each.data_ptr() for each in saved if each.ndim == 4]
        assert sorted(maps) == sorted([leaves["x"].data_ptr(), y.data_ptr()])
    y = split_batch_norm(**leaves, **options)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@each_backend("split_batch_norm")
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_close_to_float64(backend: str, memory_format: torch.memory_format, rng: torch.Generator) -> None:
    """In absolute terms, so that the reference is judged too."""
    dtype = torch.float32 if refusal("split_batch_norm", backend, torch.float64) else torch.float64
    inputs = draw(CASES["odd"], dtype, memory_format, rng)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-13
    ours = results(inputs, backend)
    for name, expected in truth(inputs).items():
        torch.testing.assert_close(ours[name].double(), expected, rtol=tolerance, atol=10 * tolerance)


@each_backend("split_batch_norm")
def test_hand_numbers(backend: str) -> None:
    """Groups {1, 3} and {10, 30}: means 2 and 20, unbiased variances 2 and 200."""
    device = device_of(backend)
    x = torch.tensor([1.0, 10.0, 3.0, 30.0], device=device).view(4, 1, 1, 1)
    weight, bias = torch.tensor([5.0], device=device), torch.tensor([7.0], device=device)
    mean, var = torch.zeros(1, device=device), torch.ones(1, device=device)
    y = split_batch_norm(x, weight, bias, mean, var, num_splits=2, momentum=0.5, eps=1e-9, backend=backend)
    assert y.flatten().tolist() == pytest.approx([2, 2, 12, 12], rel=1e-6)
    assert (mean.item(), var.item()) == pytest.approx((5.5, 51.0), rel=1e-6)


@pytest.mark.parametrize("instruction_set", cpu_native.instruction_sets())
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("relu", "added"), [(False, False), (True, False), (True, True)])
def test_every_instruction_set(
    instruction_set: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    relu: bool,
    added: bool,
    rng: torch.Generator,
) -> None:
    """Whole vectors and what is left beside them, of lanes and of rows."""
    inputs = draw((6, 77, 7, 5, 3), dtype, memory_format, rng, relu=relu, added=added)
    x, weight, bias = (inputs[name] for name in ("x", "weight", "bias"))
    mean, var = inputs["running_mean"].clone(), inputs["running_var"].clone()
    arguments = x, weight, bias, mean, var, inputs.get("residual"), 3, 0.1, 1e-5, relu, instruction_set
    y, means, inverses = cpu_native.forward(*arguments)
    upstream, mask = inputs["upstream"].contiguous(memory_format=memory_format), y if relu else None
    *grads, masked = cpu_native.backward(upstream, x, mask, weight, means, inverses, 3, added, instruction_set)
    statistics = 1e-12 if dtype == torch.float64 else 3e-6
    rounding = torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else statistics
    expected_values = truth(inputs, result=y)
    for name, ours in zip(NAMES, (y, *grads, mean, var, *([masked] if added else [])), strict=False):
        tolerance = rounding if name in ("y", "d_x", "d_residual") else statistics
        expected = expected_values[name]
        rounded_twice = added and name == "y"  # before the sum too, which may cancel
        absolute = (rounding if rounded_twice else statistics) * expected.abs().max()
        torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=absolute)


@each_backend("split_batch_norm")
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_far_from_zero(backend: str, memory_format: torch.memory_format, rng: torch.Generator) -> None:
    """Squares of numbers near 4096 would leave nothing of a variance of one in float32."""
    inputs = draw((8, 6, 16, 16, 2), torch.float32, memory_format, rng)
    inputs["x"] = inputs["x"].sub(inputs["x"].mean()).div(3).add(4096)
    ours, expected = results(inputs, backend), truth(inputs)
    for name in ("y", "running_mean", "running_var"):  # float32 knows a mean of 4096 to 2.4e-4
        torch.testing.assert_close(ours[name].double(), expected[name], rtol=1e-4, atol=1e-3)


@each_backend("split_batch_norm")
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_a_constant_channel_becomes_its_bias(backend: str, memory_format: torch.memory_format) -> None:
    x = torch.full((4, 3, 20, 20), 0.1).contiguous(memory_format=memory_format).to(device_of(backend))
    weight, bias = torch.ones(3), torch.tensor([0.3, 0.7, -2.0])
    y = split_batch_norm(x, weight.to(x.device), bias.to(x.device), num_splits=2, backend=backend)
    torch.testing.assert_close(y.cpu(), bias[:, None, None].expand(x.shape), rtol=0, atol=1e-4)


@each_backend("split_batch_norm")
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_a_bad_number_stays_in_its_group_and_channel(
    backend: str, memory_format: torch.memory_format, rng: torch.Generator
) -> None:
    inputs = draw((8, 6, 5, 8, 4), torch.float32, memory_format, rng)
    expected = results(inputs, backend)
    inputs["x"][5, 2, 3, 1] = torch.nan
    ours = results(inputs, backend)
    bad = torch.zeros(8, 6, dtype=torch.bool)
    bad[[1, 5], 2] = True
    for name in ("y", "d_x"):
        assert torch.equal(ours[name].isnan(), bad[:, :, None, None].expand(ours[name].shape)), name
        assert torch.equal(ours[name][~bad], expected[name][~bad]), name
    assert ours["running_mean"].isnan().tolist() == [False, False, True, False, False, False]


@each_backend("split_batch_norm")
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_input_that_is_not_dense(backend: str, memory_format: torch.memory_format, rng: torch.Generator) -> None:
    """The same numbers from every second channel of larger maps, and an upstream gradient of one number for each."""
    inputs = draw(CASES["odd"], torch.float32, memory_format, rng)
    device, leaves = device_of(backend), []
    for dense in (True, False):
        larger = inputs["x"].repeat_interleave(2, dim=1).contiguous(memory_format=memory_format).to(device)
        leaf = (inputs["x"].to(device) if dense else larger[:, ::2]).detach().requires_grad_()
        leaves.append((leaf, inputs["weight"].to(device).requires_grad_(), inputs["bias"].to(device)))
    outputs = [split_batch_norm(*each, num_splits=4, backend=backend) for each in leaves]
    torch.testing.assert_close(*outputs, rtol=0, atol=2e-6)
    assert outputs[1].is_contiguous()
    upstream = inputs["upstream"].to(device)[:, :, :1, :1].expand(outputs[0].shape)
    grads = [torch.autograd.grad(y, each[:2], upstream) for y, each in zip(outputs, leaves, strict=True)]
    for dense, sparse in zip(*grads, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)


@each_backend("split_batch_norm")
def test_only_what_is_wanted(backend: str, rng: torch.Generator) -> None:
    """No gradient for what has none; no running statistics are fine, and change nothing else."""
    inputs = draw(CASES["odd"], torch.float32, torch.channels_last, rng)
    device = device_of(backend)
    x, weight, bias, *running = (
        inputs[name].to(device) for name in ("x", "weight", "bias", "running_mean", "running_var")
    )
    plain = split_batch_norm(x, weight, bias, num_splits=4, backend=backend)
    assert not plain.requires_grad
    bias.requires_grad_()
    y = split_batch_norm(x, weight, bias, *running, num_splits=4, backend=backend)
    assert torch.equal(y, plain)
    y.sum().backward()
    assert x.grad is weight.grad is None
    torch.testing.assert_close(bias.grad.cpu(), torch.full((3,), 12.0 * 5 * 7))


@each_backend("split_batch_norm")
def test_twice_before_backward_and_relu_in_place(backend: str, rng: torch.Generator) -> None:
    """Two passes of one layer, whose outputs may be changed; gradients add up, and may be taken again."""
    first, second = (draw((8, 6, 4, 4, 4), torch.float32, torch.channels_last, rng) for _ in range(2))
    second |= {name: first[name] for name in ("weight", "bias")}
    device = device_of(backend)
    weight, bias = (first[name].to(device).requires_grad_() for name in ("weight", "bias"))
    running = [first[name].clone().to(device) for name in ("running_mean", "running_var")]
    passes = [
        split_batch_norm(each["x"].to(device), weight, bias, *running, num_splits=4, backend=backend)
        for each in (first, second)
    ]
    total = sum(
        (y.relu_() * each["upstream"].to(device)).sum() for y, each in zip(passes, (first, second), strict=True)
    )
    grads = torch.autograd.grad(total, (weight, bias), retain_graph=True)
    again = torch.autograd.grad(total, (weight, bias))
    assert all(torch.equal(*pair) for pair in zip(grads, again, strict=True))
    expected: dict[str, Tensor] = {}
    for each in (first, second):
        each["upstream"] = each["upstream"] * (truth(each)["y"] > 0)
        each |= {name: expected.get(name, each[name]) for name in ("running_mean", "running_var")} if expected else {}
        found = truth(each)
        for name in ("d_weight", "d_bias"):
            found[name] = found[name] + expected.get(name, torch.zeros(6))
        expected = found
    ours = dict(zip(("d_weight", "d_bias", "running_mean", "running_var"), (*grads, *running), strict=True))
    for name, value in ours.items():
        torch.testing.assert_close(value.detach().cpu().double(), expected[name], rtol=1e-5, atol=1e-5)


@each_backend("split_batch_norm", but=("reference",))
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("case", [(64, 12, 12, 12, 8), (4, 2, 128, 128, 1)], ids=str)
def test_same_bits_for_any_number_of_threads_and_every_run(
    backend: str, case: Case, memory_format: torch.memory_format, rng: torch.Generator
) -> None:
    """More units than threads, and fewer: then threads share the pieces of a unit."""
    inputs = draw(case, torch.float32, memory_format, rng)
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2, 1):
            torch.set_num_threads(count)
            runs.append(results(inputs, backend))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(value, other[name]) for name, value in runs[0].items())


MEMORY = """
import torch
from mixfast.ops.norm import _operators
torch.set_num_threads(2)
def mib(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1]) / 1024
def run(side, layout):
    x = torch.randn(16, 16, side, side).contiguous(memory_format=layout)
    one = torch.ones(16)
    before = mib("VmRSS")
    y, *statistics = _operators.forward(x, one, one, None, None, None, 8, 0.1, 1e-5, False, "cpu")
    _operators.backward(y, x, None, one, *statistics, 8, False, "cpu")
    return mib("VmHWM") - before
run(4, torch.channels_last)
print(*(run(192, layout) for layout in (torch.contiguous_format, torch.channels_last)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of resident memory from /proc")
@pytest.mark.skipif(cpu_native.unavailable() is not None, reason="the cpu backend is not built")
def test_maps_are_not_copied() -> None:
    """Maps have 36 MiB, which the allocator gives back: y and dx are all that is added."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert all(70 < float(extra) <= 76 for extra in done.stdout.split()), f"{done.stdout.strip()} MiB"


@settings(max_examples=30, deadline=None)
@given(
    members=st.integers(1, 5),
    channels=st.integers(1, 90),
    height=st.integers(1, 9),
    width=st.integers(2, 9),
    splits=st.integers(1, 5),
    memory_format=st.sampled_from(FORMATS),
    parts=st.sampled_from([(False, False), *PARTS]),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    members: int,
    channels: int,
    height: int,
    width: int,
    splits: int,
    memory_format: torch.memory_format,
    parts: tuple[bool, bool],
    seed: int,
) -> None:
    case, (relu, added) = (members * splits, channels, height, width, splits), parts
    inputs = draw(case, torch.float64, memory_format, generator(str(seed)), relu=relu, added=added)
    ours = results(inputs, "auto")
    for name, expected in truth(inputs).items():
        size = expected.abs().max().clamp(min=1).item()
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-9 * size)
