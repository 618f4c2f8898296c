"""Features equal a pass over single images; baselines use calibrated statistics; evaluation changes no network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.models import Encoder, ModelConfig, build_encoder
from mixfast.scoring.baselines import calibrated, pixels
from mixfast.scoring.features import evaluation_mode, extract

IMAGES = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def normalise(images: Tensor) -> Tensor:
    return images.float() / 255 - 0.5


@pytest.fixture
def encoder(rng: torch.Generator) -> Encoder:
    return build_encoder(ModelConfig(depth=8, width=8, dim=8, bn_splits=2), rng).train()


def test_features_are_those_of_single_images(encoder: Encoder) -> None:
    features = extract(encoder, IMAGES, normalise, batch_size=7)
    assert features.z.shape == (20, 8) and features.h.shape == (20, 32)
    assert not features.z.requires_grad
    single = copy.deepcopy(encoder).eval()
    for index, image in enumerate(IMAGES):
        with torch.no_grad():
            out = single(normalise(image[None]))
        torch.testing.assert_close(features.z[index], out.z[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features.h[index], out.h[0], rtol=1e-4, atol=1e-5)


def test_evaluation_leaves_the_encoder_as_it_was(encoder: Encoder) -> None:
    encoder.head.eval()
    before = copy.deepcopy(encoder.state_dict())
    extract(encoder, IMAGES, normalise)
    calibrated(encoder, IMAGES, normalise)
    assert encoder.training and not encoder.head.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(ZeroDivisionError), evaluation_mode(encoder):
        assert not encoder.backbone.bn1.training
        _ = 1 / 0
    assert encoder.backbone.bn1.training


def test_stop_is_asked_before_every_batch(encoder: Encoder) -> None:
    asked = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        extract(encoder, IMAGES, normalise, batch_size=5, before_batch=stop)
    assert encoder.training


def test_calibrated_statistics_are_those_of_each_layers_input(encoder: Encoder) -> None:
    """With one batch: the first layer's statistics by hand, and a normalised output of the last layers."""
    fitted = calibrated(encoder, IMAGES, normalise, batch_size=20)
    x = normalise(IMAGES).double()
    first = F.conv2d(x, encoder.backbone.conv1.weight.double(), padding=1)
    bn = fitted.backbone.bn1
    torch.testing.assert_close(bn.running_mean.double(), first.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bn.running_var.double(), first.var((0, 2, 3)), rtol=1e-5, atol=1e-6)
    seen: list[Tensor] = []
    handle = fitted.backbone.layer3[0].bn2.register_forward_hook(lambda module, inputs, out: seen.append(out))
    extract(fitted, IMAGES, normalise)
    handle.remove()
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.zeros(32), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[0].std((0, 2, 3)), torch.ones(32), rtol=0, atol=1e-2)


def test_calibration_averages_over_batches(encoder: Encoder) -> None:
    whole = calibrated(encoder, IMAGES, normalise, batch_size=10)
    parts = [calibrated(encoder, IMAGES[part], normalise) for part in (slice(0, 10), slice(10, 20))]
    means = torch.stack([part.backbone.bn1.running_mean for part in parts]).mean(0)
    torch.testing.assert_close(whole.backbone.bn1.running_mean, means)
    few = calibrated(encoder, IMAGES, normalise, batch_size=10, batches=1)
    assert torch.equal(few.backbone.bn1.running_mean, parts[0].backbone.bn1.running_mean)


def test_pixels_are_the_normalised_images_and_shrink_when_large() -> None:
    assert torch.equal(pixels(IMAGES, normalise, batch_size=6), normalise(IMAGES).flatten(1))
    small = pixels(IMAGES, normalise, side=4)
    assert torch.equal(small.view(20, 3, 4, 4), F.avg_pool2d(normalise(IMAGES), 4))
