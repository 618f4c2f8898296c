"""The three functions by their definitions, in plain PyTorch on whole batches, for any device.

Letters: B images, C channels, H x W input pixels, S x T output pixels, P pixels. Conventions are those of
torchvision.transforms.v2.functional on float images: clamped to [0, 1] after every step, without rounding.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from mixfast.ops.views import _philox
from mixfast.ops.views._layout import COLUMNS, Law, Options, empty_views

# Images per step on a CPU, so that intermediate results stay in the cache; the results do not depend on it.
CPU_CHUNK = 64
GREY = (0.2989, 0.587, 0.114)  # torchvision's luma weights (ITU-R 601); they sum to 0.9999


def unavailable() -> str | None:
    return None


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def draw_views(state: Tensor, batch: int, size: tuple[int, int], laws: tuple[Law, ...]) -> Tensor:
    """float32 [V, B, 16]; moves state[1] on by one."""
    parameters = _philox.draw(state, batch, size, laws)
    state[1].add_(1)
    return parameters


def augment_views(images: Tensor, parameters: Tensor, index: Tensor | None, options: Options) -> Tensor:
    """[V, B, 3, S, T] of uint8 images [N, 3, H, W]; parameters [V, B, 16] and index [B] are contiguous."""
    views = empty_views(images, parameters, options)
    batch = parameters.shape[1]
    chunk = min(CPU_CHUNK, batch) if images.device.type == "cpu" else batch
    with torch.autocast(images.device.type, enabled=False):
        for i in range(0, batch, max(chunk, 1)):
            part = slice(i, i + chunk)
            pixels = images[part] if index is None else images[index[part]]
            pixels = pixels.to(torch.float32).mul_(1 / 255)
            for view, how in zip(views, parameters, strict=True):
                view[part] = _view(pixels, how[part], options)
    return views


def mix_views(base: Tensor, donor: Tensor, boxes: Tensor, share: Tensor) -> Tensor:
    """[B, C, H, W]; all are contiguous, or the views channels_last."""
    dtype = torch.promote_types(base.dtype, torch.float32)
    inside = box_mask(boxes, (base.shape[2], base.shape[3]))
    weight = torch.where(inside, 0.0, share[:, None, None])[:, None].to(dtype)
    return torch.empty_like(base).copy_(torch.lerp(donor.to(dtype), base.to(dtype), weight))


def _view(images: Tensor, parameters: Tensor, options: Options) -> Tensor:
    """float32 [B, 3, S, T] of float32 images in [0, 1]."""
    how = dict(zip(COLUMNS, parameters.unbind(1), strict=True))
    views = _coloured(images, how, options) if options.colour_first else images
    box = torch.stack([how[name] for name in ("top", "left", "height", "width")], dim=1).long()
    size = options.height, options.width
    views = crop_resize(views, box, size, options.interpolation, how["flip"] != 0)
    if not options.colour_first:
        views = _coloured(views, how, options)
    if options.reach:
        views = blur(views, how["sigma"], options.reach)
    views = solarise(views.flatten(2), how["solarise"] != 0).view(views.shape)
    return standardised(views, options.scale, options.offset)


def _coloured(views: Tensor, how: dict[str, Tensor], options: Options) -> Tensor:
    """Jitter and grey, in the order that the options say."""
    pixels, greyed = views.flatten(2), how["grey"] != 0
    order = torch.stack([how["order0"], how["order1"], how["order2"]], dim=1).long()
    steps = Jitter(how["brightness"], how["contrast"], how["saturation"], how["hue"], order, how["hue_place"])
    if options.grey_first:
        pixels = torch.bmm(grey_matrices(greyed), pixels)
    pixels = jitter(pixels, steps)
    if not options.grey_first:
        pixels = torch.bmm(grey_matrices(greyed), pixels)
    return pixels.view(views.shape)


# Crop and flip are two batched matrix products, one per image axis. Pixel centres are at half integers. Samples outside
# the crop are clamped to its edge (bilinear) or omitted (bicubic, as in Pillow, which published recipes use). Bicubic
# results are clamped to [0, 1], as in Pillow, where rounding to 8 bits does so.


def axis_weights(
    start: Tensor, length: Tensor, in_size: int, out_size: int, interpolation: str, flip: Tensor | None = None
) -> Tensor:
    """Matrix [B, out_size, in_size] that resamples [start, start + length) of one axis; its rows sum to 1.

    Args:
        start, length: [B] integers, the crop along this axis.
        in_size, out_size: pixels of the image and of the view.
        interpolation: "bilinear" or "bicubic".
        flip: [B] bool, reverse the output.
    """
    last = (length - 1)[:, None]
    out = torch.arange(out_size, dtype=torch.float32, device=start.device)
    if flip is not None:
        out = torch.where(flip[:, None], out_size - 1 - out, out)
    source = (out + 0.5) * (length[:, None].float() / out_size) - 0.5  # [B, out], in pixels from the crop's start
    if interpolation == "bilinear":
        source = source.clamp_(min=0)
    base = source.floor()
    fraction = source - base
    weights = source.new_zeros(len(start), out_size, in_size)
    base = base.long()
    if interpolation == "bicubic":
        neighbours = {tap: base + tap for tap in range(-1, 3)}
        inside = {tap: (place >= 0) & (place <= last) for tap, place in neighbours.items()}
        taps = {tap: torch.where(inside[tap], weight, 0.0) for tap, weight in _cubic(fraction).items()}
        total = taps[-1] + taps[0] + taps[1] + taps[2]
        taps = {tap: weight / total for tap, weight in taps.items()}
    else:
        taps = {0: 1 - fraction, 1: fraction}
    for tap, weight in taps.items():
        at = torch.minimum((base + tap).clamp_(min=0), last) + start[:, None]
        # one tap at a time: no two of its weights meet in one cell, so the sum has one order on every device
        weights.scatter_add_(2, at[..., None], weight[..., None])
    return weights


def _cubic(t: Tensor) -> dict[int, Tensor]:
    """Weights of the pixels at -1, 0, 1 and 2 for a point at t in [0, 1): Keys' kernel with A = -0.5."""
    a = -0.5

    def near(x: Tensor) -> Tensor:  # |x| <= 1
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:  # 1 < |x| < 2
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return {-1: far(t + 1), 0: near(t), 1: near(1 - t), 2: far(2 - t)}


def crop_resize(
    images: Tensor, boxes: Tensor, size: tuple[int, int], interpolation: str, flip: Tensor | None = None
) -> Tensor:
    """Crop every image to its own box, resize it and flip it.

    Args:
        images: float32 [B, C, H, W] in [0, 1].
        boxes: integers [B, 4] as (top, left, height, width).
        size: (S, T), the output's height and width.
        interpolation: "bilinear" or "bicubic".
        flip: bool [B], mirror left and right.

    Returns:
        float32 [B, C, S, T] in [0, 1].
    """
    batch, channels, height, width = images.shape
    top, left, crop_h, crop_w = boxes.unbind(1)
    rows = axis_weights(top, crop_h, height, size[0], interpolation)
    columns = axis_weights(left, crop_w, width, size[1], interpolation, flip)
    # weights that are 0 outside the crop: the products read other pixels but do not use them
    narrow = torch.bmm(images.reshape(batch, channels * height, width), columns.transpose(1, 2))
    views = torch.matmul(rows[:, None], narrow.view(batch, channels, height, size[1]))
    return views.clamp_(0, 1) if interpolation == "bicubic" else views


# Colours of images [B, 3, P], RGB, each with its own parameters.


class Jitter(NamedTuple):
    """Colour jitter of B images: factors of 1 and a shift of 0 leave an image as it is."""

    brightness: Tensor  # [B] factor
    contrast: Tensor  # [B] factor
    saturation: Tensor  # [B] factor
    hue: Tensor  # [B] shift in turns
    order: Tensor  # [B, 3] permutation of 0 brightness, 1 contrast, 2 saturation
    hue_place: Tensor  # [B] 0..3: how many of these three come before the hue


# Cached forever: a captured CUDA graph reads this tensor's memory at every replay.
@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 tensor of a few numbers, copied to the device once: a later call neither copies nor waits."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def jitter(images: Tensor, how: Jitter) -> Tensor:
    """Brightness, contrast, saturation and hue of [B, 3, P], in each image's own order.

    The first three are all "clamp(a x + (1 - a) y)", where y is black, the image's mean grey, or the pixel's grey.
    Each is therefore a 3x3 matrix and an offset per image. All images run three such steps before the hue and the same
    three after it: `hue_place` decides on which side a step is real, and on the other side it is exactly the identity
    (x * 1, then clamping a clamped value). So all 24 orders together cost six small products and one hue.
    """
    grey = constant(GREY, images.device)
    factors = torch.stack([how.brightness, how.contrast, how.saturation], dim=1).gather(1, how.order)  # [B, slot]
    slots = torch.arange(3, device=images.device)
    early = slots < how.hue_place[:, None]
    images = _blends(images, torch.where(early, factors, 1.0), how.order, grey)
    images = shift_hue(images, how.hue)
    return _blends(images, torch.where(early, 1.0, factors), how.order, grey)


def _blends(images: Tensor, factors: Tensor, order: Tensor, grey: Tensor) -> Tensor:
    """Three steps of brightness, contrast or saturation: factors and order are [B, 3], by slot."""
    rest = 1 - factors
    eye = torch.eye(3, dtype=torch.float32, device=images.device)
    to_grey = torch.where(order == 2, rest, 0.0)
    matrices = factors[..., None, None] * eye + to_grey[..., None, None] * grey  # [B, slot, 3, 3]
    to_mean = torch.where(order == 1, rest, 0.0)
    for slot in range(3):
        mean = images.mean(dim=2) @ grey  # [B], the mean grey of the image as it is now
        offset = (to_mean[:, slot] * mean)[:, None, None]
        images = torch.baddbmm(offset, matrices[:, slot], images).clamp_(0, 1)
    return images


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of [B, 3, P] by `turns` [B] (1 = all the way round); value and saturation stay.

    The hexagonal HSV model of torchvision, without its case distinctions. With chroma c = max - min and hue h in
    sixths of a turn, |h| = 1 + (g + b - r - min) / c for h in [-3, 3], and its sign is that of g - b. A channel whose
    own hue is m (red 0, green 2, blue 4) then has the value min + c clamp(2 - |h - m|, 0, 1), the distance taken round
    the circle.
    """
    red, green, blue = images.unbind(1)
    high, low = images.amax(dim=1), images.amin(dim=1)
    chroma = high - low
    # |h| times c; the hue of grey pixels does not matter, since the product at the end has their chroma 0 as a factor
    hue = (green - low).add_(blue - low).add_(high - red)
    hue = torch.copysign(hue.div_((chroma * 6).clamp_(min=1e-12)), green - blue).add_(turns[:, None])
    # h - m in turns, plus 1.5 to be positive: its fraction less one half is then h - m brought into [-1/2, 1/2]
    from_channel = hue[:, None] + constant((1.5, 1.5 - 1 / 3, 1.5 + 1 / 3), images.device)[:, None]
    weight = from_channel.frac_().sub_(0.5).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return weight.mul_(chroma[:, None]).add_(low[:, None])


def grey_matrices(which: Tensor) -> Tensor:
    """[B, 3, 3]: the matrix that turns RGB into grey where `which` [B] is true, the identity elsewhere."""
    grey = constant(GREY, which.device).expand(3, 3)
    return torch.where(which[:, None, None], grey, torch.eye(3, dtype=torch.float32, device=which.device))


def solarise(images: Tensor, which: Tensor) -> Tensor:
    """Invert the values from one half up, in images where `which` [B] is true."""
    return torch.where(which[:, None, None] & (images >= 0.5), 1 - images, images)


def standardised(images: Tensor, scale: tuple[float, ...], offset: tuple[float, ...]) -> Tensor:
    """x * scale + offset by channel, of images [B, 3, H, W]."""
    factors, terms = (constant(values, images.device)[:, None, None] for values in (scale, offset))
    return torch.addcmul(terms, images, factors)


# Blur: two batched matrix products; borders are reflected, the kernel is normalised over its taps.


def blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blur images [B, C, H, W], each by its own `sigma` [B] pixels; 0 leaves an image as it is.

    The kernel reaches `reach` pixels each way, which must be less than the smaller side.
    """
    height, width = images.shape[2:]
    distance = torch.arange(reach + 1, device=images.device)
    exponent = distance**2 * (-0.5 / sigma.clamp(min=1e-6) ** 2)[:, None]
    kernel = torch.exp(exponent)  # [B, reach + 1], one half of it
    kernel = kernel / (2 * kernel.sum(dim=1) - 1)[:, None]
    rows, columns = (torch.matmul(kernel, _placements(side, distance)).view(-1, side, side) for side in (height, width))
    return torch.matmul(torch.matmul(rows[:, None], images), columns[:, None].transpose(2, 3))


def _placements(side: int, distance: Tensor) -> Tensor:
    """float32 [distances, side * side]: how often pixel p occurs at a distance from pixel i, for all (i, p).

    A pixel p also stands for its mirror images -p and 2 (side - 1) - p beyond the two borders.
    """
    i = torch.arange(side, device=distance.device)[:, None]
    p = torch.arange(side, device=distance.device)
    at = distance[:, None, None]
    met = ((i - p).abs() == at).float()
    met += (i + p == at) & (p > 0)
    met += (2 * (side - 1) - p - i == at) & (p < side - 1)
    return met.flatten(1)


def box_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [B, H, W] of `size` (H, W), true inside half-open boxes [B, 4], (x0, y0, x1, y1) in pixels."""
    x0, y0, x1, y1 = boxes[:, :, None].unbind(dim=1)  # [B, 1] each
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    in_rows = (rows >= y0) & (rows < y1)  # [B, H]
    in_columns = (columns >= x0) & (columns < x1)  # [B, W]
    return in_rows[:, :, None] & in_columns[:, None, :]
