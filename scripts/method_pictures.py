"""Draws what each method sees into docs/pictures/methods: views and mixtures of a few procedural scenes, with boxes.

    python scripts/method_pictures.py

The views are the ones that training makes, with the preset's own augmentation and options. The seed is chosen for boxes
that are neither tiny nor nearly everything; Un-Mix is drawn twice, mixing regions and mixing whole images.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from method_pages import ONE_PICTURE, PICTURES

from mixfast import methods
from mixfast.config import presets
from mixfast.config.options import replace
from mixfast.data import Splits, load
from mixfast.rng import Generators
from mixfast.run.setup import set_up
from mixfast.train import plots

FOLDER = Path(__file__).parents[1] / "docs" / "pictures" / "methods"
SMALL = {
    "data.kind": "scenes", "data.scenes": 64, "data.test_scenes": 8, "model.depth": 8, "model.width": 8,
    "model.bn_splits": 1, "train.batch_size": 64,
}  # fmt: skip
ROWS = 4  # a batch of four: row n is mixed with row 3 - n
SEED = 126


def draw(name: str, ending: str, options: dict[str, Any], splits: Splits | None) -> Splits:
    """One picture; returns the scenes for the next."""
    config, _ = presets.build(name, [], None)
    config = replace(config, {**SMALL, **options})
    splits = splits or load(config.data, config.seed)
    setup = set_up(config, splits, torch.device("cpu"))
    images = splits.train.images[:ROWS]
    views = setup.views(images, Generators(SEED))
    plots.view_grid(FOLDER / f"{name}{ending}.png", images, views, splits.mean, splits.std)
    return splits


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    splits = None
    for name in methods.names():
        for ending, options in PICTURES.get(name, ONE_PICTURE):
            splits = draw(name, ending, options, splits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
