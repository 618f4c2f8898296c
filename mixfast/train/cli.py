"""The training command's words: options of the command itself, a preset, and `--section.key value`."""

import difflib
import textwrap
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from mixfast import methods
from mixfast.config.options import RunConfig, differences, flatten, replace, validate
from mixfast.config.presets import DEFAULT, build, modifiers_by_name, presets, switch_method
from mixfast.errors import CheckpointError, ConfigError
from mixfast.models.config import RESNET, RESNET_OPTIONS, ModelConfig
from mixfast.run import checkpoint
from mixfast.run.folder import RunFolder

WITH_VALUE = ("--out", "--resume", "--method", "--trust")
SWITCHES = ("--overwrite", "--traceback", "--help", "-h", "--help-all")


@dataclass(frozen=True)
class Invocation:
    """A parsed command line."""

    words: list[str]
    config: RunConfig[Any]
    origins: dict[str, str]  # dotted key: where a value that is no default came from
    preset: str
    out: Path | None
    resume: Path | None  # the folder of a run, or one of its checkpoints
    overwrite: bool

    def open_folder(self) -> RunFolder:
        """The folder of the run: the one to continue, the one asked for, or a new one below runs/."""
        if self.resume:
            return RunFolder.open(self.resume)
        if self.out:
            return RunFolder.create(self.out, self.overwrite)
        return RunFolder.create_numbered(Path("runs"), self.preset)

    def checkpoint(self) -> Path | None:
        """The checkpoint to continue from, or the folder of it; CheckpointError if there should be one and is not."""
        return self.resume if self.resume and checkpoint.find(self.resume) else None


def parse(words: list[str]) -> Invocation:
    """Understand `[preset] [modifier ...] [--method NAME] [--out DIR | --resume RUN] [--section.key value ...]`.

    Raises:
        ConfigError: an unknown word, key or value; the message names the nearest valid one.
        CheckpointError: `--resume` of what is no run, or with options that its checkpoint does not allow to change.
    """
    names, command, options = _split(words)
    out, resume = (Path(command[key]) if key in command else None for key in ("--out", "--resume"))
    if resume:
        if names or {"--out", "--method", "--overwrite"} & set(command):
            raise ConfigError("--resume takes preset, method and folder from the run; omit them.")
        named = {value for word in words for value in (word, word.partition("=")[2], word.partition(":")[0])}
        saved, preset, origins = RunFolder.open(resume).read_config(named)
        config, given = override(saved, options)
        if unlike := differences(flatten(saved), flatten(config)):
            raise CheckpointError(
                f"{resume} cannot be continued with another configuration:\n  "
                + "\n  ".join(unlike)
                + "\nOmit these options, or start a new run."
            )
    else:
        if "--trust" in command:
            raise ConfigError("--trust MODULE belongs to --resume RUN: it lets that folder name code to import.")
        preset, modifiers = (names[0], names[1:]) if names else (DEFAULT, [])
        if preset in modifiers_by_name():
            preset, modifiers = DEFAULT, names
        config, origins = build(preset, modifiers, command.get("--method"))
        config, given = override(config, options)
        if config.model.backbone != RESNET:
            origins = {
                key: origin for key, origin in origins.items() if key.removeprefix("model.") not in RESNET_OPTIONS
            }
        if "--overwrite" in command and not out:
            raise ConfigError("--overwrite needs --out DIR: the folder to replace.")
    validate(config)
    for name in config.compare:
        validate(switch_method(config, name))
    origins = {**origins, **dict.fromkeys(given, "command line")}
    return Invocation(words, config, origins, preset, out, resume, "--overwrite" in command)


def _split(words: list[str]) -> tuple[list[str], dict[str, str], list[list[str]]]:
    """Preset and modifiers; options of the command; groups of one --section.key with its values."""
    names: list[str] = []
    command: dict[str, str] = {}
    groups: list[list[str]] = []
    rest = iter(words)
    for word in rest:
        key, equals, value = word.partition("=")
        if key in WITH_VALUE:
            found = value if equals else next(rest, None)
            if not found or found.startswith("--"):
                raise ConfigError(f"{key} needs a value.")
            command[key] = found
        elif key in SWITCHES:
            command[key] = "yes"
        elif word.startswith("--"):
            groups.append([key, value] if equals else [key])
        elif groups:
            groups[-1].append(word)
        elif word.startswith("-"):
            raise ConfigError(f"unknown option {word}; options are written --section.key, see --help.")
        else:
            names.append(word)
    return names, command, groups


def override(config: RunConfig[Any], groups: list[list[str]]) -> tuple[RunConfig[Any], list[str]]:
    """Apply option groups to a configuration; also returns the dotted keys that they set."""
    known = flatten(config)
    keys = [_known_key(group[0], list(known)) for group in groups]
    if any(key == "model.backbone" and group[1:] != [RESNET] for key, group in zip(keys, groups, strict=True)):
        # The sizes that a preset gives are a ResNet's.
        config = replace(config, {f"model.{name}": getattr(ModelConfig, name) for name in RESNET_OPTIONS})
    if repeated := {key for key in keys if keys.count(key) > 1}:
        raise ConfigError(f"--{min(repeated)} is given more than once.")
    words = [word for group in groups for word in group]
    parsed = _tyro(config, words)
    if parsed is None:
        for group, key in zip(groups, keys, strict=True):
            if _tyro(config, group) is None:
                expected = _expected(config, key)
                raise ConfigError(f"{' '.join(group)}: expected {expected}; the default is {known[key]!r}.")
        raise ConfigError(f"cannot understand {' '.join(words)}.")
    return parsed, keys


def _known_key(flag: str, known: list[str]) -> str:
    wanted = flag.removeprefix("--").replace("-", "_")
    section, _, name = wanted.rpartition(".")
    for key in (wanted, f"{section}.{name.removeprefix('no_')}" if section else wanted):
        if key in known and key != "method_name":
            return key
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    near += [key for key in known if key.rpartition(".")[2] == name and key not in near]
    hint = f"did you mean {' or '.join('--' + key for key in near)}?" if near else "see --help-all."
    raise ConfigError(f"unknown option {flag}; {hint}")


def _tyro(config: RunConfig[Any], words: list[str]) -> RunConfig[Any] | None:
    """`config` with the options in `words`; None if they are not understood."""
    try:
        found: RunConfig[Any] = tyro.cli(_kind(config), args=words, default=config, console_outputs=False)
    except SystemExit:
        return None
    return found


def _kind(config: RunConfig[Any]) -> Any:
    """The type of a configuration with its method's own options."""
    generic: Any = RunConfig
    return generic[type(config.method)]


def _expected(config: Any, key: str) -> str:
    """What a value of a key may be, in words."""
    *sections, name = key.split(".")
    for section in sections:
        config = getattr(config, section)
    hint = typing.get_type_hints(type(config))[name]
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    words = {int: "a whole number", float: "a number", str: "a word", bool: "no value (or --section.no-key)"}
    return words.get(hint) or str(hint).replace("typing.", "")


HELP = """Train an image encoder without labels: MoCo, SimCLR, BYOL, and methods that mix images.

usage: python -m mixfast.train [preset] [modifier ...] [--method NAME] [--section.key value ...]

{presets}
Costs: encoder passes, `moco` = 1. Scores: published, ResNet-18 on CIFAR-10, but for demo.

modifier              {modifiers}
method                {methods}
your own              --method my_lab.method, --data.kind my_lab.data:factory,
                      --model.backbone my_lab.nets:factory (torchvision:NAME, timm:NAME)

--out DIR             run folder (default runs/<preset>-NNNN); an existing one is refused
--overwrite           replace an existing run folder
--resume RUN          continue a run bit for bit, after a kill, a signal or a crash
--traceback           show where an error came from
--help-all            every --section.key of a preset or --method with its meaning and default

examples
  python -m mixfast.train
  python -m mixfast.train moco --data.path DIR --data.download --train.epochs 200
  python -m mixfast.train --method approach2 --data.kind folder --data.path my_images/

After it: python -m mixfast.evaluate knn RUN, python -m mixfast.compare RUN...
What a step costs: python -m mixfast.profile. What this machine can run: python -m mixfast.doctor."""


def short_help() -> str:
    """What --help prints; it fits on a screen."""
    rows = [("preset", "cost", "expected score (kNN on z, %)")]
    rows += [(name, preset.cost, preset.score) for name, preset in presets().items()]
    names, costs, _ = (max(map(len, column)) + 2 for column in zip(*rows, strict=True))
    table = "\n".join(f"{name:<{names}}{cost:<{costs}}{score}" for name, cost, score in rows)
    return HELP.format(presets=table, modifiers=_listed(modifiers_by_name()), methods=_listed(methods.names()))


def _listed(words: Iterable[str]) -> str:
    indent = " " * 22  # the column in which the words begin
    return textwrap.fill(", ".join(words), 98, initial_indent=indent, subsequent_indent=indent).lstrip()


def full_help(words: list[str]) -> None:
    """Print every option of the preset and method that `words` name."""
    names, command, _ = _split(words)
    config, _ = build(names[0] if names else DEFAULT, names[1:], command.get("--method"))
    try:
        tyro.cli(_kind(config), args=["--help"], default=config, prog="python -m mixfast.train")
    except SystemExit:
        return
