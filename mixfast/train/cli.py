"""The arguments of the training command: options of the command itself, a preset, and `--section.key value`."""

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from mixfast import methods, ranges
from mixfast.config import file
from mixfast.config.arguments import Option, find_option, home_expanded, matching_name, parse_value, unknown_name
from mixfast.config.options import RunConfig, differences, flatten, hint_of, replace, typed, validate
from mixfast.config.presets import build, modifiers_by_name, modify, presets, split_names, switch_method
from mixfast.data.kinds import KINDS
from mixfast.errors import CheckpointError, ConfigError
from mixfast.models.config import RESNET, RESNET_OPTIONS, ModelConfig
from mixfast.run import checkpoint
from mixfast.run.callbacks import Callbacks
from mixfast.run.claim import Claim
from mixfast.run.folder import RunFolder, named_code

WITH_VALUE = ("--out", "--resume", "--init", "--config", "--method", "--trust")
SWITCHES = ("--overwrite", "--traceback", "--version", "--help", "-h", "--help-all")
_LONG_FLAGS = [flag for flag in (*WITH_VALUE, *SWITCHES) if flag != "-h"]


@dataclass(frozen=True)
class Invocation:
    """A parsed command line."""

    arguments: list[str]
    config: RunConfig[Any]
    origins: dict[str, str]  # dotted key: where a value that is no default came from
    preset: str
    out: Path | None
    resume: Path | None  # the folder of a run, or one of its checkpoints
    init: Path | None  # weights to begin with
    overwrite: bool
    command: tuple[str, ...] = ("python", "-m", "mixfast.train")  # to which the arguments belong
    images: object = None  # the images that a Python call was passed, for data.kind object
    callbacks: Callbacks = field(default_factory=Callbacks)
    advice: str = ""  # a line if the batch size was changed, but not the learning rate

    def claim_folder(self, print_line: Callable[[str], None]) -> Claim:
        """The folder of the run: of --resume, of --out, or a new one below runs/."""
        if self.resume:
            return Claim.existing(self.resume, print_line)
        if self.out:
            return Claim.new(self.out, self.overwrite, print_line)
        return Claim.numbered(Path("runs"), self.preset, print_line)

    def checkpoint(self) -> Path | None:
        """The checkpoint to continue from, or the folder of the run; None for a run that has not trained yet.

        Raises:
            CheckpointError: the run has trained, but its checkpoint is missing.
        """
        if not self.resume or (self.resume.is_dir() and not RunFolder.open(self.resume).has_trained()):
            return None
        checkpoint.find(self.resume)
        return self.resume


def parse(arguments: list[str]) -> Invocation:
    """Understand `[preset] [modifier ...] [--method NAME] [--out DIR | --resume RUN] [--section.key value ...]`.

    Raises:
        ConfigError: an unknown argument, key or value; the message names the nearest valid one.
        CheckpointError: `--resume` of a folder that is not a run, or with options that its checkpoint fixes; or it or
            `--config` names code that is not trusted.
    """
    names, command, options = _split(arguments)
    advice = ""
    named = {value for word in arguments for value in (word, word.partition("=")[2], word.partition(":")[0])}
    paths = ("--out", "--resume", "--init")
    out, resume, init = (home_expanded(Path(command[key])) if key in command else None for key in paths)
    if resume:
        if names or {"--out", "--method", "--overwrite", "--init", "--config"} & set(command):
            raise ConfigError(
                "--resume takes preset, method, folder and weights from the run; omit the preset, --method, --out, "
                "--overwrite, --init and --config."
            )
        saved, preset, origins = RunFolder.open(resume).read_config(named)
        config, option_keys = override(saved, options)
        if changed := differences(flatten(saved), flatten(config)):
            raise CheckpointError(
                f"{resume} cannot be continued with another configuration:\n  "
                + "\n  ".join(changed)
                + "\nOmit these options, or start a new run, which --init may give this one's backbone."
            )
    else:
        if "--config" in command:
            start = file.read(home_expanded(Path(command["--config"])))
            config, origins, preset = _begin_with(start, names, command.get("--method"), named)
            if start.init and not init:
                init, origins["init"] = home_expanded(Path(start.init)), f"file {start.path}"
        elif "--trust" in command:
            raise ConfigError("--trust MODULE belongs to --resume RUN or --config FILE, which name code to import.")
        else:
            preset, modifiers = split_names(names, command.get("--method"))
            config, origins = build(preset, modifiers, command.get("--method"))
        begun = config
        config, option_keys = override(config, options)
        advice = _rate_advice(begun, config, option_keys)
        if config.model.backbone != RESNET:
            origins = {
                key: origin for key, origin in origins.items() if key.removeprefix("model.") not in RESNET_OPTIONS
            }
        if "--overwrite" in command and not out:
            raise ConfigError("--overwrite needs --out DIR: the folder to replace.")
    validate(config)
    for name in config.compare:
        validate(switch_method(config, name))
    origins = {**origins, **dict.fromkeys([*option_keys, *(["init"] if "--init" in command else [])], "command line")}
    return Invocation(arguments, config, origins, preset, out, resume, init, "--overwrite" in command, advice=advice)


def _rate_advice(begun: RunConfig[Any], config: RunConfig[Any], option_keys: list[str]) -> str:
    preset_batch, batch, rate = begun.train.batch_size, config.train.batch_size, config.optim.lr
    if batch == preset_batch or "optim.lr" in option_keys or config.optim.name == "adam":
        return ""
    return (
        f"advice: --optim.lr {rate:g} was chosen for batches of {preset_batch}; in proportion, those of {batch} take "
        f"{rate * batch / preset_batch:.3g} (docs/reproduce.md says where that ends)"
    )


def _begin_with(
    start: file.ConfigFile, names: list[str], method: str | None, trusted: set[str]
) -> tuple[RunConfig[Any], dict[str, str], str]:
    """Configuration, origins and preset from a file; preset, modifiers and method of the command line come on top.

    Raises:
        ConfigError: the values of the file are not valid; the message names it. CheckpointError: it names code that is
            not trusted.
    """
    if start.method not in ("", *methods.names()):
        start.check_trusted([("method_name", start.method)], trusted)
    preset_named = bool(names) and names[0] not in modifiers_by_name()
    if start.is_run_config:
        if preset_named:
            raise start.error(f"it is the configuration of a whole run; omit the preset {names[0]}.")
        preset = " ".join(start.names) if " ".join(start.names) in presets() else start.method
        config, origins = (
            RunConfig(start.method, methods.load(start.method).Config()),
            {"method_name": f"file {start.path}"},
        )
    else:
        preset_words, names = (names[:1], names[1:]) if preset_named else (start.names, names)
        preset, modifiers = split_names(preset_words, start.method or method)
        config, origins = build(preset, modifiers, start.method or method)
    values = start.typed(config)
    try:
        changed = _with(config, values)
        range_errors = ranges.problems(changed)
    except ConfigError as error:
        raise start.error(str(error)) from error
    if range_errors:
        raise start.error("; ".join(problem.removeprefix("--") for problem in range_errors))
    start.check_trusted(named_code(changed), trusted)
    before = flatten(config)
    file_keys = [key for key in values if not start.is_run_config or values[key] != before[key]]
    origins.update(dict.fromkeys(file_keys, f"file {start.path}"))
    changed, origins = modify(changed, origins, preset, names)
    if method and method != changed.method_name:
        changed = replace(switch_method(changed, method), {"compare": ()})
        origins = {key: origin for key, origin in origins.items() if key in flatten(changed) and key != "compare"}
        origins["method_name"] = "command line"
    return changed, origins, preset


def _split(arguments: list[str]) -> tuple[list[str], dict[str, str], list[list[str]]]:
    """Preset and modifiers; options of the command; groups of one --section.key with its values."""
    names: list[str] = []
    command: dict[str, str] = {}
    groups: list[list[str]] = []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, text = argument.partition("=")
        key = _own_flag(flag)
        if key in WITH_VALUE:
            text = text if equals else next(remaining, "")
            if not text or text.startswith("--"):
                raise ConfigError(f"{flag} needs a value.")
            if key in command:
                raise ConfigError(f"{flag} is given more than once.")
            command[key] = matching_name(text, methods.names()) or text if key == "--method" else text
        elif key:
            command[key] = "yes"
        elif flag.startswith("--"):
            groups.append([flag, text] if equals else [flag])
        elif groups:
            groups[-1].append(argument)
        elif argument.startswith("-"):
            raise ConfigError(f"unknown option {argument}; options are written --section.key, see --help.")
        else:
            names.append(matching_name(argument, [*presets(), *modifiers_by_name()]) or argument)
    return names, command, groups


def _own_flag(flag: str) -> str | None:
    """The option of the command that is spelled `flag`; None if it is none."""
    return flag if flag == "-h" else matching_name(flag, _LONG_FLAGS) if flag.startswith("--") else None


def switches(arguments: list[str]) -> set[str]:
    """The flags without a value among the arguments: "--help", "--version" and the like."""
    return {key for key in map(_own_flag, arguments) if key in SWITCHES}


def override(config: RunConfig[Any], groups: list[list[str]]) -> tuple[RunConfig[Any], list[str]]:
    """Apply option groups to a configuration; also returns the dotted keys that they set."""
    options = {key: Option(hint_of(config, key), default) for key, default in flatten(config).items()}
    del options["method_name"], options["init"]  # --method and --init, options of the command
    values: dict[str, Any] = {}
    for flag, *texts in groups:
        key, switched_off = find_option(flag, options, _LONG_FLAGS)
        if key in values:
            raise ConfigError(f"--{key} is given more than once.")
        values[key] = parse_value(flag, texts, options[key], switched_off)
    return _with(config, values), list(values)


def _with(config: RunConfig[Any], values: dict[str, Any]) -> RunConfig[Any]:
    """A configuration with other values, as the command line and configuration files give them."""
    if "data.kind" in values:
        values = {**values, "data.kind": matching_name(values["data.kind"], KINDS) or values["data.kind"]}
    if "compare" in values:
        compare = tuple(map(_method, values["compare"])) if values["compare"] != ("none",) else ()
        values = {**values, "compare": compare}
    sizes: dict[str, Any] = {}
    if values.get("model.backbone", RESNET) != RESNET:  # the sizes of presets are those of ResNets
        sizes = {f"model.{name}": getattr(ModelConfig, name) for name in RESNET_OPTIONS}
    return replace(config, {**sizes, **values})


def _method(name: str) -> str:
    """A method of --compare by its exact name."""
    known_methods = methods.names()
    exact = matching_name(name, known_methods) or name
    if exact not in known_methods and "." not in exact:
        raise unknown_name("method of --compare", name, known_methods)
    return exact


HELP = """Train an image encoder without labels: MoCo, SimCLR, BYOL, and methods that mix images.
usage: python -m mixfast.train [preset] [modifier ...] [--method NAME] [--section.key value ...]

{presets}
Cost: encoder passes, `moco` = 1. Scores except demo's: published, of ResNet-18 on CIFAR-10.
modifier              {modifiers}
method                any preset above except demo; indented presets are variants of the one above
your own              --method my_lab.method, --data.kind my_lab.data:factory,
                      --model.backbone my_lab.nets:factory (torchvision:NAME, timm:NAME)
--config FILE         options as YAML or JSON, or a run's config.json; those given here come on top
--out DIR             run folder (default runs/<preset>-NNNN); --overwrite replaces an existing one
--init PATH           start from the backbone of a run, an export, or a file of weights (.pth)
--resume RUN          continue a run, bit for bit; --trust MODULE: code near it that it may import
--help-all            all options of a preset or --method; --traceback: errors in full; --version
other commands        python -m mixfast lists them: evaluate, compare, export, profile, doctor
examples  python -m mixfast.train
          python -m mixfast.train moco --data.path DIR --data.download --train.epochs 200
          python -m mixfast.train approach1 imagenet --data.path images/ --config mine.yaml"""


def short_help() -> str:
    """The text of --help, which fits on a screen."""
    rows = [("preset", "cost", "expected score (kNN on z, %)")]
    top_level = {"demo", *methods.names()}
    rows += [
        (name if name in top_level else f"  {name}", preset.cost, preset.score) for name, preset in presets().items()
    ]
    names, costs, _ = (max(map(len, column)) + 2 for column in zip(*rows, strict=True))
    table = "\n".join(f"{name:<{names}}{cost:<{costs}}{score}" for name, cost, score in rows)
    return HELP.format(presets=table, modifiers=_listed(modifiers_by_name()))


def _listed(names: Iterable[str]) -> str:
    indent = " " * 22  # the column in which the words begin
    return textwrap.fill(", ".join(names), 98, initial_indent=indent, subsequent_indent=indent).lstrip()


def full_help(arguments: list[str]) -> None:
    """Print every option of the preset and method that `arguments` name."""
    names, command, _ = _split(arguments)
    config, _ = build(*split_names(names, command.get("--method")), command.get("--method"))
    try:
        tyro.cli(typed(config), args=["--help"], default=config, prog="python -m mixfast.train")
    except SystemExit:
        return
