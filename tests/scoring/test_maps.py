"""Map kinds equal their formulas; dilation keeps the values of the undilated cells; baselines equal their formulas."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.models import Encoder, ModelConfig, build_encoder
from mixfast.scoring.baselines import centre_maps, edge_maps
from mixfast.scoring.dilate import dilated, fine_stride
from mixfast.scoring.maps import KINDS, Network, channel_means, enlarged, entropy, fit_mapper, principal

IMAGES = torch.randint(256, (9, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def normalise(images: Tensor) -> Tensor:
    return images.double() / 255 - 0.5


def build(generator: torch.Generator, depth: int = 8, stem: str = "cifar_s2", head: str = "mlp") -> Network:
    """A float64 encoder whose batch norms have statistics other than 0 and 1."""
    encoder = build_encoder(ModelConfig(depth=depth, width=8, stem=stem, dim=6, head=head, bn_splits=1), generator)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator).mul_(0.1)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return Network(encoder.double(), normalise)


@pytest.fixture
def network(rng: torch.Generator) -> Network:
    return build(rng)


def features(encoder: Encoder, layer: int | None = None) -> Tensor:
    """Features of every cell of all images, [N, h, w, C]."""
    with torch.no_grad():
        return copy.deepcopy(encoder).eval()(normalise(IMAGES), layer).map.permute(0, 2, 3, 1)


def test_kinds_equal_their_formulas(network: Network, rng: torch.Generator) -> None:
    weights = torch.randn(3, 32, generator=rng)
    mapper = fit_mapper(network, IMAGES[:4], stride=8, classifier=weights, p=3.0)
    assert mapper.kinds() == KINDS and mapper.stride == 8
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, -1])
    mapper = type(mapper)(*[getattr(mapper, name) for name in ("network", "layer", "means", "classifier", "p")], 4)
    found = mapper.maps(IMAGES, KINDS, labels)
    cells = features(network.encoder)
    means = cells[:4].mean((0, 1, 2))
    torch.testing.assert_close(mapper.means.double(), means, rtol=1e-5, atol=1e-7)
    for i, image in enumerate(cells):
        pooled = image.mean((0, 1))
        z = network.encoder.head(pooled)
        known = int(labels[i]) if labels[i] >= 0 else int((weights.double() @ pooled).argmax())
        for y in range(4):
            for x in range(4):
                cell = image[y, x]
                expected = {
                    "norm": (cell - means).norm(),
                    "power": cell.abs().pow(3).mean(),
                    "sim": F.cosine_similarity(network.encoder.head(cell), z, dim=0),
                    "cam": cell @ weights[known].double(),
                }
                for kind, value in expected.items():
                    assert found[kind][i, y, x].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5)


def test_a_prediction_stands_in_where_there_are_no_labels(network: Network, rng: torch.Generator) -> None:
    mapper = fit_mapper(network, IMAGES, stride=8, classifier=torch.randn(3, 32, generator=rng))
    unknown = torch.full((9,), -1)
    assert torch.equal(mapper.maps(IMAGES, ["cam"])["cam"], mapper.maps(IMAGES, ["cam"], unknown)["cam"])


@pytest.mark.parametrize("shape", [(5, 16, 7), (5, 6, 30)], ids=["more cells", "more channels"])
def test_principal_is_the_first_component_of_an_svd(shape: tuple[int, int, int], rng: torch.Generator) -> None:
    cells = torch.randn(shape, generator=rng).relu()
    found = principal(cells)
    for one, image in zip(found, cells.double(), strict=True):
        centred = image - image.mean(0)
        _, _, v = torch.linalg.svd(centred)
        along = centred @ v[0]
        length = image.norm(dim=1)
        if ((along - along.mean()) * (length - length.mean())).sum() < 0:
            along = -along
        torch.testing.assert_close(one.double(), along, rtol=1e-4, atol=1e-5)


def test_the_sign_of_eigen_follows_the_length_of_the_features() -> None:
    cells = torch.zeros(2, 9, 4)
    cells[:, :3] = torch.tensor([3.0, 1.0, 0.0, 2.0])  # three strong cells, whatever sign an eigenvector has
    found = principal(cells)
    assert (found[:, :3] > found[:, 3:].max()).all()


def test_enlarged_maps_span_zero_to_one(rng: torch.Generator) -> None:
    maps = torch.randn(3, 4, 4, generator=rng) * 50 - 20
    for corners in (False, True):
        big = enlarged(maps, (32, 32), corners)
        assert (big.amin((1, 2)) == 0).all() and (big.amax((1, 2)) == 1).all()
        up = F.interpolate(maps[None], (32, 32), mode="bilinear", align_corners=corners)[0]
        expected = (up - up.amin((1, 2), True)) / (up.amax((1, 2), True) - up.amin((1, 2), True))
        torch.testing.assert_close(big, expected)
    assert torch.equal(enlarged(torch.full((2, 4, 4), 0.1), (30, 30)), torch.ones(2, 30, 30))


def test_entropy_of_known_maps() -> None:
    maps = torch.zeros(3, 4, 4)
    maps[0], maps[1, 0, 0], maps[2, :, :2] = 1, 5, 3
    torch.testing.assert_close(entropy(maps), torch.tensor([1.0, 0.0, 0.75]))  # 16, 1 and 8 equal cells


@pytest.mark.parametrize(
    ("depth", "stem", "own", "strides"),
    [(8, "cifar_s2", 8, (4, 2)), (18, "cifar", 8, (4, 2, 1)), (50, "imagenet", 32, (16, 8, 4))],
)
def test_dilation_keeps_the_cells_that_were_there(
    depth: int, stem: str, own: int, strides: tuple[int, ...], rng: torch.Generator
) -> None:
    encoder = build(rng, depth, stem, "linear").encoder
    assert encoder.backbone.strides[-1] == own and dilated(encoder, own) is encoder
    before = features(encoder)
    for stride in strides:
        fine = dilated(encoder, stride)
        assert fine.backbone.strides[-1] == stride and encoder.backbone.strides[-1] == own
        after = features(fine)
        assert after.shape[1] == 32 // stride
        torch.testing.assert_close(after[:, :: own // stride, :: own // stride], before, rtol=1e-9, atol=1e-9)


def test_dilation_up_to_an_earlier_layer(rng: torch.Generator) -> None:
    encoder = build(rng, 18, "cifar").encoder
    assert encoder.backbone.strides == [1, 2, 4, 8]
    fine = dilated(encoder, 2, layer=3)
    assert fine.backbone.strides == [1, 2, 2, 4]
    torch.testing.assert_close(features(fine, 3)[:, ::2, ::2], features(encoder, 3), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(features(fine)[:, ::2, ::2], features(encoder), rtol=1e-9, atol=1e-9)


def test_strides_that_cannot_be(network: Network) -> None:
    with pytest.raises(
        ValueError, match=r"has 8 pixels per cell after layer 3, and dilation can make that 4 or 2; got 1"
    ):
        dilated(network.encoder, 1)
    with pytest.raises(ValueError, match="got 16"):
        dilated(network.encoder, 16)


@pytest.mark.parametrize(
    ("depth", "stem", "side", "expected"),
    [
        (18, "cifar", 128, 8),
        (18, "cifar", 32, 2),
        (8, "cifar_s2", 32, 2),
        (8, "cifar_s2", 8, 2),
        (50, "imagenet", 224, 16),
    ],
)
def test_the_stride_gives_fourteen_cells(depth: int, stem: str, side: int, expected: int, rng: torch.Generator) -> None:
    network = build(rng, depth, stem)
    assert fine_stride(network.encoder.backbone, side) == expected
    if side == 32:
        assert fit_mapper(network, IMAGES).stride == expected


def test_channel_means_are_over_all_cells(network: Network) -> None:
    expected = features(network.encoder, 2).mean((0, 1, 2)).float()
    torch.testing.assert_close(channel_means(network, IMAGES, 2, batch_size=2), expected)


def test_an_early_layer_has_no_head_and_no_probe(network: Network) -> None:
    mapper = fit_mapper(network, IMAGES, layer=1, classifier=torch.ones(2, 16))
    assert mapper.kinds() == ("norm", "power", "eigen")
    assert mapper.maps(IMAGES, ["eigen"])["eigen"].shape == (9, 16, 16)
    with pytest.raises(ValueError, match="kinds must be among norm, power, eigen here; got sim"):
        mapper.maps(IMAGES, ["sim"])
    with pytest.raises(ValueError, match=r"layer must be in 1 ... 3 for this network; got 4"):
        fit_mapper(network, IMAGES, layer=4)


def test_edges_equal_a_loop() -> None:
    images = IMAGES[:2, :, :8, :12]
    found = edge_maps(images)
    grey = images.double().mean(1) / 255
    assert found["edges 4"].shape == (2, 2, 3) and found["edges 8"].shape == (2, 1, 1)
    for i in range(2):
        for cell_y in range(2):
            for cell_x in range(3):
                total = 0.0
                for y in range(4 * cell_y, 4 * cell_y + 4):
                    for x in range(4 * cell_x, 4 * cell_x + 4):
                        across = (grey[i, y, min(x + 1, 11)] - grey[i, y, max(x - 1, 0)]) / 2
                        down = (grey[i, min(y + 1, 7), x] - grey[i, max(y - 1, 0), x]) / 2
                        total += torch.hypot(across, down).item()
                assert found["edges 4"][i, cell_y, cell_x].item() == pytest.approx(total / 16, rel=1e-5)


def test_thresholds_of_centre_maps_are_centred_boxes() -> None:
    maps = centre_maps(torch.zeros(1, 3, 96, 64, dtype=torch.uint8))
    assert list(maps) == ["centre 1.00", "centre 1.33", "centre 0.75"]
    for name, one in maps.items():
        for level in (0.2, 0.5, 0.8):
            y, x = (one[0] >= level).nonzero().T
            height, width = y.max() - y.min() + 1, x.max() - x.min() + 1
            assert (one[0] >= level).sum() == height * width  # a full rectangle
            assert y.min() + y.max() == 95 and x.min() + x.max() == 63  # around the centre
            ratio = (width / 64) / (height / 96)
            assert ratio.item() == pytest.approx(float(name.split()[1]), abs=0.15)
