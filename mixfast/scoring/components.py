"""Component retrieval: whether the vector of the inside of a mixture's box finds the pasted image among n images, and
the vector of the outside the base image.

The mixture is CutMix: n base images, each with a box filled from another of them. A region's vector is the mean of the
upsampled map inside (outside) the box, as the methods with region terms compute it. The gallery holds the same n images
unmixed, each pooled over the whole image. The best match by cosine counts; the chance level is 1 / n. The share of
matches with the opposite component is reported too: "inside finds the base" measures how far the surroundings leak into
the box.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixfast.mix import paste
from mixfast.ops import masked_upsample_pool
from mixfast.scoring.features import evaluation_mode
from mixfast.scoring.maps import Network


def mixture_boxes(count: int, size: tuple[int, int], area: float, generator: torch.Generator) -> Tensor:
    """Boxes int64 [count, 4] of one shape, wholly inside images of (H, W), that cover about `area` of them.

    Raises:
        ValueError: an area that is not between 0 and 1.
    """
    if not 0 < area < 1:
        raise ValueError(f"mixture_boxes: area must be a share between 0 and 1; got {area}")
    height, width = (min(max(1, round(side * math.sqrt(area))), side - 1) for side in size)
    uniform = torch.rand(2, count, dtype=torch.float32, generator=generator, device=generator.device)
    y0, x0 = ((u * (side - cut + 1)).long() for u, side, cut in zip(uniform, size, (height, width), strict=True))
    return torch.stack([x0, y0, x0 + width, y0 + height], dim=1)


def retrieval(inside: Tensor, outside: Tensor, gallery: Tensor, donors: Tensor) -> dict[str, float]:
    """Shares in percent of mixtures whose regions find their images.

    Args:
        inside, outside: [n, D] vectors of the mixtures' regions.
        gallery: [n, D] vectors of the images; row i is the base of mixture i.
        donors: int64 [n], the gallery row pasted into mixture i; never i itself.

    Returns:
        "inside_finds_pasted", "inside_finds_base", "outside_finds_base", "outside_finds_pasted": this image is the most
        similar of all n. "inside_prefers_pasted", "outside_prefers_base": this one of the two components is the more
        similar; the chance level is 50.
    """
    gallery = F.normalize(gallery.float(), dim=1)
    bases = torch.arange(len(gallery), device=gallery.device)
    shares = {}
    for name, rows, expected, opposite in (("inside", inside, donors, bases), ("outside", outside, bases, donors)):
        rows = F.normalize(rows.float(), dim=1)
        nearest = torch.cat([(part @ gallery.T).argmax(1) for part in rows.split(1024)])
        prefers = (rows * gallery[expected]).sum(1) > (rows * gallery[opposite]).sum(1)
        kinds = ("pasted", "base") if name == "inside" else ("base", "pasted")
        shares[f"{name}_finds_{kinds[0]}"] = nearest == expected
        shares[f"{name}_finds_{kinds[1]}"] = nearest == opposite
        shares[f"{name}_prefers_{kinds[0]}"] = prefers
    return {name: 100 * hits.double().mean().item() for name, hits in shares.items()}


@torch.no_grad()
def component_scores(
    network: Network,
    images: Tensor,
    area: float,
    generator: torch.Generator,
    *,
    head: nn.Module | None = None,
    layer: int | None = None,
    view: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
) -> dict[str, float]:
    """`retrieval` on CutMix mixtures of n images.

    Args:
        network: the network whose feature map is pooled.
        images: uint8 [n, 3, H, W], n >= 2, on the generator's device.
        area: share of the image that is pasted.
        generator: draws pairs and boxes.
        head: from pooled features to vectors, such as a method's region head; None: the features themselves.
        layer: stage whose map is pooled; None: the last.
        view: turns uint8 images into random, normalised views, from which the mixtures are made; None: mixtures of the
            plain images, which then have the same pixels as the gallery.
        batch_size: images per forward pass.

    Returns:
        The shares of `retrieval`, in percent, and "chance": the chance level of finding one image of n.
    """
    count, size = len(images), (images.shape[2], images.shape[3])
    order = torch.randperm(count, generator=generator, device=generator.device)
    donors = torch.empty_like(order).scatter_(0, order, order.roll(1))  # one cycle, so that no image is its own donor
    boxes = mixture_boxes(count, size, area, generator)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    project = nn.Identity() if head is None else head
    make_view = view or network.normalise
    with evaluation_mode(network.encoder), evaluation_mode(project):
        for index in torch.arange(count, device=images.device).split(batch_size):
            mixture = paste(make_view(images[index]), make_view(images[donors[index]]), boxes[index])
            features = network.encoder(mixture, layer).map.float()
            inside, outside = masked_upsample_pool(features, boxes[index], size)
            pooled = network.encoder(network.normalise(images[index]), layer).map.float().mean(dim=(2, 3))
            parts.append((project(inside), project(outside), project(pooled)))
    inside, outside, gallery = (torch.cat(rows) for rows in zip(*parts, strict=True))
    return {**retrieval(inside, outside, gallery, donors), "chance": 100 / count}
