"""Precision: as asked for, the device's, or measured on a CPU; chosen once, written down, kept by a resumed run."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast.run import precision
from mixfast.run.precision import PassSeconds
from mixfast.train import cli
from mixfast.train.__main__ import main
from tests.tiny_run import assert_same, last_state, records, words

MEASURED = r"auto: the encoder takes \d+\.\d ms in fp32, \d+\.\d ms in bf16, forward and backward, for \d+ images"
CPU = torch.device("cpu")


def test_without_a_measurement() -> None:
    found = [precision.pick_precision(wanted, CPU) for wanted in ("auto", "fp32", "bf16")]
    assert found == ["fp32", "fp32", "bf16"]


@pytest.mark.parametrize(
    ("capabilities", "fp32", "chosen"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, 0.0231, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, 0.0231, "bf16"),
        ({"avx512_bf16": True, "amx_bf16": True}, 0.0229, "fp32"),  # 1.145 times as fast: too little
        ({"avx512_bf16": True}, 0.01, "fp32"),
    ],
)
def test_bf16_must_be_a_seventh_faster(capabilities: dict[str, bool], fp32: float, chosen: str) -> None:
    found, why = precision.choose_on_cpu(capabilities, lambda: PassSeconds(64, fp32, 0.02))
    times = f"{1000 * fp32:.1f} ms in fp32, 20.0 ms in bf16, forward and backward, for 64 images"
    assert (found, why) == (chosen, f"auto: the encoder takes {times}")


@pytest.mark.parametrize("capabilities", [{"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, {"neon": True}])
def test_other_processors_measure_nothing(capabilities: dict[str, bool]) -> None:
    found = precision.choose_on_cpu(capabilities, lambda: pytest.fail("measured"))
    assert found == ("fp32", "auto: the processor has neither AVX512-BF16 nor AMX")


@pytest.mark.parametrize(("seconds", "processes", "images"), [(1e6, 1, 16), (1e6, 2, 8), (0.0, 1, 4)])
def test_passes_have_the_batch_of_a_process_or_what_time_suffices_for(
    seconds: float, processes: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the least two images in each of the two groups of batch norm; torch's generator stays where it was."""
    monkeypatch.setattr(precision, "SECONDS", seconds)
    monkeypatch.setattr(precision, "MOST_ROUNDS", 2)
    before = torch.get_rng_state()
    found = precision.time_passes(cli.parse(words(Path("unused"), "moco")).config, processes)
    assert found.images == images and 0 < found.fp32 < 60 and 0 < found.bf16 < 60
    assert torch.equal(torch.get_rng_state(), before)


def start(out: Path, wanted: str, *more: str) -> int:
    sizes = {"train__epochs": 1, "data__scenes": 32, "eval__every": 0, "optim__schedule": "constant"}
    arguments = words(out, "moco", train__precision=wanted, **sizes)
    return main([*arguments, "--eval.no-baselines", *more])


@pytest.mark.slow
@pytest.mark.usefixtures("command_settings")
def test_the_measurement_moves_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(precision, "GAIN", math.inf)
    assert start(tmp_path / "pinned", "fp32") == 0
    assert "precision fp32 (command line)" in capsys.readouterr().out
    assert start(tmp_path / "measured", "auto") == 0
    assert re.search(rf"^precision fp32 \({MEASURED}\)$", capsys.readouterr().out, re.MULTILINE)
    assert_same(last_state(tmp_path / "measured"), last_state(tmp_path / "pinned"))  # with the configuration
    assert records(tmp_path / "measured") == records(tmp_path / "pinned")


@pytest.mark.slow
@pytest.mark.usefixtures("command_settings")
def test_a_resumed_run_keeps_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(precision, "GAIN", 0.0)
    assert start(out, "auto") == 0
    (line,) = re.findall(rf"^precision bf16 \({MEASURED}\)$", capsys.readouterr().out, re.MULTILINE)
    content = json.loads((out / "config.json").read_text())
    assert content["values"]["train"]["precision"] == "bf16"
    assert line == f"precision bf16 ({content['origins']['train.precision']})"
    assert last_state(out)["config"]["train.precision"] == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: pytest.fail("asked again"))
    assert main(["--resume", str(out), "--train.precision", "fp32"]) == 4
    assert "train.precision: saved 'bf16', wanted 'fp32'" in capsys.readouterr().err
    assert main(["--resume", str(out), "--train.epochs", "2"]) == 0
    assert line in capsys.readouterr().out.splitlines()
    assert last_state(out)["step"] == 4 and last_state(out)["config"]["train.precision"] == "bf16"
    assert "bf16 on cpu" in (out / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("command_settings")
def test_deterministic_runs_measure_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: pytest.fail("asked"))
    assert start(tmp_path / "run", "auto", "--train.deterministic") == 0
    assert "precision fp32 (auto: --train.deterministic depends on no measurement)" in capsys.readouterr().out


def test_the_first_run_is_in_fp32_everywhere() -> None:
    assert cli.parse([]).config.train.precision == "fp32" and cli.parse(["moco"]).config.train.precision == "auto"
