"""A training run that takes a second: words for the command line, and children that can be killed."""

import dataclasses
import functools
import importlib
import json
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast import methods
from mixfast.data import ImageSet, Splits, load, scenes
from mixfast.run import machine
from mixfast.run.console import Console
from mixfast.run.folder import RunFolder
from mixfast.run.signals import StopRequest
from mixfast.run.state import Run, build
from mixfast.train import cli, report

# 12 steps: 3 epochs of 4 batches of 16.
SMALL: dict[str, Any] = {
    "data.scenes": 64, "data.test_scenes": 20, "data.size": 16, "model.depth": 8, "model.width": 8, "model.dim": 8,
    "model.bn_splits": 2, "method.queue_size": 64, "train.batch_size": 16, "train.epochs": 3, "train.log_every": 1,
    "train.threads": 1, "train.precision": "fp32", "eval.every": 2, "eval.k": 5, "optim.cosine_origin": 1,
}  # fmt: skip
DRAWING = {name: getattr(report, name) for name in ("draw", "draw_views")}
# Fields of a record that depend on the machine (mixfast/run/log.py).
MACHINE_FIELDS = ("time", "images_per_s")


@contextmanager
def process_settings_kept(pictures: bool = False, transfer: bool = False) -> Iterator[None]:
    """The commands set threads, determinism and the allocator for their whole process; undo that after the block.

    Runs draw no pictures in it unless `pictures`, and train no detectors at their end unless `transfer`: both take
    longer than a tiny training. Scenes are those of an earlier run with the same options.
    """
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    with pytest.MonkeyPatch.context() as patch:
        for name in ("keep_freed_memory", "return_freed_memory"):
            patch.setattr(machine, name, lambda: False)
        patch.setattr(scenes, "generate", _copy_of_rendered)
        for name, draw in DRAWING.items():
            patch.setattr(report, name, draw if pictures else lambda *_: None)
        if not transfer:
            patch.setattr("mixfast.train.transfer.is_demo", lambda *_: False)
        yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark


rendered = functools.cache(scenes.generate)  # a tenth of a tiny run


def _copy_of_rendered(*arguments: Any) -> ImageSet:
    found = rendered(*arguments)
    tensors = {name: value.clone() for name, value in vars(found).items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(found, **tensors)


def words(out: Path, method: str = "approach1", compare: Sequence[str] = (), **changes: Any) -> list[str]:
    """Command-line words of a tiny run; in `changes`, `__` stands for the dot of an option's name.

    It measures no diagnostics unless `eval__diagnostics=()` is among the changes.
    """
    values = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
    if "model.backbone" in values:
        del values["model.depth"], values["model.width"]  # of a ResNet
    if "queue_size" not in methods.load(method).Config.__dataclass_fields__:
        del values["method.queue_size"]
    groups = [(f"--{key}", *(value if isinstance(value, tuple) else (value,))) for key, value in values.items()]
    flags = [str(word) for group in groups for word in group]
    if "eval.diagnostics" not in values:
        flags.append("--eval.no-diagnostics")
    return ["--out", str(out), "demo", "--method", method, *flags, "--compare", *compare]


cli.parse(words(Path("unused")))  # imports what parses, and all methods: once for the children as well


def open_tiny(
    out: Path, method: str = "approach1", device: str = "cpu", splits: Splits | None = None, **changes: Any
) -> Run:
    """The same run as an object at step 0, on its own data or others, in a folder that is created if needed."""
    config = cli.parse(words(out, method, **changes)).config
    out.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "generate", _copy_of_rendered)
        splits = load(config.data, config.seed) if splits is None else splits
    return build(config, splits, RunFolder(out), Console(), StopRequest(), torch.device(device))


def records(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run without what depends on the machine."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(MACHINE_FIELDS)} for line in lines]


def last_state(folder: Path) -> dict[str, Any]:
    """The content of a run's newest checkpoint without what depends on the machine."""
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    return {key: value for key, value in state.items() if key not in ("seconds", "metrics_bytes")}


def assert_same(left: Any, right: Any, where: str = "state") -> None:
    """Equal structures, tensors bit by bit."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert left == right, where


# Forked from a server that has imported everything once: a child starts in milliseconds, and no thread is inherited.
_CHILDREN = multiprocessing.get_context("forkserver")


def train_in_child(
    arguments: list[str],
    output: Path,
    send: Sequence[int] = (),
    at_step: int = 0,
    where: str = "step",
    file_bytes: int = -1,
    program: str = "train",
    **environment: str,
) -> int:
    """Exit code of a command in a child process, which sends itself signals.

    Args:
        arguments: of the command line.
        output: file that takes stdout and stderr.
        send: signals to send, in order.
        at_step: the optimiser step after which they are sent.
        where: "step": as soon as the step is done; "rename": when the checkpoint written after `at_step` or later has
            its content but not its name; "write": when half of that content is on the disk; "module:function": when
            that is called for the first time; "/a/path": as "step", and a file there takes the rest of the disk.
        file_bytes: that a file may have in the child; -1: no limit.
        program: whose command it is: train, evaluate, compare.
        environment: variables of the child.
    """
    return _ended(_started(arguments, output, send, at_step, where, file_bytes, environment, program))


def train_in_children(
    arguments: list[str],
    output: Path,
    size: int,
    send: Sequence[int] = (),
    at_step: int = 0,
    struck: int = 0,
    program: str = "train",
    srun: bool = False,
    **environment: str,
) -> list[int]:
    """Exit codes of a command in `size` processes that work together, as torchrun or srun would start them.

    Args:
        arguments: of the command line.
        output: file that takes stdout and stderr of all.
        send: signals that the process `struck` sends itself once it has done the optimiser step `at_step`.
        program: whose command it is, train or evaluate.
        srun: whether srun starts them, on one node, and not torchrun.
        environment: what else torchrun or srun would say.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if srun:
        rank_names = ("SLURM_PROCID", "SLURM_LOCALID")
        meeting = {"SLURM_STEP_NUM_TASKS": str(size), "SLURM_STEP_TASKS_PER_NODE": str(size), "SLURM_NODEID": "0"}
        meeting |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    else:
        rank_names = ("RANK", "LOCAL_RANK")
        meeting = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    meeting |= {**environment, "MASTER_PORT": str(port)}
    children = [
        _started(
            *(arguments, output, send if rank == struck else (), at_step, "step", -1),
            {**meeting, **dict.fromkeys(rank_names, str(rank))},
            program,
        )
        for rank in range(size)
    ]
    return [_ended(child) for child in children]


def script_in_child(path: Path, arguments: Sequence[str], output: Path, **environment: str) -> int:
    """Exit code of a Python file run as a program in a child process; `output` takes its stdout and stderr."""
    child = _CHILDREN.Process(target=_script, args=(str(path), list(arguments), output, environment))
    child.start()
    return _ended(child)


def _script(path: str, arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    _write_to(output)
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # as in _child
    runpy.run_path(path, run_name="__main__")


def _started(*arguments: Any) -> Any:
    child = _CHILDREN.Process(target=_child, args=arguments)
    child.start()
    return child


def _ended(child: Any) -> int:
    child.join(200)
    assert child.exitcode is not None, "the child did not end"
    return int(child.exitcode)


def _write_to(output: Path) -> None:
    """Append stdout and stderr of this process to a file."""
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)


def _child(
    arguments: list[str],
    output: Path,
    send: Sequence[int],
    at_step: int,
    where: str,
    file_bytes: int,
    environment: dict[str, str],
    program: str = "train",
) -> None:
    os.environ.update(environment)
    tempfile.tempdir = None  # the server may know one already
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    _write_to(output)
    from mixfast.run import checkpoint, engine

    report.draw = report.draw_views = lambda *_: None
    torch.set_num_threads(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the server that forks it is deaf if it was started for workers
    multiprocessing.set_forkserver_preload(["mixfast.train.__main__"])  # for the workers of the child
    step, pause, replace, save = 0, engine.pause, os.replace, torch.save

    def strike() -> None:
        for number in send:
            os.kill(os.getpid(), number)
        if where.startswith("/"):
            with suppress(OSError), open(where, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    def pause_and_strike(run: Any) -> None:
        nonlocal step
        step = run.step
        if (where == "step" or where.startswith("/")) and step == at_step:
            strike()
        pause(run)

    def strike_before_rename(source: Any, target: Any) -> None:
        if str(target).endswith(checkpoint.LAST) and step >= at_step:
            strike()
        replace(source, target)

    def strike_in_the_middle(state: Any, file: Any) -> None:
        if step >= at_step:
            file.write(b"half a checkpoint")
            file.flush()
            strike()
        save(state, file)

    engine.pause = pause_and_strike
    if ":" in where:
        _strike_first(where, strike)
    if where == "rename":
        checkpoint.os.replace = strike_before_rename  # type: ignore[assignment]
    if where == "write":
        checkpoint.torch.save = strike_in_the_middle  # type: ignore[assignment]
    code = importlib.import_module(f"mixfast.{program}.__main__").main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _strike_first(where: str, strike: Callable[[], None]) -> None:
    module, name = where.split(":")
    owner = importlib.import_module(module)
    call = getattr(owner, name)

    def strike_and_call(*args: Any, **kwargs: Any) -> Any:
        setattr(owner, name, call)
        strike()
        return call(*args, **kwargs)

    setattr(owner, name, strike_and_call)


KILLED = -int(signal.SIGKILL)
