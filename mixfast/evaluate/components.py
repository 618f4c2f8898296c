"""evaluate components: retrieval of the image that a region of a mixture shows."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from mixfast.errors import ConfigError
from mixfast.evaluate.runs import LoadedRun, ScoreTable, ScoringOptions, load_runs, record_scores
from mixfast.methods import Method
from mixfast.ranges import Count, InnerShare
from mixfast.rng import Generators
from mixfast.scoring.components import component_scores
from mixfast.scoring.maps import Network


@dataclass(frozen=True)
class Components(ScoringOptions):
    """Score whether the inside of a mixture's box finds the pasted image, and the outside the base image."""

    count: Count = 1000  # n, the number of test images among which one is to be found
    areas: tuple[InnerShare, ...] = (0.25, 0.5)  # shares of the image that are pasted
    views: bool = True  # make the mixtures from augmented views; from plain images, equal pixels match


class Space(NamedTuple):
    """Vectors to compare: pooled from the map after `layer`, then through `head`."""

    name: str
    layer: int | None
    head: nn.Module | None


def components(options: Components) -> None:
    """Print the shares of right and wrong retrievals, and append them to evaluations.jsonl in the run folders."""
    if not options.areas:
        raise ConfigError("--areas needs at least one share.")
    board = ScoreTable()
    for run in load_runs(options):
        count = min(options.count, len(run.setup.splits.test))
        if count < 2:
            raise ConfigError(f"--count: a mixture needs two test images; got {count}.")
        rows: dict[str, dict[str, float]] = {}
        for area in options.areas:
            for name, origin, network, space in contestants(run):
                row = f"{name}, {space.name}, area {area:g}"
                rows[row] = board.score(row, origin, partial(_score, run, network, space, area, options))
        record_scores(run, "components", {"count": count, "views": options.views}, rows)
    source = "augmented views, gallery of plain images" if options.views else "plain images"
    print(f"component retrieval, top-1 in percent; mixtures of {source}")
    print(board.table())


def contestants(run: LoadedRun) -> list[tuple[str, str, Network, Space]]:
    """(name, origin, network, space): both networks by pooled features, and the trained one by its region head."""
    pooled, checkpoint = Space("pooled features", None, None), str(run.checkpoint)
    return [
        ("untrained", f"{run.origin} {run.setup.config.augment}", run.untrained(), pooled),
        (run.name, checkpoint, run.trained, pooled),
        (run.name, checkpoint, run.trained, region_space(run.setup.method)),
    ]


def region_space(method: Method) -> Space:
    """The space in which a method compares regions: after its region head, or else after the encoder's head."""
    head = getattr(method, "region_head", None)
    if isinstance(head, nn.Module):
        return Space("region head", getattr(method.config, "region_layer", None), head)
    return Space("head", None, method.encoder.head)


def _score(run: LoadedRun, network: Network, space: Space, area: float, options: Components) -> dict[str, float]:
    setup = run.setup
    generators = Generators(setup.config.seed, setup.device)
    images = setup.splits.test.images[: options.count].to(setup.device)

    augment = setup.augmenter(generators)

    def view(batch: torch.Tensor) -> torch.Tensor:
        return augment(batch, 1)[0]

    return component_scores(
        network,
        images,
        area,
        generators["components"],
        head=space.head,
        layer=space.layer,
        view=view if options.views else None,
        batch_size=setup.config.eval.batch_size,
    )
