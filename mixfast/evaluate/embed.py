"""evaluate embed: embeddings as files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mixfast import drawing
from mixfast.evaluate.runs import ScoringOptions, evaluation_folder, load_runs
from mixfast.scoring.embed import principal_plane, write_embeddings
from mixfast.scoring.features import extract

_POINTS = 2000  # of a cloud, at most
_NAMED = 20  # classes in the legend


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
            scatter(paths[-1], planes, images.labels, images.class_names)
        sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in features._asdict().items())
        print(f"{run.checkpoint}: {options.split} images, {sizes}")
        print("\n".join(f"  {path}" for path in paths))


def scatter(
    path: Path, planes: dict[str, tuple[Tensor, tuple[float, float]]], labels: Tensor, class_names: Sequence[str]
) -> None:
    """A cloud per panel: at most 2,000 points taken evenly, and the mean of each class as a large marker.

    Args:
        path: of the PNG.
        planes: title: (coordinates [N, 2], share of the variance on each axis).
        labels: int64 [N]; -1 for no class.
        class_names: by label.
    """
    page, axes = drawing.figure(4.6 * len(planes) + 1.4, 4.4, 1, len(planes))
    for axis, (title, (points, shares)) in zip(axes[0], planes.items(), strict=True):
        step = -(-len(points) // _POINTS)
        points, classes = points[::step].cpu(), labels[::step]
        for number, label in enumerate(classes.unique().tolist()):
            class_points = points[classes == label]
            style = {**drawing.curve(number), "linestyle": "", "markeredgewidth": 0}
            name = class_names[label] if 0 <= label < len(class_names) else "no class"
            axis.plot(*class_points.T.numpy(), **style, alpha=0.5)
            mean = {"ms": 10, "markeredgecolor": "black", "markeredgewidth": 1, "zorder": 3}
            axis.plot(*class_points.mean(0, keepdim=True).T.numpy(), **{**style, **mean}, label=name)
        axis_titles = [f"component {i + 1}: {100 * share:.0f} % of the variance" for i, share in enumerate(shares)]
        axis.set(title=title, xlabel=axis_titles[0], ylabel=axis_titles[1])
    handles, _ = axes[0][-1].get_legend_handles_labels()
    drawing.legend_beside(axes[0][-1], handles[:_NAMED])
    drawing.save(page, path)
