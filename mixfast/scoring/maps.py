"""Attention maps of an encoder, and their enlargement to the size of the images.

kind    needs     value of a cell with features F [C]
norm    nothing   length of F - m; m: each channel's mean over reference images
power   nothing   mean over channels of |F|^p; p = 2 is the paper's figure (Zagoruyko & Komodakis 2017)
eigen   nothing   projection on the first principal component of the image's own cells (EigenCAM, Muhammad 2020),
                  with the sign that makes it grow with the length of F
sim     head      cosine of head(F) and the image's embedding, both not centred (CAM for embeddings)
cam     labels    F . w_class: a linear probe's weights for the image's class (CAM, Zhou et al. 2016)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.models import Encoder, Encoding
from mixfast.scoring.dilate import dilated, fine_stride
from mixfast.scoring.features import evaluation_mode

KINDS = ("norm", "power", "eigen", "sim", "cam")
LAST_ONLY = ("sim", "cam")  # kinds that need the last layer, which the head and the probe read


class Network(NamedTuple):
    """An encoder, and the function that turns uint8 images [N, 3, H, W] into its input."""

    encoder: Encoder
    normalise: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Mapper:
    """Makes the maps of one network; `fit_mapper` builds one."""

    network: Network
    layer: int | None = None  # stage whose map is used, 1 is the first; None: the last
    means: Tensor | None = None  # [C], for "norm"
    classifier: Tensor | None = None  # [classes, C], for "cam"
    p: float = 2.0  # exponent of "power"
    batch_size: int = field(default=64, repr=False)

    @property
    def stride(self) -> int:
        """Pixels per cell."""
        encoder = self.network.encoder
        return encoder.backbone.strides[(self.layer or encoder.layers) - 1]

    def kinds(self) -> tuple[str, ...]:
        """The kinds that this mapper can make, in the order of `KINDS`."""
        last = self.layer in (None, self.network.encoder.layers)
        missing = {"norm": self.means is None, "sim": not last, "cam": not last or self.classifier is None}
        return tuple(kind for kind in KINDS if not missing.get(kind, False))

    @torch.no_grad()
    def maps(self, images: Tensor, kinds: Sequence[str], labels: Tensor | None = None) -> dict[str, Tensor]:
        """Raw maps float32 [N, h, w] by kind, from one pass over uint8 images [N, 3, H, W].

        Args:
            images: at the size of the network's input.
            kinds: some of `self.kinds()`.
            labels: int64 [N], for "cam"; None or -1: the class that the probe predicts.

        Raises:
            ValueError: a kind that this mapper cannot make.
        """
        if unknown := [kind for kind in kinds if kind not in self.kinds()]:
            raise ValueError(f"maps: kinds must be among {', '.join(self.kinds())} here; got {', '.join(unknown)}")
        encoder = self.network.encoder
        maps_by_kind: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        with evaluation_mode(encoder):
            for start in range(0, len(images), self.batch_size):
                part = slice(start, start + self.batch_size)
                encoding = encoder(self.network.normalise(images[part]), self.layer)
                classes = None if labels is None else labels[part].to(encoding.h.device)
                for kind in kinds:
                    maps_by_kind[kind].append(self._map(kind, encoding, classes))
        return {kind: torch.cat(parts) for kind, parts in maps_by_kind.items()}

    def _map(self, kind: str, encoding: Encoding, labels: Tensor | None) -> Tensor:
        cells = encoding.map.flatten(2).transpose(1, 2)  # [B, hw, C]
        if kind == "norm":
            assert self.means is not None
            values = (cells - self.means.to(cells.dtype)).norm(dim=2)
        elif kind == "power":
            values = cells.abs().pow(self.p).mean(2)
        elif kind == "eigen":
            values = principal(cells)
        elif kind == "sim":
            head = self.network.encoder.head(cells.flatten(0, 1)).view(*cells.shape[:2], -1)
            values = F.cosine_similarity(head, encoding.z[:, None], dim=2)
        else:
            values = (cells @ self._weights(encoding.h, labels)[:, :, None])[:, :, 0]
        return values.view(len(values), *encoding.map.shape[2:]).float()

    def _weights(self, h: Tensor, labels: Tensor | None) -> Tensor:
        """[B, C]: the classifier's row for each image."""
        assert self.classifier is not None
        classifier = self.classifier.to(h.dtype)
        predicted = (h @ classifier.T).argmax(1)
        return classifier[predicted if labels is None else torch.where(labels >= 0, labels, predicted)]


def fit_mapper(
    network: Network,
    reference: Tensor,
    *,
    layer: int | None = None,
    stride: int | None = None,
    classifier: Tensor | None = None,
    p: float = 2.0,
) -> Mapper:
    """A mapper with channel means from reference images uint8 [N, 3, H, W], which must not be scored themselves.

    Args:
        network: not changed.
        reference: images of the same size as those that will be scored.
        layer: stage whose map is used, 1 is the first; None: the last.
        stride: pixels per cell, by dilation (`dilate.dilated`); None: fine enough for the size of the reference images
            (`dilate.fine_stride`).
        classifier: [classes, C], weights of a linear probe on the pooled features; None: no "cam".
        p: exponent of "power".

    Raises:
        ValueError: the network has no such layer, or dilation cannot give the stride.
    """
    layers = network.encoder.layers
    if layer is not None and not 1 <= layer <= layers:
        raise ValueError(f"layer must be in 1 ... {layers} for this network; got {layer}")
    if stride is None:
        stride = fine_stride(network.encoder.backbone, min(reference.shape[2:]), layer)
    network = Network(dilated(network.encoder, stride, layer), network.normalise)
    return Mapper(network, layer, channel_means(network, reference, layer), classifier, p)


@torch.no_grad()
def channel_means(network: Network, images: Tensor, layer: int | None = None, batch_size: int = 64) -> Tensor:
    """float32 [C]: each channel's mean over all cells of all images."""
    total, cells = 0.0, 0
    with evaluation_mode(network.encoder):
        for batch in images.split(batch_size):
            features = network.encoder(network.normalise(batch), layer).map
            total = total + features.double().sum(dim=(0, 2, 3))
            cells += features[:, 0].numel()
    assert isinstance(total, Tensor)
    return (total / cells).float()


def principal(cells: Tensor) -> Tensor:
    """[B, n]: coordinates of cells [B, n, C] along each image's first principal component.

    The component's sign is arbitrary; here longer feature vectors have, on the whole, larger coordinates.
    """
    centred = (cells - cells.mean(1, keepdim=True)).double()
    if cells.shape[1] <= cells.shape[2]:
        values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))
        coordinates = vectors[:, :, -1] * values[:, -1:].clamp(min=0).sqrt()
    else:
        _, vectors = torch.linalg.eigh(centred.transpose(1, 2) @ centred)
        coordinates = (centred @ vectors[:, :, -1:])[:, :, 0]
    lengths = cells.norm(dim=2).double()
    agrees = (coordinates * (lengths - lengths.mean(1, keepdim=True))).sum(1, keepdim=True) >= 0
    return torch.where(agrees, coordinates, -coordinates).float()


def enlarged(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Raw maps [N, h, w] at the size (H, W) of the images, bilinear, then each scaled to [0, 1].

    A constant map becomes all ones.

    Args:
        maps: [N, h, w], any values.
        size: (H, W).
        align_corners: corner cells at the corners of the image, the look of the paper's figure; scores use False.
    """
    if maps.shape[1:] != size:
        maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=align_corners)[:, 0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    rounding = 1e-6 * torch.maximum(low.abs(), high.abs())  # difference of equal values after interpolation, at most
    return torch.where(high - low > rounding, (maps - low) / (high - low), 1.0)


def entropy(maps: Tensor) -> Tensor:
    """float32 [N]: entropy of maps [N, H, W] >= 0 as distributions, divided by that of a uniform map."""
    shares = maps.flatten(1) / maps.flatten(1).sum(1, keepdim=True).clamp(min=1e-12)
    return torch.special.entr(shares).sum(1) / shares.new_tensor(shares.shape[1]).log()
