"""Mean feature inside and outside a region of the upsampled feature map, without the upsampled map.

Bilinear upsampling U is linear and the same for every channel, so a masked mean of U f is a weighted sum of f:
    sum_p m[p] (U f)[p] / |m| = sum_c (U^T m)[c] / |m| * f[c]    p output pixel, c feature position, |m| = sum_p m[p]
The weights U^T m / |m| are [h, w] numbers per image. Boxes give them in closed form, masks by the adjoint U^T.
"""

import torch
from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops.pool import _checks, _operators, reference

NAME = "masked_upsample_pool"


def masked_upsample_pool(
    features: Tensor, regions: Tensor, output_size: tuple[int, int] | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Mean feature inside and outside a region, as if `features` were first upsampled to the region's map.

    Equals F.interpolate(features, (H, W), mode="bilinear", align_corners=False) and two masked means, without the
    large map. Twice differentiable with respect to features, forwards and backwards; works under torch.compile,
    torch.func, vmap included, and autocast, which leaves the dtype alone. The same bits on every run and for any
    number of threads.

    Args:
        features: [B, C, h, w], float16, bfloat16, float32 or float64. Contiguous and channels_last are read in place.
        regions: one of the following, on the device of features. Receives no gradient.
            Boxes [B, 4] or [4], integers (x0, y0, x1, y1) in output pixels, half-open, torchvision's order.
            A mask [B, H, W] or [B, 1, H, W]: bool; uint8, where any value but zero is inside; or float, the share in
            [0, 1] of each pixel that is inside.
        output_size: (H, W), any sizes, also smaller than (h, w). Needed with boxes; a mask brings its own.
        backend: "auto", or a name from `mixfast.backends()`, which then runs or raises.

    Returns:
        (inside, outside): [B, C] each, in the dtype of features, summed in float32 (float64 for float64).
        An empty side gives zeros and passes no gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape or device. On the CPU also a box that is
            inverted or leaves the map, and a float mask outside [0, 1]; a GPU would have to wait for these values:
            there boxes are clamped to the map, and such masks are not noticed.
        RuntimeError: the named backend cannot run this call.
        NotImplementedError: a forward-mode derivative with respect to regions, or torch.func.grad, jvp and the like
            inside of torch.compile.
    """
    _checks.check_features(NAME, features)
    regions, height, width = _checks.check_regions(NAME, regions, output_size, features)
    chosen = _dispatch.choose(NAME, backend, features.device.type, features.dtype)
    if chosen == "reference":
        _operators.check(regions, height, width)
        return reference.forward(features, regions, height, width)
    return _operators.masked_upsample_pool(features, regions, height, width, chosen)


def region_weights(
    regions: Tensor,
    output_size: tuple[int, int] | None,
    feature_size: tuple[int, int],
    *,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """The weights with which `masked_upsample_pool` sums a feature map, to be used for several maps.

    Args:
        regions, output_size, backend: as in `masked_upsample_pool`.
        feature_size: (h, w) of the maps to be pooled.
        dtype: float32, which `weighted_pool` takes with all features but float64, or float64.

    Returns:
        [B, 2, h, w], of the inside and of the outside; [1, 2, h, w] for a single box [4]. Each sums to one, or is
        zero everywhere if that side is empty. The outside's are sums of positive terms, not differences.
    """
    name = "region_weights"
    regions, height, width = _checks.check_regions(name, regions, output_size, None)
    h, w = _checks.check_size(name, "feature_size", feature_size)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: dtype must be torch.float32 or torch.float64; got {dtype}.")
    chosen = _dispatch.choose(NAME, backend, regions.device.type, dtype)
    if chosen == "reference":
        _operators.check(regions, height, width)
        return reference.weights(regions, height, width, h, w, dtype)
    return _operators.weights(regions, height, width, h, w, dtype, chosen)


def weighted_pool(features: Tensor, weights: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """`masked_upsample_pool` with ready weights: two weighted sums of every feature map.

    Args:
        features: as in `masked_upsample_pool`.
        weights: [B, 2, h, w], or [1, 2, h, w] for all images, float32 (float64 for float64 features), from
            `region_weights`. Receives no gradient.
        backend: as in `masked_upsample_pool`.

    Returns:
        (inside, outside): [B, C] each, in the dtype of features.
    """
    name = "weighted_pool"
    _checks.check_features(name, features)
    _checks.check_weights(name, weights, features)
    chosen = _dispatch.choose(NAME, backend, features.device.type, features.dtype)
    if chosen == "reference":
        return reference.pool(features, weights)
    return _operators.weighted_pool(features, weights, chosen)
