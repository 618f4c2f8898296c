"""The arguments of a command line: spellings of options, types of values, and suggestions for unknown names.

`-`, `_` and `.` are equivalent in option names: --data.cache_dir, --data.cache-dir and --data-cache-dir are the same.
A flag is switched off by --section.no-key, which may be written --no-section.key.
"""

import contextlib
import dataclasses
import difflib
import functools
import io
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro

from mixfast.errors import ConfigError
from mixfast.ranges import check_ranges, field_types

T = TypeVar("T")

_BRITISH = {"iz": "is", "gray": "grey", "color": "colour"}  # replaced in both names before they are compared
_ELSEWHERE = {  # names that options have in other libraries
    "amp": "train.precision",
    "arch": "model.backbone",
    "momentum": "method.ema",
    "tau": "method.temperature",
}


class Option(NamedTuple):
    """An option that a command takes."""

    hint: Any  # its type
    default: Any = dataclasses.MISSING


@functools.cache
def normalised(name: str) -> str:
    """A name in lower case, with `_` for `-` and `.`, and in British spelling."""
    name = re.sub(r"[-._]+", "_", name.lower())
    for american, british in _BRITISH.items():
        name = name.replace(american, british)
    return name


def nearest(name: str, names: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """The at most three names that are most similar to `name`; none with another number, as v1 and v2."""
    numbers = re.findall(r"\d+", name)
    by_plain = {normalised(candidate).replace("_", ""): candidate for candidate in names}
    target = normalised(name).replace("_", "")
    close_names = [by_plain[candidate] for candidate in difflib.get_close_matches(target, by_plain, n=9, cutoff=cutoff)]
    return [candidate for candidate in close_names if re.findall(r"\d+", candidate) in (numbers, [])][:3]


def matching_name(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that equals `name` after `normalised`; None if there is none."""
    target = normalised(name).replace("_", "")
    return next(
        (candidate for candidate in names if candidate == name or normalised(candidate).replace("_", "") == target),
        None,
    )


def unknown_name(kind: str, name: str, names: Iterable[str], cutoff: float = 0.4) -> ConfigError:
    """A ConfigError about an unknown name, with the nearest names and the list of all."""
    names = list(names)
    close_names = nearest(name, names, cutoff)
    hint = f"did you mean {' or '.join(close_names)}? " if close_names else ""
    return ConfigError(f"unknown {kind} {name!r}; {hint}Known: {', '.join(names)}.")


def find_option(flag: str, options: Mapping[str, Option], other_flags: Iterable[str] = ()) -> tuple[str, bool]:
    """The name of the option that `flag` spells, and whether it switches the option off.

    Args:
        flag: as it stands on the command line.
        options: by name.
        other_flags: flags of the command that are not in `options`, for suggestions.

    Raises:
        ConfigError: there is no such option; the message names the nearest.
    """
    by_plain = {normalised(name): name for name in options}
    target = normalised(flag.removeprefix("--"))
    if target in by_plain:
        return by_plain[target], False
    switched = re.sub(r"(^|_)no_", r"\1", target, count=1)
    switches_off = switched != target
    if switches_off and switched in by_plain and options[by_plain[switched]].hint is bool:
        return by_plain[switched], True
    close_names = _meant(flag.removeprefix("--"), options, switches_off)
    flags = nearest(flag, other_flags, 0.8) or [_off(name) if switches_off else f"--{name}" for name in close_names]
    hint = f"did you mean {' or '.join(flags)}?" if flags else "see --help."
    raise ConfigError(f"unknown option {flag}; {hint}")


def _meant(flag: str, options: Mapping[str, Option], switches_off: bool) -> list[str]:
    """The options that an unknown one probably means; with the value where its name is one, as in --wandb."""
    applicable = [name for name in options if not switches_off or options[name].hint is bool]
    section, _, last = flag.rpartition(".")
    last = re.sub(r"^no_", "", normalised(last))
    names = [name for name in applicable if normalised(name.rpartition(".")[2]) == last]
    synonym = _ELSEWHERE.get(last, "")
    if synonym in applicable and (not names or synonym.startswith(f"{section}.")):
        names = [synonym, *names]
    names = names or [f"{name} {last}" for name in applicable if last in _choices(options[name].hint)]
    return names or nearest(re.sub(r"(^|_)no_", r"\1", normalised(flag), count=1), applicable)


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, also inside a tuple."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    return arguments if kind is Literal else _choices(arguments[0]) if kind is tuple else ()


def _off(name: str) -> str:
    """The flag that switches an option off."""
    section, dot, key = name.rpartition(".")
    return f"--{section}{dot}no-{key}"


def arity(hint: Any) -> int | None:
    """The number of arguments that a value of a type takes; None: any number."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        return arity(arguments[0])
    if kind in (typing.Union, types.UnionType):
        counts = [arity(argument) for argument in arguments]
        return None if None in counts else max(count for count in counts if count is not None)
    if kind is tuple:
        return None if Ellipsis in arguments else len(arguments)
    return 0 if hint is bool else None if kind in (list, set, dict) else 1


def parse_value(flag: str, texts: Sequence[str], option: Option, switched_off: bool = False) -> Any:
    """The value of an option from the texts behind its flag.

    Raises:
        ConfigError: they are not a value of its type; the message says what is.
    """
    if option.hint is bool and not texts:
        return not switched_off
    choices = typing.get_args(option.hint) if typing.get_origin(option.hint) is Literal else ()
    if all(isinstance(choice, str) for choice in choices):
        texts = [matching_name(word, choices) or word for word in texts]
    # Without a help text tyro would look for one in this file's source when it reports an error.
    hint = Annotated[option.hint, tyro.conf.arg(help="")]  # type: ignore[name-defined]
    holder = dataclasses.make_dataclass("Holder", [("value", hint)])
    arguments = [f"--value={texts[0]}"] if len(texts) == 1 and arity(option.hint) == 1 else ["--value", *texts]
    if option.hint is not bool:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # tyro prints an error there
                return tyro.cli(holder, args=arguments, console_outputs=False).value  # type: ignore[attr-defined]
        except SystemExit:
            pass
    default = "" if option.default is dataclasses.MISSING else f"; the default is {_written(option.default)}"
    raise ConfigError(f"{' '.join([flag, *texts])}: expected {expected(option.hint)}{default}.")


def _written(default: Any) -> str:
    """A value as text, in the form of the command line."""
    if isinstance(default, tuple):
        return " ".join(map(_written, default)) or "none"
    return ("on" if default else "off") if isinstance(default, bool) else str(default)


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Options from Python as arguments of a command line: {"model__depth": 18, "eval__baselines": False} becomes
    --model.depth=18 --eval.no-baselines.

    Raises:
        ConfigError: a value is a dictionary; options of a section are keywords of their own.
    """
    result = []
    for keyword, item in options.items():
        name = keyword.replace("__", ".")
        if isinstance(item, Mapping):
            inside = next(iter(item), "option")
            raise ConfigError(f"{keyword}: an option of a section is a keyword of its own, {keyword}__{inside}=...")
        if isinstance(item, bool):
            result.append(f"--{name}" if item else _off(name))
        elif isinstance(item, list | tuple):
            result += [f"--{name}", *map(str, item)]
        else:
            result.append(f"--{name}={item}")
    return result


def expected(hint: Any, several: bool = False) -> str:
    """The description of a type for messages; `several`: in the plural."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        return expected(arguments[0], several)
    if kind is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if kind in (typing.Union, types.UnionType):
        return " or ".join(expected(argument, several) for argument in arguments)
    if kind is tuple:
        return f"{'any number of' if Ellipsis in arguments else len(arguments)} {expected(arguments[0], True)}"
    singular = {int: "a whole number", float: "a number", str: "a string", type(None): "None"}
    plural = {int: "whole numbers", float: "numbers", str: "words"}
    names = {**singular, **plural} if several else singular
    if hint is bool:
        return "no value: the option switches on, and with no- before its name off"
    return names.get(hint) or getattr(hint, "__name__", str(hint)).lower().replace("path", "a path")


def parse(kind: type[T], arguments: Sequence[str], command: str) -> T:
    """Parse the options of a command, the fields of a dataclass: `[RUN ...] [--key value ...]`; ~ in paths is replaced.

    Args:
        kind: the dataclass. A field that is Positional takes the arguments that belong to no option.
        arguments: of the command line, without the command.
        command: "python -m mixfast.evaluate knn"; for --help.

    Raises:
        ConfigError: an unknown option, values that its type does not allow, or a path below an unknown home folder.
        SystemExit: the arguments ask for help, which is printed.
    """
    if {"--help", "-h"} & set(arguments):
        tyro.cli(kind, args=["--help"], prog=command)
    hints = field_types(kind)
    options = {field.name: Option(hints[field.name], field.default) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    (position,) = [name for name in options if tyro.conf.Positional in getattr(hints[name], "__metadata__", ())]
    hint = typing.get_args(options.pop(position).hint)[0]
    values: dict[str, Any] = {}
    positional: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not _is_flag(argument):
            positional.append(argument)
            continue
        flag, equals, text = argument.partition("=")
        name, switched_off = find_option(flag, options, ("--help", "--version", "--traceback"))
        if name in values:
            raise ConfigError(f"{flag} is given more than once.")
        count_behind = next(
            (number for number, following in enumerate(remaining) if _is_flag(following)), len(remaining)
        )
        count = arity(options[name].hint)
        texts = [text] if equals else remaining[: count_behind if count is None else min(count, count_behind)]
        remaining = remaining if equals else remaining[len(texts) :]
        values[name] = parse_value(flag, texts, options[name], switched_off)
    if arity(hint) is not None and len(positional) != arity(hint):
        raise ConfigError(
            f"expected one {position.upper()}; got {' '.join(positional) or 'none'}. See {command} --help."
        )
    values = {position: parse_value("", positional, Option(hint)), **values}
    result = kind(**{name: _homes_expanded(item) for name, item in values.items()})
    check_ranges(result)
    return result


def _homes_expanded(item: Any) -> Any:
    """A value of an option with `home_expanded` applied to a path, or to the paths of a tuple."""
    if isinstance(item, tuple):
        return tuple(map(_homes_expanded, item))
    return home_expanded(item) if isinstance(item, Path) else item


def home_expanded(path: Path) -> Path:
    """A user's path with ~ and ~name replaced by the home folders.

    Raises:
        ConfigError: the home folder is not known, or the path contains a zero byte.
    """
    if "\0" in str(path):
        raise ConfigError(f"{str(path)!r} is not a path: it contains a zero byte.")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: {error} Write the path out.") from error


def _is_flag(word: str) -> bool:
    """Whether an argument is the flag of an option, and not a negative number."""
    return re.match(r"-[^\d.]", word) is not None
