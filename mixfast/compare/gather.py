"""Runs read from their folders, sorted into sections whose scores are comparable, and grouped over seeds."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mixfast import methods
from mixfast.config.options import RunConfig, flatten
from mixfast.config.presets import recipe_name
from mixfast.data import kind_of
from mixfast.data.scan import printable
from mixfast.errors import ConfigError
from mixfast.evaluate.runs import group_names
from mixfast.run.budget import step_cost
from mixfast.run.folder import RunFolder
from mixfast.run.records import Records, Result, read, result

# The paper's Table 1 in its order: the name of a row and its score in percent, by preset. docs/paper.md says where the
# scores come from.
PAPER = "*Leveraging Image Mixtures for Unsupervised Detection Pre-training*, Table 1"
PAPER_SETTING = "CIFAR-10, ResNet-18, batch 512, 1000 epochs"
TABLE_1 = {
    "simclr": ("SimCLR", 88.42),
    "byol": ("BYOL", 94.20),
    "moco": ("MoCo", 88.97),
    "moco_cutmix": ("MoCo + CutMix", 91.31),
    "moco_unmix": ("MoCo + Un-Mix", 91.34),
    "approach1": ("Approach 1", 90.15),
    "approach2": ("Approach 2", 89.97),
}

# The options in which two runs must agree for their scores to be comparable. Options about reading, such as "cache", do
# not change the images.
_DATA = ("kind", "size", "limit", "test_limit")
_SCENES = ("scenes", "test_scenes", "scene")
_FOLDER = ("path", "test_path", "holdout")
_SCORER = ("k", "temperature")


@dataclass(frozen=True)
class Member:
    """One run."""

    folder: RunFolder
    config: RunConfig[Any]
    preset: str
    records: Records

    @property
    def label(self) -> str:
        """The folder's name; of a run that `--compare` started, also the name of the run that started it."""
        path = self.folder.path.resolve()
        return "/".join(path.parts[-3:]) if path.parent.name == "compare" else path.name

    @cached_property
    def result(self) -> Result:
        """Scores, epochs and speed of the run."""
        return result(self.config.method_name, self.records)

    @property
    def finished(self) -> bool:
        """Whether the last epoch has been trained and evaluated."""
        last = self.config.train.epochs
        evaluated = any(r["kind"] in ("eval", "diagnostics") and r["epoch"] == last for r in self.records)
        return evaluated or self.folder.status().get("state") == "finished"

    @property
    def has_checkpoint(self) -> bool:
        """Whether the folder holds a checkpoint."""
        return self.folder.has_checkpoint()

    def last(self, kind: str) -> dict[str, Any] | None:
        """The last record of a kind; None if there is none."""
        return next((record for record in reversed(self.records) if record["kind"] == kind), None)

    def read_file(self, name: str) -> Any:
        """The content of a small file in the folder: parsed if it is JSON, else a list of lines; None if unreadable."""
        path = self.folder.path / name
        try:
            text = path.read_text(encoding="utf-8")
            return json.loads(text) if path.suffix == ".json" else text.splitlines()
        except (OSError, ValueError, RecursionError):
            return None


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed, in the order of their seeds."""

    name: str
    recipe: str  # `mixfast.config.presets.recipe_name`
    members: list[Member]

    @property
    def config(self) -> RunConfig[Any]:
        """The configuration of the first seed."""
        return self.members[0].config

    @property
    def finished(self) -> list[Member]:
        """The runs whose last epoch has been trained and evaluated."""
        return [member for member in self.members if member.finished]

    @property
    def changed_options(self) -> dict[str, object]:
        """The method's own options that are not at their defaults."""
        defaults = flatten(type(self.config.method)())
        return {key: value for key, value in flatten(self.config.method).items() if value != defaults[key]}

    @cached_property
    def cost(self) -> float:
        """Encoder passes per image of a step, relative to plain MoCo's."""
        config, side = self.config, self.config.data.size
        plain: Any = dataclasses.replace(config, method_name="moco", method=methods.load("moco").Config())
        if config == plain:
            return 1.0
        return step_cost(config, side).encoder / step_cost(plain, side).encoder

    @property
    def steps(self) -> int:
        """Optimiser steps of a finished run; 0 if there is none."""
        return max((record["step"] for run in self.finished for record in run.records), default=0)

    @property
    def total_cost(self) -> float:
        """Encoder passes of a whole run, in epochs of plain MoCo."""
        return self.cost * self.config.train.epochs


@dataclass(frozen=True)
class Section:
    """Groups whose scores may be compared."""

    title: str
    slug: str  # start of the names of its pictures
    groups: list[Group]

    @property
    def members(self) -> list[Member]:
        """Every run of every group."""
        return [member for group in self.groups for member in group.members]

    @property
    def config(self) -> RunConfig[Any]:
        """The configuration of the first run; data, backbone and classifier are those of every run."""
        return self.groups[0].config

    def table_1_groups(self) -> dict[str, Group]:
        """The group for each row of the paper's table, by recipe: that with the fewest options not at their defaults.

        Of several such groups, that with most finished runs, and of these that with most epochs.
        """
        rows = {}
        for recipe in TABLE_1:
            groups = [group for group in self.groups if recipe == group.recipe == group.config.method_name]
            if groups:
                rows[recipe] = min(groups, key=_distance)
        return rows


def gather(paths: Sequence[Path], folder_name: str | None = None, trust: Sequence[str] = ()) -> list[Section]:
    """The runs of `paths` in sections, in the order given; groups are in the order of the paper's table.

    Args:
        paths: folders of runs.
        folder_name: name of the images of runs on a folder; None: the folder's name.
        trust: modules that may be imported although they lie in or around a run's folder.

    Raises:
        ConfigError: no run, two runs with the same options and seed, or a `folder_name` although the runs do not read
            a single folder of images.
        CheckpointError: a path is not a run's folder, or its files cannot be read.
    """
    if not paths:
        raise ConfigError("give at least one RUN: the folder of a run of python -m mixfast.train.")
    members = [_read(path, trust) for path in paths]
    folders = {member.config.data.path for member in members if member.config.data.kind == "folder"}
    if folder_name is not None and len(folders) != 1:
        raise ConfigError(
            f"--folder-name {folder_name!r} names the images of one folder; these runs read {len(folders)} folders. "
            "Drop the option, or compare the runs of each folder on their own."
        )
    sections: dict[str, list[Member]] = {}
    for member in members:
        sections.setdefault(_comparability_key(member.config), []).append(member)
    slugs: list[str] = []
    gathered = []
    for comparable in sections.values():
        kind = comparable[0].config.data.kind
        slugs.append(kind)
        number = slugs.count(kind)
        slug = kind if number == 1 else f"{kind}-{number}"
        gathered.append(Section(_title(comparable[0].config, folder_name), slug, _groups(comparable)))
    return gathered


def _read(path: Path, trust: Sequence[str]) -> Member:
    folder = RunFolder.open(path)
    config, preset, _ = folder.read_config(trust)
    return Member(folder, config, preset, read(folder.metrics))


def _comparability_key(config: RunConfig[Any]) -> str:
    """A text that is equal for runs with the same data set, number of images, backbone and classifier."""
    extra = {"scenes": _SCENES, "folder": _FOLDER}.get(config.data.kind, ())
    data = [getattr(config.data, name) for name in (*_DATA, *extra)]
    return repr((data, config.model.architecture, [getattr(config.eval, name) for name in _SCORER]))


def _title(config: RunConfig[Any], folder_name: str | None) -> str:
    data = config.data
    train, test = (data.scenes, data.test_scenes) if data.kind == "scenes" else (data.limit, data.test_limit)
    name = kind_of(data.kind).title
    if data.kind == "folder" and data.path:
        name = folder_name or f"folder {printable(Path(data.path).name)}"
    counts = f"{train or 'all'} training and {test or 'all'} test images of {data.size} pixels"
    return f"{name}, {counts}, {config.model.title}"


def _groups(members: list[Member]) -> list[Group]:
    recipes = [recipe_name(member.config, member.preset) for member in members]
    names = group_names(recipes, [member.config for member in members])
    groups: dict[str, Group] = {}
    for name, recipe, member in zip(names, recipes, members, strict=True):
        group = groups.setdefault(name, Group(name, recipe, []))
        for same_seed in group.members:
            if same_seed.config.seed == member.config.seed:
                raise ConfigError(
                    f"{member.folder.path} and {same_seed.folder.path} are the same run ({name}, seed "
                    f"{member.config.seed}): they would count twice as seeds of one group. Drop one."
                )
        group.members.append(member)
    for group in groups.values():
        group.members.sort(key=lambda member: member.config.seed)
    order = list(TABLE_1)
    return sorted(groups.values(), key=lambda g: order.index(g.recipe) if g.recipe in order else len(order))


def _distance(group: Group) -> tuple[int, int, int]:
    return len(group.changed_options), -len(group.finished), -group.config.train.epochs


def differing_options(section: Section) -> dict[str, dict[str, Any]]:
    """By group, the values of the options in which groups differ, without the method's own options and the seed."""
    flat = {group.name: flatten(group.config) for group in section.groups}
    sections = ("augment", "model", "optim", "train", "init")
    keys = [key for key in flatten(section.config) if key.partition(".")[0] in sections]
    free = ("train.device", "train.threads", "train.log", "train.log_every")
    keys = [key for key in keys if key not in free and not key.startswith("train.checkpoint")]
    differing = [key for key in keys if len({repr(values.get(key)) for values in flat.values()}) > 1]
    return {name: {key: values[key] for key in differing} for name, values in flat.items()}
