"""Named starting points: a method, and the options in which it differs from the defaults.

The recipes of a method are in its own file: PRESETS by name, and HELP with the cost of each relative to `moco` and its
expected score. This file has their common values, and the preset of the first run.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from mixfast import methods
from mixfast.augment import PRESETS as AUGMENTATIONS
from mixfast.augment import recipe_options
from mixfast.config.arguments import unknown_name
from mixfast.config.options import RunConfig, flatten, replace
from mixfast.errors import ConfigError

DEFAULT = "demo"


@dataclass(frozen=True)
class Preset:
    """The options with which `python -m mixfast.train NAME` starts."""

    method: str
    values: dict[str, Any]  # dotted key: value
    cost: str = ""
    score: str = ""  # expected weighted kNN on z, k = 200


DEMO = Preset(
    method="aligned_mixture",
    values={
        "data.kind": "scenes",
        "data.scenes": 3500,
        "augment.crop_scale": (0.5, 1.0),
        "augment.hue": 0.5,
        "augment.grey": 0.4,
        "model.depth": 8,
        "model.width": 16,
        "model.stem": "cifar_s2",
        "model.bn_splits": 1,
        "method.temperature": 0.2,
        "method.queue_size": 512,  # keys of 8 steps
        "train.batch_size": 64,  # activations that fit in the cache: twice the images/s of 256
        "train.precision": "fp32",  # so that the scores depend on no processor
        "train.epochs": 16,
        "eval.every": 2,
        "compare": ("moco", "approach1"),
    },
    cost="3 min, 2 cores",
    score="60.6 with seed 0 (moco 46.6, approach1 35.4, untrained 20.2)",
)

CIFAR: dict[str, Any] = {"data.kind": "cifar10"}


def presets() -> dict[str, Preset]:
    """Every preset by name: the first run, then those of the methods' files."""
    by_name = {DEFAULT: DEMO}
    for name in methods.names():
        module = importlib.import_module(f"mixfast.methods.{name}")
        for preset, values in getattr(module, "PRESETS", {}).items():
            cost, score = getattr(module, "HELP", {}).get(preset, ("", ""))
            by_name[preset] = Preset(name, {**CIFAR, **values}, cost, score)
    return by_name


def recipe_name(config: RunConfig[Any], preset: str) -> str:
    """The name of a run's recipe: the preset that it began with, or its method.

    A preset names a run if it is one of the run's method and the run has the method's options that the preset sets. The
    preset of the first run only sets sizes.
    """
    entry = presets().get(preset)
    if entry is None or preset == DEFAULT or entry.method != config.method_name:
        return config.method_name
    values = flatten(config)
    has_its_options = all(values[key] == value for key, value in entry.values.items() if key.startswith("method."))
    return preset if has_its_options else config.method_name


def modifiers_by_name() -> dict[str, dict[str, Any]]:
    """The modifiers that may follow any preset, such as `augment_v2`, the augmentation of MoCo v2."""
    recipes = {f"augment_{name}": recipe_options(name) for name in AUGMENTATIONS}
    return {**methods.MODIFIERS, **{name: values for name, values in recipes.items() if values}}


def split_names(names: list[str], method: str | None) -> tuple[str, list[str]]:
    """The preset and the modifiers that a command line begins with.

    Without a preset, a method starts from the preset of its name; a method from outside this package starts from the
    standard recipe, MoCo's on CIFAR-10. Without preset and method it is the first run.
    """
    if names and names[0] not in modifiers_by_name():
        return names[0], names[1:]
    return method or DEFAULT, names


def build(preset: str, modifiers: list[str], method: str | None) -> tuple[RunConfig[Any], dict[str, str]]:
    """The configuration of a preset with modifiers, and the origin of every value that is not a default.

    `method` replaces the preset's own, without other methods for comparison; options that both methods have keep the
    preset's values. If `preset` is the name of `method` and not of a preset, the standard recipe is used.

    Raises:
        ConfigError: an unknown preset, modifier or method; the message names the nearest.
    """
    by_name = presets()
    if preset == method and preset not in by_name:
        by_name[preset] = Preset(preset, CIFAR)
    if preset not in by_name:
        raise unknown_name("preset", preset, by_name)
    name = method or by_name[preset].method
    config: RunConfig[Any] = RunConfig(name, methods.load(name).Config())
    origins = {"method_name": "command line" if method else f"preset {preset}"}
    values = by_name[preset].values
    if method:
        values = {key: value for key, value in values.items() if key in flatten(config) and key != "compare"}
    origins.update(dict.fromkeys(values, f"preset {preset}"))
    return modify(replace(config, values), origins, preset, modifiers)


def modify(
    config: RunConfig[Any], origins: dict[str, str], preset: str, modifiers: list[str]
) -> tuple[RunConfig[Any], dict[str, str]]:
    """A configuration that began as `preset`, with modifiers, and the origins of its values.

    Raises:
        ConfigError: an unknown modifier, or one that does not fit the preset or the method.
    """
    changes = modifiers_by_name()
    for modifier in modifiers:
        if modifier not in changes:
            raise unknown_name("modifier", modifier, changes)
        values, options = changes[modifier], flatten(config)
        if preset == DEFAULT and "data.kind" in values:
            raise ConfigError(
                f"modifier {modifier}: the preset {DEFAULT} is made for its scenes; name another, as in "
                f"python -m mixfast.train moco {modifier}"
            )
        if missing := [key for key in values if key not in options]:
            raise ConfigError(
                f"modifier {modifier} is a recipe of methods with {', '.join(f'--{key}' for key in missing)}, which "
                f"{config.method_name} has not; give the options that you want one by one."
            )
        config = replace(config, values)
        origins = {**origins, **dict.fromkeys(values, f"modifier {modifier}")}
    return config, origins


def switch_method(config: RunConfig[Any], name: str) -> RunConfig[Any]:
    """A configuration with another method; options that both methods have keep values that are not defaults."""
    old_config, fresh = config.method, methods.load(name).Config()
    changed = {key: value for key, value in flatten(old_config).items() if value != flatten(type(old_config)())[key]}
    shared = {f"method.{key}": value for key, value in changed.items() if key in flatten(fresh)}
    return replace(replace(config, {"method_name": name, "method": fresh}), shared)
