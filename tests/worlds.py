"""Processes that train tiny runs together, in float64."""

import multiprocessing
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mixfast import methods, world
from mixfast.errors import ConfigError
from mixfast.run import checkpoint, gradient_means, precision
from mixfast.run.engine import train_step
from mixfast.run.monitor import score
from mixfast.run.state import Run
from mixfast.scoring import knn_predict
from mixfast.scoring.baselines import pixels
from mixfast.scoring.features import extract
from mixfast.train import cli
from tests.methods.hand import has
from tests.tiny_run import open_tiny, words

Case = tuple[str, dict[str, Any]]  # a method, and options other than COMMON's

_CHILDREN = multiprocessing.get_context("forkserver")
CPU = torch.device("cpu")
COMMON: dict[str, Any] = {"train__batch_size": 16, "model__bn_splits": 8, "data__size": 16, "method__queue_size": 64}


def open_double(out: Path, method: str, **changes: Any) -> Run:
    """A tiny run whose networks, queues and views are float64."""
    if not has(methods.load(method), "queue_size"):
        changes = {key: value for key, value in changes.items() if key != "method__queue_size"}
    run = open_tiny(out, method, **changes)
    run.evaluated = 0  # as far as a checkpoint wants to know
    run.method.double()
    make = type(run).views

    def views(images: torch.Tensor, *args: Any) -> dict[str, torch.Tensor]:
        found = make(run, images, *args)
        return {key: value.double() if value.is_floating_point() else value for key, value in found.items()}

    plain = type(run).normalise
    run.views = views  # type: ignore[method-assign]
    run.normalise = lambda images: plain(run, images).double()  # type: ignore[method-assign]
    return run


def steps(run: Run, count: int) -> list[dict[str, float]]:
    """Train for some steps; returns the loss and its terms of each."""
    found: list[dict[str, float]] = []
    while True:
        for images in run.batches.epoch():
            before = run.meter.state_dict()["sums"]
            train_step(run, images, check=len(found) == 0)
            after = run.meter.state_dict()["sums"]
            found.append({name: float(total - before.get(name, 0.0)) for name, total in after.items()})
            if len(found) == count:
                return found


def state_of(run: Run) -> dict[str, Any]:
    """What a checkpoint holds that does not depend on time."""
    return {key: value for key, value in run.state_dict().items() if key not in ("seconds", "metrics_bytes")}


def trained(cases: dict[str, Case], out: Path) -> dict[str, Any]:
    """By case: the values of three steps, and state and scores after them. out/CASE/first.pt: the state after one."""
    found = {}
    for name, (method, changes) in cases.items():
        run = open_double(out / name, method, **{**COMMON, **changes})
        values, path = steps(run, 1), out / name / "first.pt"
        world.current().first(partial(checkpoint.write, path, run.state_dict()))
        found[name] = {"values": values + steps(run, 2), "state": state_of(run)}
        found[name]["scores"] = score(run, run.method.encoder)
    return found


def evaluated(out: Path) -> dict[str, Any]:
    """Features in float32 by batches of 7 images, pixels, and classes by chunks of 5, as a tiny run has them."""
    run = open_tiny(out, "moco", model__bn_splits=4)
    train, test = run.splits.train, run.splits.test
    bank, found = (extract(run.method.encoder, some.images, run.normalise, 7)._asdict() for some in (train, test))
    classes = knn_predict(found["z"], bank["z"], train.labels, k=5, chunk=5)
    return {**found, "pixels": pixels(test.images, run.normalise, 8, 30), "classes": classes}


def failing_job() -> str:
    """What is raised where the third of five jobs fails, with the results of the same jobs without that."""

    def job(number: int) -> tuple[int, int]:
        if number == 3:
            raise ConfigError("job 3")
        return number, world.current().size

    assert world.current().jobs(3, job) == [(0, 1), (1, 1), (2, 1)]
    try:
        world.current().jobs(5, job)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def continued(case: Case, out: Path, path: Path) -> dict[str, Any]:
    """The values of two steps after the checkpoint `path`, and the state after them."""
    method, changes = case
    run = open_double(out, method, **{**COMMON, **changes})
    run.restore(checkpoint.load(path), path)
    return {"values": steps(run, 2), "state": state_of(run)}


def compared() -> str:
    """What is said where the processes were not started alike."""
    try:
        world.current().compare({"command line": ["moco"], "torch": world.current().rank}, advice="Start all alike.")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def chosen_precision() -> tuple[str, str]:
    """What a run that leaves it to the machine takes where only the first process has units for bf16."""
    torch.cpu.get_capabilities = lambda: {"amx_bf16": world.current().rank == 0}
    precision.GAIN, precision.SECONDS, precision.MOST_ROUNDS = 0.0, 1e6, 1
    config = cli.parse(words(Path("unused"), "moco", train__precision="auto", model__bn_splits=4)).config
    return precision.choose(config, CPU)


def exchanges(case: Case, out: Path) -> list[tuple[bool, int]]:
    """Of each exchange of gradients in a step: whether the backward pass was still under way, and the numbers sent."""
    begin, found = world.World.begin_mean, []

    def noted(self: world.World, tensors: list[torch.Tensor]) -> Any:
        found.append((torch._C._current_graph_task_id() >= 0, sum(tensor.numel() for tensor in tensors)))
        return begin(self, tensors)

    method, changes = case
    run = open_double(out, method, **{**COMMON, **changes})
    world.World.begin_mean = noted  # type: ignore[method-assign]
    steps(run, 1)
    world.World.begin_mean = begin  # type: ignore[method-assign]
    found.append((False, sum(weight.numel() for weight in run.method.parameters() if weight.requires_grad)))
    return found


def touched(case: Case, out: Path) -> str:
    """What is said where the processes' queues are not the same; "" where they are."""
    method, changes = case
    run = open_double(out, method, **{**COMMON, **changes})
    run.check_equal()
    run.method.negatives()["whole"][3, 1] += world.current().rank
    try:
        run.check_equal()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _member(work: Any, rank: int, size: int, out: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    gradient_means.BUCKET = 2000  # several for the tiny networks
    world.join(rank, size, init_method=f"file://{out}/meeting")
    try:
        torch.save(work(*arguments, out), out / f"rank{rank}.pt")
        world.leave(in_order=True)
    except BaseException:
        (out / f"error{rank}.txt").write_text(traceback.format_exc())
        raise


def together(work: Any, size: int, out: Path, *arguments: Any) -> list[Any]:
    """What `work(*arguments, out)` returns in each of `size` processes that have met."""
    out.mkdir(parents=True, exist_ok=True)
    members = [
        _CHILDREN.Process(target=_member, args=(work, rank, size, out, arguments), daemon=True) for rank in range(size)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(600)
    errors = "\n".join(path.read_text() for path in sorted(out.glob("error*.txt")))
    assert [member.exitcode for member in members] == [0] * size, errors
    return [torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in range(size)]


def largest_difference(left: Any, right: Any, name: str = "") -> tuple[float, str]:
    """The largest difference of two nested states, and where it is; whole numbers, texts and bytes must be equal."""
    if isinstance(left, torch.Tensor):
        assert left.shape == right.shape and left.dtype == right.dtype, name
        if left.is_floating_point():
            return float((left - right).abs().max()) if left.numel() else 0.0, name
        assert torch.equal(left, right), name
        return 0.0, name
    if isinstance(left, dict):
        assert list(left) == list(right), name
        pairs = [largest_difference(left[key], right[key], f"{name}.{key}") for key in left]
        return max(pairs, default=(0.0, name))
    if isinstance(left, list | tuple):
        assert len(left) == len(right), name
        pairs = [
            largest_difference(*pair, f"{name}[{number}]") for number, pair in enumerate(zip(left, right, strict=True))
        ]
        return max(pairs, default=(0.0, name))
    if isinstance(left, float):
        return abs(left - right), name
    assert left == right, name
    return 0.0, name
