"""What --to writes is the same network in its library, which the recipes of docs/use-the-backbone.md show as well.

What a library lacks is refused by name; recipes of libraries that are not installed are held against names.
"""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from mixfast.export import load_backbone, main
from mixfast.formats import TARGETS, Source
from mixfast.models.resnet import ResNet
from tests.formats.conftest import PAGE, Written
from tests.formats.names import recorded
from tests.tiny_run import assert_same, open_tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command_settings")]
RECIPES = dict(re.findall(r"## ([^\n]*)\n\n```python\n(.*?)```", PAGE, re.DOTALL))
LAYERS = ["layer1", "layer2", "layer3", "layer4"]
STEMS = {  # what replaces torchvision's first layers
    "imagenet": {},
    "cifar": {"conv1": nn.Conv2d(3, 64, 3, 1, 1, bias=False), "maxpool": nn.Identity()},
    "cifar_s2": {"conv1": nn.Conv2d(3, 64, 3, 2, 1, bias=False), "maxpool": nn.Identity()},
}


def export(run: Path, out: Path, *words: str) -> int:
    return main([str(run), "--threads", "1", "--out", str(out), *words])


def seen_by(network: nn.Module, names: list[str], images: Tensor) -> list[Tensor]:
    """The outputs of some children in the network's own forward pass."""
    seen: list[Tensor] = []
    for name in names:
        network.get_submodule(name).register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        network.eval()(images)
    return seen


@pytest.mark.parametrize("stem", STEMS)
def test_torchvisions_network_gives_the_same_maps(
    stem: str, stopped: Callable[[str], Path], tmp_path: Path, rng: torch.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(stem)
    assert export(run, tmp_path, "--to", "torchvision") == 0
    assert "loaded by torchvision.models, maps equal to the bit" in capsys.readouterr().out
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    for name, module in STEMS[stem].items():
        setattr(network, name, module)
    network.load_state_dict(torch.load(tmp_path / "backbone.pth", weights_only=True))
    images = torch.randn(2, 3, 64, 64, generator=rng)
    with torch.no_grad():
        maps = load_backbone(run / "export").maps(images, [1, 2, 3, 4])
    assert_same(seen_by(network, LAYERS, images), maps)


def test_timm_makes_the_same_network_of_the_folder(
    stopped: Callable[[str], Path], written: Written, rng: torch.Generator
) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    assert written.codes["timm"] == 0 and "loaded by timm, maps equal to the bit" in written.said["timm"]
    network = timm.create_model(f"local-dir:{written.folder / 'timm'}", pretrained=True, num_classes=0)
    images = torch.randn(2, 3, 64, 64, generator=rng)
    with torch.no_grad():
        maps = load_backbone(stopped("imagenet") / "export").maps(images, [1, 2, 3, 4])
    assert_same(seen_by(network, LAYERS, images), maps)
    described = json.loads((stopped("imagenet") / "export" / "export.json").read_text())["input"]
    known = timm.data.resolve_model_data_config(network)
    assert {name: list(known[name]) for name in ("mean", "std")} == {name: described[name] for name in ("mean", "std")}
    assert tuple(known["input_size"]) == (3, 32, 32)


def test_a_network_of_timm_goes_back_to_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    name = "timm:convnext_atto,depths=(1,1,1,1),dims=(8,16,24,32)"
    run = open_tiny(tmp_path / "run", "moco", model__backbone=name, model__bn_splits=1, data__size=32)
    run.folder.write_config(run.config, "demo", {})
    run.save()
    assert export(tmp_path / "run", tmp_path / "timm", "--to", "timm") == 0
    assert "maps equal to the bit" in capsys.readouterr().out
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["architecture"] == "convnext_atto" and config["model_args"]["dims"] == [8, 16, 24, 32]
    for library in ("torchvision", "mmdet"):
        assert export(tmp_path / "run", tmp_path / "not", "--to", library) == 2
        assert "and this is timm:convnext_atto" in capsys.readouterr().err


def test_detectron2s_names_and_options(stopped: Callable[[str], Path], written: Written) -> None:
    yaml = pytest.importorskip("yaml", reason="comes with timm")
    assert written.codes["detectron2"] == 0
    content = pickle.loads((written.folder / "detectron2" / "backbone.pkl").read_bytes())
    assert content.keys() == {"model", "__author__", "matching_heuristics"} and content["matching_heuristics"] is True
    weights, names = load_file(stopped("imagenet") / "export" / "backbone.safetensors"), recorded(18)
    assert len(names) == 100 and content["model"].keys() == names.keys()  # 20 convolutions
    assert all(numpy.array_equal(content["model"][name], weights[own].numpy()) for name, own in names.items())
    options = yaml.safe_load((written.folder / "detectron2" / "backbone.yaml").read_text())
    image = json.loads((stopped("imagenet") / "export" / "export.json").read_text())["input"]
    assert options["MODEL"]["RESNETS"] == {"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "STRIDE_IN_1X1": False}
    assert options["INPUT"]["FORMAT"] == "RGB"
    assert options["MODEL"]["PIXEL_MEAN"] == pytest.approx([255 * value for value in image["mean"]])
    assert options["MODEL"]["PIXEL_STD"] == pytest.approx([255 * value for value in image["std"]])


def test_detectron2s_names_of_a_resnet_50() -> None:
    network = ResNet(50, stem="imagenet", num_splits=1).eval()
    plain = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "images": torch.zeros(1, 3, 32, 32)}
    files = TARGETS["detectron2"].files(Source(network, {"depth": 50, "width": 64, "stem": "imagenet"}, **plain))
    found, names = pickle.loads(files["backbone.pkl"])["model"], recorded(50)
    assert len(names) == 265 and found.keys() == names.keys()  # 53 convolutions
    assert {name: found[name].shape for name in ("res2.0.shortcut.weight", "res5.2.conv3.norm.bias")} == {
        "res2.0.shortcut.weight": (256, 64, 1, 1), "res5.2.conv3.norm.bias": (2048,),
    }  # fmt: skip
    assert b"DEPTH: 50\n    RES2_OUT_CHANNELS: 256\n    STRIDE_IN_1X1: False" in files["backbone.yaml"]


def test_mmdets_checkpoint_has_torchvisions_names(written: Written) -> None:
    assert written.codes["mmdet"] == 0
    content = torch.load(written.folder / "mmdet" / "backbone.pth", weights_only=True)
    expected = {name for name in torchvision.models.resnet18().state_dict() if not name.startswith("fc.")}
    assert content["state_dict"].keys() == expected and content["meta"]["depth"] == 18
    assert content["meta"]["bgr_to_rgb"] is True and all(0 < value < 255 for value in content["meta"]["mean"])


def test_onnx_computes_the_same_maps_or_names_what_is_missing(stopped: Callable[[str], Path], written: Written) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        assert written.codes["onnx"] == 7 and "pip install onnx onnxscript onnxruntime" in written.said["onnx"]
        assert not (written.folder / "onnx").exists()
        return
    runtime = pytest.importorskip("onnxruntime")
    assert written.codes["onnx"] == 0 and "loaded by onnxruntime" in written.said["onnx"]
    images = torch.randn(3, 3, 96, 64, generator=torch.Generator().manual_seed(0))  # of another size
    found = runtime.InferenceSession(written.folder / "onnx" / "backbone.onnx").run(None, {"images": images.numpy()})
    with torch.no_grad():
        maps = load_backbone(stopped("imagenet") / "export").maps(images, [1, 2, 3, 4])
    for here, there in zip(maps, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(there), here, rtol=1e-4, atol=1e-4)


def test_what_a_library_lacks_is_refused_by_name(
    stopped: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for library in ("timm", "detectron2", "mmdet"):
        assert export(stopped("cifar_s2"), tmp_path / "out", "--to", library) == 2
        message = (
            f"--to {library}: its ResNets begin with the stem imagenet (7x7, stride 2, max-pool), and this one with "
        )
        assert message + "cifar_s2 (3x3, stride 2, no max-pool)" in capsys.readouterr().err
    small = open_tiny(tmp_path / "small", "simclr")
    small.folder.write_config(small.config, "demo", {})
    small.save()
    for library in ("torchvision", "timm", "detectron2", "mmdet"):
        assert export(tmp_path / "small", tmp_path / "out", "--to", library) == 2
        message = f"{library} has ResNets 18, 34, 50 of width 64, and no ResNet-8 of width 8"
        assert message in capsys.readouterr().err
    assert export(tmp_path / "small", tmp_path / "out", "--to", "keras") == 2
    assert "expected one of torchvision, timm, detectron2, mmdet, onnx" in capsys.readouterr().err
    assert export(tmp_path / "small", tmp_path / "out", "--encoder", "key") == 2
    assert (
        "--encoder key: method simclr must have exactly one encoder beside the trained one; it has none"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_the_key_encoder_and_places_that_were_not_named(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "byol")
    run.folder.write_config(run.config, "demo", {})
    with torch.no_grad():
        run.method.target_encoder.backbone.conv1.weight.mul_(2)
    run.save()
    for which, encoder in (("query", run.method.encoder), ("key", run.method.target_encoder)):
        assert main([str(tmp_path), "--threads", "1", "--encoder", which]) == 0
        folder = tmp_path / "export" / ("" if which == "query" else "key")
        assert_same(dict(load_backbone(folder).state_dict()), dict(encoder.backbone.state_dict()))
        assert json.loads((folder / "export.json").read_text())["encoder"] == which


def test_files_that_mean_another_network_in_their_library_are_not_written(
    stopped: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A library that changes: here its batch norm has another epsilon."""
    build = torchvision.models.get_model

    def changed(name: str, **options: Any) -> nn.Module:
        network: nn.Module = build(name, **options)
        network.bn1.eps = 0.1
        return network

    monkeypatch.setattr(torchvision.models, "get_model", changed)
    assert export(stopped("imagenet"), tmp_path / "out", "--to", "torchvision") == 4
    assert "the map of stage 1 that torchvision.models computes differs by" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def ran(title: str, written: Written, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
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
    found = ran("Plain PyTorch", written, monkeypatch)
    assert found["loss"].isfinite() and found["backbone"].conv1.weight.grad.abs().sum() > 0
    assert int(found["backbone"].bn1.num_batches_tracked) == 2  # a step in the run, and one in the recipe


def test_torchvision_needs_no_mixfast(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    network = ran("torchvision, without mixfast", written, monkeypatch)["network"]
    assert "mixfast" not in RECIPES["torchvision, without mixfast"] and network.fc.out_features == 10
    loaded = torch.load(written.folder / "torchvision" / "backbone.pth", weights_only=True)
    assert torch.equal(network.layer4[1].bn2.weight, loaded["layer4.1.bn2.weight"])


def test_torchvisions_detector_trains_the_backbone(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    found = ran("torchvision's detectors", written, monkeypatch)
    assert found["backbone"].conv1.weight.grad.abs().sum() > 0
    assert found["detector"].transform.image_mean == found["image"]["mean"]


def test_timm_makes_classifier_pyramid_and_transform(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    found = ran("timm", written, monkeypatch)
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
    ours = ran("mmdet", written, monkeypatch)["model"]
    card: dict[str, Any] = {}
    exec((written.folder / "mmdet" / "README.md").read_text().split("```python\n")[1].split("```")[0], card)
    image = json.loads((written.folder / "mixfast" / "export.json").read_text())["input"]
    for name in ("mean", "std"):
        assert card["model"]["data_preprocessor"].pop(name) == pytest.approx([255 * value for value in image[name]])
        del ours["data_preprocessor"][name]
    ours["backbone"]["init_cfg"]["checkpoint"] = "backbone.pth"
    assert ours == card["model"] and ours["backbone"]["style"] == "pytorch"
