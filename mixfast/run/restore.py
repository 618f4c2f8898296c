"""Checks a checkpoint against the run that continues from it, before anything of the checkpoint is used.

A fused optimiser would write past the end of a tensor of another shape, and a NaN would make every later step fail.
Each message names the entry, what was expected and what came.
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
from mixfast.run.finite import not_finite, tensors_of
from mixfast.run.log import Meter
from mixfast.run.optim import learning_rate, state_names

_FIELDS: dict[str, type] = {
    **{"config": dict, "data": dict, "method": dict, "optimizer": dict, "generators": dict, "torch_generators": dict},
    **{"batches": dict, "meter": dict},
    **{"step": int, "epoch": int, "evaluated": int, "seconds": float, "metrics_bytes": int},
}
_LEAST = {"evaluated": -1}  # of the numbers; of the others 0
_KEY_DTYPES = {torch.float16, torch.float32}  # of queues, by device and precision (`mixfast.methods.bases.key_dtype`)


def check_fields(state: dict[str, Any], path: Path) -> None:
    """Raise a CheckpointError unless every entry of a checkpoint is there, of its type and in its range."""
    for name, kind in _FIELDS.items():
        expect(name in state, path, name, "there", "nothing")
        value = state[name]
        if kind is dict:
            expect(isinstance(value, dict), path, name, "a dictionary", value)
        else:
            number = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
            least = _LEAST.get(name, 0)
            what = f"a {'number' if kind is float else 'whole number'} of at least {least}"
            expect(number and value >= least, path, name, what, value)
    for name in ("config", "data"):
        for key, value in state[name].items():
            expect(_plain(value), path, f"{name}.{key}", "a number, text or list", value)


def expect(holds: bool, path: Path, name: str, what: str, found: object) -> None:
    """Raise a CheckpointError for the entry `name` unless `holds`."""
    if not holds:
        shown = checkpoint.contents(found)[""] if isinstance(found, Tensor) else f"{found!r:.60}"
        raise CheckpointError(f"{path}: {name} must be {what}; got {shown}.")


def _plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def check_config(state: dict[str, Any], config: RunConfig[Any], path: Path) -> None:
    """Raise a CheckpointError if a checkpoint belongs to another configuration."""
    if unlike := differences(state["config"], flatten(config)):
        raise CheckpointError(f"{path} belongs to another configuration:\n  " + "\n  ".join(unlike))


def check_length(state: dict[str, Any], config: RunConfig[Any], path: Path) -> None:
    """Raise a CheckpointError if a run that began with another number of epochs cannot go on with `config`'s.

    It can where it ends in the bits of a run that began with that number: no epoch so far had another learning rate,
    and nothing else of the method depends on the length.
    """
    old, new, option = state["config"]["train.epochs"], config.train.epochs, f"--train.epochs {config.train.epochs}"
    if old == new:
        return
    begun = state["epoch"] + bool(state["batches"].get("next"))
    instead = (
        f"Start a new run with what this one has learnt: --init {path} {option}. A run that is to be made longer "
        "later takes --optim.schedule constant."
    )
    if new < begun:
        raise CheckpointError(f"{path}: {option} is less than the {begun} epochs that the run has begun already.")
    if methods.load(config.method_name).follows_progress(config.method):
        raise CheckpointError(f"{path}: {option}: {config.method_name} has a schedule over the {old} epochs. {instead}")
    for epoch in range(begun):
        was, now = (learning_rate(config.optim, epoch, epochs, 2**62) for epochs in (old, new))
        if was != now:
            raise CheckpointError(
                f"{path}: {option}: the schedule {config.optim.schedule} depends on the number of epochs: epoch "
                f"{epoch + 1} had the rate {was:.4g} of {old} epochs, and in {new} would have had {now:.4g}. {instead}"
            )


def check_progress(state: dict[str, Any], epochs: int, batches: int, path: Path) -> None:
    """Raise a CheckpointError unless epoch, step and position in the epoch of `batches` batches agree."""
    epoch, step, position = state["epoch"], state["step"], state["batches"].get("next")
    expect(epoch <= epochs, path, "epoch", f"at most the {epochs} of the run", epoch)
    expect(type(position) is int and 0 <= position <= batches, path, "batches.next", f"in 0 ... {batches}", position)
    wanted = epoch * batches + position
    expect(step == wanted, path, "step", f"{wanted}, for {epoch} epochs of {batches} batches and {position} more", step)
    behind = epoch if position else epoch - 1  # an epoch is evaluated before the next begins
    evaluated = state["evaluated"]
    expect(behind <= evaluated <= epoch, path, "evaluated", f"in {behind} ... {epoch}, the epoch", evaluated)


def check_order(state: dict[str, Any], images: int, batch: int, path: Path) -> None:
    """Raise a CheckpointError unless `state`, of the batches, holds an order of all images."""
    for name, here in (("images", images), ("batch_size", batch)):
        expect(state.get(name) == here, path, f"batches.{name}", str(here), state.get(name))
    order = state.get("order")
    if order is None:
        expect("order" in state, path, "batches.order", "there", "nothing")
        expect(state["next"] == 0, path, "batches.next", "0 where there is no order", state["next"])
        return
    whole = isinstance(order, Tensor) and order.dtype == torch.int64 and order.shape == (images,)
    whole = whole and torch.equal(order.sort().values, torch.arange(images))
    expect(whole, path, "batches.order", f"each of the {images} images once", order)


def load_method(method: Method, state: dict[str, Any], path: Path) -> None:
    """Load weights, statistics and queues.

    Raises:
        CheckpointError: of another architecture, or a tensor is not as it must be.
    """
    load_weights(method, state["method"], "method", path)
    for name, module in method.named_modules():
        if isinstance(module, Queues):
            pointer, size = int(module.pointer), len(module.get_buffer(module.names[0]))
            expect(0 <= pointer < size, path, f"method.{name}.pointer", f"in 0 ... {size - 1}", pointer)


def load_weights(module: nn.Module, found: dict[str, Any], name: str, path: Path) -> None:
    """Load weights and buffers that a checkpoint holds as `name`.

    Raises:
        CheckpointError: of another architecture, or a tensor is not as it must be.
    """
    wanted = module.state_dict()
    missing, unexpected = [key for key in wanted if key not in found], [key for key in found if key not in wanted]
    checkpoint.check_keys(missing, unexpected, path)
    weights = {key for key, _ in module.named_parameters()}
    for key, own in wanted.items():
        if isinstance(own, Tensor):
            dtypes = _KEY_DTYPES if key not in weights and own.dtype in _KEY_DTYPES else {own.dtype}
            _check_like(found[key], own, dtypes, path, f"{name}.{key}")
    check_finite({f"{name}.{key}": value for key, value in found.items() if isinstance(value, Tensor)}, path)
    try:
        module.load_state_dict(found)
    except Exception as error:  # what a method from elsewhere makes of its own state
        raise CheckpointError(f"{path} is of another architecture: {error}") from error


def _check_like(found: object, own: Tensor, dtypes: set[torch.dtype], path: Path, name: str) -> None:
    plain = type(found) is Tensor and found.layout is torch.strided and found.device.type == "cpu"
    if not (plain and isinstance(found, Tensor) and found.dtype in dtypes and found.shape == own.shape):
        what = checkpoint.contents(own)[""]
        shown = checkpoint.contents(found)[""] if plain else f"a {type(found).__name__}"
        raise CheckpointError(f"{path} is of another architecture: {name} must be {what}; got {shown}.")


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise a CheckpointError that names tensors with a NaN or an infinity."""
    if bad := not_finite(tensors):
        raise CheckpointError(f"{path} holds what is not finite: {', '.join(list(bad)[:5])}. Use an older checkpoint.")


def checked_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], step: int, path: Path) -> dict[str, Any]:
    """The state of a saved optimiser, with every moment in the memory layout of its parameter.

    Raises:
        CheckpointError: the moments are not those of this optimiser's parameters after `step` steps.
    """
    own = optimizer.state_dict()["param_groups"]
    groups, moments = state.get("param_groups"), state.get("state")
    fits = isinstance(groups, list) and all(isinstance(group, dict) for group in groups)
    numbers = [group["params"] for group in own]
    fits = fits and isinstance(groups, list) and [group.get("params") for group in groups] == numbers
    expect(fits, path, "optimizer.param_groups", f"of the parameters {numbers!r:.60}", groups)
    expect(isinstance(moments, dict), path, "optimizer.state", "a dictionary", moments)
    assert isinstance(moments, dict)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = state_names(optimizer)
    expect(step == 0 or not names or bool(moments), path, "optimizer.state", f"there after {step} steps", "nothing")
    checked = {}
    for number, entries in moments.items():
        where = f"optimizer.state.{number}"
        expect(type(number) is int and 0 <= number < len(parameters), path, where, "of a parameter", entries)
        expect(isinstance(entries, dict) and entries.keys() == names.keys(), path, where, f"of {list(names)}", entries)
        like = {name: None if probe is None else parameters[number] for name, probe in names.items()}
        checked[number] = {
            name: _moment(value, names[name], like[name], path, f"{where}.{name}") for name, value in entries.items()
        }
    return {"state": checked, "param_groups": own}


def _moment(value: object, probe: object, parameter: Tensor | None, path: Path, name: str) -> Any:
    """A moment in the memory layout of its parameter; a scalar is a count of steps."""
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
        CheckpointError: a stream is missing, or is none of this device's kind.
    """
    fresh = generators.state_dict()
    for name in fresh:
        expect(name in state, path, f"generators.{name}", "there", "nothing")
    for name, value in state.items():
        where = f"generators.{name}"
        counter = name.startswith(COUNTER)
        own = fresh.get(name)
        if own is None:  # a stream that was first used after the start
            own = generators.counter(name.removeprefix(COUNTER)).cpu() if counter else generators[name].get_state()
        what = f"{checkpoint.contents(own)['']}, as on {generators.device.type}"
        same = isinstance(value, Tensor) and value.dtype == own.dtype and value.shape == own.shape
        expect(same, path, where, what, value)
        if counter:
            expect(
                bool(value[0] == own[0]) and bool(value[1] >= 0),
                path,
                where,
                f"of the key {int(own[0])}",
                value.tolist(),
            )
    _or_refuse(lambda: generators.load_state_dict(state), path, "generators")


def load_torch_generators(state: dict[str, Any], device: torch.device, path: Path) -> None:
    """Continue torch's own generators, from which a method of one's own may draw."""
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
    """Call `load`; what it raises is the checkpoint's fault."""
    try:
        load()
    except Exception as error:  # torch raises many types
        raise CheckpointError(f"{path}: {name} cannot be used: {error}") from error
