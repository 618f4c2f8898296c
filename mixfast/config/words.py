"""The words of a command line: how options are spelled, what their values may be, and what was probably meant.

`-`, `_` and `.` are one in the names of options: --data.cache_dir, --data.cache-dir and --data-cache-dir are the same.
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
from mixfast.ranges import check_ranges

T = TypeVar("T")

_BRITISH = {"iz": "is", "gray": "grey", "color": "colour"}  # as names here are spelled; other names suffer it alike
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
def plain(name: str) -> str:
    """A name without differences of spelling: case, `-`, `.` and `_`, and American endings."""
    name = re.sub(r"[-._]+", "_", name.lower())
    for american, british in _BRITISH.items():
        name = name.replace(american, british)
    return name


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """The names that are most like `name`, at most three; none whose number differs, as v1 does from v2."""
    numbers = re.findall(r"\d+", name)
    by_plain = {plain(other).replace("_", ""): other for other in known}
    wanted = plain(name).replace("_", "")
    near = [by_plain[other] for other in difflib.get_close_matches(wanted, by_plain, n=9, cutoff=cutoff)]
    return [other for other in near if re.findall(r"\d+", other) in (numbers, [])][:3]


def same(name: str, known: Iterable[str]) -> str | None:
    """The known name that equals `name` apart from the differences that `plain` removes; None if there is none."""
    wanted = plain(name).replace("_", "")
    return next((other for other in known if other == name or plain(other).replace("_", "") == wanted), None)


def unknown(kind: str, name: str, known: Iterable[str], cutoff: float = 0.4) -> ConfigError:
    """A ConfigError that says which names there are, the nearest first."""
    known = list(known)
    near = nearest(name, known, cutoff)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ConfigError(f"unknown {kind} {name!r}; {hint}Known: {', '.join(known)}.")


def find(flag: str, options: Mapping[str, Option], others: Iterable[str] = ()) -> tuple[str, bool]:
    """The name of the option that `flag` spells, and whether it switches the option off.

    Args:
        flag: as it stands on the command line.
        options: by name.
        others: flags of the command that are no such options, to be suggested.

    Raises:
        ConfigError: there is no such option; the message names the nearest.
    """
    by_plain = {plain(name): name for name in options}
    wanted = plain(flag.removeprefix("--"))
    if wanted in by_plain:
        return by_plain[wanted], False
    switched = re.sub(r"(^|_)no_", r"\1", wanted, count=1)
    off = switched != wanted
    if off and switched in by_plain and options[by_plain[switched]].hint is bool:
        return by_plain[switched], True
    flags = nearest(flag, others, 0.8) or [
        _off(name) if off else f"--{name}" for name in _meant(flag.removeprefix("--"), options, off)
    ]
    hint = f"did you mean {' or '.join(flags)}?" if flags else "see --help."
    raise ConfigError(f"unknown option {flag}; {hint}")


def _meant(flag: str, options: Mapping[str, Option], off: bool) -> list[str]:
    """The options that an unknown one probably means; with the value where its name is one, as in --wandb."""
    known = [name for name in options if not off or options[name].hint is bool]
    section, _, last = flag.rpartition(".")
    last = re.sub(r"^no_", "", plain(last))
    meant = [name for name in known if plain(name.rpartition(".")[2]) == last]
    other = _ELSEWHERE.get(last, "")
    if other in known and (not meant or other.startswith(f"{section}.")):
        meant = [other, *meant]
    meant = meant or [f"{name} {last}" for name in known if last in _choices(options[name].hint)]
    return meant or nearest(re.sub(r"(^|_)no_", r"\1", plain(flag), count=1), known)


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, also inside a tuple."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    return arguments if kind is Literal else _choices(arguments[0]) if kind is tuple else ()


def _off(name: str) -> str:
    """How the flag of an option is switched off."""
    section, dot, key = name.rpartition(".")
    return f"--{section}{dot}no-{key}"


def arity(hint: Any) -> int | None:
    """How many words a value of a type takes; None: any number."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        return arity(arguments[0])
    if kind in (typing.Union, types.UnionType):
        counts = [arity(argument) for argument in arguments]
        return None if None in counts else max(count for count in counts if count is not None)
    if kind is tuple:
        return None if Ellipsis in arguments else len(arguments)
    return 0 if hint is bool else None if kind in (list, set, dict) else 1


def value(flag: str, words: Sequence[str], option: Option, off: bool = False) -> Any:
    """The value that `words` behind a flag give an option.

    Raises:
        ConfigError: they are no value of its type; the message says what would be.
    """
    if option.hint is bool and not words:
        return not off
    choices = typing.get_args(option.hint) if typing.get_origin(option.hint) is Literal else ()
    if all(isinstance(choice, str) for choice in choices):
        words = [same(word, choices) or word for word in words]
    holder = dataclasses.make_dataclass("Holder", [("value", option.hint)])
    arguments = [f"--value={words[0]}"] if len(words) == 1 and arity(option.hint) == 1 else ["--value", *words]
    if option.hint is not bool:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # where tyro draws a box
                return tyro.cli(holder, args=arguments, console_outputs=False).value  # type: ignore[attr-defined]
        except SystemExit:
            pass
    default = "" if option.default is dataclasses.MISSING else f"; the default is {_written(option.default)}"
    raise ConfigError(f"{' '.join([flag, *words])}: expected {expected(option.hint)}{default}.")


def _written(default: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(default, tuple):
        return " ".join(map(_written, default)) or "none"
    return ("on" if default else "off") if isinstance(default, bool) else str(default)


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Options from Python as words of a command line: {"model__depth": 18, "eval__baselines": False} becomes
    --model.depth=18 --eval.no-baselines.

    Raises:
        ConfigError: a dictionary, where the keyword of an option inside a section was meant.
    """
    words = []
    for keyword, item in options.items():
        name = keyword.replace("__", ".")
        if isinstance(item, Mapping):
            inside = next(iter(item), "option")
            raise ConfigError(f"{keyword}: an option of a section is a keyword of its own, {keyword}__{inside}=...")
        if isinstance(item, bool):
            words.append(f"--{name}" if item else _off(name))
        elif isinstance(item, list | tuple):
            words += [f"--{name}", *map(str, item)]
        else:
            words.append(f"--{name}={item}")
    return words


def expected(hint: Any, several: bool = False) -> str:
    """A type in words, for messages; `several`: in the plural."""
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


def parse(kind: type[T], words: Sequence[str], command: str) -> T:
    """The options of a command, the fields of a dataclass: `[RUN ...] [--key value ...]`; ~ in paths is replaced.

    Args:
        kind: the dataclass. A field that is Positional takes the words that belong to no option.
        words: of the command line, without the command.
        command: "python -m mixfast.evaluate knn"; for --help.

    Raises:
        ConfigError: an unknown option, values that its type does not allow, or a path below a home that is not known.
        SystemExit: the words ask for help, which is printed.
    """
    if {"--help", "-h"} & set(words):
        tyro.cli(kind, args=["--help"], prog=command)
    hints = typing.get_type_hints(kind, include_extras=True)
    options = {field.name: Option(hints[field.name], field.default) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    (position,) = [name for name in options if tyro.conf.Positional in getattr(hints[name], "__metadata__", ())]
    hint = typing.get_args(options.pop(position).hint)[0]
    found: dict[str, Any] = {}
    free: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not _is_flag(word):
            free.append(word)
            continue
        flag, equals, text = word.partition("=")
        name, off = find(flag, options, ("--help", "--version", "--traceback"))
        if name in found:
            raise ConfigError(f"{flag} is given more than once.")
        behind = next((number for number, other in enumerate(rest) if _is_flag(other)), len(rest))
        count = arity(options[name].hint)
        given = [text] if equals else rest[: behind if count is None else min(count, behind)]
        rest = rest if equals else rest[len(given) :]
        found[name] = value(flag, given, options[name], off)
    if arity(hint) is not None and len(free) != arity(hint):
        raise ConfigError(f"expected one {position.upper()}; got {' '.join(free) or 'none'}. See {command} --help.")
    found = {position: value("", free, Option(hint)), **found}
    result = kind(**{name: _homes_expanded(item) for name, item in found.items()})
    check_ranges(result)
    return result


def _homes_expanded(item: Any) -> Any:
    """A value of an option with `home_expanded` applied to a path, or to the paths of a tuple."""
    if isinstance(item, tuple):
        return tuple(map(_homes_expanded, item))
    return home_expanded(item) if isinstance(item, Path) else item


def home_expanded(path: Path) -> Path:
    """A path that a user gave, with ~ and ~name as the folders they stand for.

    Raises:
        ConfigError: no such home is known, or no file system could hold the name.
    """
    if "\0" in str(path):
        raise ConfigError(f"{str(path)!r} is not a path: it contains a zero byte.")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: {error} Write the path out.") from error


def _is_flag(word: str) -> bool:
    """Whether a word names an option; a negative number does not."""
    return re.match(r"-[^\d.]", word) is not None
