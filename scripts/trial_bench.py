"""The tiny training that scripts/trials.py disturbs, and the conditions that must hold afterwards."""

import copy
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mixfast.run import checkpoint
from mixfast.train.__main__ import main as train

RUN = """
    moco --data.kind scenes --data.scenes 64 --data.test_scenes 20 --data.size 16 --model.depth 8 --model.width 8
    --model.stem cifar_s2 --model.dim 8 --model.bn_splits 1 --method.queue_size 32 --train.batch_size 16
    --train.epochs 4 --train.log_every 3 --train.threads 1 --train.checkpoint_seconds 1e-6 --eval.every 2 --eval.k 5
""".split()  # noqa: SIM905
DOCUMENTED = range(2, 10)  # exit codes of errors that a user can act on
UNFINISHED_STEP = 9  # of 16: inside the third epoch


class Ended(NamedTuple):
    """How a command's process ended."""

    code: int  # exit code; minus the signal that killed it
    text: str  # stdout and stderr


class Outcome(NamedTuple):
    """One trial."""

    what: str
    fault: str  # empty: passed


class Bench:
    """A folder for the trials, with a run that was never disturbed and one that stopped inside an epoch."""

    def __init__(self, folder: Path, seed: int, count: int | None):
        self.folder, self.random, self.count = folder, random.Random(seed), count
        self.whole, self.stopped = folder / "whole", folder / "stopped"
        start = time.monotonic()
        ended = self.run(train, [*RUN, "--out", str(self.whole)])
        self.duration = time.monotonic() - start
        if ended.code:
            raise SystemExit(f"the undisturbed run failed with exit code {ended.code}:\n{ended.text}")
        self.bits = fingerprint(self.whole)
        child = self.start(train, [*RUN, "--out", str(self.stopped)])
        while last_step(self.stopped) < UNFINISHED_STEP:
            time.sleep(0.001)
        os.kill(child, signal.SIGTERM)
        self.wait(child)

    def start(self, main: Callable[[list[str]], int], arguments: list[str]) -> int:
        """Begin a command in a forked process, which has all modules loaded; returns its pid."""
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        os.setpgid(0, 0)
        output = os.open(self.folder / f"{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 99
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    def wait(self, pid: int) -> Ended:
        """Wait for a process of `start`."""
        _, status = os.waitpid(pid, 0)
        output = self.folder / f"{pid}.txt"
        text = output.read_text(errors="replace") if output.exists() else ""
        output.unlink(missing_ok=True)
        return Ended(os.waitstatus_to_exitcode(status), text)

    def run(self, main: Callable[[list[str]], int], arguments: list[str]) -> Ended:
        """A command from start to end."""
        return self.wait(self.start(main, arguments))

    def copy_of(self, run: Path) -> Path:
        """A copy of a run's folder, to be disturbed."""
        path = self.folder / f"copy-{self.random.getrandbits(48):012x}"
        shutil.copytree(run, path)
        return path

    def continued(self, what: str, run: Path) -> Outcome:
        """Resume a run: the same bits as `whole`, or a documented error."""
        ended = self.run(train, ["--resume", str(run)])
        fault = undocumented(ended)
        if not fault and ended.code == 0:
            fault = other_bits(run, self.bits)
        shutil.rmtree(run, ignore_errors=True)
        return Outcome(what, fault)


def undocumented(ended: Ended) -> str:
    """What is wrong with the end of a command; empty if it succeeded or says what the user can do."""
    if ended.code < 0:
        return f"killed by {signal.Signals(-ended.code).name}"
    if ended.code and (ended.code not in DOCUMENTED or "internal error" in ended.text or "Traceback" in ended.text):
        return f"exit code {ended.code}: {' '.join(ended.text.split())[-300:]}"
    return ""


def last_step(run: Path) -> int:
    """The step of the newest record of a run."""
    try:
        return max(
            (json.loads(line).get("step", 0) for line in (run / "metrics.jsonl").read_text().splitlines()), default=0
        )
    except (OSError, ValueError):
        return 0


def fingerprint(run: Path) -> dict[str, str]:
    """Hashes of all parts that a finished run shares with another of the same seed; times are left out."""
    state = checkpoint.load(run / "checkpoints" / "last.pt")
    parts = {name: written(value) for name, value in state.items() if name not in ("seconds", "metrics_bytes")}
    for number, line in enumerate((run / "metrics.jsonl").read_text().splitlines()):
        record = json.loads(line)
        facts = {key: value for key, value in record.items() if not key.startswith(("time", "images_per_s"))}
        parts[f"record {number}"] = written(facts)
    parts["export"] = hashlib.sha256((run / "export" / "backbone.safetensors").read_bytes()).hexdigest()
    return parts


def other_bits(run: Path, wanted: dict[str, str]) -> str:
    """The parts of a finished run that differ from those of `fingerprint`; empty if none does."""
    found = fingerprint(run)
    names = [name for name in dict.fromkeys([*wanted, *found]) if wanted.get(name) != found.get(name)]
    return f"finished with another {', '.join(names[:6])}" if names else ""


def written(value: Any) -> str:
    """A value of a checkpoint as text, with a hash in the place of each tensor's numbers."""
    if isinstance(value, torch.Tensor):
        numbers = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype}{tuple(value.shape)} {hashlib.sha256(numbers).hexdigest()}"
    if isinstance(value, dict):
        return str({key: written(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return str([written(item) for item in value])
    return repr(value)


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every dictionary entry and every tensor below it."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield (*path, key)
            yield from leaves(value, (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of nested dictionaries with the entry at `path` replaced; without it if `value` is ABSENT."""
    result = copy.copy(tree)
    if len(path) > 1:
        result[path[0]] = replaced(tree[path[0]], path[1:], value)
    elif value is ABSENT:
        del result[path[0]]
    else:
        result[path[0]] = value
    return result


ABSENT = object()
ODD: list[Any] = [ABSENT, None, "x", -1, 10**30, 0.5, float("nan"), [], {}, True]
