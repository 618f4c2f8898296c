"""Random views of image batches in three functions: draw parameters, compute the views they describe, mix views.

The steps of a view: bytes to [0, 1]; crop, resize and flip; colour jitter; grey; blur; solarise; (x - mean) / std.
`colour_first` puts jitter and grey before the crop, `grey_first` puts grey before the jitter. Values are clamped to
[0, 1] after every step and never rounded to 8 bits in between. Each step equals torchvision's
(transforms.v2.functional on float images, without antialiasing); bicubic crops equal those of Pillow when it enlarges.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops._derivatives import refuse_derivatives
from mixfast.ops.views import _checks, _operators
from mixfast.ops.views._layout import Law, Recipe, law

NAME = "augment_views"


def augment_views(
    images: Tensor,
    parameters: Tensor,
    *,
    index: Tensor | None = None,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
    colour_first: bool = False,
    grey_first: bool = False,
    blur_reach: int = 0,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    backend: str = "auto",
) -> list[Tensor]:
    """Compute V views of every image in one call.

    The columns of `parameters`: top, left, height and width of the crop in pixels; flip (0 or 1); factors of
    brightness, contrast and saturation; hue shift in turns; the order of these three steps, a permutation of 0, 1, 2;
    how many of them come before the hue (0..3); grey (0 or 1); standard deviation of the blur in pixels, 0 for none;
    solarise (0 or 1). `draw_views` makes them. Works under torch.compile and in a CUDA graph. There is no gradient.

    Args:
        images: uint8 [N, 3, H, W], contiguous, RGB.
        parameters: float32 [V, B, 16] on the images' device. Crops must lie inside the image.
        index: int64 [B] on the images' device, rows of `images` in [0, N), which can be a data set; None: all, B = N.
        size: side, or (height, width), of the views; None: the size of the images.
        mean, std: one number for each of the three channels, in units of [0, 1].
        interpolation: "bilinear", or "bicubic" as in Pillow: A = -0.5, reads the crop's pixels only, clamped to [0, 1].
        colour_first: apply jitter and grey before the crop; contrast then uses the mean of the whole image.
        grey_first: apply grey before the jitter.
        blur_reach: radius of the blur in pixels, torchvision's (kernel size - 1) / 2, kept below the views' sides.
            0: no view is blurred, whatever the parameters say.
        dtype: float32, bfloat16 or float16; views are computed in float32 and rounded once.
        memory_format: memory format of each view, torch.contiguous_format or torch.channels_last.
        backend: "auto", or a name from `mixfast.backends()`, which then runs or raises.

    Returns:
        V tensors [B, 3, S, T], parts of one allocation.

    Raises:
        TypeError, ValueError: a wrong kind, dtype, shape, layout or device, or parameters that require a gradient.
        IndexError: in the cpu backend, an index outside of [0, N).
        RuntimeError: the named backend cannot run this call.
        NotImplementedError: vmap over the operation, or a forward-mode derivative.
    """
    _checks.check_images(images)
    _checks.check_index(index, images)
    _checks.check_parameters(parameters, images, index)
    refuse_derivatives(NAME, parameters=parameters)
    _checks.check_channels(mean, std)
    _checks.check_format(dtype, memory_format, interpolation, blur_reach)
    height, width = images.shape[2:] if size is None else _checks.check_size(NAME, "size", size)
    chosen = _dispatch.choose(NAME, backend, images.device.type, dtype)
    options = [float(m) for m in mean], [float(s) for s in std], interpolation, bool(colour_first), bool(grey_first)
    last = memory_format == torch.channels_last
    with torch.no_grad():
        views = _operators.augment(images, parameters, index, height, width, *options, blur_reach, dtype, last, chosen)
    return list(views.unbind())


def draw_views(
    state: Tensor, batch: int, size: tuple[int, int], recipes: Sequence[Recipe], *, backend: str = "auto"
) -> Tensor:
    """Draw random parameters for the views of `batch` images, one view per recipe, with Philox4x32-10.

    The generator is counter-based. The same state gives the same parameters on every device and in every backend: crops
    and choices have equal bits, factors differ by at most one unit in the last place of float32. The draws of an image
    depend on its position in the batch and on the position of the view among the recipes, but not on the number of
    images or recipes. Crops follow torchvision's RandomResizedCrop: ten tries, then the central crop.

    Args:
        state: int64 [2], (key, next draw). The key identifies a stream. The call adds one to the next draw, in place on
            the device, so that the host does not wait and every replay of a captured graph draws new parameters.
        batch: B, the number of images.
        size: (height, width) of the images.
        recipes: one for each of the V views, see `Recipe`.
        backend: "auto", or a name from `mixfast.backends()`, which then runs or raises.

    Returns:
        float32 [V, B, 16] on the state's device, as `augment_views` takes them.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape or layout.
        RuntimeError: the named backend cannot run this call.
    """
    _checks.check_state(state)
    _checks.check_draw(batch, recipes)
    height, width = _checks.check_size("draw_views", "size", size)
    numbers = [float(number) for recipe in recipes for number in law(recipe, (height, width))]
    chosen = _dispatch.choose(NAME, backend, state.device.type, torch.float32)
    with torch.no_grad():
        drawn: Tensor = _operators.draw(state, batch, height, width, numbers, chosen)
    return drawn


def mix_views(base: Tensor, donor: Tensor, boxes: Tensor, share: Tensor, *, backend: str = "auto") -> Tensor:
    """Mix finished views: CutMix, mixup, or a choice of them per image, in one pass. There is no gradient.

    Outside its box, image i is share[i] base[i] + (1 - share[i]) donor[i]; inside its box it is donor[i]. A share of 1
    gives CutMix, an empty box gives mixup, and both together leave the image unchanged. Copied numbers keep their bits.

    Args:
        base, donor: floating point [B, C, H, W], same shape, dtype and device.
        boxes: int64 [B, 4] on that device, (x0, y0, x1, y1) in pixels, half-open; parts outside the image are ignored.
        share: float32 [B] on that device, in [0, 1].
        backend: "auto", or a name from `mixfast.backends()["augment_views"]`, which then runs or raises.

    Returns:
        [B, C, H, W], channels_last if `base` is (and not contiguous too), else contiguous.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape or device, or one that requires a gradient
            where gradients are recorded.
        RuntimeError: the named backend cannot run this call.
        NotImplementedError: vmap over the operation, or a forward-mode derivative.
    """
    _checks.check_mixture(base, donor, boxes, share)
    refuse_derivatives("mix_views", base=base, donor=donor, share=share)
    chosen = _dispatch.choose(NAME, backend, base.device.type, base.dtype)
    with torch.no_grad():
        mixed: Tensor = _operators.mix(base, donor, boxes, share, chosen)
    return mixed


__all__ = ["Law", "Recipe", "augment_views", "draw_views", "mix_views"]
