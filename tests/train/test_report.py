"""The report's numbers against hand numbers, and pictures that hold what they should."""

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mixfast.run import records
from mixfast.train import plots, report

EPOCHS = [
    {"kind": "epoch", "step": 4, "epoch": 1, "lr": 0.1, "loss": 3.0, "total_weight": 1.5, "original": 2.0, "mixed": 2.0,
     "lam": 0.5, "mean_term": 2.0, "time": 2.0},
    {"kind": "epoch", "step": 8, "epoch": 2, "lr": 0.0, "loss": 2.0, "total_weight": 1.6, "original": 1.4, "mixed": 1.0,
     "lam": 0.6, "mean_term": 1.25, "time": 8.0},
]  # fmt: skip
TRAIN = [
    {"kind": "train", "step": 4, "epoch": 1, "lr": 0.1, "loss": 3.0, "original": 2.0, "mixed": 1.0, "lam": 0.7,
     "images_per_s": 100.0, "time": 2.0, "time_data": 0.5, "time_forward": 1.5},
    {"kind": "train", "step": 8, "epoch": 2, "lr": 0.0, "loss": 2.0, "original": 1.5, "mixed": 0.5, "lam": 0.6,
     "images_per_s": 50.0, "time": 8.0, "time_data": 1.0, "time_forward": 5.0},
]  # fmt: skip
SCORES = [
    {"kind": "eval", "step": 4, "epoch": 1, "knn_z": 30.0, "knn_h": 50.0, "time_evaluation": 1.0},
    {"kind": "eval", "step": 8, "epoch": 2, "knn_z": 40.0, "knn_h": 45.0, "time_evaluation": 1.0},
]
BASELINES = [
    {"kind": "baseline", "name": "raw pixels", "knn_h": 48.0},
    {"kind": "baseline", "name": "untrained", "knn_z": 20.0, "knn_h": 21.5},
]
RECORDS: list[dict[str, Any]] = [*BASELINES, *TRAIN, *SCORES, *EPOCHS]


def test_row_of_a_run() -> None:
    row = records.result("approach1", RECORDS)
    assert row.last == {"knn_z": 40.0, "knn_h": 45.0} and row.best == {"knn_z": 40.0, "knn_h": 50.0}
    assert (row.epochs, row.seconds) == (2, 8.0)
    assert row.images_per_s == pytest.approx((100 * 2 + 50 * 6) / 8)
    assert records.result("nothing", []).last == {}


def test_table_and_verdict_name_winners_and_losers() -> None:
    mine, other = records.result("approach1", RECORDS), records.result("moco", [*TRAIN, *SCORES[:1]])
    lines = report.table([mine, other], BASELINES).splitlines()
    assert lines[2] == "| raw pixels | - | 48.0 | | | | | |"
    assert lines[4] == "| approach1 | 40.0 | 45.0 | 40.0 | 50.0 | 2 | 0:08 | 62 |"
    plain = report.aligned([mine, other], BASELINES).splitlines()
    assert plain[0].split("   ")[-1] == "images/s" and plain[3].split() == lines[4].replace("|", " ").split()
    assert "|" not in "".join(plain) and len({len(line) for line in plain}) == 1
    sentences = report.verdict([mine, other], BASELINES)
    assert "approach1 is 3.0 points below raw pixels" in sentences
    assert "approach1 is 23.5 points above untrained" in sentences
    assert "approach1 is 5.0 points below moco at equal encoder cost" in sentences
    same = {"name": "itself", "knn_h": 45.0}
    assert report.verdict([mine], [same]) == "approach1 is level with itself (kNN on h, one seed)."
    assert report.verdict([records.result("x", TRAIN)], []) == "Without labels there is no score."


def test_time_by_part_sums_every_record() -> None:
    assert records.time_by_part(RECORDS) == {"data": 1.5, "forward": 6.5, "evaluation": 2.0}


def test_terms_are_what_is_neither_sum_nor_fact() -> None:
    assert plots.term_names(TRAIN) == plots.term_names(EPOCHS) == ["original", "mixed"]
    assert plots.term_names([]) == []


def test_loss_curves_are_the_means_of_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def remember(width: float, height: float, rows: int = 1, columns: int = 1) -> Any:
        page = Figure(figsize=(width, height))
        axes = page.subplots(rows, columns, squeeze=False)
        drawn.append(axes[0][0])
        return page, axes

    monkeypatch.setattr(plots, "figure", remember)
    plots.loss_curve(tmp_path / "loss.png", {"approach1": RECORDS}, chance=8.3)
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn[0].get_lines()}
    expected = {
        "original": [2.0, 1.4],
        "mixed": [2.0, 1.0],
        "weighted mean": [2.0, 1.25],
        "chance level: 8.30": [8.3, 8.3],
    }
    assert lines == expected
    assert list(drawn[0].get_lines()[0].get_xdata()) == [1, 2]


def test_curves_are_drawn(tmp_path: Path) -> None:
    runs = {"approach1": RECORDS, "moco": [*TRAIN, *SCORES]}
    plots.loss_curve(tmp_path / "loss.png", runs, chance=8.3)
    plots.knn_curve(tmp_path / "knn.png", runs, BASELINES)
    plots.time_by_part(tmp_path / "time.png", {name: records.time_by_part(rows) for name, rows in runs.items()})
    for name in ("loss", "knn", "time"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 400 and len(picture.convert("L").getcolors() or []) > 10


@pytest.mark.parametrize("single", [True, False])
def test_grid_shows_views_at_their_place_with_boxes(single: bool, tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    green = torch.tensor([-1.0, 1.0, -1.0]).view(1, 3, 1, 1).expand(2, 3, 8, 8)  # normalised by mean 0.5, std 0.5
    boxes = torch.tensor([[[2, 2, 6, 6], [0, 0, 3, 3]]] * 2)  # two of each image
    views = {"mixed": green, "boxes_mixed": boxes[:, 0] if single else boxes, "lam": torch.ones(2)}
    plots.view_grid(tmp_path / "views.png", images, views, (0.5,) * 3, (0.5,) * 3)
    with Image.open(tmp_path / "views.png") as picture:
        width, height = picture.size
        pixels = picture.convert("RGB")
        colours = {colour: count for count, colour in pixels.getcolors(width * height)}
        assert pixels.getpixel((width // 4, height // 2 - 20)) == (0, 0, 0)  # the source
        assert pixels.getpixel((3 * width // 4, height // 4 + 8)) == (0, 255, 0)  # the view, inside its box
    vermilion, sky_blue = (0xD5, 0x5E, 0x00), (0x56, 0xB4, 0xE9)
    assert colours.get(vermilion, 0) > 50  # the boxes
    assert (colours.get(sky_blue, 0) > 50) != single
