"""The entries of detectron2's ResNets, by depth, each with the name of the same entry in torchvision."""

import itertools
import re
from collections.abc import Iterator


def spelled(pattern: str) -> Iterator[str]:
    """Every name that a pattern stands for: a{b,c}.{d,e} is ab.d, ab.e, ac.d, ac.e."""
    parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
    return ("".join(choice) for choice in itertools.product(*parts))


# By depth, names of detectron2's `build_resnet_backbone(...).state_dict()` and of torchvision's for the same entries;
# `CONV`: the weight of a convolution and the four entries of its norm.
CONV = "{weight,norm.weight,norm.bias,norm.running_mean,norm.running_var}"
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
CONVOLUTIONS = {18: (1, 2), 50: (1, 2, 3)}


def recorded(depth: int) -> dict[str, str]:
    """detectron2's names, each with torchvision's."""
    pairs = dict(zip(spelled(f"stem.conv1.{CONV}"), theirs("", "conv1", "bn1"), strict=True))
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            place = f"layer{stage}.{block}."
            for number in CONVOLUTIONS[depth]:
                names = spelled(f"res{stage + 1}.{block}.conv{number}.{CONV}")
                pairs.update(zip(names, theirs(place, f"conv{number}", f"bn{number}"), strict=True))
            if block == 0 and (stage > 1 or depth == 50):
                names = spelled(f"res{stage + 1}.0.shortcut.{CONV}")
                pairs.update(zip(names, theirs(place, "downsample.0", "downsample.1"), strict=True))
    return pairs


def theirs(place: str, convolution: str, norm: str) -> list[str]:
    return [f"{place}{convolution}.weight", *spelled(f"{place}{norm}.{{weight,bias,running_mean,running_var}}")]
