"""All by their definitions, in plain PyTorch on whole batches, for any device."""

import torch
from torch import Tensor

from mixfast.ops.views import _philox, blur, colour, crop, pasting
from mixfast.ops.views._layout import COLUMNS, Law, Options, empty_views

# Images worked on at once on a CPU, so that intermediate results stay in the cache; the result does not depend on it.
CPU_CHUNK = 64


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
    return pasting.mixture(base, donor, boxes, share)


def _view(images: Tensor, parameters: Tensor, options: Options) -> Tensor:
    """float32 [B, 3, S, T] of float32 images in [0, 1]."""
    how = dict(zip(COLUMNS, parameters.unbind(1), strict=True))
    views = _coloured(images, how, options) if options.colour_first else images
    box = torch.stack([how[name] for name in ("top", "left", "height", "width")], dim=1).long()
    size = options.height, options.width
    views = crop.crop_resize(views, box, size, options.interpolation, how["flip"] != 0)
    if not options.colour_first:
        views = _coloured(views, how, options)
    if options.reach:
        views = blur.blur(views, how["sigma"], options.reach)
    views = colour.solarise(views.flatten(2), how["solarise"] != 0).view(views.shape)
    return colour.standardised(views, options.scale, options.offset)


def _coloured(views: Tensor, how: dict[str, Tensor], options: Options) -> Tensor:
    """Jitter and grey, in the order that the options say."""
    pixels, greyed = views.flatten(2), how["grey"] != 0
    order = torch.stack([how["order0"], how["order1"], how["order2"]], dim=1).long()
    jitter = colour.Jitter(how["brightness"], how["contrast"], how["saturation"], how["hue"], order, how["hue_place"])
    if options.grey_first:
        pixels = torch.bmm(colour.grey_matrices(greyed), pixels)
    pixels = colour.jitter(pixels, jitter)
    if not options.grey_first:
        pixels = torch.bmm(colour.grey_matrices(greyed), pixels)
    return pixels.view(views.shape)
