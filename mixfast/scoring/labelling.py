"""Connected components of many masks at once, and the box around each.

Runs of set pixels in a row are labelled, not pixels: there are about ten times fewer. Each run begins with its own
number as label, and takes the smallest label of the runs that it touches until nothing changes. In every round each
label is also replaced by the label of the run with that number: a chain of runs takes a logarithmic number of rounds.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_PIXELS = 1 << 20  # pixels of masks that are labelled together: measured fastest on a CPU


class ConnectedComponents(NamedTuple):
    """All components of N masks, C in total, ordered by mask and then by their first pixel in reading order."""

    mask: Tensor  # int64 [C], the mask that it belongs to
    area: Tensor  # int64 [C], pixels
    box: Tensor  # int64 [C, 4], (x0, y0, x1, y1), half-open


class _Runs(NamedTuple):
    """R runs of N masks in reading order."""

    start: Tensor  # int64 [R], number of the first pixel over all masks
    length: Tensor  # int64 [R]
    component: Tensor  # int64 [R], the smallest run of its component
    pixel: Tensor  # int32 [N, H, W], run of each pixel; arbitrary outside the mask


def label_components(masks: Tensor, *, diagonal: bool = True) -> Tensor:
    """The component of every pixel of bool masks [N, H, W], as the number of its first pixel in reading order.

    Args:
        masks: bool [N, H, W].
        diagonal: whether pixels that touch at a corner are connected (8 neighbours, not 4).

    Returns:
        int64 [N, H, W]: y W + x of the component's first pixel; -1 outside the mask.
    """
    runs = _runs(masks, diagonal)
    if not len(runs.start):
        return torch.full(masks.shape, -1, dtype=torch.int64, device=masks.device)
    # Runs are in reading order: the smallest run of a component contains its first pixel.
    first = (runs.start % (masks.shape[1] * masks.shape[2]))[runs.component]
    return torch.where(masks, first[runs.pixel.clamp(min=0).long()], -1)


def connected_components(masks: Tensor, *, diagonal: bool = True) -> ConnectedComponents:
    """Area and box of every component of bool masks [N, H, W]; see `label_components` for `diagonal`."""
    count, height, width = masks.shape
    chunk = max(1, _CHUNK_PIXELS // max(1, height * width))
    parts = [_boxes(masks[i : i + chunk], i, diagonal) for i in range(0, max(count, 1), chunk)]
    return ConnectedComponents(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))


def _boxes(masks: Tensor, offset: int, diagonal: bool) -> ConnectedComponents:
    """ConnectedComponents of masks [n, H, W], whose numbers are `offset` and following."""
    _, height, width = masks.shape
    runs = _runs(masks, diagonal)
    roots, component = runs.component.unique(return_inverse=True)
    x, line = runs.start % width, runs.start // width
    y = line % height
    ends = ((x, "amin"), (y, "amin"), (x + runs.length, "amax"), (y + 1, "amax"))
    empty = x.new_zeros(len(roots))
    box = torch.stack(
        [empty.scatter_reduce(0, component, values, reduction, include_self=False) for values, reduction in ends], dim=1
    )
    area = empty.scatter_add(0, component, runs.length)
    return ConnectedComponents(line[roots] // height + offset, area, box)


def _runs(masks: Tensor, diagonal: bool) -> _Runs:
    width = masks.shape[2]
    framed = F.pad(masks, (1, 1, 0, 1))
    is_set, left_set, right_set = framed[:, :-1, 1:-1], framed[:, :-1, :-2], framed[:, :-1, 2:]
    below, below_left, below_right = framed[:, 1:, 1:-1], framed[:, 1:, :-2], framed[:, 1:, 2:]
    starts = is_set & ~left_set
    events = [starts, is_set & ~right_set, is_set & below & ~(left_set & below_left)]  # last: two runs begin to overlap
    if diagonal:  # runs that touch at a corner only
        events += [
            is_set & side & ~below & ~beside for side, beside in ((below_right, right_set), (below_left, left_set))
        ]
    # One search for all events, as few pixels have any.
    code = torch.zeros(masks.numel(), dtype=torch.uint8, device=masks.device)
    for number, event in enumerate(events):
        code += event.flatten().byte() << number
    pixels = code.nonzero().flatten()
    code = code[pixels]
    pixels_of_event = [pixels[(code & (1 << number)) > 0] for number in range(len(events))]
    start, length = pixels_of_event[0], pixels_of_event[1] - pixels_of_event[0] + 1
    pixel = starts.flatten().cumsum(0, dtype=torch.int32) - 1
    lower = [pixel_index + width + step for pixel_index, step in zip(pixels_of_event[2:], (0, 1, -1), strict=False)]
    upper_runs, lower_runs = pixel[torch.cat(pixels_of_event[2:])].long(), pixel[torch.cat(lower)].long()
    return _Runs(start, length, _least(len(start), upper_runs, lower_runs), pixel.view(masks.shape))


def _least(count: int, first_nodes: Tensor, second_nodes: Tensor) -> Tensor:
    """int64 [count]: for each node of a graph with edges (first, second), the smallest node connected with it."""
    least = torch.arange(count, device=first_nodes.device)
    while True:
        before = least
        lower = torch.minimum(least[first_nodes], least[second_nodes])
        # Hooking the roots, not only the ends of an edge, joins whole trees in one round.
        for nodes in (first_nodes, second_nodes):
            least = least.scatter_reduce(0, before[nodes], lower, "amin")
        least = least[least]
        if torch.equal(least, before):
            return least
