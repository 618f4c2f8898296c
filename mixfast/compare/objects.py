"""What a comparison says about places: attention maps side by side, and how well they find objects."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mixfast.compare.gather import Section, newest
from mixfast.compare.tables import markdown
from mixfast.evaluate import localise, maps
from mixfast.evaluate.contestants import Localise
from mixfast.evaluate.localise import ORACLES, TITLES, Result
from mixfast.evaluate.runs import LoadedRun, MachineOptions, ScoringOptions, load_runs

Data = Literal["auto", "scenes", "canvas", "none"]


def opened(section: Section, place: MachineOptions) -> list[LoadedRun]:
    """The finished runs with their weights, named as in the section; those without a checkpoint are left out."""
    members = [(group.name, one) for group in section.groups for one in group.finished if one.weights]
    if not members:
        return []
    paths = tuple(newest(one) for _, one in members)
    runs = load_runs(ScoringOptions(paths, data_path=place.data_path, device=place.device, threads=place.threads))
    for run, (name, _) in zip(runs, members, strict=True):
        run.name = name
    return runs


def score(runs: Sequence[LoadedRun], data: Data, count: int, validation: int) -> Result:
    """The scores of `evaluate localise`, on `count` images; map and threshold are chosen on `validation` others."""
    assert data != "none"
    options = Localise(tuple(one.checkpoint for one in runs), data=data, count=count, validation=validation)
    return localise.evaluate(options, runs)


def heads(runs: Sequence[LoadedRun], result: Result) -> dict[str, str]:
    """By name, what to call a row of untrained networks; "" for one that says what an earlier row says.

    Networks that differ in their head have each their untrained one, which scores alike unless a map reads the head.
    """
    models: dict[str, list[str]] = {}
    for one in runs:
        models.setdefault(str(one.setup.config.model), []).append(f"`{one.name}`")
    names = [row.name for row in result.rows if row.role == "untrained"]
    if len({str(result.scores[name]) for name in names}) == 1:
        return {name: "" if number else "untrained" for number, name in enumerate(names)}
    said = [f"untrained, as {', '.join(dict.fromkeys(groups))}" for groups in models.values()]
    return dict(zip(names, said, strict=True))


def table(result: Result, untrained: dict[str, str]) -> str:
    """A row per group and baseline: mean, spread over seeds, and the interval over images."""
    names = [key for key in TITLES if any(key in scores for scores in result.scores.values())]
    body = []
    for row in result.rows:
        cells = ["/".join(dict.fromkeys(outcome.choice.kind for outcome in row.outcomes))]
        for key in names:
            found = result.scores[row.name].get(key)
            if found is None:
                cells.append("-")
                continue
            std = "" if found["std"] is None else f" ± {found['std']:.1f}"
            interval = "" if key in ORACLES else f" ({found['low']:.0f}-{found['high']:.0f})"
            cells.append(f"{found['mean']:.1f}{std}{interval}")
        if name := f"`{row.name}`" if row.role == "run" else untrained.get(row.name, row.name):
            body.append([name, *cells])
    return markdown(["", "map", *(TITLES[key] for key in names)], body)


def margins(result: Result) -> list[str]:
    """Sentences: which groups find objects better than their network untrained, by CorLoc."""
    found = {name: values["corloc"] for name, values in result.margins.items()}
    above = [_said(name, gap) for name, gap in found.items() if gap["low"] > 0]
    below = [_said(name, gap) for name, gap in found.items() if gap["high"] < 0]
    open_ = [_said(name, gap) for name, gap in found.items() if gap["low"] <= 0 <= gap["high"]]
    parts = (("Above", above), ("Below", below), ("Not told apart from", open_))
    lines = [f"{where} the untrained network by CorLoc: {', '.join(groups)}." for where, groups in parts if groups]
    box = result.scores["centred box"]["corloc"]["mean"]
    under = [f"`{row.name}`" for row in result.rows if row.role == "run" and _corloc(result, row.name) <= box]
    if under:
        lines.append(f"Not above the best centred box ({box:.1f} %), which sees no image: {', '.join(under)}.")
    return lines


def _corloc(result: Result, name: str) -> float:
    return float(result.scores[name]["corloc"]["mean"])


def _said(name: str, gap: dict[str, float]) -> str:
    return f"`{name}` {gap['mean']:+.1f} ({gap['low']:+.1f} to {gap['high']:+.1f})"


def facts(runs: Sequence[LoadedRun], result: Result) -> dict[str, Any]:
    """The numbers, without the places of one machine."""
    found = localise.facts(runs, result)
    for entry, one in zip(found["runs"], runs, strict=True):
        entry["path"] = one.folder.path.name
    return found


def draw_maps(path: Path, runs: Sequence[LoadedRun], count: int) -> tuple[str, dict[str, dict[str, float]]]:
    """The map grid of one run per group, beside the first one's network untrained; returns its title and numbers."""
    unique = {one.name: one for one in reversed(runs)}
    first = runs[0]
    contestants = [(one.name, one.trained, one) for one in reversed(unique.values())]
    contestants.append(("untrained", first.untrained(), first))
    options = maps.Maps(tuple(one.checkpoint for one in unique.values()), count=count)
    title, _, scores = maps.draw(path, options, first, contestants)
    return title, scores


def draw_places(path: Path, result: Result) -> None:
    """A few images, and each contestant's map with the box that CorLoc scores; of networks untrained the first's."""
    first = next(row for row in result.rows if row.role == "untrained")
    shown = [row for row in result.rows if row.role != "untrained" or row is first]
    renamed = [dataclasses.replace(row, name="untrained") if row is first else row for row in shown]
    localise.draw(path, result._replace(rows=renamed))
