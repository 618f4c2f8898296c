"""Runs as a comparison sees them: read from their folders, in sections of what is comparable, grouped over seeds."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mixfast import methods
from mixfast.compare.published import TABLE
from mixfast.config.options import RunConfig, flatten
from mixfast.config.presets import DEFAULT, presets
from mixfast.data import kind_of
from mixfast.errors import CheckpointError, ConfigError
from mixfast.evaluate.runs import group_names
from mixfast.run import checkpoint
from mixfast.run.budget import step_cost
from mixfast.run.folder import RunFolder
from mixfast.run.records import Records, Result, result

# Of a run's configuration, what two runs must share for their scores to answer the same question. "cache" and the like
# say how the images are read, not which.
_DATA = ("kind", "size", "limit", "test_limit")
_SCENES = ("scenes", "test_scenes", "scene")
_FOLDER = ("path", "test_path", "holdout")
_BACKBONE = ("depth", "width", "stem")
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
        """The folder's name, without the places of one machine; a companion's with that of its run."""
        path = self.folder.path.resolve()
        return "/".join(path.parts[-3:]) if path.parent.name == "compare" else path.name

    @cached_property
    def result(self) -> Result:
        return result(self.config.method_name, self.records)

    @property
    def finished(self) -> bool:
        """Whether the last epoch has been trained and evaluated."""
        last = self.config.train.epochs
        evaluated = any(r["kind"] in ("eval", "diagnostics") and r["epoch"] == last for r in self.records)
        return evaluated or self.folder.status().get("state") == "finished"

    @property
    def weights(self) -> bool:
        """Whether there is a checkpoint."""
        return self.folder.has_checkpoint()

    def last(self, kind: str) -> dict[str, Any] | None:
        """The newest record of a kind."""
        return next((record for record in reversed(self.records) if record["kind"] == kind), None)

    def fact(self, name: str) -> Any:
        """The content of a small file of the folder: parsed if JSON, else lines; None if it is not there."""
        path = self.folder.path / name
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else text.splitlines()


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed, by seed."""

    name: str
    recipe: str  # preset if it is one of the method's own, else the method
    members: list[Member]

    @property
    def config(self) -> RunConfig[Any]:
        return self.members[0].config

    @property
    def finished(self) -> list[Member]:
        return [member for member in self.members if member.finished]

    @cached_property
    def cost(self) -> float:
        """Encoder passes per image of a step, relative to plain moco's."""
        config, side = self.config, self.config.data.size
        plain: Any = dataclasses.replace(config, method_name="moco", method=methods.load("moco").Config())
        return step_cost(config, side).encoder / step_cost(plain, side).encoder

    @property
    def total(self) -> float:
        """Encoder passes of a whole run, in epochs of plain moco."""
        return self.cost * self.config.train.epochs


@dataclass(frozen=True)
class Section:
    """Groups whose scores may be compared."""

    title: str
    slug: str  # of file names
    groups: list[Group]

    @property
    def members(self) -> list[Member]:
        return [member for group in self.groups for member in group.members]

    @property
    def config(self) -> RunConfig[Any]:
        return self.groups[0].config


def gather(paths: Sequence[Path], folder_name: str | None = None) -> list[Section]:
    """The runs of some folders in sections, in the order given; groups in the order of the paper's table.

    Args:
        folder_name: what to call the images of runs on a folder; None: by the folder's name.

    Raises:
        ConfigError: no run given, or one twice, or two that are the same run with the same seed; or a name for what is
            not one folder of images.
        CheckpointError: not a run's folder, or one that cannot be read.
    """
    if not paths:
        raise ConfigError("give at least one RUN: the folder of a run of python -m mixfast.train.")
    members = [_read(path) for path in paths]
    folders = {member.config.data.path for member in members if member.config.data.kind == "folder"}
    if folder_name is not None and len(folders) != 1:
        raise ConfigError(
            f"--folder-name {folder_name!r} names the images of one folder; these runs read {len(folders)} folders. "
            "Leave it away, or compare the runs of each folder on their own."
        )
    sections: dict[str, list[Member]] = {}
    for member in members:
        sections.setdefault(_comparable(member.config), []).append(member)
    slugs: list[str] = []
    found = []
    for inside in sections.values():
        kind = inside[0].config.data.kind
        slugs.append(kind)
        number = slugs.count(kind)
        slug = kind if number == 1 else f"{kind}-{number}"
        found.append(Section(_title(inside[0].config, folder_name), slug, _groups(inside)))
    return found


def _read(path: Path) -> Member:
    folder = RunFolder.open(path)
    config, preset, _ = folder.read_config()
    try:
        records = folder.metrics.read()
    except ValueError as error:
        raise CheckpointError(f"{folder.metrics.path} cannot be read: {error}") from error
    return Member(folder, config, preset, records)


def _comparable(config: RunConfig[Any]) -> str:
    """Equal for runs that have data set, number of images, backbone and classifier in common."""
    extra = {"scenes": _SCENES, "folder": _FOLDER}.get(config.data.kind, ())
    data = [getattr(config.data, name) for name in (*_DATA, *extra)]
    model = [getattr(config.model, name) for name in _BACKBONE]
    return repr((data, model, [getattr(config.eval, name) for name in _SCORER]))


def _title(config: RunConfig[Any], folder_name: str | None) -> str:
    data, model = config.data, config.model
    train, test = (data.scenes, data.test_scenes) if data.kind == "scenes" else (data.limit, data.test_limit)
    name = kind_of(data.kind).title
    if data.kind == "folder" and data.path:
        name = folder_name or f"folder {Path(data.path).name}"
    counts = f"{train or 'all'} training and {test or 'all'} test images of {data.size} pixels"
    return f"{name}, {counts}, ResNet-{model.depth} of width {model.width}"


def _groups(members: list[Member]) -> list[Group]:
    recipes = [_recipe(member) for member in members]
    named: list[Any] = [
        dataclasses.replace(member.config, method_name=recipe) for member, recipe in zip(members, recipes, strict=True)
    ]
    groups: dict[str, Group] = {}
    for name, recipe, member in zip(group_names(named), recipes, members, strict=True):
        group = groups.setdefault(name, Group(name, recipe, []))
        for other in group.members:
            if other.config.seed == member.config.seed:
                raise ConfigError(
                    f"{member.folder.path} and {other.folder.path} are the same run ({name}, seed "
                    f"{member.config.seed}): as seeds of one group they would count twice. Leave one away."
                )
        group.members.append(member)
    for group in groups.values():
        group.members.sort(key=lambda member: member.config.seed)
    order = [published.method for published in TABLE]
    last = len(order)
    return sorted(groups.values(), key=lambda g: order.index(g.recipe) if g.recipe in order else last)


def _recipe(member: Member) -> str:
    """The preset, where it is one of the method's own; the first run and others' presets only set sizes."""
    known = presets().get(member.preset)
    own = known is not None and known.method == member.config.method_name and member.preset != DEFAULT
    return member.preset if own else member.config.method_name


def differing(section: Section) -> dict[str, dict[str, Any]]:
    """Options outside the method's own in which groups differ, the seed left out: group: option: value."""
    flat = {group.name: flatten(group.config) for group in section.groups}
    keys = [key for key in flatten(section.config) if key.partition(".")[0] in ("augment", "model", "optim", "train")]
    free = ("train.device", "train.threads", "train.tensorboard", "train.log_every")
    keys = [key for key in keys if key not in free and not key.startswith("train.checkpoint")]
    unlike = [key for key in keys if len({repr(values.get(key)) for values in flat.values()}) > 1]
    return {name: {key: values[key] for key in unlike} for name, values in flat.items()}


def newest(member: Member) -> Path:
    """The checkpoint that a run's last words were about."""
    return checkpoint.find(member.folder.path)
