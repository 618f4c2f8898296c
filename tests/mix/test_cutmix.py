"""mix.cutmix: which pixels come from where."""

import torch

from mixfast.mix import box_mask, paste

BOXES = torch.tensor([[1, 0, 3, 2], [0, 0, 5, 4], [4, 3, 5, 4], [2, 2, 2, 2]])  # some, all, one, no pixel


def test_box_mask_is_half_open_with_x_along_the_width() -> None:
    mask = box_mask(BOXES, (4, 5))
    assert mask.shape == (4, 4, 5) and mask.dtype == torch.bool
    for n, (x0, y0, x1, y1) in enumerate(BOXES.tolist()):
        for y in range(4):
            for x in range(5):
                assert mask[n, y, x].item() == (x0 <= x < x1 and y0 <= y < y1)


def test_paste_takes_the_patch_from_the_same_place(rng: torch.Generator) -> None:
    base, patch = torch.randn(4, 3, 4, 5, generator=rng), torch.randn(4, 3, 4, 5, generator=rng)
    mixed = paste(base, patch, BOXES)
    for n, (x0, y0, x1, y1) in enumerate(BOXES.tolist()):
        expected = base[n].clone()
        expected[:, y0:y1, x0:x1] = patch[n, :, y0:y1, x0:x1]
        assert torch.equal(mixed[n], expected)


def test_paste_keeps_dtype_and_leaves_its_inputs_alone(rng: torch.Generator) -> None:
    base = torch.randint(0, 255, (4, 3, 4, 5), generator=rng, dtype=torch.uint8)
    before = base.clone()
    assert paste(base, 255 - base, BOXES).dtype == torch.uint8
    assert torch.equal(base, before)
