"""models.ema, models.shuffle: what moves when, and what does not."""

import pytest
import torch
from torch import nn

from mixfast.models import ModelConfig, build_encoder
from mixfast.models.ema import follower, update_ema_
from mixfast.models.shuffle import encode_shuffled

TINY = ModelConfig(depth=8, width=8, stem="cifar_s2", dim=5, bn_splits=4)


def test_ema_moves_parameters_by_the_formula_and_leaves_buffers(rng: torch.Generator) -> None:
    source = build_encoder(TINY, torch.Generator().manual_seed(0)).double()
    target = follower(source)
    assert all(not p.requires_grad for p in target.parameters())
    with torch.no_grad():
        for p in source.parameters():
            p.add_(torch.randn(p.shape, generator=rng, dtype=p.dtype))
        source.backbone.bn1.running_mean.fill_(7)
    before = [p.clone() for p in target.parameters()]
    update_ema_(target, source, 0.9)
    for old, new, goal in zip(before, target.parameters(), source.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * goal, atol=1e-15, rtol=1e-14)
    assert not target.backbone.bn1.running_mean.any()


@pytest.mark.parametrize(("momentum", "index"), [(1.0, 0), (0.0, 1)])
def test_ema_limits(momentum: float, index: int) -> None:
    """1 keeps the target as it is, 0 copies the source."""
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    wanted = layers[index].weight.clone()
    update_ema_(layers[0], layers[1], momentum)
    torch.testing.assert_close(layers[0].weight, wanted, atol=1e-7, rtol=0)


def test_shuffled_rows_come_back_in_place(rng: torch.Generator) -> None:
    """With one group the order changes nothing but rounding; with more it changes who shares statistics."""
    x = torch.randn(16, 3, 16, 16, generator=rng, dtype=torch.float64)
    plain = build_encoder(ModelConfig(depth=8, width=8, dim=5, bn_splits=1), torch.Generator().manual_seed(0)).double()
    for got, wanted in zip(encode_shuffled(plain, x, rng, 2), plain(x, 2), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)
        assert not got.requires_grad
    split = build_encoder(TINY, torch.Generator().manual_seed(0)).double()
    first, second = (encode_shuffled(split, x, rng).z for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-6)


def test_shuffling_feeds_the_network_another_order(rng: torch.Generator) -> None:
    encoder = build_encoder(TINY, torch.Generator().manual_seed(0))
    fed: list[torch.Tensor] = []
    encoder.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    x = torch.arange(16.0)[:, None, None, None].expand(16, 3, 16, 16)
    encode_shuffled(encoder, x, rng)
    encode_shuffled(encoder, x, rng)
    orders = [batch[:, 0, 0, 0] for batch in fed]
    assert not torch.equal(orders[0], torch.arange(16.0)) and not torch.equal(orders[0], orders[1])
    assert all(torch.equal(order.sort().values, torch.arange(16.0)) for order in orders)
