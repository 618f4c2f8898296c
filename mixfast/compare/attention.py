"""Attention maps of the runs side by side, and their localisation scores."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mixfast.compare.gather import Section
from mixfast.compare.tables import markdown
from mixfast.evaluate import localise, maps
from mixfast.evaluate.contestants import Localise
from mixfast.evaluate.localise import TITLES, Result
from mixfast.evaluate.runs import LoadedRun, load_runs, scoring_options
from mixfast.run.reopen import MachineOptions

Data = Literal["auto", "scenes", "canvas", "none"]


def open_finished(section: Section, machine: MachineOptions) -> list[LoadedRun]:
    """The finished runs that have a checkpoint, with their weights, named as in the section."""
    members = [(group.name, run) for group in section.groups for run in group.finished if run.has_checkpoint]
    if not members:
        return []
    paths = tuple(run.folder.path for _, run in members)
    runs = load_runs(scoring_options(paths, machine))
    for run, (name, _) in zip(runs, members, strict=True):
        run.name = name
    return runs


def score_localisation(runs: Sequence[LoadedRun], data: Data, count: int, validation: int) -> Result:
    """The scores of `evaluate localise` on `count` images; map and threshold are chosen on `validation` others."""
    assert data != "none"
    options = Localise(tuple(run.checkpoint for run in runs), data=data, count=count, validation=validation)
    return localise.evaluate(options, runs)


def untrained_names(runs: Sequence[LoadedRun], result: Result) -> dict[str, str]:
    """Names in the table of the rows of untrained networks; "" for a row that repeats an earlier one.

    Networks that differ in their head or in --init each have an untrained network. If only the heads differ, the scores
    are equal, unless a map reads the head.
    """
    starts: dict[str, list[str]] = {}
    for run in runs:
        starts.setdefault(run.start, []).append(f"`{run.name}`")
    rows = [row.name for row in result.rows if row.role == "untrained"]
    if len({str(result.scores[name]) for name in rows}) == 1:
        return {name: "" if number else "untrained" for number, name in enumerate(rows)}
    names = [f"untrained, as {', '.join(dict.fromkeys(groups))}" for groups in starts.values()]
    return dict(zip(rows, names, strict=True))


def localisation_table(result: Result, untrained: dict[str, str]) -> str:
    """A row per group and baseline: mean, spread over seeds, and the interval over images."""
    cells = localise.cells(result)
    titles = ["map", *(title for title in TITLES.values() if any(title in row for row in cells.values()))]
    body = []
    for row in result.rows:
        if name := f"`{row.name}`" if row.role == "run" else untrained.get(row.name, row.name):
            body.append([name, *(cells[row.name].get(title, "-") for title in titles)])
    return markdown(["", *titles], body)


def margin_table(result: Result) -> str:
    """CorLoc of each group minus that of its untrained network, with the interval over images."""
    body = []
    for name, margins in result.margins.items():
        margin = margins["corloc"]
        body.append([f"`{name}`", f"{margin['mean']:+.1f}", f"{margin['low']:+.1f} to {margin['high']:+.1f}"])
    return markdown(["minus untrained", "CorLoc", "95 % interval"], body)


def localisation_numbers(runs: Sequence[LoadedRun], result: Result) -> dict[str, Any]:
    """The numbers of `evaluate localise`; a run is given by the name of its folder, not by its path on this machine."""
    numbers = localise.facts(runs, result)
    for entry, run in zip(numbers["runs"], runs, strict=True):
        entry["path"] = run.folder.path.name
    return numbers


def corloc(runs: Sequence[LoadedRun], result: Result) -> dict[str, dict[int, float]]:
    """CorLoc by row and seed of the run; of several untrained networks, that of the first."""
    untrained = next(row.name for row in result.rows if row.role == "untrained")
    seeds: dict[str, dict[int, None]] = {"untrained": {}}  # in the order of the values
    for run in runs:
        seeds.setdefault(run.name, {})[run.setup.config.seed] = None
        if run.start == runs[0].start:
            seeds["untrained"][run.setup.config.seed] = None
    return {
        row: dict(
            zip(run_seeds, result.scores[untrained if row == "untrained" else row]["corloc"]["values"], strict=True)
        )
        for row, run_seeds in seeds.items()
    }


def draw_maps(path: Path, runs: Sequence[LoadedRun], count: int) -> tuple[str, dict[str, dict[str, float]]]:
    """Draw the maps of one run per group and of the first run's untrained network; returns title and scores."""
    unique = {run.name: run for run in reversed(runs)}
    first = runs[0]
    contestants = [(run.name, run.trained, run) for run in reversed(unique.values())]
    contestants.append(("untrained", first.untrained(), first))
    options = maps.Maps(tuple(run.checkpoint for run in unique.values()), count=count)
    title, _, scores = maps.draw(path, options, first, contestants)
    return title, scores


def draw_localisation(path: Path, result: Result) -> None:
    """Draw a few images and each contestant's map with the box that CorLoc scores; one untrained network, the first."""
    first = next(row for row in result.rows if row.role == "untrained")
    contestants = [row for row in result.rows if row.role != "untrained" or row is first]
    renamed = [dataclasses.replace(row, name="untrained") if row is first else row for row in contestants]
    localise.draw(path, result._replace(rows=renamed))
