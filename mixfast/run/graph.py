"""The halves of a training step as CUDA graphs: run as they are at first, then recorded once and replayed."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mixfast.errors import ConfigError

WARM_UP = 3  # steps before the recording: state that is made at first use, and kernels that are chosen by timing

Work = Callable[[], Any]


class Recorder(Protocol):
    """Records work as graphs that can be replayed."""

    def warm_up(self, work: Work) -> Any:
        """Run `work` as the recording will; returns its result."""

    def record(self, work: Work) -> tuple[Callable[[], None], Any]:
        """(replay, result): recording computes nothing on the device, and each replay writes into the same result."""


class CudaRecorder:
    """Records CUDA graphs on a stream of its own.

    Args:
        device: of all tensors.
        generators: those that the work draws from; asked for when a recording begins.
    """

    def __init__(self, device: torch.device, generators: Callable[[], Iterable[torch.Generator]]):
        self._device = device
        self._generators = generators
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, work: Work) -> Any:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Work) -> tuple[Callable[[], None], Any]:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators():
            graph.register_generator_state(generator)
        # thread_local: whatever other threads of this process ask of the device meanwhile is none of the recording's.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


class StepGraph:
    """Calls functions of (run, tensors) through recordings, one per function.

    The first `WARM_UP` calls of each are real steps, so nothing has to be put back before the recording, which moves
    nothing: weights, statistics, queues and generators are those of a run without graphs, bit by bit.

    What a function reads beside its argument must be tensors that stay in place; what it moves, tensors too. Numbers
    that change from step to step (learning rate, progress) are therefore tensors that are filled between the calls.
    Gradients are handed from one function to the next by `.grad` as usual.

    Args:
        parameters: all that may have a gradient.
        recorder: makes the graphs.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], recorder: Recorder):
        self._parameters = list(parameters)
        self._recorder = recorder
        self._calls: dict[Callable[..., Any], int] = {}
        self._recorded: dict[Callable[..., Any], Callable[[Any], Any]] = {}

    def __call__(self, function: Callable[[Any, Any], Any], run: Any, argument: Any) -> Any:
        """function(run, argument); shapes of `argument` are those of the first call.

        Raises:
            ConfigError: the function does what cannot be recorded, such as waiting for the device.
        """
        if function in self._recorded:
            return self._recorded[function](argument)
        self._calls[function] = self._calls.get(function, 0) + 1
        if self._calls[function] <= WARM_UP:
            return self._recorder.warm_up(lambda: function(run, argument))
        self._recorded[function] = self._record(function, run, argument)
        return self._recorded[function](argument)

    def _record(self, function: Callable[[Any, Any], Any], run: Any, argument: Any) -> Callable[[Any], Any]:
        static = _each(torch.clone, argument)
        try:
            replay, result = self._recorder.record(lambda: function(run, static))
        except RuntimeError as error:
            cause = error.__context__ or error  # what the work raised, before the end of the recording failed too
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None  # it has a message of its own
            why = str(cause).partition("\n")[0]
            raise ConfigError(
                f"--train.graph on: {function.__name__} of the step cannot be recorded as a CUDA graph ({why}). "
                "Leave the option at auto; a method must neither wait for the device nor copy from the host in a step."
            ) from error
        gradients = [parameter.grad for parameter in self._parameters]

        def replayed(fresh: Any) -> Any:
            _copy(static, fresh)
            replay()
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            return _each(torch.clone, result)  # the next replay overwrites its own

        return replayed


def _each(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`function` of every tensor in a tensor, a dict or a tuple of such."""
    if isinstance(value, dict):
        return {name: _each(function, item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_each(function, item) for item in value)
    return None if value is None else function(value)


def _copy(target: Any, source: Any) -> None:
    """Overwrite the tensors of `target`, a tensor or a dict, by those of `source`."""
    if isinstance(target, dict):
        for name, item in target.items():
            item.copy_(source[name])
    else:
        target.copy_(source)
