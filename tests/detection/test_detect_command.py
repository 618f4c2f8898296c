"""`evaluate detect` on runs that take a second: its table, what it writes, what it pairs, and what it refuses."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast.data import SceneConfig
from mixfast.detection.average_precision import Detections
from mixfast.detection.canvases import scene_canvases
from mixfast.evaluate.__main__ import main
from mixfast.evaluate.detect import Detect, contestants
from mixfast.evaluate.detect_page import verdicts
from mixfast.evaluate.runs import load_runs
from mixfast.run.console import Console
from mixfast.train.__main__ import main as train
from tests.detection.annotated import coco, voc
from tests.tiny_run import open_tiny, words

pytest.importorskip("torchvision")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command_settings")]

SHORT = ("--steps", "2", "--threads", "1")
FEW = (*SHORT, "--count", "6", "--images", "8")
TAUGHT = ("--supervised-epochs", "1")
NAME = "detect-scenes-fcos-frozen-8"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a (approach1), b and c (moco, seeds 0 and 1), and untrained ones, which go into no table with them."""
    place = tmp_path_factory.mktemp("runs")
    common = {"train__epochs": 1, "optim__cosine_origin": 0, "eval__every": 0}
    for name, method, changes in (("a", "approach1", {}), ("b", "moco", {}), ("c", "moco", {"seed": 1})):
        assert train([*words(place / name, method, **common, **changes), "--eval.no-baselines"]) == 0
    for name, changes in (
        ("wide", {"model__width": 16}),
        ("fine", {"model__stem": "cifar"}),
        ("large", {"data__size": 24}),
    ):
        run = open_tiny(place / name, "moco", **common, **changes)
        run.folder.write_config(run.config, "demo", {})
        run.save()
    return place


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> dict[str, str]:
    """Copies of the trained runs."""
    return {name: str(shutil.copytree(trained / name, tmp_path / name)) for name in "abc"}


def stored(run: str, name: str = NAME) -> dict[str, Any]:
    return json.loads((Path(run) / "evaluation" / f"{name}.json").read_text())


def results(content: dict[str, Any]) -> list[Any]:
    """What must not depend on the time."""
    for row in content["rows"]:
        for seed in row["seeds"].values():
            assert seed.pop("seconds") > 0
    return content["rows"]


def test_the_table_and_what_is_written(runs: dict[str, str], capsys: Any) -> None:
    a, b = runs["a"], runs["b"]
    assert main(["detect", a, b, *FEW, *TAUGHT, "--seeds", "0", "1"]) == 0
    printed = capsys.readouterr().out
    assert "training with labels: 1 epochs of 64 images" in printed and "[8/8] supervised, seed 1: AP" in printed
    assert "fcos on stage 2 (stride 4), frozen: 8 images, 2 steps of 8; seeds 0 1; one network per row" in printed
    content = stored(a)
    first = results(content)
    assert [(row["name"], row["role"]) for row in first] == [
        ("approach1", "run"),
        ("moco", "run"),
        ("untrained", "untrained"),
        ("supervised", "supervised"),
    ]
    for row in first:
        assert list(row["seeds"]) == ["0", "1"] and row["networks"] == 1
        assert {"ap", "ap50", "ap75", "any_class_ap", "voc07_ap"} <= row["seeds"]["0"]["scores"].keys()
    gap = first[1]["above_first"]["any_class_ap"]
    scores = [[row["seeds"][seed]["scores"]["any_class_ap"] for seed in "01"] for row in first[:2]]
    pairs = [theirs - ours for ours, theirs in zip(*scores, strict=True)]
    assert gap["mean"] == pytest.approx(sum(pairs) / 2) and gap["low"] <= gap["mean"] <= gap["high"]
    assert gap["standard_error"] == pytest.approx(abs(pairs[0] - pairs[1]) / 2)
    assert gap["images_low"] <= gap["mean"] <= gap["images_high"]
    assert "95 % over seeds   95 % over images" in printed and "bootstrap draws of the test images" in printed
    assert not first[0]["above_first"] and content["settings"]["test_images"] == 6
    page = (Path(a) / "evaluation" / f"{NAME}.md").read_text()
    assert "| supervised |" in page and "## Differences to approach1" in page and f"({NAME}.png)" in page
    assert (Path(a) / "evaluation" / f"{NAME}.png").stat().st_size > 10_000
    for run, name in ((a, "approach1"), (b, "moco")):
        line = json.loads((Path(run) / "evaluations.jsonl").read_text())
        assert line["command"] == "detect" and list(line["scores"]) == [name, "untrained", "supervised"]
        assert line["settings"]["seeds"] == [0, 1]
    # The supervised network was kept, and everything is the same bit by bit.
    assert main(["detect", a, b, *FEW, *TAUGHT, "--seeds", "0", "1"]) == 0
    assert "training with labels" not in capsys.readouterr().out
    assert results(stored(a)) == first
    kept = Path(a) / "evaluation" / "supervised.safetensors"
    whole = kept.read_bytes()
    for damaged, why in ((whole[:-1] + bytes([whole[-1] ^ 1]), "bits of it have changed"), (whole[:-9], "Error")):
        kept.write_bytes(damaged)
        assert main(["detect", a, *FEW, *TAUGHT, "--seeds", "0"]) == 0
        printed = capsys.readouterr().out
        assert f"warning: {kept} cannot be read ({why}" in printed and "training with labels" in printed
        again = {row["name"]: row["seeds"]["0"] for row in results(stored(a))}
        assert again == {row["name"]: row["seeds"]["0"] for row in first if row["name"] != "moco"}
    assert main(["detect", a, *FEW, "--supervised-epochs", "2", "--seeds", "0"]) == 0  # another one
    printed = capsys.readouterr().out
    numbers = printed.split("any class AP")[1].split("\nAP:")[0]
    assert "training with labels: 2 epochs" in printed and "±" not in numbers
    assert "95 % over images" in numbers and "over seeds" not in numbers  # with one seed the only interval there is
    gap = stored(a)["rows"][1]["above_first"]["any_class_ap"]
    assert gap["low"] is None and gap["images_low"] <= gap["mean"] <= gap["images_high"]


def test_seeds_of_a_method_are_paired(runs: dict[str, str], capsys: Any) -> None:
    assert main(["detect", runs["c"], runs["b"], runs["a"], *FEW, *TAUGHT]) == 0
    assert "networks pre-trained with their own seeds: moco: 2, untrained: 2, supervised: 2" in capsys.readouterr().out
    together = results(stored(runs["c"]))
    assert [(row["name"], row["networks"]) for row in together] == [
        ("moco", 2),
        ("approach1", 1),
        ("untrained", 2),
        ("supervised", 2),
    ]
    line = json.loads((Path(runs["c"]) / "evaluations.jsonl").read_text())
    assert line["settings"]["seeds"] == [1]
    assert line["scores"]["moco"]["ap"] == together[0]["seeds"]["1"]["scores"]["ap"]
    assert main(["detect", runs["c"], *FEW, "--no-supervised", "--seeds", "1"]) == 0
    alone = results(stored(runs["c"]))
    for row, other in ((0, 0), (1, 2)):  # a network and a seed give one result, whatever stands beside it
        assert alone[row]["seeds"]["1"] == together[other]["seeds"]["1"]


def test_the_untrained_network_has_statistics_of_the_data(runs: dict[str, str]) -> None:
    """A network that was never trained has means 0 and variances 1, which fit nothing."""
    options = Detect((Path(runs["a"]),), threads=1, supervised=False)
    row = contestants(options, load_runs(options), [0], Console())[-1]
    norms = [module for module in row.networks[0].encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert row.role == "untrained" and norms
    assert all(norm.running_mean.ne(0).all() and norm.running_var.ne(1).all() for norm in norms)  # type: ignore[union-attr]


def test_canvases_of_pictures_and_fine_tuning(runs: dict[str, str], capsys: Any) -> None:
    more = ("--data", "canvas", "--finetune", "--detector", "c4", "--seeds", "3")
    assert main(["detect", runs["a"], *FEW, "--no-supervised", *more]) == 0
    assert "c4 on stage 2 (stride 4), fine-tuned" in capsys.readouterr().out
    content = stored(runs["a"], "detect-canvas-c4-finetune-8")
    assert content["settings"]["test_objects"] == 18 and list(content["rows"][0]["seeds"]) == ["3"]


def test_photographs(runs: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    root, (images, file) = voc(tmp_path, 20), coco(tmp_path, 20)
    plain = (*SHORT, "--no-supervised", "--seeds", "0", "--size", "64")
    more = (*plain, "--count", "6", "--images", "8")
    assert main(["detect", runs["a"], *more, "--data", "voc", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "VOC07 AP" in printed and "medium" not in printed
    assert "trained on images of trainval, scored on images of test" in printed
    settings = stored(runs["a"], "detect-voc-fcos-frozen-8")["settings"]
    assert (settings["test_images"], settings["test_objects"], settings["training_images"]) == (5, 10, 8)
    assert main(["detect", runs["a"], *more, "--data", "coco", str(images), str(file)]) == 0
    printed = capsys.readouterr().out
    assert "medium" in printed and "VOC07" not in printed and "split at random" in printed
    both = [str(images), str(file)] * 2
    assert main(["detect", runs["a"], *plain, "--data", "coco", *both, "--count", "20"]) == 0
    assert "trained on images of instances.json, scored on images of instances.json" in capsys.readouterr().out
    assert stored(runs["a"], "detect-coco-fcos-frozen")["settings"]["test_images"] == 20
    assert main(["detect", runs["a"], *plain, "--data", "voc", str(root), "--images", "1", "--count", "1"]) == 0
    settings = stored(runs["a"], "detect-voc-fcos-frozen-1")["settings"]
    assert (settings["test_images"], settings["training_images"]) == (1, 1)


def test_what_photographs_lack_is_counted_or_refused(runs: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    root = voc(tmp_path, 8)
    more = (*FEW, "--no-supervised", "--seeds", "0", "--size", "64", "--data", "voc", str(root))
    notes = root / "Annotations"
    for number in range(6):  # blue is left in the test images alone, and one training image has no object
        text = (notes / f"{number}.xml").read_text().replace("<name>blue</name>", "<name>red</name>")
        (notes / f"{number}.xml").write_text(text if number else "<annotation><filename>0.png</filename></annotation>")
    (notes / "1.xml").write_text((notes / "1.xml").read_text().replace("<xmax>13</xmax>", "<xmax>1</xmax>"))
    assert main(["detect", runs["a"], *more]) == 0
    printed = capsys.readouterr().out
    assert "test objects that do not count, as no training image shows their class: 2 with seed 0" in printed
    assert "training images left out, without objects: 1" in printed
    assert "boxes left out, empty or inverted: 1" in printed
    assert stored(runs["a"], "detect-voc-fcos-frozen-8")["settings"]["objects_of_unknown_classes"] == {"0": 2}
    (root / "ImageSets" / "Main" / "test.txt").write_text("0 1\n6 1\n")
    assert main(["detect", runs["a"], *more]) == 3
    assert "1 images are in both trainval and test. Give other lists to --splits" in capsys.readouterr().err
    for name, image in (("bare", 0), ("full", 6)):
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(f"{image} 1\n")
    for splits, message in (
        (("bare", "trainval"), "both bare and trainval"),
        (("bare", "full"), "none of the 1 train"),
    ):
        assert main(["detect", runs["a"], *more, "--splits", *splits]) == 3
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("a wide", 2, "has another architecture than"),
        ("a fine", 2, "strides 1 2 4, channels 8 16 32, not depth 8, width 8, stem cifar_s2, strides 2 4 8"),
        ("a large", 2, "has another image size than"),
        ("a a", 2, "approach1: two runs have the same seed"),
        ("b c --seeds 1 2", 2, "moco has runs of seeds 0 1, and a table pairs methods by their seed; asked for 1 2"),
        ("a --seeds 1 1", 2, "--seeds must differ"),
        ("a --steps 0", 2, "--steps must be at least 1; got 0"),
        ("a --lr 0", 2, "--lr must be above 0"),
        ("a --layers 4", 2, "--layers must be stages from 1 to 3"),
        ("a --detector c4 --layers 1 2", 2, "--layers of c4 is one stage"),
        ("a --data imagenet", 2, "--data must be scenes, canvas, voc FOLDER, or coco IMAGES"),
        ("a --data coco x", 2, "got coco x"),
        ("a --data voc nowhere", 3, "nowhere/Annotations: no annotation. Expected ROOT/Annotations"),
        ("a --splits train val", 2, "--splits belongs to --data voc"),
        ("a --size 20", 2, "--size must be at least 24"),
        ("", 2, "give at least one RUN"),
    ],
)
def test_errors_have_codes(arguments: str, code: int, message: str, trained: Path, capsys: Any) -> None:
    names = {path.name for path in trained.iterdir()}
    given = [str(trained / word) if word in names else word for word in arguments.split()]
    assert main(["detect", *given, *(("--threads", "1", "--no-supervised") if given else ())]) == code
    assert message in capsys.readouterr().err


def test_a_detector_that_diverges_is_named(runs: dict[str, str], capsys: Any) -> None:
    assert main(["detect", runs["a"], *FEW, "--no-supervised", "--seeds", "0", "--lr", "1e30"]) == 5
    error = capsys.readouterr().err
    assert "approach1, seed 0: the detector's loss is" in error and "at step 2 of 2. Give a smaller --lr" in error


def test_without_torchvision_it_says_what_to_install(
    runs: dict[str, str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models.detection", None)
    assert main(["detect", runs["a"]]) == 7
    assert "needs torchvision, which cannot be imported" in capsys.readouterr().err


def test_help(capsys: Any) -> None:
    assert main(["detect", "--help"]) == 0
    assert "usage: python -m mixfast.evaluate detect" in capsys.readouterr().out


def test_verdicts_of_the_picture() -> None:
    test = scene_canvases(1, 16, 0, "test", SceneConfig())
    count, labels = test.objects, test.labels[0]
    boxes = torch.cat([test.boxes[:, :2], test.boxes[:, :1], torch.zeros(1, 3, 4)], 1)
    found = torch.tensor([[labels[0], (labels[1] + 1) % 10, labels[0], 0, 0, -1]])
    scores = torch.tensor([[0.9, 0.8, 0.01, 0.7, 0.02, 0.0]])
    shown = [verdict for _, verdict in verdicts(Detections(boxes, found, scores, scores), test, 0)]
    assert count >= 2 and shown == ["right", "another class", "nothing there", "nothing there", "right"][:count]
