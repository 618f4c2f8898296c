"""evaluate embed: embeddings as files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.nn.functional as F

from mixfast.evaluate import pictures
from mixfast.evaluate.runs import ScoringOptions, evaluation_folder, load_runs
from mixfast.scoring.embed import principal_plane, write_embeddings
from mixfast.scoring.features import extract


@dataclass(frozen=True)
class Embed(ScoringOptions):
    """Write z, h and labels of an image set to files, and if asked a picture of the main directions."""

    split: Literal["test", "train"] = "test"
    format: Literal["safetensors", "npy"] = "safetensors"
    out: Path | None = None  # folder; none: evaluation/ of each run
    picture: bool = False  # also draw the first two principal components of the unit vectors z and h, coloured by class


def embed(options: Embed) -> None:
    """Write the files and print their paths."""
    for number, run in enumerate(runs := load_runs(options)):
        setup = run.setup
        images = setup.splits.test if options.split == "test" else setup.splits.train
        features = extract(setup.method.encoder, images.images, setup.normalise, setup.config.eval.batch_size)
        folder = evaluation_folder([run], options.out)
        prefix = f"{number}-" if options.out is not None and len(runs) > 1 else ""
        stem = folder / f"{prefix}embeddings-{options.split}"
        paths = write_embeddings(stem, features, images.labels, options.format)
        if options.picture:
            paths.append(stem.with_name(f"{stem.name}.png"))
            units = {f"{name} of {run.name}": F.normalize(value) for name, value in features._asdict().items()}
            planes = {title: principal_plane(value) for title, value in units.items()}
            pictures.scatter(paths[-1], planes, images.labels, images.class_names)
        sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in features._asdict().items())
        print(f"{run.checkpoint}: {options.split} images, {sizes}")
        print("\n".join(f"  {path}" for path in paths))
