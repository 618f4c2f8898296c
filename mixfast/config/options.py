"""The configuration of a run: frozen dataclasses, the checks on their values, and their JSON form.

Parsing derives no value from another: each value is the default, that of a preset, or the user's.
"""

import contextlib
import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from mixfast import methods, ranges
from mixfast.augment.config import AugmentConfig
from mixfast.data.config import DataConfig
from mixfast.errors import ConfigError
from mixfast.models.config import ModelConfig
from mixfast.ranges import Cores, Count, Index, NotNegative, Positive, Seed, Share
from mixfast.world import current, groups_of

MethodConfig = TypeVar("MethodConfig")


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser (without Nesterov) and its schedule; the defaults are the MoCo recipe on CIFAR."""

    name: Literal["sgd", "adam", "lars"] = "sgd"
    lr: NotNegative = 0.06  # at batch 512; never rescaled silently
    momentum: Share = 0.9  # of SGD and LARS; the first beta of Adam, whose second is 0.999
    weight_decay: NotNegative = 5e-4  # added to the gradient, of every trainable tensor: norms and biases too
    lars_trust: NotNegative = 1e-3  # LARS: length of a step of rate 1 as a share of the tensor's length
    lars_exclude: bool = True  # LARS: norms and biases take SGD steps without decay (as SimCLR does)
    schedule: Literal["cosine", "step", "constant"] = "cosine"  # constant inside an epoch but for warmup_steps
    cosine_origin: Literal[0, 1] = 0  # number of the first epoch; 1: the last epoch runs at rate 0, as in MoCo's demo
    steps: tuple[float, ...] = (0.6, 0.9)  # falls at these shares of the epochs (from 0); -n: n before the end
    step_factor: NotNegative = 0.1
    warmup_epochs: Index = 0  # linear increase over the first epochs, on top of the schedule
    warmup_steps: Index = 0  # the same over the first optimiser steps; where both are given, the lower rate counts


@dataclass(frozen=True)
class TrainConfig:
    """The loop and the machine it runs on."""

    epochs: Count = 200
    batch_size: Count = 512  # images per optimiser step
    accumulate: Count = 1  # micro-batches per optimiser step; EMA and enqueueing happen once per optimiser step
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: chosen at the first start, which says why
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"  # auto: channels_last
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile of the encoder in training; auto: said at start
    graph: Literal["auto", "on", "off"] = "auto"  # the step as CUDA graphs, the same bits; auto: said at start
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    threads: Cores = 0  # CPU threads; 0: OMP_NUM_THREADS if set, else the CPU quota of this process
    deterministic: bool = False  # only deterministic kernels; needed on a GPU for a bit-exact resume
    log_every: Count = 50  # optimiser steps between records; an epoch's end is always one
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()  # that get records and pictures too (packages)
    checkpoint_every: Index = 1  # epochs between checkpoints; 0: only at the end and on a signal
    checkpoint_seconds: NotNegative = 600.0  # a checkpoint inside an epoch when the last one is older; 0: never


@dataclass(frozen=True)
class EvalConfig:
    """The weighted kNN classifier on z (head) and h (pooled features)."""

    every: Index = 10  # epochs between evaluations; 0: only after the last epoch
    k: Count = 200  # neighbours
    bank: Index = 0  # training images among which neighbours are looked for, class-balanced; 0: all
    temperature: Positive = 0.1
    batch_size: Count = 512  # images per forward pass
    baselines: bool = True  # score raw pixels and the untrained network; the demo ends with detection beside it
    diagnostics: bool = True  # also collapse, alignment, uniformity, and the top-1 accuracy of loss terms


@dataclass(frozen=True)
class RunConfig(Generic[MethodConfig]):
    """Everything that decides the result of a run."""

    method_name: Annotated[str, tyro.conf.arg(name="method")]  # file in mixfast/methods, or the dotted name of a module
    method: MethodConfig
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: Seed = 0
    init: str = ""  # weights to begin with: an export/ or run folder, .safetensors or .pth (docs/backbones.md)
    compare: tuple[str, ...] = ()  # methods also trained, for the same encoder passes; no word, or none: no method


# Keys that a resumed run may change, as no bit of the weights depends on them: the place of data and machine, and when
# the run is saved, logged and evaluated.
FREE_ON_RESUME = frozenset(
    {"train.device", "train.threads", "train.graph", "train.log", "train.log_every"}
    | {f"eval.{item.name}" for item in dataclasses.fields(EvalConfig)}
    | {"train.checkpoint_every", "train.checkpoint_seconds"}
    | {"data.path", "data.test_path", "data.in_memory", "data.cache", "data.cache_dir", "data.workers", "data.download"}
    | {"compare"}
)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every value by its dotted key, as on the command line: {"optim.lr": 0.06, ...}."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{prefix}{item.name}."))
        else:
            flat[prefix + item.name] = value
    return flat


def replace(config: Any, values: dict[str, Any]) -> Any:
    """A copy of `config` with the values of some dotted keys changed at once; KeyError if there is no such key."""
    top_level = {key: value for key, value in values.items() if "." not in key}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        head, dot, inner_key = key.partition(".")
        if head not in {item.name for item in dataclasses.fields(config)}:
            raise KeyError(key)
        if dot:
            sections.setdefault(head, {})[inner_key] = value
    base = top_level | {
        head: replace(top_level.get(head, getattr(config, head)), inner) for head, inner in sections.items()
    }
    return dataclasses.replace(config, **base)


def typed(config: RunConfig[Any]) -> Any:
    """The type of a configuration with its method's own options."""
    generic: Any = RunConfig
    return generic[type(config.method)]


def hint_of(config: Any, key: str) -> Any:
    """The type of the option with a dotted key."""
    *sections, name = key.split(".")
    for section in sections:
        config = getattr(config, section)
    return ranges.field_types(type(config))[name]


def from_dict(cls: type, data: Any, method_config: type, key: str = "") -> Any:
    """The inverse of `dataclasses.asdict` after a round trip through JSON, which turns tuples into lists.

    Args:
        cls: the dataclass.
        data: the value that JSON was parsed to.
        method_config: the type of the options of the method.
        key: dotted key of `data` in the whole configuration, for messages.

    Raises:
        ConfigError: a key is missing or unknown, a value has another type, or a dataclass refuses it.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{key or 'values'} must be an object of keys and values; got {data!r:.100}")
    hints = typing.get_type_hints(cls)
    names = {item.name: f"{key}.{item.name}" if key else item.name for item in dataclasses.fields(cls) if item.init}
    errors = [f"{names[name]} is missing" for name in names if name not in data]
    errors += [f"{cls.__name__} has no key {name}" for name in data if name not in names]
    if errors:
        raise ConfigError(f"{'; '.join(errors)} (written by another version of mixfast?)")
    values = {}
    for name, dotted in names.items():
        hint = method_config if hints[name] is MethodConfig else hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = from_dict(typing.cast(type, hint), data[name], method_config, dotted)
        else:
            values[name] = from_json(data[name], hint, dotted)
    return cls(**values)


_JSON_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", type(None): "null"}


def from_json(value: Any, hint: Any, key: str) -> Any:
    """A value of JSON converted to the type `hint`; ConfigError if it has another. Types that JSON lacks are not
    checked."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return from_json(value, options[0], key)
    if origin in (typing.Union, types.UnionType):
        for option in options:
            with contextlib.suppress(ConfigError):
                return from_json(value, option, key)
    elif origin is Literal:
        if any(type(value) is type(option) and value == option for option in options):
            return value
    elif origin is tuple:
        if isinstance(value, list):
            items = [options[0]] * len(value) if options[1:] == (...,) else options
            if len(value) == len(items):
                return tuple(from_json(item, kind, key) for item, kind in zip(value, items, strict=True))
    elif hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    elif type(value) is hint or hint not in _JSON_TYPES:
        return _tuples(value)
    raise ConfigError(f"{key} must be {_in_words(hint)}; got {value!r:.100}")


def _in_words(hint: Any) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _in_words(options[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin is tuple:
        return f"a list of {'' if options[1:] == (...,) else f'{len(options)}, each '}{_in_words(options[0])}"
    return " or ".join(_in_words(option) for option in options) if options else _JSON_TYPES.get(hint, str(hint))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def differences(saved: dict[str, Any], requested: dict[str, Any]) -> list[str]:
    """One line per key in which two flat configurations differ, without the keys that a resumed run may change.

    The number of epochs is omitted too: `mixfast.run.restore.check_length` checks it.
    """
    keys = [key for key in dict.fromkeys([*saved, *requested]) if key not in {*FREE_ON_RESUME, "train.epochs"}]
    missing = "(absent)"
    pairs = [(key, saved.get(key, missing), requested.get(key, missing)) for key in keys]
    return [
        f"{key}: saved {old_value!r}, wanted {new_value!r}"
        for key, old_value, new_value in pairs
        if old_value != new_value
    ]


def validate(config: RunConfig[Any]) -> None:
    """Refuse a configuration that cannot be trained or scored, before anything is made or loaded.

    Raises:
        ConfigError: lists every value that its type does not allow; or, if there is none, values that contradict each
            other; or else it is raised by the method's own `check` of its options at this batch size.
    """
    problems = ranges.problems(config)
    if config.optim.name == "adam" and config.optim.momentum == 1:
        problems.append(f"--optim.momentum must be below 1 for adam; got {config.optim.momentum}")
    if not problems and not all(0 < step < 1 or (step < 0 and float(step).is_integer()) for step in config.optim.steps):
        problems.append(
            "--optim.steps must be shares of the training between 0 and 1, or whole numbers below 0: epochs before its "
            f"end; got {config.optim.steps}"
        )
    if not problems:
        problems = _batch_problems(config)
    if problems:
        raise ConfigError("\n".join(problems))
    methods.load(config.method_name).check(config.method, config.train.batch_size)


def _batch_problems(config: RunConfig[Any]) -> list[str]:
    batch, micro, splits = config.train.batch_size, config.train.accumulate, config.model.bn_splits
    size = current().size
    groups = groups_of(splits, size)
    if size > 1 and groups % (2 * size):
        return [
            f"--model.bn_splits must be 1, or a multiple of 2 for each of the {size} processes, since each has whole "
            f"groups in pairs; got {splits}, nearest: {nearest_multiple(splits, 2 * size)}"
        ]
    if batch % (micro * groups) == 0:
        return []
    share = f"--model.bn_splits {splits}" if groups == splits else f"2 for each of the {size} processes"
    return [
        f"--train.batch_size must be a multiple of --train.accumulate {micro} times {share}; "
        f"got {batch}, nearest: {nearest_multiple(batch, micro * groups)}"
    ]


def check_batch(config: RunConfig[Any], images: int) -> None:
    """Raise a ConfigError, which suggests options, if a batch is larger than the training set of `images`."""
    batch = config.train.batch_size
    if batch <= images:
        return
    text = f"--train.batch_size must be at most the {images} training images; got {batch}."
    for fitting in (2**power for power in reversed(range(images.bit_length()))):
        smaller = {"train.batch_size": fitting}
        if config.optim.name != "adam":
            smaller["optim.lr"] = config.optim.lr * fitting / batch
        try:
            validate(replace(config, smaller))
        except ConfigError:
            continue
        options = " ".join(f"--{key} {value:g}" for key, value in smaller.items())
        rule = f": {config.optim.lr:g} in proportion to the batch" if "optim.lr" in smaller else ""
        raise ConfigError(f"{text} Try {options}{rule}.")
    raise ConfigError(f"{text} Use more images, or a --model.bn_splits and --method.queue_size that fit a small batch.")


def nearest_multiple(value: int, factor: int) -> int:
    """The positive multiple of `factor` that is closest to `value`."""
    return max(1, round(value / factor)) * factor
