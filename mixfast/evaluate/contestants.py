"""The contestants of `evaluate localise`: the runs, untrained and supervised networks, and rules without a network."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mixfast.errors import CheckpointError, ConfigError
from mixfast.evaluate.maps import probe_weights
from mixfast.evaluate.objects import ObjectData
from mixfast.evaluate.runs import LoadedRun, grouped, load_runs, scoring_options
from mixfast.initial_weights import file_content
from mixfast.models.backbone import named_weights
from mixfast.ranges import Count, NotNegative
from mixfast.run import checkpoint
from mixfast.scoring import protocol
from mixfast.scoring.boxes import Objects
from mixfast.scoring.maps import LAST_ONLY, Network, fit_mapper
from mixfast.scoring.protocol import MapMaker, Outcome

LABEL_FREE = ("norm", "power", "eigen", "sim")


@dataclass(frozen=True)
class Localise(ObjectData):
    """Score attention maps against boxes, beside the untrained network, edges and the best centred box."""

    kinds: tuple[str, ...] = LABEL_FREE  # maps among which each network chooses; cam reads labels
    layer: Count | None = None  # stage of the network, 1 is the first; none: the last
    stride: Count | None = None  # pixels per cell, by dilating the last stages; none: 14 cells a side or more
    tolerance: NotNegative = 0.0  # pixels by which the pointing game may miss; 15 on full-size photographs
    supervised: tuple[Path, ...] = ()  # runs trained with labels, or weights under the names that an export has
    out: Path | None = None  # folder of table and picture; none: evaluation/ of the first run


@dataclass
class Row:
    """A row of the table: a contestant, or several that differ only in their seed."""

    name: str
    role: str  # run, untrained, supervised or baseline
    makers: list[MapMaker]
    start: str = ""  # `LoadedRun.start`; a run is compared with the untrained network of the same start
    outcomes: list[Outcome] = field(default_factory=list)  # of each maker, in order; filled by `localise.evaluate`


def contestants(options: Localise, runs: Sequence[LoadedRun], validation: Objects) -> list[Row]:
    """The runs by group, their networks untrained, supervised ones if given, edges, and the centred box."""
    rows = [
        Row(
            name,
            "run",
            [_maker(options, run, run.trained, validation) for run in group],
            group[0].start,
        )
        for name, group in grouped(runs).items()
    ]
    networks: dict[str, dict[int, LoadedRun]] = {}
    for run in runs:  # untrained networks of the same start and seed are equal
        networks.setdefault(run.start, {})[run.setup.config.seed] = run
    for number, seeds in enumerate(networks.values(), 1):
        makers = [_maker(options, run, run.untrained(), validation) for run in seeds.values()]
        first = next(iter(seeds.values()))
        title = ", ".join(filter(None, [first.setup.config.model.title, first.setup.config.init]))
        name = "untrained" if len(networks) == 1 else f"untrained {number} ({title})"
        rows.append(Row(name, "untrained", makers, first.start))
    if options.supervised:
        makers = [_supervised(options, path, runs[0], validation) for path in options.supervised]
        rows.append(Row("supervised", "supervised", makers))
    simple = {"edges": protocol.edge_contestant, "centred box": protocol.centre_contestant}
    return [*rows, *(Row(name, "baseline", [maker]) for name, maker in simple.items())]


def _maker(options: Localise, run: LoadedRun, network: Network, validation: Objects, head: bool = True) -> MapMaker:
    """A network as a contestant; without a trained `head` it has no "sim" map."""
    last = options.layer in (None, network.encoder.layers)
    kinds = [kind for kind in options.kinds if (last or kind not in LAST_ONLY) and (head or kind != "sim")]
    if not kinds:
        raise ConfigError(f"--kinds {' '.join(options.kinds)}: none of them can be made of this layer; add norm.")
    weights = probe_weights(run, network) if "cam" in kinds else None
    try:
        mapper = fit_mapper(network, validation.images, layer=options.layer, stride=options.stride, classifier=weights)
    except ValueError as error:
        raise ConfigError(f"--{error}.") from error
    return protocol.mapper_contestant(mapper, kinds)


def _supervised(options: Localise, path: Path, first: LoadedRun, validation: Objects) -> MapMaker:
    """A run, or a file of backbone weights for the first run's architecture."""
    if path.is_dir() or path.name in (checkpoint.LAST, checkpoint.PREVIOUS):
        (run,) = load_runs(scoring_options((path,), options))
        return _maker(options, run, run.trained, validation)
    encoder = copy.deepcopy(first.fresh)
    weights = {key.removeprefix("module."): value for key, value in _weights(path).items()}
    saved = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    backbone = named_weights(encoder.backbone)
    expected = backbone.state_dict().keys()
    missing, unexpected = [key for key in expected if key not in saved], [key for key in saved if key not in expected]
    checkpoint.check_keys(missing, unexpected, path)
    try:
        backbone.load_state_dict(saved)
    except RuntimeError as error:  # same names, other shapes
        raise CheckpointError(f"{path} is of another architecture than the first run: {error}") from error
    return _maker(options, first, Network(encoder, first.setup.normalise), validation, head=False)


def _weights(path: Path) -> dict[str, Tensor]:
    content = file_content(path, f"--supervised {path}")
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(
            f"--supervised {path} cannot be read as weights: it holds no tensors by name but a {kind}."
        )
    return content.get("state_dict", content)
