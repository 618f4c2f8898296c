"""The comparison's detection tables: by hand from recorded lines, one for each protocol, and what is left out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mixfast.compare.__main__ import main
from mixfast.compare.statistics import kendall, spearman
from tests.compare.recorded_runs import append, detected, finished_run, record

pytestmark = pytest.mark.usefixtures("undrawn")
KNN = {"moco": (60.0, 64.0), "approach1": (50.0, 58.0), "simclr": (52.0, 40.0)}
AP = {"moco": (30.0, 33.0), "approach1": (20.0, 21.0), "simclr": (31.0, 36.0)}
CORLOC = {"moco": (70.0, 72.0), "approach1": (80.0, 84.0), "simclr": (60.0, 62.0)}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Finished runs, moco0 to simclr1, nothing recorded."""
    place = tmp_path / "runs"
    place.mkdir()
    return {
        f"{method}{seed}": finished_run(place / f"{method}{seed}", method, seed, knn)
        for method, scores in KNN.items()
        for seed, knn in enumerate(scores)
    }


@pytest.fixture
def scored(runs: dict[str, Path]) -> dict[str, Path]:
    """The same with frozen, fine-tuned and CorLoc lines."""
    for name, run in runs.items():
        method, seed = name[:-1], int(name[-1])
        detected(run, [seed], AP[method][seed])
        detected(run, [seed], AP[method][seed] + 4, finetune=True)
        corloc = {"mine": {"corloc": {"mean": CORLOC[method][seed]}}, "untrained": {"corloc": {"mean": 50.0}}}
        record(run, "localise", {"data": "scenes", "images": 1000}, corloc)
    return runs


def report(runs: dict[str, Path], out: Path, *more: str) -> tuple[str, dict[str, Any]]:
    """The page and the numbers of the only section."""
    words = [*map(str, runs.values()), "--out", str(out), "--localise", "none", "--maps", "0", *more]
    assert main(words) == 0
    (section,) = json.loads((out / "results.json").read_text())["sections"]
    return (out / "report.md").read_text(), section


def rows_of(text: str, title: str) -> list[list[str]]:
    """The cells of the first table after a title, without its head."""
    lines = text[text.index(title) :].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in _until_gap(lines[first + 2 :])]


def _until_gap(lines: list[str]) -> list[str]:
    return lines[: lines.index("")]


def test_tables_by_hand(scored: dict[str, Path], tmp_path: Path) -> None:
    text, section = report(scored, tmp_path / "out")
    assert rows_of(text, "#### scenes, fcos, frozen") == [
        ["`simclr`", "33.5 ± 3.5", "67.0 ± 7.1", "43.5 ± 3.5", "61.0 ± 1.4", "46.0 ± 8.5", "2"],
        ["`moco`", "31.5 ± 2.1", "63.0 ± 4.2", "41.5 ± 2.1", "71.0 ± 1.4", "62.0 ± 2.8", "2"],
        ["`approach1`", "20.5 ± 0.7", "41.0 ± 1.4", "30.5 ± 0.7", "82.0 ± 2.8", "54.0 ± 5.7", "2"],
        ["supervised", "40.0 ± 0.0", "80.0 ± 0.0", "50.0 ± 0.0", "-", "-", "2"],
        ["untrained", "5.0 ± 0.0", "10.0 ± 0.0", "15.0 ± 0.0", "50.0 ± 0.0", "20.0 ± 0.0", "2"],
    ]
    # simclr less moco: 1 and 3, so 2 with t of one degree of freedom, 12.706, times a standard error of 1.
    gaps = rows_of(text, "| minus `moco` | AP |")
    assert gaps[0] == ["`simclr`", "+2.0", "-10.7 to +14.7", "+2.0", "-10.7 to +14.7", "2"]
    assert [row[0] for row in gaps] == ["`simclr`", "`approach1`", "supervised", "untrained"]
    frozen, tuned = section["detection"]["protocols"]
    assert tuned["title"] == "scenes, fcos, fine-tuned" and tuned["rows"]["moco"]["ap"]["values"] == {"0": 34, "1": 37}
    assert frozen["base"] == "moco" and frozen["settings"]["seeds"] == "own"
    assert "Seed of the detector: that of the run's pre-training." in text
    assert "400 images, 400 steps of 8; scored on 300 images of 96 pixels with 1041 objects of 10 classes." in text


def test_rank_correlations_are_of_methods_without_baselines(scored: dict[str, Path], tmp_path: Path) -> None:
    text, section = report(scored, tmp_path / "out")
    found = {tuple(entry["pair"]): entry for entry in section["detection"]["protocols"][0]["rank_correlations"]}
    entry = found["knn_h", "ap"]
    assert (entry["runs"], entry["methods"]) == (6, 3)
    # kNN ranks of moco, approach1, simclr by seed: 5 6, 2 4, 3 1; of AP: 3 5, 1 2, 4 6. Squared differences sum to 36.
    assert entry["over_runs"]["spearman"] == pytest.approx(1 - 6 * 36 / (6 * 35))
    assert entry["over_methods"]["spearman"] == pytest.approx(-0.5)  # kNN 3 2 1, AP 2 1 3
    assert entry["over_methods"]["kendall"] == pytest.approx(-1 / 3)
    assert found["corloc", "ap"]["over_methods"] == {"spearman": -1.0, "kendall": -1.0}
    assert rows_of(text, "| AP of |") == [
        ["scenes, fcos, frozen and scenes, fcos, fine-tuned", "6", "+1.00", "+1.00", "3", "+1.00", "+1.00"]
    ]
    two = {name: run for name, run in scored.items() if "simclr" not in name}
    text, section = report(two, tmp_path / "two")
    assert "Spearman" not in text and not section["detection"]["protocols"][0]["rank_correlations"]


def test_rank_correlations_with_ties() -> None:
    first, second = [1.0, 2.0, 2.0, 3.0], [1.0, 3.0, 2.0, 4.0]
    assert spearman(first, second) == pytest.approx(4.5 / math.sqrt(4.5 * 5))  # ranks 1 2.5 2.5 4 and 1 3 2 4
    assert kendall(first, second) == pytest.approx(5 / math.sqrt(5 * 6))  # 5 pairs agree, 1 is tied in the first
    assert spearman([1.0, 1.0], [1.0, 2.0]) is None and kendall([1.0, 1.0], [1.0, 2.0]) is None


def test_protocols_are_never_mixed_up(runs: dict[str, Path], tmp_path: Path) -> None:
    detected(runs["moco0"], [0], 30.0)
    detected(runs["moco1"], [0, 1, 2], 31.0)  # the mean over seeds of the detector
    detected(runs["approach10"], [0], 20.0, steps=150, data="voc /data/somebody/VOC2007")
    detected(runs["simclr0"], [0], 25.0, torch="3", left_out={"boxes": 1})  # which makes no other protocol
    detected(runs["simclr1"], [1], 26.0, lr=0.002)
    text, section = report(runs, tmp_path / "out")
    found = {
        p["title"]: {row: s["ap"]["values"] for row, s in p["rows"].items()} for p in section["detection"]["protocols"]
    }
    baselines = {"supervised": {"0": 40.0}, "untrained": {"0": 5.0}}
    later = {"supervised": {"1": 40.0}, "untrained": {"1": 5.0}}
    assert found == {
        "scenes, fcos, frozen, lr 0.001, seeds own": {"simclr": {"0": 25.0}, "moco": {"0": 30.0}, **baselines},
        "scenes, fcos, frozen, lr 0.001, seeds 0 1 2": {"moco": {"1": 31.0}, **later},
        "scenes, fcos, frozen, lr 0.002, seeds own": {"simclr": {"1": 26.0}, **later},
        "voc VOC2007, fcos, frozen": {"approach1": {"0": 20.0}, **baselines},
    }
    assert "Seed of the detector: 0 1 2, the mean of them." in text and "somebody" not in text


def test_the_last_line_counts_and_what_cannot_count_is_counted(scored: dict[str, Path], tmp_path: Path) -> None:
    run, other = scored["moco0"], scored["moco1"]
    detected(run, [0], 32.0)
    detected(run, [0], 99.0, epoch=2)  # of a checkpoint before the last
    append(run, '[1]\n{"schema": 1, "command": "detect", "epoch": 3, "settings": {}, "scores": {"moco": {"ap": 9}}}\n')
    append(run, '{"schema": 1, "command": "det')  # stopped in the middle
    detected(other, [1], None)  # no test object counted
    twin = finished_run(other.parent / "byol", "byol", 0, 30.0)
    line = (run / "evaluations.jsonl").read_text().splitlines()[0]
    append(twin, line.replace("40.0", "41.0") + "\n")
    scored["byol"] = twin
    record(other, "knn", {}, {"k": {"h": 1.0}}, epoch=1)  # of no concern
    text, section = report(scored, tmp_path / "out")
    assert section["detection"]["protocols"][0]["rows"]["moco"]["ap"]["values"] == {"0": 32.0, "1": 33.0}
    notes = [
        "`moco0`: lines of evaluations.jsonl left out, damaged, or without a setting or an AP: 3.",
        "`moco0`: lines of evaluations.jsonl left out, of another epoch than 3: 1.",
        "`moco1`: lines of evaluations.jsonl left out, damaged, or without a setting or an AP: 1.",
        "1 runs have another detection score of supervised than the first run.",
    ]
    assert section["notes"] == notes and all(f"- {note}" in text for note in notes)


def test_without_lines_there_is_no_section(runs: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    record(runs["moco0"], "knn", {}, {"k": {"h": 1.0}})
    text, section = report(runs, tmp_path / "out")
    assert "### Detection" not in text and section["detection"] is None
    (runs["moco1"] / "evaluations.jsonl").mkdir()
    assert main([*map(str, runs.values()), "--out", str(tmp_path / "no"), "--localise", "none", "--maps", "0"]) == 4
    assert "evaluations.jsonl cannot be read: Is a directory. Move it away" in capsys.readouterr().err
