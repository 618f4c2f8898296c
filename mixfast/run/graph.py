"""The halves of a training step as CUDA graphs: called normally for some steps, then recorded once and replayed."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mixfast.errors import ConfigError

WARM_UP = 3  # steps before the recording, for state made at first use and kernels chosen by timing

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
        generators: returns the generators that the work draws from; called when a recording begins.
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
        # thread_local: calls of other threads to the device meanwhile do not disturb the recording.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


class StepGraph:
    """Calls functions of (run, tensors) through recordings, one per function.

    The first `WARM_UP` calls of each function are real steps, and the recording executes nothing. So no state has to be
    restored: weights, statistics, queues and generators have the same bits as in a run without graphs.

    Everything that a function reads beside its argument, and everything that it changes, must be tensors that keep
    their memory. Numbers that change from step to step (learning rate, progress) are therefore tensors that are filled
    between the calls. Gradients pass from one function to the next by `.grad` as usual.

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
        """function(run, argument); the shapes of `argument` must be those of the first call.

        Raises:
            ConfigError: the function cannot be recorded, for example because it waits for the device.
        """
        if function in self._recorded:
            return self._recorded[function](argument)
        self._calls[function] = self._calls.get(function, 0) + 1
        if self._calls[function] <= WARM_UP:
            return self._recorder.warm_up(lambda: function(run, argument))
        self._recorded[function] = self._record(function, run, argument)
        return self._recorded[function](argument)

    def _record(self, function: Callable[[Any, Any], Any], run: Any, argument: Any) -> Callable[[Any], Any]:
        static = _map_tensors(torch.clone, argument)
        try:
            replay, result = self._recorder.record(lambda: function(run, static))
        except RuntimeError as error:
            cause = error.__context__ or error  # the first error is the function's, the second that of the recording
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None  # explained elsewhere
            reason = str(cause).partition("\n")[0]
            raise ConfigError(
                f"--train.graph on: {function.__name__} of the step cannot be recorded as a CUDA graph ({reason}). "
                "Leave the option at auto; a method must neither wait for the device nor copy from the host in a step."
            ) from error
        gradients = [parameter.grad for parameter in self._parameters]

        def replayed(fresh: Any) -> Any:
            _copy(static, fresh)
            replay()
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            return _map_tensors(torch.clone, result)  # the next replay overwrites `result`

        return replayed


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value`, a tensor, None, or a dict or tuple of these, with `function` applied to every tensor."""
    if isinstance(value, dict):
        return {name: _map_tensors(function, item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_map_tensors(function, item) for item in value)
    return None if value is None else function(value)


def _copy(target: Any, source: Any) -> None:
    """Overwrite the tensors of `target`, a tensor or a dict, by those of `source`."""
    if isinstance(target, dict):
        for name, item in target.items():
            item.copy_(source[name])
    else:
        target.copy_(source)
