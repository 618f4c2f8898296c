"""models.split_bn: groups, statistics and gradients against loops over the groups in float64."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from mixfast.adapters import convert_split_bn
from mixfast.errors import ConfigError
from mixfast.models.heads import build_head
from mixfast.models.split_bn import SplitBatchNorm2d, frozen_statistics, relu_of

SHAPES = [(8, 3, 5, 4), (16, 6, 2, 2), (12, 1, 3, 3), (8, 5, 1, 7)]
FORMATS = [torch.contiguous_format, torch.channels_last]


def prepared(rng: torch.Generator, channels: int, splits: int, dtype: torch.dtype = torch.float64) -> SplitBatchNorm2d:
    norm = SplitBatchNorm2d(channels, splits).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(channels, generator=rng) + 0.5)
        norm.bias.copy_(torch.randn(channels, generator=rng))
    return norm


def by_loops(norm: SplitBatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output and new running statistics, group by group."""
    y, means, variances = torch.empty_like(x), [], []
    for s in range(norm.num_splits):
        members = [n for n in range(len(x)) if n % norm.num_splits == s]
        group = x[members]
        mean, var = group.mean(dim=(0, 2, 3)), group.var(dim=(0, 2, 3), correction=0)
        scale = norm.weight / (var + norm.eps).sqrt()
        y[members] = (group - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
        means.append(mean)
        variances.append(group.var(dim=(0, 2, 3), correction=1))
    new_mean = 0.9 * norm.running_mean + 0.1 * torch.stack(means).mean(dim=0)
    return y, new_mean, 0.9 * norm.running_var + 0.1 * torch.stack(variances).mean(dim=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_equals_loops_over_groups(rng: torch.Generator, shape: tuple[int, ...], memory_format: torch.memory_format):
    x = torch.randn(shape, generator=rng, dtype=torch.float64).contiguous(memory_format=memory_format)
    upstream = torch.randn(shape, generator=rng, dtype=torch.float64)
    norm = prepared(rng, shape[1], 4)
    inputs = [x.requires_grad_(), norm.weight, norm.bias]
    expected, mean, var = by_loops(norm, x)
    expected_grads = torch.autograd.grad(expected, inputs, upstream)
    actual = norm(x)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(norm.running_mean, mean, atol=1e-13, rtol=1e-13)
    torch.testing.assert_close(norm.running_var, var, atol=1e-13, rtol=1e-13)
    assert norm.num_batches_tracked == 1
    for got, wanted in zip(torch.autograd.grad(actual, inputs, upstream), expected_grads, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-11, rtol=1e-11)
    assert actual.is_contiguous(memory_format=memory_format)


def test_groups_are_residues_not_chunks(rng: torch.Generator) -> None:
    """Sample 0 feels a change of sample 4 (same group of 4) and not of sample 1."""
    norm = prepared(rng, 2, 4)
    x = torch.randn(8, 2, 3, 3, generator=rng, dtype=torch.float64)
    before = norm(x)[0]
    for other, felt in [(4, True), (1, False)]:
        changed = x.clone()
        changed[other] += 1 + torch.randn(2, 3, 3, generator=rng, dtype=torch.float64)
        assert torch.equal(norm(changed)[0], before) != felt


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_reversing_the_batch_reverses_the_output(rng: torch.Generator, memory_format: torch.memory_format) -> None:
    norm = prepared(rng, 6, 8, torch.float32)
    x = torch.randn(32, 6, 4, 4, generator=rng)
    forward, backward = (norm(v.contiguous(memory_format=memory_format)) for v in (x, x.flip(0)))
    torch.testing.assert_close(backward.flip(0), forward, atol=1e-6, rtol=0)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_one_split_is_ordinary_batch_norm(rng: torch.Generator, memory_format: torch.memory_format) -> None:
    split, plain = prepared(rng, 6, 1), nn.BatchNorm2d(6).double()
    plain.load_state_dict(split.state_dict())
    x = torch.randn(5, 6, 4, 3, generator=rng, dtype=torch.float64).contiguous(memory_format=memory_format)
    upstream = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    results = []
    for norm in (split, plain):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        results.append((y, *torch.autograd.grad(y, [leaf, norm.weight, norm.bias], upstream), *norm.buffers()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_eval_mode_is_ordinary_batch_norm(rng: torch.Generator) -> None:
    split, plain = SplitBatchNorm2d(4, 8), nn.BatchNorm2d(4)
    split(torch.randn(16, 4, 3, 3, generator=rng))
    plain.load_state_dict(split.state_dict())  # same keys, same sizes
    x = torch.randn(5, 4, 3, 3, generator=rng)  # not a multiple of 8
    assert torch.equal(split.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    ("norm", "shape", "groups"),
    [
        (SplitBatchNorm2d(3, 1), (1, 3, 1, 1), "1 group"),
        (SplitBatchNorm2d(3, 4), (4, 3, 1, 1), "4 groups"),
        (build_head("mlp_bn", 3, 4)[1], (1, 3), "1 group"),  # type: ignore[index]
        (build_head("mlp_bn2", 4, 3)[4], (1, 3), "1 group"),  # type: ignore[index]
    ],
)
def test_one_number_has_no_variance(norm: nn.Module, shape: tuple[int, ...], groups: str) -> None:
    values = torch.ones(shape)
    with pytest.raises(ConfigError, match=rf"got the shape .* in {groups}\. .*batch_size.*accumulate.*bn_splits"):
        norm.train()(values)
    assert norm.eval()(values).isfinite().all()
    assert norm.train()(torch.cat([values, values])).isfinite().all()


def test_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiple of the 8 splits; got 12 samples.*batch_size.*bn_splits"):
        SplitBatchNorm2d(3, 8)(torch.zeros(12, 3, 2, 2))


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("training", [False, True])
def test_sum_and_relu_in_every_mode(splits: int, training: bool, rng: torch.Generator) -> None:
    """Also with a residual of another dtype, as under autocast."""
    norm = prepared(rng, 3, splits, torch.float32).train(training)
    x, residual = torch.randn(2, 8, 3, 4, 4, generator=rng)
    with frozen_statistics(norm) if training else nullcontext():
        normed = norm(x)
        assert torch.equal(norm(x, relu=True), normed.clamp(min=0))
        assert torch.equal(norm(x, relu=True, residual=residual), (normed + residual).clamp(min=0))
        assert torch.equal(relu_of(norm, x, residual.double()), (normed + residual.double()).clamp(min=0))
        assert torch.equal(relu_of(nn.ReLU(), x, residual), (x.clamp(min=0) + residual).clamp(min=0))


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_frozen_statistics_stay_and_change_nothing_else(
    rng: torch.Generator, splits: int, memory_format: torch.memory_format
) -> None:
    network = nn.Sequential(SplitBatchNorm2d(3, splits), nn.ReLU())
    x = torch.randn(8, 3, 4, 4, generator=rng).contiguous(memory_format=memory_format)
    with frozen_statistics(network):
        frozen = network(x)
    assert network.state_dict()["0.running_mean"].tolist() == [0, 0, 0]
    assert network.state_dict()["0.running_var"].tolist() == [1, 1, 1]
    assert network.state_dict()["0.num_batches_tracked"] == 0
    assert torch.equal(network(x), frozen)
    assert network.state_dict()["0.running_mean"].any()


def test_bfloat16_input_keeps_its_type_under_both_formats(rng: torch.Generator) -> None:
    x = torch.randn(16, 8, 4, 4, generator=rng).to(torch.bfloat16)
    upstream = torch.randn(x.shape, generator=rng).to(torch.bfloat16)
    norm = SplitBatchNorm2d(8, 8)
    results = []
    for given in (x.float(), x, x.contiguous(memory_format=torch.channels_last)):
        leaf = given.clone().requires_grad_()
        y = norm(leaf)
        assert y.dtype == given.dtype
        grads = torch.autograd.grad(y, [leaf, norm.weight, norm.bias], upstream.to(given.dtype))
        assert [grad.dtype for grad in grads] == [given.dtype, torch.float32, torch.float32]
        results.append([value.float() for value in (y, *grads)])
    for short in results[1:]:
        torch.testing.assert_close(short[:2], results[0][:2], atol=3e-2, rtol=2e-2)
        torch.testing.assert_close(short[2:], results[0][2:], atol=0.2, rtol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_is_captured_whole_by_torch_compile(rng: torch.Generator, memory_format: torch.memory_format) -> None:
    norm = prepared(rng, 3, 4, torch.float32)
    x = torch.randn(8, 3, 4, 4, generator=rng).contiguous(memory_format=memory_format).requires_grad_()

    def layers(x: Tensor) -> Tensor:
        return relu_of(norm, norm(x), x)

    expected, actual = layers(x), torch.compile(layers, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)
    upstream = torch.randn(x.shape, generator=rng)
    wanted, got = (torch.autograd.grad(y, [x, norm.weight, norm.bias], upstream) for y in (expected, actual))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def network(rng: torch.Generator) -> nn.Module:
    """A residual network with a norm that is called twice, and norms of other kinds."""
    shared = nn.BatchNorm2d(4, eps=1e-3, momentum=0.3)
    layers = nn.Conv2d(3, 4, 3), shared, nn.ReLU(), nn.Conv2d(4, 4, 3), shared, nn.Flatten(), nn.BatchNorm1d(4 * 16)
    made = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return made


def test_a_converted_network_in_training_equals_its_groups_one_by_one(rng: torch.Generator) -> None:
    converted, plain = network(rng), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).double()
    plain.load_state_dict({key: value for key, value in converted.state_dict().items() if key in plain.state_dict()})
    plain[1].eps, splits = 1e-3, 4
    x = torch.randn(12, 3, 8, 8, generator=rng, dtype=torch.float64)
    assert convert_split_bn(converted, splits) is converted
    y = converted[:3](x)
    for group in range(splits):
        torch.testing.assert_close(y[group::splits], plain(x[group::splits]), atol=1e-12, rtol=1e-12)


def test_conversion_leaves_everything_but_the_groups(rng: torch.Generator) -> None:
    before = network(rng)
    after = copy.deepcopy(before)
    calls: list[nn.Module] = []
    after[1].register_forward_hook(lambda module, *_: calls.append(module))
    parameters = list(after.parameters())
    convert_split_bn(after.eval(), 4)
    assert all(ours is theirs for ours, theirs in zip(after.parameters(), parameters, strict=True))
    assert list(after.state_dict()) == list(before.state_dict()) and after[1] is after[4] and not after[1].training
    assert (after[1].eps, after[1].momentum, after[6].__class__) == (1e-3, 0.3, nn.BatchNorm1d)
    x = torch.randn(5, 3, 8, 8, generator=rng, dtype=torch.float64)  # not a multiple of 4
    assert torch.equal(after(x), before.eval()(x)) and len(calls) == 2
    convert_split_bn(after, 1)  # ordinary batch norm again
    assert torch.equal(after.train()(x), before.train()(x))


def test_a_norm_alone_is_converted(rng: torch.Generator) -> None:
    norm = nn.BatchNorm2d(3).double()
    assert convert_split_bn(norm, 2) is norm
    x = torch.randn(4, 3, 2, 2, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(norm(x), by_loops(SplitBatchNorm2d(3, 2).double(), x)[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("module", "splits", "message"),
    [
        (nn.Sequential(nn.BatchNorm2d(3)), 0, r"splits must be at least 1; got 0"),
        (nn.Sequential(nn.BatchNorm1d(3)), 2, r"BatchNorm2d layers, and the module has none\."),
        (nn.Sequential(nn.BatchNorm2d(3), nn.SyncBatchNorm(3)), 2, r"cannot split 1 of the module, a SyncBatchNorm"),
        (nn.SyncBatchNorm(3), 2, r"cannot split the whole of the module, a SyncBatchNorm"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)), 2, r"plain BatchNorm2d with weights"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None)), 2, r"with weights and momentum"),
    ],
)
def test_what_cannot_be_converted_is_left_as_it_was(module: nn.Module, splits: int, message: str) -> None:
    classes = [type(each) for each in module.modules()]
    with pytest.raises(ConfigError, match=message):
        convert_split_bn(module, splits)
    assert [type(each) for each in module.modules()] == classes
