"""README.md of an export: what it says of the weights, read as Hugging Face reads it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast.evaluate.__main__ import main as evaluate
from mixfast.export import main as export
from mixfast.train.__main__ import main as train
from tests.tiny_run import process_settings_kept, words


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run; afterwards it was scored, and env.json names a commit."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with process_settings_kept():
        assert train(words(folder, "moco")) == 0
        (folder / "env.json").write_text(json.dumps({"git": {"commit": "c0ffee", "modified": True}}))
        assert evaluate(["knn", str(folder), "--k", "3", "--threads", "1"]) == 0
        assert export([str(folder), "--threads", "1"]) == 0
    return folder


def scores(folder: Path, kind: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind][-1]


def test_hugging_face_reads_the_header(finished: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="comes with timm")
    card = hub.ModelCard.load(finished / "export" / "README.md").data
    assert (card.license, card.license_name, card.library_name) == ("other", "of-the-training-data", "mixfast")
    assert card.pipeline_tag == "image-feature-extraction" and "moco" in card.tags
    (result,) = card.eval_results
    assert result.metric_value == pytest.approx(scores(finished, "eval")["knn_h"], abs=0.01)
    assert result.dataset_name == "scenes, 20 test images"
    assert result.metric_name == "weighted kNN on pooled features, k = 5 of 64, temperature 0.1"


def test_the_text_says_how_the_weights_came_about(finished: Path) -> None:
    text = (finished / "export" / "README.md").read_text()
    facts = json.loads((finished / "export" / "export.json").read_text())
    mean = ", ".join(f"{value:.6g}" for value in facts["input"]["mean"])
    for row in (
        "# ResNet-8 of width 8, moco on scenes",
        "| encoder | query: the one that is trained |",
        "| network | ResNet-8 of width 8 (depth 8, width 8, stem cifar_s2) |",
        "| channels of each stage at its pixels per cell | 8 at 2, 16 at 4, 32 at 8 |",
        "| data | scenes: 64 training images of 16 x 16 pixels |",
        "| trained for | 3 of 3 epochs, 12 steps of 16 images |",
        "| seed | 0 |",
        "commit c0ffee with changes |",
        f"| input | channels in the order R, G, B, in [0, 1], minus mean ({mean}), over std (",
        "is under the MIT licence. The licence and the terms of the training data (scenes) apply to the weights",
    ):
        assert row in text, row
    digest = hashlib.sha256((finished / "export" / "backbone.safetensors").read_bytes()).hexdigest()
    assert f"| `backbone.safetensors` | `{digest}` |" in text


def test_scores_stand_with_their_protocol_and_are_of_these_weights(finished: Path, tmp_path: Path) -> None:
    trained, line = scores(finished, "eval"), json.loads((finished / "evaluations.jsonl").read_text())
    text = (finished / "export" / "README.md").read_text()
    kept = f"k = 5 of 64, temperature 0.1 (h), and on the head's output (z) |  | knn_h {trained['knn_h']:.4g}, knn_z"
    assert kept in text
    later = ", ".join(f"{key} {value:.4g}" for key, value in line["scores"]["moco"].items())
    assert f"| evaluate knn: k 3, temperature 0.1 | moco | {later} |" in text
    with process_settings_kept():
        previous = str(finished / "checkpoints" / "previous.pt")
        assert export([previous, "--threads", "1", "--out", str(tmp_path / "previous")]) == 0
        assert export([str(finished), "--threads", "1", "--encoder", "key", "--out", str(tmp_path / "key")]) == 0
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    earlier = next(line for line in lines if line["kind"] == "eval" and line["step"] == 8)
    for folder, said in (("previous", f"| knn_h {earlier['knn_h']:.4g}, knn_z"), ("key", "are of the query encoder")):
        card = (tmp_path / folder / "README.md").read_text()
        assert said in card and "evaluate knn" not in card
    assert "model-index" not in card


def test_long_settings_paths_and_intervals_are_short(finished: Path, tmp_path: Path) -> None:
    path = finished / "evaluations.jsonl"
    before = path.read_text()
    line = json.loads(before)
    line |= {"command": "localise", "settings": {"images": list(range(30)), "data": ["voc", "/disk/of/mine/VOC2007"]}}
    line["scores"] = {"moco": {"corloc": {"mean": 41.25, "low": 30.0}, "energy": None}}
    try:
        path.write_text(before + json.dumps(line) + "\n")
        with process_settings_kept():
            assert export([str(finished), "--threads", "1", "--out", str(tmp_path)]) == 0
    finally:
        path.write_text(before)
    row = '| evaluate localise: images "30 of them", data ["voc", "VOC2007"] | moco | corloc 41.25, energy None |'
    assert row in (tmp_path / "README.md").read_text()


def test_a_damaged_record_is_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished / "evaluations.jsonl"
    before = path.read_text()
    line = json.loads(before)
    try:
        for damage, message in (
            (json.dumps({**line, "scores": 3}), "scores must be objects"),
            ("[1]", "is not a record"),
        ):
            path.write_text(damage + "\n")
            with process_settings_kept():
                assert export([str(finished), "--threads", "1", "--out", str(tmp_path / "out")]) == 4
            assert f"{path}, line 1: " in (error := capsys.readouterr().err) and message in error
    finally:
        path.write_text(before)
    assert not (tmp_path / "out").exists()


def test_the_code_of_a_card_loads_its_files(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished / "export")
    code = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["backbone"](torch.zeros(1, 3, 16, 16)).shape == (1, 32, 2, 2)
