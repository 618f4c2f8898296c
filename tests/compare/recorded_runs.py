"""Folders of runs that were never trained, and lines as `evaluate detect` and `evaluate localise` append them."""

import json
from pathlib import Path
from typing import Any

from mixfast.run.folder import RunFolder
from mixfast.train import cli
from tests.tiny_run import words

SETTINGS: dict[str, Any] = {
    "data": "scenes", "test_images": 300, "test_objects": 1041, "side": 96, "classes": 10, "training_images": 400,
    "split": "", "left_out": {}, "detector": "fcos", "finetune": False, "layers": [2, 3], "strides": [4, 8],
    "steps": 400, "batch_size": 8, "lr": 0.001, "weight_decay": 0.0001, "clip": 10.0, "torch": "2", "torchvision": "0",
    "objects_of_unknown_classes": {"0": 0},
}  # fmt: skip


def finished_run(folder: Path, method: str, seed: int, knn: float, epochs: int = 3) -> Path:
    """A finished run of 4 steps an epoch with this kNN on z and h, and 20 untrained."""
    folder.mkdir()
    run = RunFolder(folder)
    run.write_config(cli.parse(words(folder, method, seed=seed, train__epochs=epochs)).config, "demo", {})
    run.write_status("finished")
    untrained = {"kind": "baseline", "name": "untrained", "step": 0, "epoch": 0, "knn_z": 20.0, "knn_h": 20.0}
    record = {"kind": "eval", "step": 4 * epochs, "epoch": epochs, "knn_z": knn, "knn_h": knn}
    run.metrics.path.write_text("".join(json.dumps(line) + "\n" for line in (untrained, record)))
    return folder


def append(folder: Path, text: str) -> None:
    with open(folder / "evaluations.jsonl", "a") as file:
        file.write(text)


def record(folder: Path, command: str, settings: dict[str, Any], scores: dict[str, Any], epoch: int = 3) -> None:
    """Append a line."""
    line = {"schema": 1, "command": command, "time": "", "checkpoint": "last.pt", "epoch": epoch, "step": 4 * epoch}
    append(folder, json.dumps({**line, "settings": settings, "scores": scores}) + "\n")


def detected(folder: Path, seeds: list[int], ap: float | None, epoch: int = 3, **changes: Any) -> None:
    """Append a line of `evaluate detect`: AP50 is twice the AP, any class AP 10 more; untrained 5, supervised 40."""
    rows = {"mine": ap, "untrained": 5.0, "supervised": 40.0}
    scores = {
        name: {"ap": ap, "ap50": ap and 2 * ap, "ap75": ap, "any_class_ap": ap and ap + 10} for name, ap in rows.items()
    }
    record(folder, "detect", {**SETTINGS, **changes, "seeds": seeds}, scores, epoch)
