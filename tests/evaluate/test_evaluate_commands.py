"""Every sub-command of the evaluation on a run that takes a second: what it prints, writes and refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mixfast.config.presets import recipe_name
from mixfast.evaluate.__main__ import main
from mixfast.evaluate.runs import ScoreTable, ScoringOptions, group_names, load_runs, table
from mixfast.train import cli
from mixfast.train.__main__ import main as train
from tests.scoring.boxed_folders import make as make_folders
from tests.tiny_run import open_tiny, words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command_settings")]

FEW = ("--count", "12", "--validation", "10", "--threads", "1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs a (approach1), b and c (moco, seeds 0 and 1)."""
    place = tmp_path_factory.mktemp("runs")
    for name, method, seed in (("a", "approach1", 0), ("b", "moco", 0), ("c", "moco", 1)):
        arguments = words(place / name, method, train__epochs=1, optim__cosine_origin=0, eval__every=0, seed=seed)
        assert train([*arguments, "--eval.no-baselines"]) == 0
    return place


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> list[str]:
    """Copies of the runs."""
    return [str(shutil.copytree(trained / name, tmp_path / name)) for name in "abc"]


def last_line(run: str) -> dict[str, Any]:
    return json.loads((Path(run) / "evaluations.jsonl").read_text().splitlines()[-1])


def test_runs_are_named_by_what_differs(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"method": "moco"},
        {"method": "moco", "seed": 1},
        {"method": "approach1"},
        {"method": "approach1", "method__box_per_sample": "True", "seed": 3},
    ]
    configs = []
    for number, change in enumerate(changes):
        flag = change.pop("method__box_per_sample", None)
        config = open_tiny(tmp_path / str(number), **change).config
        if flag:
            from mixfast.config.options import replace

            config = replace(config, {"method.box_per_sample": True})
        configs.append(config)
    methods = [config.method_name for config in configs]
    named = ["moco", "moco", "approach1 box_per_sample=False", "approach1 box_per_sample=True"]
    assert group_names(methods, configs) == named


def test_runs_of_two_presets_of_one_method_are_named_by_the_presets() -> None:
    """A preset whose option was changed is not what it stands for: its run is named by the method."""
    begun = [
        cli.parse(words.split())
        for words in (
            "aligned_mixture",
            "aligned_regions",
            "aligned_regions --seed 1",
            "aligned_regions --method.p_mix 1",
        )
    ]
    configs = [each.config for each in begun]
    recipes = [recipe_name(each.config, each.preset) for each in begun]
    assert recipes == ["aligned_mixture", "aligned_regions", "aligned_regions", "aligned_mixture"]
    named = ["aligned_mixture p_mix=0.25", "aligned_regions", "aligned_regions", "aligned_mixture p_mix=1.0"]
    assert group_names(recipes, configs) == named
    assert group_names(recipes[:3], configs[:3]) == ["aligned_mixture", "aligned_regions", "aligned_regions"]


def test_a_table_too_wide_for_the_terminal_continues_below(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"a": {"one": "1", "two": "22.2", "three": "3"}, "bcd": {"one": "4"}}
    assert table(rows) == "      one    two   three\na       1   22.2       3\nbcd     4      -       -"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "16")
    assert (
        table(rows) == "      one    two\na       1   22.2\nbcd     4      -\n\n      three\na         3\nbcd       -"
    )
    monkeypatch.setenv("COLUMNS", "3")  # less than a column: one at a time
    assert table(rows).count("\n\n") == 2


def test_tables_align_and_show_the_spread() -> None:
    assert table({"a": {"x": "1"}, "long": {"y": "22", "x": "3"}}).splitlines() == [
        "        y   x",
        "a       -   1",
        "long   22   3",
    ]
    board, calls = ScoreTable(), []
    for origin in ("one", "one", "two"):
        board.score("row", origin, lambda: calls.append(1) or {"knn_z": 10.0 * len(calls), "lr": 0.5})  # type: ignore[func-returns-value]
    assert len(calls) == 2 and board.table().split() == ["knn", "z", "lr", "row", "15.00", "±", "7.07", "0.5", "±", "0"]


def test_runs_on_one_data_set_share_it_and_their_untrained_network(runs: list[str]) -> None:
    a, b, c = load_runs(ScoringOptions(tuple(map(Path, runs)), threads=1))
    assert a.setup.splits is b.setup.splits and a.setup.splits is not c.setup.splits
    assert a.origin == b.origin != c.origin
    for one, other in zip(a.fresh.state_dict().values(), b.fresh.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    weights = [one.setup.method.encoder.state_dict()["head.weight"] for one in (a, b, c)]
    stored = torch.load(b.checkpoint, weights_only=True)["method"]["encoder.head.weight"]
    assert torch.equal(weights[1], stored) and not torch.equal(weights[0], stored)
    assert not torch.equal(weights[1], b.fresh.state_dict()["head.weight"])


def test_knn_of_several_runs(runs: list[str], capsys: Any) -> None:
    assert main(["knn", *runs, "--baselines", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["raw", "untrained", "approach1", "moco"]
    assert lines[-2].count("±") == 0 and lines[-1].count("±") == 2 and lines[-3].count("±") == 2
    assert {**last_line(runs[1]), "time": ""} | {"scores": ""} == {
        "schema": 1, "command": "knn", "time": "", "checkpoint": "last.pt", "epoch": 1, "step": 4,
        "settings": {"k": 5, "temperature": 0.1}, "scores": "",
    }  # fmt: skip


@pytest.mark.parametrize("protocol", ["cached", "sgd"])
def test_linear(protocol: str, runs: list[str], capsys: Any) -> None:
    arguments = ["--protocol", protocol, "--epochs", "3", "--lr", "0.1", "0.01", "--pixels", "--threads", "1"]
    assert main(["linear", *runs[:2], *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"{protocol} protocol, 3 epochs" in printed and "chosen among 0.1, 0.01 on a tenth" in printed
    line = last_line(runs[0])
    assert set(line["scores"]) == {"raw pixels", "untrained", "approach1"} and line["settings"]["lrs"] == [0.1, 0.01]
    found = line["scores"]["approach1"]
    assert 0 <= found["linear_h"] <= 100 and found["lr_h"] in (0.1, 0.01)
    assert ("linear_z" in found) == (protocol == "cached")
    assert last_line(runs[1])["scores"]["untrained"] == line["scores"]["untrained"]


def test_maps_of_the_test_images(runs: list[str], capsys: Any) -> None:
    assert main(["maps", *runs, "--count", "3", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    picture = Path(runs[0]) / "evaluation" / "maps-power.png"
    assert str(picture) in printed
    with Image.open(picture) as drawn:
        assert drawn.width > 500
    scores = last_line(runs[2])["scores"]
    assert list(scores)[:3] == ["approach1", "moco, seed 0", "moco, seed 1"] and len(scores) == 5
    assert all(0 < row["entropy"] <= 100 and 0 <= row["energy"] <= 100 for row in scores.values())


@pytest.mark.parametrize("kind", ["norm", "cam"])
def test_maps_of_files(kind: str, runs: list[str], tmp_path: Path, capsys: Any) -> None:
    for name in ("x.png", "y.jpg"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        Image.new("RGB", (50, 30), (200, 30, 60)).save(tmp_path / "mine" / name)
    arguments = ["--images", str(tmp_path / "mine"), "--kind", kind, "--resize", "24", "--overlay", "--no-untrained"]
    assert main(["maps", runs[0], *arguments, "--out", str(tmp_path / "out"), "--stride", "2"]) == 0
    line = last_line(runs[0])
    assert line["settings"]["images"] == ["x", "y"] and line["settings"]["stride"] == 2
    assert list(line["scores"]) == ["approach1"] and list(line["scores"]["approach1"]) == ["entropy"]
    assert (tmp_path / "out" / f"maps-{kind}.png").is_file()


def test_localise_scenes(runs: list[str], capsys: Any) -> None:
    assert main(["localise", *runs, *FEW, "--kinds", "norm", "eigen"]) == 0
    printed = capsys.readouterr().out
    assert "localisation on scenes: 12 images of 16 pixels" in printed and "chosen on 10 others" in printed
    folder = Path(runs[0]) / "evaluation"
    content = json.loads((folder / "localise-scenes.json").read_text())
    assert (folder / "localise-scenes.png").is_file()
    assert [(row["name"], row["role"]) for row in content["rows"]] == [
        ("approach1", "run"), ("moco", "run"), ("untrained", "untrained"),
        ("edges", "baseline"), ("centred box", "baseline"),
    ]  # fmt: skip
    moco = content["rows"][1]
    assert len(moco["choices"]) == 2 and len(moco["scores"]["corloc"]["values"]) == 2
    assert set(moco["choices"][0]["validation_max_box_acc_v2"]) == {"norm", "eigen"}
    assert moco["above_untrained"]["box_v2"]["mean"] == pytest.approx(
        moco["scores"]["box_v2"]["mean"] - content["rows"][2]["scores"]["box_v2"]["mean"], abs=1e-3
    )
    own = last_line(runs[2])["scores"]
    assert own["moco"]["pxap"]["values"] == [moco["scores"]["pxap"]["values"][1]]
    assert own["edges"] == content["rows"][3]["scores"]


def test_localise_with_a_linear_probe(runs: list[str], capsys: Any) -> None:
    assert main(["localise", runs[0], *FEW, "--kinds", "cam", "--stride", "8"]) == 0
    content = json.loads((Path(runs[0]) / "evaluation" / "localise-scenes.json").read_text())
    assert [row["choices"][0]["map"] for row in content["rows"][:2]] == ["cam", "cam"]


def test_localise_on_canvases_with_a_supervised_network(runs: list[str], tmp_path: Path, capsys: Any) -> None:
    weights = load_file(Path(runs[1]) / "export" / "backbone.safetensors")
    torch.save({f"module.{k}": v for k, v in weights.items()} | {"fc.weight": torch.ones(1)}, tmp_path / "w.pt")
    supervised = ["--supervised", str(tmp_path / "w.pt"), runs[2]]
    arguments = ["--data", "canvas", "--objects", "2", "--size", "32", "--stride", "4", "--out", str(tmp_path / "out")]
    assert main(["localise", runs[1], *FEW, *arguments, *supervised]) == 0
    content = json.loads((tmp_path / "out" / "localise-canvas-2.json").read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert content["settings"]["objects"] == 2 and content["settings"]["stride"] == 4
    assert [set(c["validation_max_box_acc_v2"]) for c in rows["supervised"]["choices"]] == [
        {"norm", "power", "eigen"},  # no head was trained with these weights
        {"norm", "power", "eigen", "sim"},
    ]
    kinds = [rows["moco"]["choices"][0]["validation_max_box_acc_v2"], rows["supervised"]["choices"][0]]
    assert kinds[0]["eigen"] == kinds[1]["validation_max_box_acc_v2"]["eigen"]  # the same weights
    assert "hit_at_3" in rows["moco"]["scores"] and "background" in rows["moco"]["scores"]
    assert "pxap" not in rows["moco"]["scores"]


def test_localise_on_annotated_folders(runs: list[str], tmp_path: Path, capsys: Any) -> None:
    voc, file, images = make_folders(tmp_path)
    size = ["--size", "32", "--tolerance", "2", "--kinds", "norm"]
    assert main(["localise", runs[0], *FEW, "--data", "voc", "--path", str(voc), *size]) == 0
    assert main(["localise", runs[0], *FEW, "--data", "coco", "--path", str(file), "--images", str(images), *size]) == 0
    folder = Path(runs[0]) / "evaluation"
    tables = [json.loads((folder / f"localise-{name}.json").read_text()) for name in ("voc", "coco")]
    assert tables[0]["settings"] | {"data": ""} == tables[1]["settings"] | {"data": ""}
    assert tables[0]["settings"]["images"] + tables[0]["settings"]["validation"] == 8
    for one, other in zip(tables[0]["rows"], tables[1]["rows"], strict=True):
        assert one["scores"] == other["scores"]


def test_components(runs: list[str], capsys: Any) -> None:
    assert main(["components", *runs, "--count", "16", "--areas", "0.25", "--threads", "1"]) == 0
    assert "mixtures of augmented views" in capsys.readouterr().out
    scores = last_line(runs[0])["scores"]
    assert list(scores) == [
        "untrained, pooled features, area 0.25",
        "approach1, pooled features, area 0.25",
        "approach1, region head, area 0.25",
    ]
    assert all(row["chance"] == 100 / 16 for row in scores.values())
    assert "moco, head, area 0.25" in last_line(runs[1])["scores"]
    assert main(["components", runs[0], "--no-views", "--threads", "1"]) == 0
    assert last_line(runs[0])["settings"] == {"count": 20, "views": False}  # all test images there are


def test_embed(runs: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main(["embed", runs[0], "--picture", "--threads", "1"]) == 0
    stored = load_file(Path(runs[0]) / "evaluation" / "embeddings-test.safetensors")
    assert stored["z"].shape == (20, 8) and stored["h"].shape == (20, 32) and stored["labels"].shape == (20,)
    assert (Path(runs[0]) / "evaluation" / "embeddings-test.png").is_file()
    assert main(["embed", *runs[:2], "--split", "train", "--format", "npy", "--out", str(tmp_path / "out")]) == 0
    names = {f"{number}-embeddings-train-{part}.npy" for number in (0, 1) for part in ("z", "h", "labels")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("linear RUN --epochs 0", 2, "--epochs must be at least 1; got 0"),
        ("linear RUN --lr -1", 2, "--lr must be values, each above 0; got (-1.0,)"),
        ("maps RUN --layer 9", 2, "--layer must be in 1 ... 3 for this network; got 9"),
        ("maps RUN --stride 3", 2, "dilation can make that 4 or 2; got 3"),
        ("maps RUN --kind sim --layer 1", 2, "--kind sim reads the last layer; got --layer 1"),
        ("maps RUN --images nowhere.png", 3, "nowhere.png cannot be read as an image"),
        ("localise RUN --kinds nrom", 2, "--kinds must be among norm, power, eigen, sim, cam; got nrom"),
        ("localise RUN --kinds sim --layer 1", 2, "none of them can be made of this layer; add norm"),
        ("localise RUN --count 0", 2, "--count must be at least 1; got 0"),
        ("localise RUN --data voc", 2, "--data voc needs --path FOLDER"),
        ("localise RUN --data coco --path x", 2, "--data coco needs --path FILE.json and --images FOLDER"),
        ("localise RUN --data canvas --objects 90", 2, "objects must be from 1 to the"),
        ("localise RUN --supervised nothing.pt", 4, "--supervised nothing.pt cannot be read as weights"),
        ("components RUN --areas 0.5 1.5", 2, "--areas must be values, each in (0, 1); got (0.5, 1.5)"),
        ("components RUN --count 1", 2, "a mixture needs two test images; got 1"),
        ("embed", 2, "give at least one RUN"),
    ],
)
def test_errors_have_codes(arguments: str, code: int, message: str, runs: list[str], capsys: Any) -> None:
    assert main([runs[0] if word == "RUN" else word for word in arguments.split()]) == code
    assert message in capsys.readouterr().err


def test_weights_of_another_network_are_refused(runs: list[str], tmp_path: Path, capsys: Any) -> None:
    weights = load_file(Path(runs[0]) / "export" / "backbone.safetensors")
    save_file(
        {name: torch.cat([value, value]) for name, value in weights.items() if value.ndim}, tmp_path / "w.safetensors"
    )
    assert main(["localise", runs[0], *FEW, "--supervised", str(tmp_path / "w.safetensors")]) == 4
    assert "keys missing" in capsys.readouterr().err
    wide = {name: torch.cat([value, value]) if value.ndim else value for name, value in weights.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    assert main(["localise", runs[0], *FEW, "--supervised", str(tmp_path / "wide.safetensors")]) == 4
    assert "another architecture than the first run" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["linear", "maps", "localise", "components", "embed"])
def test_help(command: str, capsys: Any) -> None:
    assert main([command, "--help"]) == 0
    assert f"usage: python -m mixfast.evaluate {command}" in capsys.readouterr().out
