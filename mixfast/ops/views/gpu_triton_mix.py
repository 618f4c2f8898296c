# mypy: allow-untyped-defs, allow-incomplete-defs
"""The Triton kernel of mix_views. Of the two views it reads what a pixel needs: one, but for blends."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["width"])
def mix(base, donor, boxes, share, out, numbers, pixels, width, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Program: BLOCK of an image's numbers. CHANNELS: how many come before the next pixel does, 1 for whole planes."""
    blocks = tl.cdiv(numbers, BLOCK)
    image = tl.program_id(0) // blocks
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    pixel = (at // CHANNELS) % pixels
    y, x = pixel // width, pixel % width
    box = boxes + image * 4
    x0, y0, x1, y1 = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    weight = tl.where(inside, 0.0, tl.load(share + image))
    place = image.to(tl.int64) * numbers + at
    # What is not read is 0, so that weights of 0 and 1 copy.
    first = tl.load(base + place, (at < numbers) & (weight != 0), 0.0).to(tl.float32)
    second = tl.load(donor + place, (at < numbers) & (weight != 1), 0.0).to(tl.float32)
    tl.store(out + place, (weight * first + (1 - weight) * second).to(out.dtype.element_ty), at < numbers)
