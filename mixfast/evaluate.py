"""Command line: python -m mixfast.evaluate knn RUN | replay RUN. Reads what training wrote; changes no checkpoint."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from mixfast import checkpoint, machine
from mixfast.config import replace, validate
from mixfast.console import Console
from mixfast.data import load
from mixfast.errors import CheckpointError, ConfigError, UserError
from mixfast.monitor import scorable, score, score_pixels, score_untrained
from mixfast.run import Run, build
from mixfast.run_folder import RunFolder, now
from mixfast.signals import StopRequest


@dataclass(frozen=True)
class Knn:
    """Weighted kNN on z and h of a run's checkpoint."""

    run: Annotated[Path, tyro.conf.Positional]  # folder of a run, or one of its checkpoints
    k: int | None = None  # neighbours; none: the run's own
    temperature: float | None = None  # none: the run's own
    baselines: bool = False  # also score raw pixels and the untrained network
    data_path: str | None = None  # where the images are now, if they have moved
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int = 0  # CPU threads; 0: OMP_NUM_THREADS if set, else the CPU quota


@dataclass(frozen=True)
class Replay:
    """Run the step again at which a run met a NaN or an infinity, and show where it begins."""

    run: Annotated[Path, tyro.conf.Positional]  # folder of the run; it holds nonfinite.pt
    data_path: str | None = None  # where the images are now, if they have moved
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int = 0  # CPU threads; 0: OMP_NUM_THREADS if set, else the CPU quota


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if words is None else words
    commands = {"knn": (Knn, knn), "replay": (Replay, replay)}
    try:
        if not words or words[0] not in commands:
            if words and words[0] not in ("--help", "-h"):
                raise ConfigError(f"unknown command {words[0]!r}; known: {', '.join(commands)}.")
            print("usage: python -m mixfast.evaluate COMMAND RUN [options]; COMMAND --help lists them\n")
            print("\n".join(f"  {name:<8} {kind.__doc__}" for name, (kind, _) in commands.items()))
            return 0
        kind, command = commands[words[0]]
        command(tyro.cli(kind, args=words[1:], prog=f"python -m mixfast.evaluate {words[0]}"))  # type: ignore[operator]
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as end:  # tyro has printed its help or what it did not understand
        return int(end.code or 0)


def knn(options: Knn) -> None:
    """Print the scores, and append them to evaluations.jsonl in the run folder."""
    path = checkpoint.find(options.run)
    state = checkpoint.load(path)
    run = open_run(options)
    if not scorable(run):
        raise ConfigError(f"{options.run}: kNN needs a class for every image, and its data set has images without one.")
    rows: dict[str, dict[str, float]] = {}
    if options.baselines:
        rows = {"raw pixels": score_pixels(run), "untrained": score_untrained(run)}
    run.load_method(state, path)
    rows[run.config.method_name] = score(run, run.method.encoder)
    k, temperature = min(run.config.eval.k, len(run.splits.train)), run.config.eval.temperature
    print(f"{path}: epoch {state['epoch']}, step {state['step']}; k = {k}, temperature {temperature}")
    for name, scores in rows.items():
        print(f"{name:<16}" + "".join(f"   {key} {value:5.2f}" for key, value in scores.items()))
    facts = {"time": now(), "checkpoint": path.name, "epoch": state["epoch"], "k": k, "temperature": temperature}
    with open(run.folder.path / "evaluations.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({**facts, "scores": rows}) + "\n")


def open_run(options: Knn | Replay) -> Run:
    """The run of a folder with fresh weights, on this machine."""
    folder = RunFolder.open(options.run)
    config, _, _ = folder.read_config()
    changes: dict[str, Any] = {"train.device": options.device, "train.threads": options.threads}
    given = {"data.path": options.data_path, "eval.k": getattr(options, "k", None)}
    given["eval.temperature"] = getattr(options, "temperature", None)
    config = replace(config, {**changes, **{key: value for key, value in given.items() if value is not None}})
    validate(config)
    device = machine.pick_device(config.train.device)
    machine.set_threads(config.train.threads)
    machine.set_determinism(config.train.deterministic)
    return build(config, load(config.data, config.seed), folder, Console(), StopRequest(), device)


def replay(options: Replay) -> None:
    """Print the loss terms of the saved step, then let autograd name the operation that made the first NaN."""
    folder = RunFolder.open(options.run)
    path = folder.path / "nonfinite.pt"
    if not path.is_file():
        raise CheckpointError(f"{path} is not there: this run met no NaN or infinity.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    run = open_run(options)
    run.load_method(state, path)
    run.generators.load_state_dict(state["generators"])
    print(f"step {state['step']}, epoch {state['epoch']}: saved because {'; '.join(state['terms'][:5])}")
    for part in state["images"].to(run.device).chunk(run.config.train.accumulate):
        views = run.views(part)
        with torch.autograd.set_detect_anomaly(True), run.autocast():
            out = run.method.step(views, run.generators)
            for name, value in {"loss": out.loss.detach(), **out.parts}.items():
                print(f"  {name:<16} {value.item():.6g}")
            try:
                out.loss.backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                print(f"  first in the backward pass: {error}")
                return
    norms = {n: p.grad.norm().item() for n, p in run.method.named_parameters() if p.grad is not None}
    for name, value in sorted(norms.items(), key=lambda item: -abs(item[1]))[:5]:
        print(f"  gradient of {name}: norm {value:.6g}")


if __name__ == "__main__":
    sys.exit(main())
