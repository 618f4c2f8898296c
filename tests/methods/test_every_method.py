"""What must hold for every method and every preset: learning, gradients, determinism, resume, no waiting."""

import copy
import dataclasses
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from mixfast.methods import Method, Step, load, names
from mixfast.models import ModelConfig, heads
from mixfast.rng import Generators
from mixfast.train.__main__ import main
from tests.methods.hand import BATCH, SIDE, augmentation, build, has
from tests.tiny_run import process_settings_kept, words

MODEL = ModelConfig(depth=8, width=8, stem="cifar_s2", dim=16, bn_splits=2)
CASES = [
    pytest.param(name, options, id=preset)
    for name in names()
    for preset, options in importlib.import_module(f"mixfast.methods.{name}").PRESETS.items()
    if "model.depth" not in options  # a recipe of other sizes
]
CASES += [  # mixtures that are no default
    pytest.param(name, {f"method.{key}": value for key, value in options.items()}, id=f"{name} {options['mixture']}")
    for name, options in [
        ("moco_cutmix", {"mixture": "mixup"}),
        ("moco_unmix", {"mixture": "saliency"}),
        ("approach2", {"mixture": "saliency", "box_per_sample": True}),
        ("one_branch", {"mixture": "saliency", "partner": "batch_reverse"}),
    ]
]
SMALLER = {"hidden": 24, "dim": 16}  # in place of the recipes' sizes, which cost seconds and show nothing more
every_method = pytest.mark.parametrize(("name", "overrides"), CASES)


def prepared(name: str, overrides: dict[str, Any], seed: int = 0) -> tuple[Method, Generators]:
    model, options = (
        {key.removeprefix(section): value for key, value in overrides.items() if key.startswith(section)}
        for section in ("model.", "method.")
    )
    model |= {key: size for key, size in SMALLER.items() if key in model}
    if has(load(name), "predictor_hidden"):
        options = {"predictor_hidden": 24, **options}
    return build(load(name), dataclasses.replace(MODEL, **model), seed, **options)


def images() -> Tensor:
    rng = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)


def optimiser(method: Method, rate: float = 0.05, momentum: float = 0.9) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=rate, momentum=momentum)


def train(method: Method, generators: Generators, sgd: torch.optim.Optimizer, steps: range) -> list[float]:
    """The engine's order of calls, for some steps of a run of ten."""
    losses = []
    for step_number in steps:
        method.begin(torch.tensor(step_number / 10))
        step = method.step(method.views(images(), augmentation(generators), generators), generators)
        step.loss.backward()
        sgd.step()
        sgd.zero_grad(set_to_none=True)
        method.update(step.carry)
        losses.append(step.loss.item())
    return losses


def assert_same_state(first: Method, second: Method) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@every_method
def test_a_step_lowers_the_loss_of_the_same_views(name: str, overrides: dict[str, Any]) -> None:
    method, generators = prepared(name, overrides)
    sgd = optimiser(method, 0.01, momentum=0)
    views = method.views(images(), augmentation(generators), generators)
    losses = []
    for _ in range(3):
        generators["shuffle"].manual_seed(1)  # the same order of keys
        step = method.step(views, generators)
        step.loss.backward()
        sgd.step()
        sgd.zero_grad()
        losses.append(step.loss.item())
    assert losses[0] > losses[1] > losses[2]


@every_method
def test_a_step_changes_statistics_alone_and_gives_gradients_and_values_to_log(
    name: str, overrides: dict[str, Any]
) -> None:
    """It changes no queue in particular: the keys of a step are no negatives of that step."""
    method, generators = prepared(name, overrides)
    before = copy.deepcopy(method.state_dict())
    step = method.step(method.views(images(), augmentation(generators), generators), generators)
    moved = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all(key.rpartition(".")[2] in BATCH_NORM_BUFFERS for key in moved)
    assert isinstance(step, Step) and step.loss.shape == ()
    assert all(value.shape == () and torch.isfinite(value) for value in step.parts.values())
    assert all(value.ndim >= 1 for value in step.carry.values())
    step.loss.backward()
    for parameter_name, parameter in method.named_parameters():
        if parameter_name.startswith(FOLLOWERS):
            assert not parameter.requires_grad and parameter.grad is None, parameter_name
        elif name.startswith("byol") and parameter_name == "encoder.head.3.bias":
            assert not parameter.requires_grad and not parameter.any()  # the predictor's batch norm would take it away
        else:
            assert parameter.grad is not None and parameter.grad.any(), parameter_name
    assert not any(value.requires_grad for value in [*step.carry.values(), *step.parts.values()])


@every_method
def test_bfloat16_autocast_gives_nearly_the_same_gradient(name: str, overrides: dict[str, Any]) -> None:
    """Also where one layer serves queries and keys: a cast cached without gradient must not reach the queries."""
    grads, losses = [], []
    for enabled in (False, True):
        method, generators = prepared(name, overrides)
        views = method.views(images(), augmentation(generators), generators)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            step = method.step(views, generators)
        step.loss.backward()
        assert all(keys.dtype == torch.float32 for keys in step.carry.values())
        grads.append({key: p.grad.flatten() for key, p in method.named_parameters() if p.requires_grad})
        losses.append(step.loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02, abs=0.01)
    whole = torch.cosine_similarity(*(torch.cat(list(grad.values())) for grad in grads), dim=0).item()
    assert whole > 0.97
    for key, exact in grads[0].items():  # of eight numbers some nearly cancel over the batch, and rounding shows
        cosine = torch.cosine_similarity(exact, grads[1][key], dim=0).item()
        assert cosine > 0.7, f"{key}: cosine {cosine:.3f}"


@every_method
def test_same_seed_same_bits(name: str, overrides: dict[str, Any]) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(len(runs))  # the global generator must not matter
        method, generators = prepared(name, overrides)
        runs.append((method, train(method, generators, optimiser(method), range(2))))
    assert runs[0][1] == runs[1][1]
    assert_same_state(runs[0][0], runs[1][0])


@every_method
def test_resume_continues_with_the_same_bits(name: str, overrides: dict[str, Any]) -> None:
    method, generators = prepared(name, overrides)
    sgd = optimiser(method)
    train(method, generators, sgd, range(1))
    saved = copy.deepcopy((method.state_dict(), sgd.state_dict(), generators.state_dict()))
    expected = train(method, generators, sgd, range(1, 3))
    other, other_generators = prepared(name, overrides, seed=9)
    other_sgd = optimiser(other)
    other.load_state_dict(saved[0])
    other_sgd.load_state_dict(saved[1])
    other_generators.load_state_dict(saved[2])
    assert train(other, other_generators, other_sgd, range(1, 3)) == expected
    assert_same_state(method, other)


FOLLOWERS = ("key_", "target_")
BATCH_NORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@every_method
def test_queues_take_the_keys_and_the_key_side_follows_when_told(name: str, overrides: dict[str, Any]) -> None:
    """It follows in `begin`, or where the options say so in `update`, once the optimiser has moved."""
    method, generators = prepared(name, overrides)
    carry = method.step(method.views(images(), augmentation(generators), generators), generators).carry
    parameters = dict(method.named_parameters())
    pairs = {key: key.partition("_")[2] for key in parameters if key.startswith(FOLLOWERS)}
    assert all(torch.equal(parameters[key], parameters[query]) for key, query in pairs.items())
    with torch.no_grad():
        for query in pairs.values():
            parameters[query].add_(1)
    before = {key: parameters[key].clone() for key in pairs}
    calls = [lambda: method.begin(torch.zeros(())), lambda: method.update(carry)]
    if getattr(method.config, "ema_when", "before") == "after":
        calls[0]()
        assert all(torch.equal(parameters[key], before[key]) for key in pairs)
        calls.reverse()
    calls[0]()
    for key in pairs:
        torch.testing.assert_close(parameters[key], before[key] + 0.01, atol=1e-6, rtol=0)
    after = {key: parameters[key].clone() for key in pairs}
    calls[1]()
    assert all(torch.equal(parameters[key], after[key]) for key in pairs)
    state = method.state_dict()
    for queue, keys in carry.items():
        assert torch.equal(state[f"queues.{queue}"][: len(keys)], keys)
        assert state["queues.pointer"] == len(keys) % (4 * BATCH)
        torch.testing.assert_close(keys.norm(dim=1), torch.ones(len(keys)))


class _NoWaiting(TorchDispatchMode):
    """Fails when a tensor's values are read by Python, or decide a shape: on a GPU either waits for the device."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "bincount")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func.overloadpacket.__name__ not in self.FORBIDDEN, f"{func} waits for the device"
        if func.overloadpacket.__name__ == "index":
            assert all(i is None or i.dtype == torch.int64 for i in args[1]), "a boolean index waits for the device"
        return func(*args, **(kwargs or {}))


@every_method
def test_no_call_of_a_training_step_waits_for_the_device(
    name: str, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_gpu(real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with _disable_current_modes():  # on the CPU it checks the boxes' values; on a GPU it does not
            return real(*args, **options)

    method, generators = prepared(name, overrides)
    for operation in ("masked_upsample_pool", "region_weights"):
        monkeypatch.setattr(heads, operation, partial(on_gpu, getattr(heads, operation)))
    batch, augment = images(), augmentation(generators)
    with _NoWaiting():
        with pytest.raises(AssertionError, match="waits for the device"):
            torch.ones(1).item()
        method.begin(torch.tensor(0.5))
        step = method.step(method.views(batch, augment, generators), generators)
        method.update(step.carry)


QUEUED = [(name, [], 24) for name in names() if has(load(name), "queue_size")]


@pytest.mark.parametrize(("name", "flags", "keys"), [*QUEUED, ("moco", ["--method.symmetric"], 48)], ids=str)
def test_batches_that_do_not_fit_the_queue_are_refused_before_training(
    name: str, flags: list[str], keys: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with process_settings_kept():
        code = main([*words(tmp_path / "run", name, train__batch_size=24), *flags])
    assert code == 2 and f"method.queue_size must be a multiple of the {keys} keys" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_two_key_batches_are_shuffled_independently() -> None:
    method, generators = prepared("approach1", {})
    fed: list[Tensor] = []
    method.key_encoder.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    views = method.views(images(), augmentation(generators), generators)
    method.step(views, generators)
    clean, mixed = (
        [int((views[name] == row).flatten(1).all(dim=1).nonzero()) for row in batch]
        for name, batch in zip(("key", "key_mixed"), fed, strict=True)
    )
    assert sorted(clean) == sorted(mixed) == list(range(BATCH))
    assert clean != list(range(BATCH)) != mixed
    assert clean != mixed
