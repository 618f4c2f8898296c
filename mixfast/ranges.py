"""The allowed values of options: the type of an option declares its range, as in `temperature: Positive`.

A plain `int` must fit into 64 bits, and a plain `float` must be finite.
"""

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mixfast.errors import ConfigError

__all__ = [
    "Cores",
    "Count",
    "Index",
    "InnerShare",
    "NotNegative",
    "Positive",
    "Range",
    "Seed",
    "Share",
    "Side",
    "Width",
    "check_ranges",
    "problems",
]

MOST = 2**31 - 1  # the largest count: it fits into 32 bits


@dataclass(frozen=True)
class Range:
    """An interval [low, high]; `above` excludes `low` from it, and `below` excludes `high`."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'above' if self.above else 'at least'} {self.low:g}"
        return f"in {'[('[self.above]}{self.low:g}, {self.high:g}{'])'[self.below]}"


_INT64 = Range(-(2**63), 2**63 - 1)

# A whole number of at least 1: images, steps, rows of a queue.
Count = Annotated[int, Range(1, MOST)]
# A count that may be 0.
Index = Annotated[int, Range(0, MOST)]
# The channels of a layer.
Width = Annotated[int, Range(1, 2**20)]
# The side of a square image in pixels.
Side = Annotated[int, Range(1, 2**14)]
# A number of threads or processes.
Cores = Annotated[int, Range(0, 1024)]
# The seed of a random generator.
Seed = Annotated[int, Range(0, 2**64 - 1)]
# A probability, or a part of a whole.
Share = Annotated[float, Range(0, 1)]
# A share strictly between 0 and 1.
InnerShare = Annotated[float, Range(0, 1, above=True, below=True)]
# A number above 0, such as a temperature.
Positive = Annotated[float, Range(0, above=True)]
# A number of at least 0, such as a rate.
NotNegative = Annotated[float, Range(0)]


# The types of a dataclass's fields with their ranges; reading them anew takes longer than checking the values.
field_types: Callable[[Any], dict[str, Any]] = functools.cache(
    functools.partial(typing.get_type_hints, include_extras=True)
)


def check_ranges(config: Any, section: str = "") -> None:
    """Raise ConfigError with a line for every field of a dataclass whose value its type does not allow.

    Args:
        config: the dataclass; fields that are dataclasses themselves are its sections.
        section: prefix of the option names, such as "method" for --method.temperature.
    """
    if lines := problems(config, f"{section}." if section else ""):
        raise ConfigError("\n".join(lines))


def problems(config: Any, prefix: str = "") -> list[str]:
    """A line for every field of the dataclass `config` whose value its type does not allow; `prefix` precedes names."""
    hints = field_types(type(config))
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            lines += problems(value, f"{prefix}{field.name}.")
        elif expected := _expected(value, hints[field.name]):
            lines.append(f"--{prefix}{field.name} must be {expected}; got {value!r}")
    return lines


def _expected(value: Any, hint: Any) -> str:
    """The description of allowed values for a message, by the type `hint`; "" if `value` is allowed."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        ranges = [item for item in arguments[1:] if isinstance(item, Range)]
        return _expected_number(value, arguments[0], ranges[0]) if ranges else _expected(value, arguments[0])
    if kind in (typing.Union, types.UnionType):
        return _expected_union(value, arguments)
    if kind is Literal:
        is_allowed = any(value == item and type(value) is type(item) for item in arguments)
        return "" if is_allowed else ", ".join(map(str, arguments))
    if kind is tuple:
        return _expected_tuple(value, arguments)
    if hint in (int, float):
        return _expected_number(value, hint, _INT64 if hint is int else None)
    names = {str: "a string", bool: "true or false", type(None): "none"}
    if hint in names:
        return "" if isinstance(value, hint) else names[hint]
    return "finite" if isinstance(value, float) and not math.isfinite(value) else ""


def _expected_union(value: Any, arguments: tuple[Any, ...]) -> str:
    expected = {argument: _expected(value, argument) for argument in arguments}
    if not all(expected.values()):
        return ""
    texts = [text for argument, text in expected.items() if argument is not type(None)]
    if len(texts) > 1:
        texts = [re.sub("^(in|above|at|finite)", r"a number \1", text) for text in texts]
    return ", or ".join(texts)


def _expected_number(value: Any, kind: type, interval: Range | None) -> str:
    numeric = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not numeric:
        return "a whole number" if kind is int else "a number"
    if interval is None or value in interval:
        return "" if abs(value) < math.inf else "finite"
    if kind is int and value > interval.high:
        return f"at most {interval.high}"
    return f"at least {interval.low}" if kind is int else str(interval)


def _expected_tuple(value: Any, arguments: tuple[Any, ...]) -> str:
    if not isinstance(value, tuple):
        return "a tuple"
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = arguments[:1] * len(value)
    if len(value) != len(arguments):
        return f"{len(arguments)} values"
    expected = dict.fromkeys(filter(None, map(_expected, value, arguments)))
    return f"values, each {' and '.join(expected)}" if expected else ""
