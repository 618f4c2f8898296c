"""Trials of failures that must never be silent: kills, signals, full disks, damaged and edited files, two processes.

    python scripts/trials.py [TRIAL ...] [--count N] [--seed S]

Every trial runs the real command in a process of its own on a tiny training. It passes if the run ends with the same
bits as an undisturbed run, or with an error that has a documented exit code and names the cause. It fails with a
traceback, a signal of the kernel, an internal error, or a run that succeeds with other bits. The script prints a table,
and a line per failure; it exits with 1 if there is one. Trials that fill a disk mount small file systems and need root.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from trial_bench import (
    ABSENT,
    DOCUMENTED,
    ODD,
    RUN,
    Bench,
    Outcome,
    last_step,
    leaves,
    other_bits,
    replaced,
    undocumented,
    written,
)

from mixfast.errors import UserError
from mixfast.evaluate.__main__ import main as evaluate
from mixfast.export import load_backbone
from mixfast.run import checkpoint
from mixfast.train.__main__ import main as train


def kills(bench: Bench) -> Iterator[Outcome]:
    """kill -9 at any moment of a run, up to three times, then --resume."""
    for number in range(bench.count or 25):
        run, arguments = bench.folder / f"killed-{number}", []
        for _ in range(bench.random.randint(1, 3)):
            arguments = ["--resume", str(run)] if (run / "config.json").exists() else [*RUN, "--out", str(run)]
            child = bench.start(train, arguments)
            time.sleep(bench.random.uniform(0, bench.duration))
            os.kill(child, signal.SIGKILL)
            bench.wait(child)
        if (run / "config.json").exists():
            yield bench.continued(f"kill {number}", run)
        else:  # killed before it had a folder
            ended = bench.run(train, [*RUN, "--out", str(run)])
            yield Outcome(f"kill {number}", undocumented(ended) or other_bits(run, bench.bits))


def signals(bench: Bench) -> Iterator[Outcome]:
    """SIGTERM, SIGINT and SIGHUP at any moment: status.json says stopped, and the run can be continued."""
    for number in range(bench.count or 24):
        kind = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[number % 3]
        run = bench.folder / f"signalled-{number}"
        child = bench.start(train, [*RUN, "--out", str(run)])
        time.sleep(0.05 + bench.random.uniform(0, bench.duration))
        os.kill(child, kind)
        ended = bench.wait(child)
        what = f"{kind.name} {number}"
        if ended.code == 0:  # it had finished
            yield Outcome(what, other_bits(run, bench.bits))
            continue
        status = json.loads((run / "status.json").read_text()) if (run / "status.json").exists() else None
        if ended.code != 128 + kind:
            yield Outcome(what, f"exit code {ended.code}: {ended.text[-200:]}")
        elif status is not None and (status["state"], status.get("exit_code")) != ("stopped", 128 + kind):
            yield Outcome(what, f"status.json: {status}")
        elif run.exists():
            yield bench.continued(what, run)
        else:
            yield Outcome(what, "")


def flips(bench: Bench) -> Iterator[Outcome]:
    """A checkpoint with a flipped bit, a zeroed block of 4 KiB or its end cut off: noticed, or the same content."""
    source = bench.stopped / "checkpoints" / "last.pt"
    content, wanted = source.read_bytes(), written(checkpoint.load(source))
    path = bench.folder / "flipped" / "last.pt"
    path.parent.mkdir()
    count = bench.count or 300
    for number in range(count + count // 5 + count // 7):
        damaged = bytearray(content)
        if number < count:
            bit = bench.random.randrange(8 * len(content))
            damaged[bit // 8] ^= 1 << bit % 8
            what = f"bit {bit}"
        elif number < count + count // 5:
            start = bench.random.randrange(len(content))
            damaged[start : start + 4096] = bytes(len(damaged[start : start + 4096]))
            what = f"zeros from byte {start}"
        else:
            del damaged[bench.random.randrange(len(content)) :]
            what = f"cut at byte {len(damaged)}"
        path.write_bytes(damaged)
        try:
            fault = "" if written(checkpoint.load(path)) == wanted else "loaded with other content"
        except UserError:
            fault = ""
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        yield Outcome(what, fault)


def odd_values(value: Any) -> list[Any]:
    """Values that an entry of a checkpoint must not have: of another type, shape, dtype or range."""
    if not isinstance(value, torch.Tensor):
        return ODD
    other = value.double() if value.dtype != torch.float64 else value.float()
    odd = [*ODD, torch.ones(3), value.new_zeros((*value.shape, 2)), other]
    return [*odd, torch.full_like(value, torch.nan)] if value.is_floating_point() else odd


def checkpoint_edits(bench: Bench) -> Iterator[Outcome]:
    """Entries of a checkpoint removed or replaced by others of any type and shape, with a right checksum."""
    state = checkpoint.load(bench.stopped / "checkpoints" / "last.pt")
    paths = list(leaves(state))
    top = [path for path in paths if len(path) == 1]
    chosen = [(path, odd) for path in top for odd in odd_values(state[path[0]])]
    for _ in range(bench.count or 100):
        path = bench.random.choice(paths)
        value = state
        for key in path:
            value = value[key]
        chosen.append((path, bench.random.choice(odd_values(value))))
    for path, odd in chosen[: bench.count]:
        if path == ("format",) and odd is ABSENT:
            continue  # which `save` writes itself
        run = bench.copy_of(bench.stopped)
        shutil.rmtree(run / "checkpoints")
        checkpoint.save(run / "checkpoints", replaced(state, path, odd))
        shown = "absent" if odd is ABSENT else f"{odd!r:.40}"
        yield bench.continued(f"checkpoint {'.'.join(map(str, path))} = {shown}", run)


def config_edits(bench: Bench) -> Iterator[Outcome]:
    """Entries of config.json removed or replaced by others of any type."""
    content = json.loads((bench.stopped / "config.json").read_text())
    chosen = [(path, odd) for path in leaves(content) for odd in ODD]
    bench.random.shuffle(chosen)
    for path, odd in chosen[: bench.count or 120]:
        run = bench.copy_of(bench.stopped)
        (run / "config.json").write_text(json.dumps(replaced(content, path, odd)))
        shown = "absent" if odd is ABSENT else repr(odd)
        yield bench.continued(f"config {'.'.join(path)} = {shown}", run)


def damaged_files(bench: Bench) -> Iterator[Outcome]:
    """Every small file of a run's folder empty, cut, binary or absent; every file of an export likewise."""
    damages: dict[str, Callable[[bytes], bytes | None]] = {
        "absent": lambda _: None,
        "empty": lambda _: b"",
        "cut": lambda content: content[: len(content) // 2],
        "binary": lambda content: bytes(range(256)),
        "a list": lambda _: b"[1]\n",
    }
    for name in ("config.json", "status.json", "env.json", "command.txt", "metrics.jsonl", "log.txt"):
        for damage, change in damages.items():
            run = bench.copy_of(bench.stopped)
            write_or_delete(run / name, change((run / name).read_bytes()))
            yield Outcome(f"evaluate, {name} {damage}", undocumented(bench.run(evaluate, ["knn", str(run)])))
            if name == "metrics.jsonl":  # records before the checkpoint are lost: nothing to compare
                yield Outcome(f"{name} {damage}", undocumented(bench.run(train, ["--resume", str(run)])))
                shutil.rmtree(run)
            else:
                yield bench.continued(f"{name} {damage}", run)
    for name in ("export.json", "backbone.safetensors"):
        for damage, change in damages.items():
            folder = bench.copy_of(bench.whole / "export")
            write_or_delete(folder / name, change((folder / name).read_bytes()))
            try:
                load_backbone(folder)
                fault = "loaded"
            except UserError:
                fault = ""
            except Exception as error:
                fault = f"{type(error).__name__}: {error}"
            yield Outcome(f"export, {name} {damage}", fault)


def write_or_delete(path: Path, content: bytes | None) -> None:
    """Replace a file's content; None removes it."""
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def full_disk(bench: Bench) -> Iterator[Outcome]:
    """A file system that is full at some size: the error says so; with room made the run ends in the same bits."""
    folder = bench.folder / "disk"
    folder.mkdir()
    for kilobytes in [8, 24, 64, 128, 256, 384, 512][: bench.count]:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            print("full_disk: no file system may be mounted here; left out")
            return
        try:
            run = folder / "run"
            ended = bench.run(train, [*RUN, "--out", str(run)])
            fault = undocumented(ended) or (
                "" if ended.code in (0, 9) else f"exit code {ended.code}: {ended.text[-200:]}"
            )
            yield Outcome(f"{kilobytes} KiB", fault)
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
            if ended.code and (run / "checkpoints").exists() and any((run / "checkpoints").glob("*.pt")):
                yield bench.continued(f"{kilobytes} KiB, continued", run)
        finally:
            subprocess.run(["umount", str(folder)], check=True)


def two_at_once(bench: Bench) -> Iterator[Outcome]:
    """A second process on the folder of a running one is refused; the first ends in the same bits."""
    for number in range(bench.count or 5):
        run = bench.copy_of(bench.stopped)
        first, second = (bench.start(train, ["--resume", str(run)]) for _ in range(2))
        ends = sorted([bench.wait(first), bench.wait(second)])
        fault = ""
        if [ends[0].code, undocumented(ends[1])] != [0, ""]:
            fault = f"exit codes {[ended.code for ended in ends]}: {ends[1].text[-200:]}"
        else:
            fault = other_bits(run, bench.bits)
        yield Outcome(f"two resumes {number}", fault)
        run = bench.folder / f"replaced-{number}"
        first = bench.start(train, [*RUN, "--out", str(run)])
        while last_step(run) < 3:
            time.sleep(0.001)
        ended = bench.run(train, [*RUN, "--out", str(run), "--overwrite", "--seed", "1"])
        ended_first = bench.wait(first)
        refused = ended.code in DOCUMENTED and ended_first.code == 0 and not other_bits(run, bench.bits)
        yield Outcome(
            f"overwritten while running {number}", "" if refused else f"codes {ended_first.code}, {ended.code}"
        )


def sent_code(bench: Bench) -> Iterator[Outcome]:
    """A run's folder that names a module inside itself: no command runs it."""
    for key in ("method_name", "model.backbone", "data.kind"):
        run = bench.copy_of(bench.stopped)
        (run / "payload.py").write_text("print('CODE FROM THE RUN FOLDER RUNS', flush=True)\n")
        content = json.loads((run / "config.json").read_text())
        module = f"{run.name}.payload" + (":f" if "." in key else "")
        path = ("values", *key.split("."))
        (run / "config.json").write_text(json.dumps(replaced(content, path, module)))
        for main, arguments in ((train, ["--resume"]), (evaluate, ["knn"]), (evaluate, ["replay"])):
            for start in (bench.folder, run):
                here = os.getcwd()
                os.chdir(start)
                sys.path.insert(0, "")  # as `python -m` does
                try:
                    ended = bench.run(main, [*arguments, str(run)])
                finally:
                    os.chdir(here)
                    sys.path.pop(0)
                ran = "CODE FROM" in ended.text or ended.code == 0
                what = f"{key}, {arguments[0]}, from {'the run' if start == run else 'its parent'}"
                yield Outcome(what, "the code ran" if ran else undocumented(ended))


TRIALS: dict[str, Callable[[Bench], Iterator[Outcome]]] = {
    check.__name__: check
    for check in (
        kills,
        signals,
        flips,
        checkpoint_edits,
        config_edits,
        damaged_files,
        full_disk,
        two_at_once,
        sent_code,
    )
}


def main() -> int:
    """Run the trials; returns 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="*", choices=[*TRIALS, []], metavar="TRIAL", help=", ".join(TRIALS))
    parser.add_argument("--count", type=int, help="trials of each class (default: as many as the class has)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import matplotlib.pyplot  # noqa: F401  # once, for all forked processes
    import torch._dynamo  # noqa: F401  # which optimisers import

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.seed, options.count)
        print(f"{'class':<18} {'tried':>6} {'passed':>7} {'failed':>7}", flush=True)
        for name in options.trials or TRIALS:
            outcomes = list(TRIALS[name](bench))
            faults = [outcome for outcome in outcomes if outcome.fault]
            failed += len(faults)
            print(f"{name:<18} {len(outcomes):>6} {len(outcomes) - len(faults):>7} {len(faults):>7}", flush=True)
            for outcome in faults:
                print(f"    {outcome.what}: {' '.join(outcome.fault.split())}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
