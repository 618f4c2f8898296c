"""What the first run ends with: its table by hand, what it says, and a run that is finished whatever happens to it."""

import json
import os
import shutil
import signal
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixfast.evaluate.detect import SIZES as SIZES_OF_DETECTION
from mixfast.train import transfer
from mixfast.train.__main__ import main
from mixfast.train.transfer import Gap, verdict
from tests.tiny_run import records, words

pytestmark = pytest.mark.slow
SIZES = {"LOCALISED": 12, "CHOSEN_ON": 8, "SEEDS": (0, 1)}
TITLE = "## What the networks are worth for detection"


@pytest.fixture(scope="module", autouse=True)
def small(command_settings: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SIZES.items():
            patch.setattr(transfer, name, value)
        patch.setitem(SIZES_OF_DETECTION, True, (8, 2, 6))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of approach1 with moco beside it."""
    pytest.importorskip("torchvision")
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(words(out, compare=["moco"], train__epochs=1, optim__cosine_origin=0)) == 0
    return out


def section(run: Path) -> str:
    return (run / "report.md").read_text().partition(TITLE)[2]


def measured(run: Path, name: str) -> dict[str, Any]:
    """The rows of a table by name, without what depends on the clock."""
    rows = json.loads((run / "transfer" / f"{name}.json").read_text())["rows"]
    for row in rows:
        for seed in row.get("seeds", {}).values():
            seed.pop("seconds")
    return {row["name"]: row for row in rows}


def test_table_and_sentences_by_hand(finished: Path) -> None:
    text, detected, located = section(finished), measured(finished, "detect"), measured(finished, "localise")
    knn = {line["name"]: line["knn_h"] for line in records(finished) if line["kind"] == "baseline"}
    for name, folder in (("approach1", finished), ("moco", finished / "compare" / "moco")):
        knn[name] = [line for line in records(folder) if line["kind"] == "eval"][-1]["knn_h"]
    ap = {name: [row["seeds"][seed]["scores"]["ap"] for seed in "01"] for name, row in detected.items()}
    for name in ("untrained", "approach1", "moco"):
        cells = next(line for line in text.splitlines() if line.startswith(f"| {name} |")).split("|")[2:-1]
        corloc = located[name]["scores"]["corloc"]
        assert cells[0].strip() == f"{knn[name]:.1f}"
        assert cells[1].strip() == f"{statistics.fmean(ap[name]):.1f} ± {statistics.stdev(ap[name]):.1f}"
        assert cells[3].strip() == f"{corloc['mean']:.1f} ({corloc['low']:.0f}-{corloc['high']:.0f})"
    sentence = next(line for line in text.splitlines() if line.startswith("- Against moco at equal encoder cost, "))
    assert f"kNN on h {knn['approach1'] - knn['moco']:+.1f} (no interval)" in sentence
    gap = located["approach1"]["scores"]["corloc"]["mean"] - located["moco"]["scores"]["corloc"]["mean"]
    assert f"CorLoc {gap:+.1f} (" in sentence
    above = located["approach1"]["above_untrained"]["corloc"]
    assert f"CorLoc {above['mean']:+.1f} ({above['low']:+.1f} to {above['high']:+.1f})" in text
    for name in ("detect", "maps", "localise"):
        assert f"(transfer/{name}.png)" in text and (finished / "transfer" / f"{name}.png").stat().st_size > 5_000
    log = (finished / "log.txt").read_text()
    assert "[6/6] untrained, seed 1: AP" in log and sentence.removeprefix("- ") in log
    commands = [json.loads(line)["command"] for line in (finished / "evaluations.jsonl").read_text().splitlines()]
    assert commands == ["localise", "detect"]


def test_verdict_by_hand() -> None:
    found = [Gap("kNN on h", -20.0, None, None), Gap("AP", 2.0, -1.0, 5.0), Gap("CorLoc", 19.0, 12.0, 26.0)]
    assert verdict(found) == (
        "gains CorLoc +19.0 (+12.0 to +26.0); loses kNN on h -20.0 (no interval); "
        "shows no significant difference in AP +2.0 (-1.0 to +5.0)"
    )


def test_a_stop_leaves_a_finished_run_and_the_rest_has_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "transfer")
    with monkeypatch.context() as patch:
        patch.setattr("mixfast.train.transfer.detect.evaluate", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert main(["--resume", str(run)]) == 130
    error, status = capsys.readouterr().err, json.loads((run / "status.json").read_text())
    assert error == (
        f"stopped by SIGINT\nthe run is finished; what its report lacks is made by: "
        f"python -m mixfast.train --resume {run}\n"
    )
    assert (status["state"], status["exit_code"]) == ("finished", 0)
    assert "## Result" in (run / "report.md").read_text() and not section(run)
    assert main(["--resume", str(run)]) == 0
    for name in ("detect", "localise"):
        assert measured(run, name) == measured(finished, name)
    assert section(run) == section(finished)


def test_without_torchvision_the_report_says_so(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setitem(sys.modules, "torchvision.models.detection", None)
    assert main(["--resume", str(run)]) == 0
    text = section(run)
    assert "|  | kNN on h | CorLoc |" in text and "any class" not in text and "detect.png" not in text
    assert "pip install torchvision Then: python -m mixfast.train --resume" in text
    assert "AP is missing: " in capsys.readouterr().out


def test_scripts_leave_it_out(finished: Path, tmp_path: Path) -> None:
    for number, more in enumerate((["--eval.no-baselines"], ["--compare", "none"])):
        run = shutil.copytree(finished, tmp_path / f"run{number}")
        assert main(["--resume", str(run), *more]) == 0
        assert not section(run)
