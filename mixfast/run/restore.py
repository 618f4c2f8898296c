"""Checks a checkpoint against the run that continues from it, before anything of the checkpoint is used.

A fused optimiser would write past the end of a tensor of another shape, and a NaN would make every later step fail.
Each message names the entry, what was expected and what was read.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixfast import methods
from mixfast.config.options import RunConfig, differences, flatten
from mixfast.errors import CheckpointError
from mixfast.methods import Method
from mixfast.methods.bases import Queues
from mixfast.rng import COUNTER, Generators
from mixfast.run import checkpoint
from mixfast.run.log import Meter
from mixfast.run.optim import learning_rate, state_names
from mixfast.run.tensors import not_finite, tensors_of

_FIELDS: dict[str, type] = {
    **{"config": dict, "data": dict, "method": dict, "optimizer": dict, "generators": dict, "torch_generators": dict},
    **{"batches": dict, "meter": dict},
    **{"step": int, "epoch": int, "evaluated": int, "seconds": float, "metrics_bytes": int},
}
_LEAST = {"evaluated": -1}  # smallest value of a number; 0 for numbers that are not listed
_KEY_DTYPES = {torch.float16, torch.float32}  # of queues, by device and precision (`mixfast.methods.bases.key_dtype`)


def check_fields(state: dict[str, Any], path: Path) -> None:
    """Raise a CheckpointError unless every entry of a checkpoint is present, has its type and lies in its range."""
    for name, kind in _FIELDS.items():
        expect(name in state, path, name, "there", "nothing")
        value = state[name]
        if kind is dict:
            expect(isinstance(value, dict), path, name, "a dictionary", value)
        else:
            number = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
            least = _LEAST.get(name, 0)
            expected = f"a {'number' if kind is float else 'whole number'} of at least {least}"
            expect(number and value >= least, path, name, expected, value)
    for name in ("config", "data"):
        for key, value in state[name].items():
            expect(_plain(value), path, f"{name}.{key}", "a number, text or list", value)


def expect(holds: bool, path: Path, name: str, expected: str, value: object) -> None:
    """Raise a CheckpointError unless `holds`: the entry `name` must be `expected`, and is `value`."""
    if not holds:
        received = checkpoint.contents(value)[""] if isinstance(value, Tensor) else f"{value!r:.60}"
        raise CheckpointError(f"{path}: {name} must be {expected}; got {received}.")


def _plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def check_config(state: dict[str, Any], config: RunConfig[Any], path: Path) -> None:
    """Raise a CheckpointError if a checkpoint belongs to another configuration."""
    if unlike := differences(state["config"], flatten(config)):
        raise CheckpointError(f"{path} belongs to another configuration:\n  " + "\n  ".join(unlike))


def check_length(state: dict[str, Any], config: RunConfig[Any], path: Path) -> None:
    """Raise a CheckpointError if a run cannot be continued with the number of epochs of `config`, which differs.

    It can be continued if the result has the same bits as a run that began with the new number: the epochs so far have
    the same learning rates under both numbers, and nothing else of the method depends on the number.
    """
    old, new = state["config"]["train.epochs"], config.train.epochs
    option = f"--train.epochs {new}"
    if old == new:
        return
    begun = state["epoch"] + bool(state["batches"].get("next"))
    advice = (
        f"Start a new run with what this one has learnt: --init {path} {option}. A run that is to be made longer "
        "later takes --optim.schedule constant."
    )
    if new < begun:
        raise CheckpointError(f"{path}: {option} is less than the {begun} epochs that the run has begun already.")
    if methods.load(config.method_name).follows_progress(config.method):
        raise CheckpointError(f"{path}: {option}: {config.method_name} has a schedule over the {old} epochs. {advice}")
    for epoch in range(begun):
        old_rate, new_rate = (learning_rate(config.optim, epoch, epochs, 2**62) for epochs in (old, new))
        if old_rate != new_rate:
            raise CheckpointError(
                f"{path}: {option}: the schedule {config.optim.schedule} depends on the number of epochs: epoch "
                f"{epoch + 1} had the rate {old_rate:.4g} of {old} epochs, and in {new} would have had {new_rate:.4g}. "
                f"{advice}"
            )


def check_progress(state: dict[str, Any], epochs: int, batches: int, path: Path) -> None:
    """Raise a CheckpointError unless epoch, step and position in the epoch of `batches` batches agree."""
    epoch, step, position = state["epoch"], state["step"], state["batches"].get("next")
    expect(epoch <= epochs, path, "epoch", f"at most the {epochs} of the run", epoch)
    expect(type(position) is int and 0 <= position <= batches, path, "batches.next", f"in 0 ... {batches}", position)
    expected_step = epoch * batches + position
    expected = f"{expected_step}, for {epoch} epochs of {batches} batches and {position} more"
    expect(step == expected_step, path, "step", expected, step)
    earliest = epoch if position else epoch - 1  # an epoch is evaluated before the next begins
    evaluated = state["evaluated"]
    expect(earliest <= evaluated <= epoch, path, "evaluated", f"in {earliest} ... {epoch}, the epoch", evaluated)


def check_order(state: dict[str, Any], images: int, batch: int, path: Path) -> None:
    """Raise a CheckpointError unless `state`, the entry "batches" of a checkpoint, holds an order of all images."""
    for name, expected in (("images", images), ("batch_size", batch)):
        expect(state.get(name) == expected, path, f"batches.{name}", str(expected), state.get(name))
    order = state.get("order")
    if order is None:
        expect("order" in state, path, "batches.order", "there", "nothing")
        expect(state["next"] == 0, path, "batches.next", "0 where there is no order", state["next"])
        return
    is_permutation = isinstance(order, Tensor) and order.dtype == torch.int64 and order.shape == (images,)
    is_permutation = is_permutation and torch.equal(order.sort().values, torch.arange(images))
    expect(is_permutation, path, "batches.order", f"each of the {images} images once", order)


def load_method(method: Method, state: dict[str, Any], path: Path) -> None:
    """Load weights, statistics and queues.

    Raises:
        CheckpointError: the state belongs to another architecture, or a tensor has another dtype, shape or layout, a
            value that is not finite, or a queue's pointer out of range.
    """
    load_weights(method, state["method"], "method", path)
    for name, module in method.named_modules():
        if isinstance(module, Queues):
            pointer, size = int(module.pointer), len(module.get_buffer(module.names[0]))
            expect(0 <= pointer < size, path, f"method.{name}.pointer", f"in 0 ... {size - 1}", pointer)


def load_weights(module: nn.Module, saved: dict[str, Any], name: str, path: Path) -> None:
    """Load weights and buffers that a checkpoint holds as `name`.

    Raises:
        CheckpointError: the state belongs to another architecture, or a tensor has another dtype, shape or layout, or
            a value that is not finite.
    """
    expected = module.state_dict()
    missing, unexpected = [key for key in expected if key not in saved], [key for key in saved if key not in expected]
    checkpoint.check_keys(missing, unexpected, path)
    weights = {key for key, _ in module.named_parameters()}
    for key, tensor in expected.items():
        if isinstance(tensor, Tensor):
            dtypes = _KEY_DTYPES if key not in weights and tensor.dtype in _KEY_DTYPES else {tensor.dtype}
            _check_like(saved[key], tensor, dtypes, path, f"{name}.{key}")
    check_finite({f"{name}.{key}": value for key, value in saved.items() if isinstance(value, Tensor)}, path)
    try:
        module.load_state_dict(saved)
    except Exception as error:  # a user's module may define load_state_dict itself
        raise CheckpointError(f"{path} is of another architecture: {error}") from error


def _check_like(value: object, expected: Tensor, dtypes: set[torch.dtype], path: Path, name: str) -> None:
    is_plain = type(value) is Tensor and value.layout is torch.strided and value.device.type == "cpu"
    if not (is_plain and isinstance(value, Tensor) and value.dtype in dtypes and value.shape == expected.shape):
        description = checkpoint.contents(expected)[""]
        received = checkpoint.contents(value)[""] if is_plain else f"a {type(value).__name__}"
        raise CheckpointError(f"{path} is of another architecture: {name} must be {description}; got {received}.")


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise a CheckpointError that names tensors with a NaN or an infinity."""
    if names := list(not_finite(tensors)):
        raise CheckpointError(f"{path} holds a NaN or an infinity in {', '.join(names[:5])}. Use an older checkpoint.")


def checked_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], step: int, path: Path) -> dict[str, Any]:
    """The state of a saved optimiser with every moment copied into the memory layout of its parameter.

    Raises:
        CheckpointError: the moments are not those of this optimiser's parameters after `step` steps.
    """
    own_groups = optimizer.state_dict()["param_groups"]
    groups, moments = state.get("param_groups"), state.get("state")
    fits = isinstance(groups, list) and all(isinstance(group, dict) for group in groups)
    numbers = [group["params"] for group in own_groups]
    fits = fits and isinstance(groups, list) and [group.get("params") for group in groups] == numbers
    expect(fits, path, "optimizer.param_groups", f"of the parameters {numbers!r:.60}", groups)
    expect(isinstance(moments, dict), path, "optimizer.state", "a dictionary", moments)
    assert isinstance(moments, dict)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = state_names(optimizer)
    expect(step == 0 or not names or bool(moments), path, "optimizer.state", f"there after {step} steps", "nothing")
    checked = {}
    for number, entries in moments.items():
        entry = f"optimizer.state.{number}"
        expect(type(number) is int and 0 <= number < len(parameters), path, entry, "of a parameter", entries)
        expect(isinstance(entries, dict) and entries.keys() == names.keys(), path, entry, f"of {list(names)}", entries)
        like = {name: None if probe is None else parameters[number] for name, probe in names.items()}
        checked[number] = {
            name: _moment(value, names[name], like[name], path, f"{entry}.{name}") for name, value in entries.items()
        }
    return {"state": checked, "param_groups": own_groups}


def _moment(value: object, probe: object, parameter: Tensor | None, path: Path, name: str) -> Any:
    """A moment of the optimiser in the memory layout of its parameter; a scalar is a count of steps.

    `probe` is the entry of a fresh optimiser; `parameter` is None where that entry is not a tensor.
    """
    if not isinstance(probe, Tensor) or parameter is None:
        expect(type(value) is type(probe), path, name, f"a {type(probe).__name__}", value)
        return value
    like = probe if probe.dim() == 0 else parameter.detach()
    _check_like(value, like, {like.dtype}, path, name)
    assert isinstance(value, Tensor)
    check_finite({name: value}, path)
    if probe.dim() == 0:
        expect(value.item() >= 0 and value.item() % 1 == 0, path, name, "a number of steps", value.item())
        return value
    return torch.empty_like(like, device="cpu").copy_(value)


def load_generators(generators: Generators, state: dict[str, Any], path: Path) -> None:
    """Continue every stream of random numbers.

    Raises:
        CheckpointError: a stream is missing, or belongs to another kind of device.
    """
    initial = generators.state_dict()
    for name in initial:
        expect(name in state, path, f"generators.{name}", "there", "nothing")
    for name, value in state.items():
        entry = f"generators.{name}"
        counter = name.startswith(COUNTER)
        fresh = initial.get(name)
        if fresh is None:  # a stream that was first used after the start
            fresh = generators.counter(name.removeprefix(COUNTER)).cpu() if counter else generators[name].get_state()
        expected = f"{checkpoint.contents(fresh)['']}, as on {generators.device.type}"
        matches = isinstance(value, Tensor) and value.dtype == fresh.dtype and value.shape == fresh.shape
        expect(matches, path, entry, expected, value)
        if counter:
            expect(
                bool(value[0] == fresh[0]) and bool(value[1] >= 0),
                path,
                entry,
                f"of the key {int(fresh[0])}",
                value.tolist(),
            )
    _or_refuse(lambda: generators.load_state_dict(state), path, "generators")


def load_torch_generators(state: dict[str, Any], device: torch.device, path: Path) -> None:
    """Continue torch's own generators, from which a user's method may draw."""
    expect("cpu" in state, path, "torch_generators.cpu", "there", "nothing")
    _or_refuse(lambda: torch.set_rng_state(state["cpu"]), path, "torch_generators.cpu")
    if "cuda" in state and device.type == "cuda":
        _or_refuse(lambda: torch.cuda.set_rng_state(state["cuda"], device), path, "torch_generators.cuda")


def load_meter(meter: Meter, state: dict[str, Any], device: torch.device, path: Path) -> None:
    """Continue the means of the steps since the last record."""
    for key, value in state.items():
        if not isinstance(value, dict):
            expect(type(value) is int and value >= 0, path, f"meter.{key}", "a whole number of at least 0", value)
    scalars = tensors_of(state, "meter")
    for name, value in scalars.items():
        expect(value.dim() == 0 and value.is_floating_point(), path, name, "a number", value)
    check_finite(scalars, path)
    _or_refuse(lambda: meter.load_state_dict(state, device), path, "meter")


def _or_refuse(load: Callable[[], object], path: Path, name: str) -> None:
    """Call `load`; raise its errors as a CheckpointError for the entry `name`."""
    try:
        load()
    except Exception as error:  # torch raises many types
        raise CheckpointError(f"{path}: {name} cannot be used: {error}") from error
