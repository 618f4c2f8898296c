"""Means against plain sums, and files against what was written."""

import csv
from pathlib import Path

import pytest
import torch

from mixfast.run.log import Meter, Metrics


def test_meter_averages_and_starts_again() -> None:
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        meter.add({"loss": torch.tensor(value, requires_grad=True), "half": torch.tensor(value, dtype=torch.bfloat16)})
    assert meter.means() == {"loss": 3.0, "half": 3.0}
    assert meter.means() == {}
    meter.add({"loss": torch.tensor(5.0)})
    assert meter.means() == {"loss": 5.0}


def test_meter_averages_over_an_epoch_of_several_records() -> None:
    meter = Meter()
    assert meter.epoch_means() == {}
    for record in ((1.0, 2.0, 6.0), (11.0,)):
        for value in record:
            meter.add({"loss": torch.tensor(value)})
        meter.means()
    assert meter.epoch_means() == {"loss": 5.0}  # 20 / 4, not the mean of 3 and 11
    meter.add({"loss": torch.tensor(7.0)})
    meter.means()
    assert meter.epoch_means() == {"loss": 7.0}


def test_meter_continues_from_a_saved_state(rng: torch.Generator) -> None:
    values = torch.rand(9, generator=rng)
    whole, first, second = Meter(), Meter(), Meter()
    for index, value in enumerate(values):
        whole.add({"loss": value})
        if index < 5:
            first.add({"loss": value})
        if index == 2:  # a record, after which the epoch goes on
            assert whole.means() == first.means()
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    for value in values[5:]:
        second.add({"loss": value})
    assert second.means() == whole.means()
    assert second.epoch_means() == whole.epoch_means() == pytest.approx({"loss": values.double().mean().item()})


def test_metrics_truncate_to_a_position_and_keep_order(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    assert metrics.read() == [] and metrics.position() == 0
    metrics.write({"kind": "train", "step": 1, "loss": 0.1})
    position = metrics.position()
    metrics.write({"kind": "eval", "step": 1, "knn_z": 20.0})
    metrics.truncate(position)
    metrics.write({"kind": "train", "step": 2, "loss": 1 / 3})
    assert metrics.read() == [
        {"kind": "train", "step": 1, "loss": 0.1},
        {"kind": "train", "step": 2, "loss": 1 / 3},
    ]


def test_csv_holds_every_field_of_every_record(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.write({"kind": "train", "step": 1, "loss": 0.5})
    metrics.write({"kind": "eval", "step": 1, "knn_z": 20.0})
    metrics.write_csv()
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"kind": "train", "step": "1", "loss": "0.5", "knn_z": ""},
        {"kind": "eval", "step": "1", "loss": "", "knn_z": "20.0"},
    ]
