"""Command line: python -m mixfast.train [preset] [--section.key value]. `--help` shows the rest."""

import multiprocessing
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

import mixfast
from mixfast.config.options import RunConfig, replace
from mixfast.config.presets import DEFAULT, switch_method
from mixfast.data import Splits, load
from mixfast.data.decoder import has_torchvision
from mixfast.errors import OutOfMemoryError
from mixfast.export import export
from mixfast.run import checkpoint, machine, monitor
from mixfast.run.budget import explain_out_of_memory, step_cost
from mixfast.run.console import Console
from mixfast.run.engine import train
from mixfast.run.failure import Failure, explain, is_out_of_memory
from mixfast.run.folder import RunFolder, write_json
from mixfast.run.log import TensorBoard
from mixfast.run.signals import Stopped, StopRequest
from mixfast.run.state import Run, build
from mixfast.train import cli, report


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if words is None else words
    console, method = Console(), ""
    try:
        if {"--help", "-h"} & set(words):
            print(cli.short_help())
        elif "--help-all" in words:
            cli.full_help([word for word in words if word != "--help-all"])
        else:
            invocation = cli.parse(words)
            method = invocation.config.method_name
            launch(invocation, console)
        return 0
    except Stopped as stop:
        return finish(console, "stopped", Failure(stop.exit_code, f"stopped by {stop}; the state is saved", ""))
    except KeyboardInterrupt:
        text = "stopped before training began; there is nothing to continue."
        return finish(console, "stopped", Failure(130, text, ""))
    except Exception as error:
        failure = explain(error, console.log_path, method if "." in method else "")
        details = "".join(traceback.format_exception(error))
        if "--traceback" in words:
            failure = failure._replace(lines=details)
        return finish(console, "failed", failure, details)


def finish(console: Console, state: str, failure: Failure, details: str = "") -> int:
    """Leave a trace of an end that is not success, on stderr and in the run folder; returns the exit code.

    Args:
        console: holds the path of the log once there is a run folder.
        state: for status.json.
        failure: what is printed.
        details: the whole traceback, for the log.
    """
    print(failure.lines + failure.text, file=sys.stderr)
    if console.log_path:
        console.log(details + failure.text)
        folder = RunFolder(console.log_path.parent)
        folder.write_status(state, exit_code=failure.exit_code, reason=failure.text.splitlines()[0])
        if folder.has_checkpoint():
            print(f"checkpoint: {checkpoint.find(folder.path)}", file=sys.stderr)
            print(f"continue with: python -m mixfast.train --resume {folder.path}", file=sys.stderr)
    return failure.exit_code


def launch(invocation: cli.Invocation, console: Console) -> None:
    """Train what the command line asks for, and what it is compared with; write the report."""
    config, preset = invocation.config, invocation.preset
    device = machine.pick_device(config.train.device)
    threads, keeps_memory = machine.set_threads(config.train.threads), machine.keep_freed_memory()
    machine.set_determinism(config.train.deterministic)
    folder = invocation.open_folder()
    console.log_path = folder.log
    folder.write_command(["python", "-m", "mixfast.train", *invocation.words])
    folder.write_config(config, preset, invocation.origins)
    facts = {"keeps_freed_memory": keeps_memory, "jpeg_decoder": "torchvision" if has_torchvision() else "Pillow"}
    write_json(folder.path / "env.json", machine.environment(device, **facts))
    folder.write_status("running")
    console.line(
        f"mixfast {mixfast.__version__}   torch {torch.__version__}   {device} ({threads} threads)   "
        f"kernels: {machine.kernels(device)}   seed {config.seed}"
    )
    console.line(
        f"preset {preset}: {config.method_name} on {config.data.kind}, {config.model.title}, "
        f"{config.train.epochs} epochs   folder {folder.path}"
    )
    if preset == DEFAULT and config.data.kind != "scenes":
        console.line(
            f"warning: network and length of preset {preset} are made for its scenes; to train on {config.data.kind}, "
            "name a preset such as moco, or a --method."
        )
    splits = load(config.data, config.seed, console.line, **machine.room(device))
    with console, StopRequest() as stop:
        run = train_one(config, splits, folder, console, stop, device, invocation.checkpoint())
        companions = {}
        for name in config.compare:
            if name != config.method_name:
                companions[name] = train_beside(run, name)
        console.line("\n" + report.write(run, preset, invocation.origins, companions))
    folder.write_status("finished", exit_code=0, step=run.step, epoch=run.epoch)
    console.line(f"\nreport    {folder.report}\nbackbone  {folder.export / 'backbone.safetensors'} (reload checked)")


def train_one(
    config: RunConfig[Any],
    splits: Splits,
    folder: RunFolder,
    console: Console,
    stop: StopRequest,
    device: torch.device,
    start: Path | None,
) -> Run:
    """Train one method, from the checkpoint `start` if there is one; export its backbone."""
    run = build(config, splits, folder, console, stop, device)
    report.draw_views(run)
    console.line("   ".join(run.choices))
    if start:
        run.load(start)
        console.line(f"continuing {config.method_name} after step {run.step} of {run.steps} (epoch {run.epoch})")
    if config.train.tensorboard:
        folder.metrics.mirror = TensorBoard(folder.path / "tensorboard", run.step)
    monitor.introduce(run)
    try:
        train(run)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            explain_out_of_memory(config, run.method, run.batches.images, machine.memory_bytes(device), run.clock.part)
        ) from error
    run.graph = None  # its memory is wanted by what is trained beside this run
    export(run)
    run.task.close()
    return run


def train_beside(run: Run, name: str) -> RunFolder:
    """Train another method on the same data in a folder inside the run's, for as many epochs as cost the same."""
    config, side = run.config, run.splits.train.images.shape[-1]
    other = switch_method(config, name)
    ratio = step_cost(config, side).encoder / step_cost(other, side).encoder
    epochs = max(1, round(config.train.epochs * ratio))
    every = max(1, round(config.eval.every * ratio)) if config.eval.every else 0
    other = replace(other, {"train.epochs": epochs, "eval.every": every, "eval.baselines": False, "compare": ()})
    path = run.folder.path / "compare" / name
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    folder.write_config(other, "compare", {"train.epochs": f"equal encoder cost with {config.method_name}"})
    run.console.line(
        f"\ncomparison: {name}, {epochs} epochs (a step costs {1 / ratio:.2f} times the encoder passes of one of "
        f"{config.method_name})"
    )
    start = checkpoint.find(path) if folder.has_checkpoint() else None
    train_one(other, run.splits, folder, run.console, run.stop, run.device, start)
    folder.write_status("finished", exit_code=0)
    return folder


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["mixfast.train.__main__"])  # what all workers import: once, and shared
    sys.exit(main())
