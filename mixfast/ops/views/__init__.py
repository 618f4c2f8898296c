"""Random views of image batches: the draws of their parameters, the views that given parameters describe, mixtures.

A view is: bytes to [0, 1]; jitter and grey (or, by `colour_first` and `grey_first`, in another order); crop, resize and
flip; jitter and grey, if not before; blur; solarise; (x - mean) / std. Values are clamped to [0, 1] after every step
and never rounded to 8 bits in between. Each step is torchvision's (transforms.v2.functional on float images, crops
without antialiasing, and bicubic ones as Pillow enlarges).
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
    """V views of every image in one call: one read of the bytes, and one write of each view.

    The columns of `parameters`: top, left, height and width of the crop in pixels; flip (0 or 1); factors of
    brightness, contrast and saturation; hue shift in turns; the order of these three steps, a permutation of 0, 1, 2;
    how many of them come before the hue (0..3); grey (0 or 1); standard deviation of the blur in pixels, 0 for none;
    solarise (0 or 1). `draw_views` makes them. Works under torch.compile and in a CUDA graph. No gradient passes.

    Args:
        images: uint8 [N, 3, H, W], contiguous, RGB.
        parameters: float32 [V, B, 16] on the images' device. Crops must lie inside the image.
        index: int64 [B] on that device, the rows of `images` to use, in [0, N): a whole data set can be given without
            gathering a batch. None: all rows, so that B = N.
        size: side, or (height, width), of the views; that of the images if None.
        mean, std: of the three channels, in units of [0, 1].
        interpolation: "bilinear", or "bicubic" as in Pillow: A = -0.5, of pixels of the crop alone, clamped to [0, 1].
        colour_first, grey_first: jitter and grey before the crop (with the whole image's mean); grey before the jitter.
        blur_reach: pixels that a blur reaches to each side, (kernel size - 1) / 2 of torchvision, or the smaller side
            of a view less one if that is less; 0: no view is blurred, whatever the parameters say.
        dtype: of the views, float32, bfloat16 or float16; computed in float32 and rounded once.
        memory_format: of each view, torch.contiguous_format or torch.channels_last.
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
    """Random parameters of a view by each recipe, of `batch` images, by a counter-based generator (Philox4x32-10).

    The same state gives the same parameters, on every device and in every backend: crops and choices bit for bit,
    factors to the last bit of float32 but one. An image's draws depend on its place in the batch and on the view's
    place among the recipes, not on how many there are. `_philox.py` says which number is drawn from which counter.
    Crops follow torchvision's RandomResizedCrop: ten tries, then the central crop.

    Args:
        state: int64 [2], (key, next draw): the key names a stream, and the call adds one to the next draw, in place on
            the device, so that nothing waits and a captured graph goes on to the next draw at every replay.
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
    """Mixtures of finished views: CutMix, mixup, or either by image, in one pass. No gradient passes.

    Outside of its box, image i is share[i] base[i] + (1 - share[i]) donor[i]; inside it is donor[i]. So CutMix is a
    share of 1, mixup an empty box, and an image with both is left alone. Copied numbers keep their bits.

    Args:
        base, donor: floating point [B, C, H, W], same shape, dtype and device.
        boxes: int64 [B, 4] on that device, (x0, y0, x1, y1) in pixels, half-open; what sticks out is left out.
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
