"""The recipes of docs/use-the-backbone.md run; those of libraries that are not installed are held against names."""

import json
import pickle
import re
from typing import Any

import pytest
import torch

from tests.formats.conftest import PAGE, Written
from tests.formats.names import recorded

RECIPES = dict(re.findall(r"## ([^\n]*)\n\n```python\n(.*?)```", PAGE, re.DOTALL))


def run(title: str, written: Written, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a recipe defines."""
    monkeypatch.chdir(written.folder.parent)
    found: dict[str, Any] = {}
    exec(compile(RECIPES[title], title, "exec"), found)
    return found


def test_there_is_a_short_recipe_for_every_library(written: Written) -> None:
    titles = ["Plain PyTorch", "torchvision, without mixfast", "torchvision's detectors", "timm", "detectron2", "mmdet"]
    assert list(RECIPES) == titles
    assert not {title: code for title, code in RECIPES.items() if len(code.splitlines()) > 15}
    folders = ["mixfast", "torchvision", "timm", "detectron2", "mmdet", "onnx", "key"]
    assert [name for name in folders if written.codes[name] == 0 or name in ("onnx", "timm")] == folders
    for path in re.findall(r'"[^"]*(weights/[\w./]+)"', "".join(RECIPES.values())):
        assert (written.folder.parent / path).exists(), path


def test_plain_pytorch_trains_the_backbone(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    found = run("Plain PyTorch", written, monkeypatch)
    assert found["loss"].isfinite() and found["backbone"].conv1.weight.grad.abs().sum() > 0
    assert int(found["backbone"].bn1.num_batches_tracked) == 2  # a step in the run, and one in the recipe


def test_torchvision_needs_no_mixfast(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    network = run("torchvision, without mixfast", written, monkeypatch)["network"]
    assert "mixfast" not in RECIPES["torchvision, without mixfast"] and network.fc.out_features == 10
    loaded = torch.load(written.folder / "torchvision" / "backbone.pth", weights_only=True)
    assert torch.equal(network.layer4[1].bn2.weight, loaded["layer4.1.bn2.weight"])


def test_torchvisions_detector_trains_the_backbone(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    found = run("torchvision's detectors", written, monkeypatch)
    assert found["backbone"].conv1.weight.grad.abs().sum() > 0
    assert found["detector"].transform.image_mean == found["image"]["mean"]


def test_timm_makes_classifier_pyramid_and_transform(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    found = run("timm", written, monkeypatch)
    assert found["network"].fc.out_features == 10
    maps = found["pyramid"](torch.zeros(1, 3, 64, 64))
    assert [features.shape[1] for features in maps] == [64, 64, 128, 256, 512]
    assert torch.equal(found["pyramid"]["conv1"].weight, found["network"].conv1.weight)
    assert type(found["transform"].transforms[0]).__name__ == "RandomResizedCropAndInterpolation"


def test_detectron2s_files_have_its_names(written: Written) -> None:
    """Its recipe trains on COCO, which is not here even where detectron2 is."""
    compile(RECIPES["detectron2"], "detectron2", "exec")
    content = pickle.loads((written.folder / "detectron2" / "backbone.pkl").read_bytes())
    assert content["model"].keys() == recorded(18).keys()


def test_mmdets_configuration_is_the_cards(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = run("mmdet", written, monkeypatch)["model"]
    card: dict[str, Any] = {}
    exec((written.folder / "mmdet" / "README.md").read_text().split("```python\n")[1].split("```")[0], card)
    image = json.loads((written.folder / "mixfast" / "export.json").read_text())["input"]
    for name in ("mean", "std"):
        assert card["model"]["data_preprocessor"].pop(name) == pytest.approx([255 * value for value in image[name]])
        del ours["data_preprocessor"][name]
    ours["backbone"]["init_cfg"]["checkpoint"] = "backbone.pth"
    assert ours == card["model"] and ours["backbone"]["style"] == "pytorch"
