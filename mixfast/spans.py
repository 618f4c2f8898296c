"""Named parts of a training step, for profilers.

    with span("pooling"):       around some lines
    @span("EMA")                above a function

A span does nothing unless `recording` is active; training itself never activates it.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Recorder = Callable[[str], AbstractContextManager[object]]

_recorder: Recorder | None = None


class span:  # used like a function
    """A part of a step as a context manager or a decorator.

    Args:
        name: the part's name, or a function that returns it, called whenever the part begins.
    """

    __slots__ = ("_name", "_recorded")

    def __init__(self, name: str | Callable[[], str]):
        self._name = name
        self._recorded: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        if _recorder is not None:
            self._recorded = _recorder(self._name if isinstance(self._name, str) else self._name())
            self._recorded.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._recorded is not None:
            self._recorded.__exit__(*error)  # type: ignore[arg-type]

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def part(*args: P.args, **kwargs: P.kwargs) -> R:
            if _recorder is None:
                return function(*args, **kwargs)
            with span(self._name):
                return function(*args, **kwargs)

        return part


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Within the block every span is entered through `recorder(name)`.

    Args:
        recorder: makes a context manager from the name of a part. With `torch.profiler.record_function` the parts
            appear in the profiles of torch.profiler.
    """
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before
