"""`evaluate detect --recipe`: dry runs of every recipe, what they report, and how they stop and go on."""

import json
import os
import shutil
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mixfast.evaluate import recipe
from mixfast.evaluate.__main__ import main
from mixfast.train.__main__ import main as train
from tests.detection.annotated import coco, voc
from tests.tiny_run import assert_same, words

pytest.importorskip("torchvision")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command_settings")]

DRY = ("--threads", "1", "--dry-run", "--recipe")
PLACE = Path("evaluation")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs r8, of the demo's structure, and r18, of that of the recipes; folders voc and coco of 20 photographs."""
    place = tmp_path_factory.mktemp("recipes")
    common = {"train__epochs": 1, "optim__cosine_origin": 0, "eval__every": 0, "data__scenes": 16}
    for name, changes in (("r8", {}), ("r18", {"model__depth": 18, "model__stem": "imagenet"})):
        assert train([*words(place / name, "moco", **common, **changes), "--eval.no-baselines"]) == 0
    voc(place, 20)
    coco(place, 20)
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of all of it."""
    return Path(shutil.copytree(trained, tmp_path / "place"))


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_voc_is_trained_and_reported(place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[nn.Module, list[torch.Tensor]] = defaultdict(list)  # means of what each norm sees before the test

    def watch(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.BatchNorm2d) and module.training and not torch.is_grad_enabled():
            seen[module].append(inputs[0].double().mean((0, 2, 3)))

    models = []
    predict = recipe.predict
    monkeypatch.setattr(recipe, "predict", lambda *arguments: models.append(arguments[0].model) or predict(*arguments))
    handle = nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        assert main(["detect", str(place / "r18"), *DRY, "voc-c4-24k", "--data", "voc", str(place / "voc")]) == 0
    finally:
        handle.remove()
    norms = {name: module for name, module in models[0].named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, norm in norms.items():
        # Once a batch: the last stage sees regions, and no whole image.
        assert len(seen[norm]) == int(norm.num_batches_tracked) == 2, name
        mean = torch.stack(seen[norm]).mean(0).float()
        torch.testing.assert_close(norm.running_mean, mean, atol=1e-5, rtol=1e-4)
    printed, folder = capsys.readouterr().out, place / "r18" / PLACE / "recipe-voc-c4-24k-seed0-dry"
    page = (folder / "report.md").read_text()
    assert page in printed and "A dry run: its numbers mean nothing" in page
    assert "| published: supervised | 81.3 | 53.5 | 58.8 | not comparable; MoCo's detection/README.md" in page
    assert "a dry run; the network is no ResNet-50 with the stem for ImageNet; other photographs;" in page
    assert "| steps | 24000 | 4 |" in page and "| lr | 0.02 | 0.02 |" in page
    report = result(folder)
    assert report["scores"].keys() == {"voc07_ap", "voc07_ap50", "voc07_ap75"}
    assert (report["data"]["training_images"], report["data"]["test_images"], report["data"]["classes"]) == (15, 5, 2)
    assert not any(figure["comparable"] for figure in report["published"])
    assert not (place / "r18" / "evaluations.jsonl").exists()  # a dry run is no result
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4] and lines[0]["lr"] == pytest.approx(0.0002)


@pytest.mark.parametrize(("run", "name"), [("r18", "coco-fpn-1x"), ("r8", "coco-fpn-2x")])
def test_coco_is_trained_and_scored(run: str, name: str, place: Path) -> None:
    pytest.importorskip("pycocotools")
    data = [str(place / "coco"), str(place / "instances.json")] * 2
    assert main(["detect", str(place / run), *DRY, name, "--data", "coco", *data, "--seeds", "3"]) == 0
    report = result(place / run / PLACE / f"recipe-{name}-seed3-dry")
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert report["scores"].keys() == {*names, *(f"mask_{name}" for name in names)}
    assert report["scores"]["ap_large"] is report["scores"]["mask_ap_large"] is None  # there is no large object
    assert report["scores"]["mask_ap"] is not None and report["data"]["test_images"] == 20


def test_in_parts_in_half_precision_and_with_a_worker(place: Path, capsys: Any) -> None:
    more = ("--accumulate", "2", "--precision", "bf16", "--workers", "1", "--lr", "0.01")
    assert main(["detect", str(place / "r8"), *DRY, "voc-c4-24k", "--data", "voc", str(place / "voc"), *more]) == 0
    report = result(place / "r8" / PLACE / "recipe-voc-c4-24k-seed0-dry")
    why = report["published"][0]["why_not"]
    assert {"another learning rate", "batch norm sees a part of the batch"} <= set(why)
    assert "batch norm sees 2 images" in (page := capsys.readouterr().out) and "in bfloat16" in page
    assert report["recipe"]["lr"] == [0.02, 0.01] and report["scores"]["voc07_ap"] is not None


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM arrives in that step."""
    move, calls = torch.optim.SGD.step, []

    def strike(optimizer: torch.optim.SGD) -> None:
        calls.append(None)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        move(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", strike)


def content(folder: Path, name: str = "last.pt") -> dict[str, Any]:
    state = torch.load(folder / "checkpoints" / name, weights_only=True)
    return {key: value for key, value in state.items() if key not in ("seconds", "metrics_bytes")}


def test_a_stopped_training_goes_on_to_the_same_bits(place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["detect", str(place / "r8"), *DRY, "voc-c4-24k", "--data", "voc", str(place / "voc")]
    out = [str(place / name) for name in "ab"]
    whole, parts = (Path(name) / "recipe-voc-c4-24k-seed0-dry" for name in out)
    assert main([*command, "--out", out[0]]) == 0
    assert main([*command, "--out", out[0]]) == 2
    assert "continue it with --resume; or, for a new one, delete the folder" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert main([*command, "--out", out[1]]) == 143
    error = capsys.readouterr().err
    assert f"checkpoint: {parts}/checkpoints/last.pt\ncontinue with the same command and --resume" in error
    assert content(parts)["step"] == 2
    shutil.copytree(parts, place / "stopped")
    assert main([*command, "--out", out[1], "--resume"]) == 0
    assert "continuing voc-c4-24k after step 2 of 4" in capsys.readouterr().out
    assert_same(content(parts), content(whole))
    assert result(parts)["scores"] == result(whole)["scores"]
    assert (parts / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    # The same again from an older checkpoint, because bits of the newest have changed; then there is none.
    shutil.rmtree(parts)
    shutil.copytree(place / "stopped", parts)
    for number, name in enumerate(("last.pt", "previous.pt")):
        file = parts / "checkpoints" / name
        damaged = bytearray(file.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        file.write_bytes(damaged)
        if number == 0:
            shutil.copytree(parts, place / "damaged")
    assert main([*command, "--out", out[1], "--resume"]) == 4
    assert "previous.pt cannot be read (" in capsys.readouterr().err
    shutil.rmtree(parts)
    shutil.copytree(place / "damaged", parts)
    assert main([*command, "--out", out[1], "--resume"]) == 0
    assert "previous.pt is taken in its place, at step 0" in capsys.readouterr().out
    assert_same(content(parts), content(whole))
    # Other settings and another network are other trainings.
    assert main([*command, "--out", out[0], "--resume", "--lr", "0.01"]) == 4
    assert "belongs to other settings:\n  lr: saved 0.02, now 0.01" in capsys.readouterr().err


def test_a_training_that_diverges_is_named_and_its_checkpoint_stays(place: Path, capsys: Any) -> None:
    command = ["detect", str(place / "r8"), *DRY, "voc-c4-24k", "--data", "voc", str(place / "voc")]
    assert main([*command, "--lr", "1e30"]) == 5
    error = capsys.readouterr().err
    assert "recipe voc-c4-24k, step 2 of 4: " in error and "Give a smaller --lr than 1e+30" in error
    assert content(place / "r8" / PLACE / "recipe-voc-c4-24k-seed0-dry")["step"] == 0


def test_what_photographs_lack_is_counted_or_refused(place: Path, capsys: Any) -> None:
    notes, lists = place / "voc" / "Annotations", place / "voc" / "ImageSets" / "Main"
    for number in range(15):  # blue is left in the test images alone, and one training image has no object
        text = (notes / f"{number}.xml").read_text().replace("<name>blue</name>", "<name>red</name>")
        (notes / f"{number}.xml").write_text(text if number else "<annotation><filename>0.png</filename></annotation>")
    more = place / "VOC2012"
    shutil.copytree(place / "voc", more)
    (more / "ImageSets" / "Main" / "trainval.txt").write_text("2 1\n")
    command = ["detect", str(place / "r8"), *DRY, "voc-c4-24k", "--data", "voc", str(place / "voc"), str(more)]
    assert main(command) == 0
    data = result(place / "r8" / PLACE / "recipe-voc-c4-24k-seed0-dry")["data"]
    assert (data["training_images"], data["test_images"], data["classes"]) == (15, 5, 2)
    assert data["left_out"] == {
        "training images left out, without objects": 1,
        "test objects that do not count, as no training image shows their class": 5,
    }
    assert data["split"] == "trained on images of trainval of voc and VOC2012, scored on images of test of voc"
    capsys.readouterr()
    (place / "voc" / "JPEGImages" / "3.png").unlink()
    assert main(command) == 3
    assert "3.png cannot be read as an image" in capsys.readouterr().err
    (lists / "trainval.txt").write_text("0 1\n")
    assert main(command[:-1]) == 3
    assert "none of the 1 training images has an object" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("r8 --recipe voc-c4-24k", 2, "--recipe voc-c4-24k is for --data voc VOC2007 [VOC2012 ...]; got --data scenes"),
        ("r8 --recipe coco-fpn-1x --data voc voc", 2, "--recipe coco-fpn-1x is for --data coco IMAGES INSTANCES.json"),
        ("r8 --recipe coco-c4", 2, "expected one of voc-c4-24k, coco-fpn-1x, coco-fpn-2x"),
        ("r8 r18 --recipe voc-c4-24k --data voc voc", 2, "give one RUN, and one of --seeds at most"),
        ("r8 --recipe voc-c4-24k --data voc voc --steps 9", 2, "--steps does not go with --recipe voc-c4-24k"),
        ("r8 --recipe voc-c4-24k --data voc voc --accumulate 3", 2, "--accumulate must divide the batch of 16; got 3"),
        ("r8 --recipe voc-c4-24k --data voc voc --resume", 4, "no checkpoint in"),
        ("r8 --accumulate 2", 2, "--accumulate belongs to --recipe, which is not given"),
    ],
)
def test_errors_have_codes(arguments: str, code: int, message: str, place: Path, capsys: Any) -> None:
    given = [str(place / word) if word in ("r8", "r18", "voc") else word for word in arguments.split()]
    after_data = given.index("--data") + 1 if "--data" in given else -1
    if after_data > 0:
        given[after_data] = "voc"
    assert main(["detect", *given]) == code
    assert message in capsys.readouterr().err
