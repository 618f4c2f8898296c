"""Scores that `evaluate detect` and `evaluate localise` have left in the runs' folders, by protocol."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixfast.compare.gather import Member, Section
from mixfast.evaluate.runs import read_scores

METRICS = ("ap", "ap50", "any_class_ap")
BASELINES = ("untrained", "supervised")
# Settings that depend on the seeds or on versions: lines of one protocol may differ in them.
_FREE = ("objects_of_unknown_classes", "left_out", "torch", "torchvision")
# Settings that the page reads, with their types; "seeds" is checked apart.
_SETTING_TYPES: dict[str, type] = {
    "data": str, "detector": str, "finetune": bool, "training_images": int, "steps": int, "batch_size": int,
    "test_images": int, "test_objects": int, "classes": int, "side": int, "layers": list, "strides": list,
}  # fmt: skip
OWN_SEED = "own"  # in place of the seeds: each run's detector was trained with the seed of its pre-training

Values = Mapping[str, Mapping[int, float]]  # by row of a table and seed of the run


@dataclass(frozen=True)
class Protocol:
    """Scores of detectors that were trained and scored in the same way."""

    settings: dict[str, Any]
    title: str = ""
    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)  # by metric, row and seed of the run


@dataclass(frozen=True)
class Detection:
    """The detection scores that the runs of a section have recorded."""

    section: Section
    protocols: list[Protocol]
    corloc: Values
    corloc_title: str  # the data of `corloc`
    notes: list[str]  # omitted lines, and the reasons


def gather(section: Section, corloc: Values, corloc_title: str) -> Detection:
    """The recorded detection scores of a section's finished runs; the last of several lines of a protocol counts.

    Args:
        section: its unfinished runs are omitted.
        corloc: CorLoc of the runs; empty: the scores that `evaluate localise` has recorded.
        corloc_title: the data on which `corloc` was measured.

    Raises:
        CheckpointError: a file of recorded scores that cannot be read.
    """
    notes: list[str] = []
    lines = {run.label: _lines(run, notes) for group in section.groups for run in group.finished}
    protocols: dict[str, Protocol] = {}
    conflicts = dict.fromkeys(BASELINES, 0)
    for group in section.groups:
        for run in group.finished:
            last = {_key(line, run): line for line in lines[run.label] if line["command"] == "detect"}
            for key, line in last.items():
                protocol = protocols.setdefault(key, Protocol(_settings(line, run)))
                run_row, *_ = line["scores"]
                _add(protocol, group.name, run.config.seed, line["scores"][run_row])
                for row in BASELINES:
                    conflicts[row] += _add(protocol, row, run.config.seed, line["scores"].get(row))
    notes += [
        f"{n} runs have another detection score of {row} than the first run." for row, n in conflicts.items() if n
    ]
    recorded, recorded_title = ({}, "") if corloc else _recorded_corloc(section, lines)
    return Detection(section, _titled(protocols.values()), corloc or recorded, corloc_title or recorded_title, notes)


def _lines(run: Member, notes: list[str]) -> list[dict[str, Any]]:
    """A run's usable lines of its last epoch; a sentence about omitted lines is added to `notes`."""
    relevant, damaged = read_scores(run.folder)
    relevant = [line for line in relevant if line["command"] in ("detect", "localise")]
    final = [line for line in relevant if line["epoch"] == run.config.train.epochs]
    usable = [line for line in final if line["command"] != "detect" or _is_usable(line)]
    reasons = {
        "damaged, or without a setting or an AP": damaged + len(final) - len(usable),
        f"of another epoch than {run.config.train.epochs}": len(relevant) - len(final),
    }
    file = run.folder.evaluations.name
    notes += [f"`{run.label}`: lines of {file} left out, {reason}: {n}." for reason, n in reasons.items() if n]
    return usable


def _is_usable(line: dict[str, Any]) -> bool:
    scores, *_ = line["scores"].values()
    settings = line["settings"]
    has_settings = all(isinstance(settings.get(name), kind) for name, kind in _SETTING_TYPES.items())
    return has_settings and isinstance(settings.get("seeds"), list) and _number(scores, "ap") is not None


def _key(line: dict[str, Any], run: Member) -> str:
    """A text that is equal for lines of one protocol."""
    settings = {**line["settings"], "seeds": _seeds(line, run)}
    return json.dumps({name: value for name, value in settings.items() if name not in _FREE}, sort_keys=True)


def _seeds(line: dict[str, Any], run: Member) -> Any:
    seeds = line["settings"]["seeds"]
    return OWN_SEED if seeds == [run.config.seed] else seeds


def _settings(line: dict[str, Any], run: Member) -> dict[str, Any]:
    """The settings of a line, without the paths of this machine."""
    kind, *paths = line["settings"]["data"].split(" ")
    data = " ".join([kind, *(Path(path).name for path in paths)])
    return {**line["settings"], "data": data, "seeds": _seeds(line, run)}


def _number(content: Any, *keys: str) -> float | None:
    """The finite number at the end of some keys of nested objects; None if there is none."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, int | float) and math.isfinite(content) else None


def _add(protocol: Protocol, row: str, seed: int, recorded: Any) -> bool:
    """Add the scores of a row and seed; if an earlier run has some, keep them, and return whether they differ."""
    differ = False
    for metric in METRICS:
        if (value := _number(recorded, metric)) is not None:
            differ |= value != protocol.values.setdefault(metric, {}).setdefault(row, {}).setdefault(seed, value)
    return differ


def _recorded_corloc(section: Section, lines: dict[str, list[dict[str, Any]]]) -> tuple[Values, str]:
    """CorLoc recorded by `evaluate localise` with the settings that most runs share, and a title of these settings."""
    by_settings: dict[str, dict[str, dict[int, float]]] = {}
    titles = {}
    for group in section.groups:
        for run in group.finished:
            for line in (line for line in lines[run.label] if line["command"] == "localise"):
                key = json.dumps(line["settings"], sort_keys=True)
                titles[key] = f"{line['settings'].get('images')} images ({line['settings'].get('data')})"
                run_row, *_ = line["scores"]
                for row, name in ((group.name, run_row), ("untrained", "untrained")):
                    if (mean := _number(line["scores"], name, "corloc", "mean")) is not None:
                        by_settings.setdefault(key, {}).setdefault(row, {})[run.config.seed] = mean
    if not by_settings:
        return {}, ""
    key = max(by_settings, key=lambda key: sum(map(len, by_settings[key].values())))
    return by_settings[key], titles[key]


def _titled(protocols: Iterable[Protocol]) -> list[Protocol]:
    """The protocols, frozen ones first, each with a unique title, which contains the settings in which they differ."""
    by_title: dict[str, list[Protocol]] = {}
    for protocol in sorted(protocols, key=lambda protocol: protocol.settings["finetune"]):
        settings = protocol.settings
        mode = "fine-tuned" if settings["finetune"] else "frozen"
        by_title.setdefault(f"{settings['data']}, {settings['detector']}, {mode}", []).append(protocol)
    result = []
    for title, group in by_title.items():
        names = [name for name in group[0].settings if name not in _FREE]
        differing = [name for name in names if len({repr(p.settings.get(name)) for p in group}) > 1]
        for number, protocol in enumerate(group, 1):
            details = [f"{name.replace('_', ' ')} {listed(protocol.settings.get(name))}" for name in differing]
            numbered = (
                [f"protocol {number}"] if len(group) > 1 and not differing else []
            )  # they differ only in paths, which are not printed
            result.append(Protocol(protocol.settings, ", ".join([title, *details, *numbered]), protocol.values))
    return result


def listed(value: Any) -> str:
    """A setting as text."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
