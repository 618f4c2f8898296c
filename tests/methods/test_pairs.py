"""Images that are nothing but their index: does the positive of every pair show the image of its query?"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixfast.augment import Views
from mixfast.losses import Term, infonce_sum
from mixfast.methods import load
from mixfast.models import Encoding
from mixfast.rng import Generators
from tests.methods.hand import MIXED, UNMIXED, has, whole_crops

COUNT = 16
ANGLES = torch.arange(COUNT) * (2 * math.pi / COUNT)
CODES = torch.stack([ANGLES.cos(), ANGLES.sin(), torch.ones(COUNT)], dim=1)  # [COUNT, 3], one per image


class IndexEncoder(nn.Module):
    """Its map is the image, at full size, and its head the identity: vectors are averages of codes."""

    layers, dim = 1, 3

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SimpleNamespace(channels=[3])
        self.head = identity(nn.Linear(3, 3))

    def pool(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def forward(self, images: Tensor, layer: int | None = None) -> Encoding:
        h = self.pool(images)
        return Encoding(self.head(h), h, images)


def identity(layer: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3))
        layer.bias.zero_()
    return layer


def index_method(name: str, seed: int = 3, **options: Any) -> tuple[Any, Generators, dict[str, Tensor]]:
    """A method whose vectors are averages of codes, its generators, and views of index-valued images."""
    method_class = load(name)
    generators = Generators(seed)
    if has(method_class, "queue_size"):
        options = {"queue_size": 4 * COUNT, **options}
    method = method_class(method_class.Config(**options), IndexEncoder, generators)
    for head in ("region_head", "key_region_head"):
        if hasattr(method, head):
            identity(getattr(method, head))
    if hasattr(method, "predictor"):
        method.predictor = nn.Identity()
    images = torch.arange(COUNT, dtype=torch.uint8)[:, None, None, None].expand(COUNT, 3, 12, 12)

    def augment(images: Tensor, count: int = 2) -> Views:
        view = CODES[images[:, 0, 0, 0].long()][:, :, None, None].expand(-1, 3, 12, 12)
        return Views([view] * count, whole_crops(images, count))

    return method, generators, method.views(images, augment, generators)


def terms_of(name: str, **options: Any) -> list[Term]:
    """The terms of one step on index-valued images."""
    method, generators, views = index_method(name, **options)
    return list(method.step(views, generators).terms)


def content(vectors: Tensor) -> Tensor:
    """[B, 3] average code that a unit vector stands for: every code ends in 1."""
    return vectors.detach() / vectors.detach()[:, 2:]


def image(vectors: Tensor) -> list[int]:
    """The image that each vector shows; fails for a mixture of several."""
    distance = torch.cdist(content(vectors), CODES)
    assert distance.min(dim=1).values.max() < 1e-4, "a vector that should show one image shows several"
    return distance.argmin(dim=1).tolist()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("moco", {}),
        ("moco", {"symmetric": True}),
        ("approach1", {}),
        ("approach1", {"box_mode": "shared"}),
        ("approach1", {"box_per_sample": True}),
        ("approach1", {"symmetric": True}),
        ("approach1", {"mixed_key": "mixed"}),
        ("approach2", {}),
        ("approach2", {"box_per_sample": True}),
        ("approach2", {"symmetric": True, "box_per_sample": True}),
        ("approach1", {"mixture": "none"}),
        *[(name, {"mixture": "saliency", "seed": s}) for name in ("approach1", "approach2") for s in (MIXED, UNMIXED)],
        ("approach2", {"mixture": "none", "reverse_regions": "literal"}),
        ("moco_cutmix", {}),
        ("moco_cutmix", {"partner": "other_view", "symmetric": True}),
        ("moco_cutmix", {"box_per_sample": True}),
        ("moco_unmix", {"p_global": 0.0}),
        ("moco_unmix", {"p_global": 0.0, "mixture": "saliency", "seed": MIXED}),
        ("moco_unmix", {"mixture": "none"}),
        ("moco_unmix", {"p_global": 1.0, "box_per_sample": True, "symmetric": True}),
        ("moco_unmix", {"mixture": "mixup"}),
        ("one_branch", {}),
        ("one_branch", {"symmetric": True}),
        ("one_branch", {"partner": "batch_reverse"}),
        ("one_branch", {"partner": "batch_reverse", "box_per_sample": True, "symmetric": True}),
        ("one_branch", {"partner": "batch_reverse", "mixture": "none"}),
    ],
    ids=str,
)
def test_every_positive_pair_shows_one_image(name: str, options: dict[str, Any]) -> None:
    terms = terms_of(name, **options)
    partner = options.get("partner", "other_view" if name in ("approach1", "one_branch") else "batch_reverse")
    for term in terms:
        positive = image(term.positive)
        if not torch.as_tensor(term.weight).any():
            continue  # nothing is mixed, and a reversed term asks for nothing
        if partner == "batch_reverse" and term.name.startswith("mixed"):
            # Two images in one query: the positive's share must be the term's weight.
            share = torch.as_tensor(term.weight)[:, None]
            wanted = share * CODES[positive] + (1 - share) * CODES[[COUNT - 1 - i for i in positive]]
            torch.testing.assert_close(content(term.query), wanted, atol=1e-5, rtol=0)
        else:
            assert image(term.query) == positive, term.name
        assert sorted(positive) == list(range(COUNT))


@pytest.mark.parametrize(
    ("name", "options"), [("approach2", {"reverse_regions": "literal"}), ("approach2_reference", {})], ids=str
)
def test_literal_reverse_region_terms_never_pair_one_image(name: str, options: dict[str, Any]) -> None:
    for term in terms_of(name, **options):
        if term.name.startswith("mixed"):
            continue
        right = [a == b for a, b in zip(image(term.query), image(term.positive), strict=True)]
        assert sum(right) == (0 if term.name in ("global_reverse", "local_reverse") else COUNT), term.name


def test_each_region_shows_what_the_documentation_says() -> None:
    """Approach 2: outside i shows image i, inside i image N-1-i, on both branches."""
    terms = {term.name: term for term in terms_of("approach2")}
    forward, backward = list(range(COUNT)), list(range(COUNT))[::-1]
    assert image(terms["global"].query) == image(terms["global"].positive) == forward
    assert image(terms["local"].query) == image(terms["local"].positive) == backward


def test_paired_reverse_terms_equal_their_forward_terms() -> None:
    """The mean over rows does not see a reversal of both sides, which is why they are computed once."""
    terms = terms_of("approach2", box_per_sample=True)
    queues = {name: torch.nn.functional.normalize(CODES, dim=1) for name in ("whole", "global", "local")}
    by_name = {term.name: term for term in terms}
    for name in ("global", "local"):
        term = by_name[name]
        flipped = Term(name, term.query.flip(0), term.positive.flip(0), term.queue)
        forward = Term(name, term.query, term.positive, term.queue)
        losses = [infonce_sum([t], queues, 0.5)[0].item() for t in (forward, flipped)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(("patch", "query_patch", "key_patch"), [("other_view", 2, 1), ("fresh", 3, 4)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_approach1_regions_come_from_the_view_that_the_diagram_says(
    symmetric: bool, patch: str, query_patch: int, key_patch: int
) -> None:
    """Views of one image differ in colour: qG view 1, kG view 2; qL view 2 and kL view 1, or a third and a fourth."""
    method_class, generators = load("approach1"), Generators(3)
    config = method_class.Config(queue_size=4 * COUNT, symmetric=symmetric, patch=patch)
    method = method_class(config, IndexEncoder, generators)
    identity(method.region_head), identity(method.key_region_head)

    def augment(images: Tensor, count: int = 2) -> Views:
        colours = [(1.0 + number, 0.0, 1.0) for number in range(count)]
        views = [torch.stack([torch.full((COUNT, 12, 12), v) for v in colour], dim=1) for colour in colours]
        return Views(views, whole_crops(images, count))

    views = method.views(torch.zeros(COUNT, 3, 12, 12, dtype=torch.uint8), augment, generators)
    terms = {term.name: term for term in method.step(views, generators).terms}
    shade = {
        "qG": terms["global"].query, "qL": terms["local"].query,
        "kG": terms["global"].positive, "kL": terms["local"].positive,
        "q": terms["original"].query, "k": terms["original"].positive,
    }  # fmt: skip
    assert {name: round(content(v)[0, 0].item(), 4) for name, v in shade.items()} == {
        "qG": 1, "qL": query_patch, "kG": 2, "kL": key_patch, "q": 1, "k": 2,
    }  # fmt: skip
