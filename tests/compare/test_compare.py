"""The comparison of runs: its numbers by hand from the metrics, its sentences, its pictures, and what it refuses."""

import json
import math
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from mixfast.compare import objects, tables, verdict
from mixfast.compare.__main__ import main
from mixfast.compare.gather import Group, Section, gather
from mixfast.compare.statistics import Difference, difference, spread
from mixfast.errors import ConfigError
from mixfast.train.__main__ import main as train
from tests.tiny_run import process_settings_kept, records, words

RUNS = (("a0", "moco", 0), ("a1", "moco", 1), ("b0", "approach1", 0), ("b1", "approach1", 1), ("c1", "simclr", 1))
QUICK = ("--localise", "none", "--maps", "0")


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    with process_settings_kept():
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders a0, a1 (moco), b0, b1 (approach1), c1 (simclr) by seed."""
    place = tmp_path_factory.mktemp("runs")
    for name, method, seed in RUNS:
        changes = {"model__head": "mlp"} if method == "simclr" else {}
        assert train(words(place / name, method, train__epochs=2, eval__every=1, seed=seed, **changes)) == 0
    return place


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole report of these runs."""
    out = tmp_path_factory.mktemp("report") / "out"
    few = ("--count", "12", "--validation", "10", "--maps", "3", "--threads", "1")
    assert main([*(str(runs / name) for name, *_ in RUNS), "--out", str(out), *few]) == 0
    return out


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [record for record in records(folder) if record["kind"] == "eval"]


def row_of(text: str, start: str) -> list[str]:
    """The cells of the first table row that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def copied(runs: Path, tmp_path: Path, *names: str) -> list[Path]:
    return [shutil.copytree(runs / name, tmp_path / name) for name in names]


def test_table_1_is_what_the_metrics_say(runs: Path, report: Path) -> None:
    text = (report / "report.md").read_text()
    first, second = (evaluations(runs / name) for name in ("b0", "b1"))
    cells = row_of(text, "Approach 1")
    assert cells[1:3] == ["`approach1`", "90.15 <sup>f</sup>"] and cells[7] == "2"
    for cell, key, pick in zip(cells[3:7], ["knn_z", "knn_h"] * 2, ["last", "last", "max", "max"], strict=True):
        ours = [max(r[key] for r in one) if pick == "max" else one[-1][key] for one in (first, second)]
        mean = (ours[0] + ours[1]) / 2
        deviation = math.sqrt((ours[0] - mean) ** 2 + (ours[1] - mean) ** 2)
        assert cell == f"{mean:.1f} ± {deviation:.1f}", (key, pick)
    lonely = evaluations(runs / "c1")[-1]
    assert row_of(text, "SimCLR")[3:5] == [f"{lonely[key]:.1f}" for key in ("knn_z", "knn_h")]
    assert row_of(text, "BYOL")[2:4] == ["94.20 <sup>b</sup>", "*not run*"]
    pixels = [record["knn_h"] for name in ("a0", "a1") for record in records(runs / name) if record["step"] == 0][::2]
    assert row_of(text, "raw pixels")[3:5] == ["-", f"{sum(pixels) / 2:.1f} ± {statistics.stdev(pixels):.1f}"]
    places = [text.index(f"\n| {row} |") for row in ("SimCLR", "BYOL", "MoCo", "MoCo + CutMix", "Approach 2")]
    assert places == sorted(places)


def test_differences_are_paired_over_the_seeds_in_common(runs: Path, report: Path) -> None:
    gaps = [evaluations(runs / f"b{s}")[-1]["knn_h"] - evaluations(runs / f"a{s}")[-1]["knn_h"] for s in (0, 1)]
    mean, half = sum(gaps) / 2, 12.706 * abs(gaps[0] - gaps[1]) / 2  # t of one degree of freedom
    found = json.loads((report / "results.json").read_text())["sections"][0]["above_moco"]["knn_h"]
    assert found["approach1"] == pytest.approx({"mean": mean, "low": mean - half, "high": mean + half, "n": 2})
    assert found["simclr"]["n"] == 1 and found["simclr"]["low"] is None


def test_intervals_by_hand() -> None:
    assert spread([]) is None and spread([2.0]) is not None and spread([2.0]).std is None  # type: ignore[union-attr]
    assert difference({0: 1.0}, {1: 1.0}) is None
    gap = difference({0: 5.0, 1: 6.0, 2: 10.0}, {2: 7.0, 1: 4.0, 0: 4.0, 5: 0.0})  # 1, 2, 3
    assert gap is not None and gap.clear is False and gap.n == 3 and gap.mean == 2
    half = 4.303 / math.sqrt(3)
    assert (gap.low, gap.high) == pytest.approx((2 - half, 2 + half))
    assert Difference(1.0, 0.5, 1.5, 3).clear and not Difference(1.0, None, None, 1).clear


def test_costs_are_relative_to_moco(report: Path) -> None:
    """moco: 3 + 1 passes; Approach 1: twice that; SimCLR: 2 trained passes, 6 of 4."""
    text = (report / "report.md").read_text()
    cells = {
        name: row_of(text[text.index("### What it cost") :], f"`{name}`") for name in ("moco", "approach1", "simclr")
    }
    assert [row[1:4] for row in cells.values()] == [["2", "1.00", "2"], ["2", "2.00", "4"], ["2", "1.50", "3"]]


def test_report_is_whole_and_names_no_place(runs: Path, report: Path) -> None:
    text = (report / "report.md").read_text()
    pictures = {"scenes-knn.png", "scenes-loss.png", "scenes-localisation.png", "scenes-maps.png"}
    assert {path.name for path in report.iterdir()} == pictures | {"report.md", "results.json"}
    for name in pictures:
        assert f"]({name})" in text
        with Image.open(report / name) as picture:
            assert picture.width > 400 and len(picture.convert("L").getcolors() or []) > 30
    assert "The paper's numbers are not comparable with ours" in text
    assert "| `approach1` | local global |" in text and "1.538" in text  # 1 / (64 + 1), in percent
    assert "python -m mixfast.train --out a0 --method moco" in text
    for content in (text, (report / "results.json").read_text()):
        assert str(runs) not in content and str(report.parent) not in content
    place = json.loads((report / "results.json").read_text())["sections"][0]["localise"]
    assert place["settings"]["images"] == 12 and len(place["runs"]) == 5
    assert not list(runs.glob("*/evaluations.jsonl")), "a comparison changes no run"


@pytest.mark.parametrize(
    ("second", "names"), [(1.0, ["untrained", ""]), (2.0, ["untrained, as `a`, `c`", "untrained, as `b`"])]
)
def test_untrained_networks_that_score_alike_are_one_row(second: float, names: list[str]) -> None:
    runs: Any = [
        SimpleNamespace(name=name, setup=SimpleNamespace(config=SimpleNamespace(model=model)))
        for name, model in (("a", "linear"), ("b", "mlp"), ("c", "linear"))
    ]
    rows = [SimpleNamespace(name=name, role="untrained") for name in ("first", "second")]
    result: Any = SimpleNamespace(rows=rows, scores={"first": {"corloc": 1.0}, "second": {"corloc": second}})
    assert objects.heads(runs, result) == dict(zip(("first", "second"), names, strict=True))


def test_unfinished_and_unlabelled_runs_are_said_to_be(runs: Path, tmp_path: Path) -> None:
    one, other = copied(runs, tmp_path, "a0", "b0")
    lines = (one / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("epoch") != 2]
    (one / "metrics.jsonl").write_text("".join(kept))
    (one / "status.json").write_text('{"state": "running"}')
    lines = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
    (other / "metrics.jsonl").write_text("".join(line for line in lines if '"knn_h"' not in line))
    shutil.rmtree(other / "checkpoints")
    out = tmp_path / "out"
    assert main([str(one), str(other), "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    assert "No finished run has scores" in text and row_of(text, "MoCo")[3] == "*unfinished*"
    assert (
        "`a0` is not finished (epoch 1 of 2)" in text and "No checkpoint, so neither maps nor localisation: b0" in text
    )
    assert row_of(text, "Approach 1")[3:5] == ["-", "-"] and "Attention maps" not in text


def test_other_data_or_networks_are_other_sections_and_variants_other_rows(runs: Path, tmp_path: Path) -> None:
    small, variant = copied(runs, tmp_path, "a0", "b0")
    for folder, section, values in ((small, "model", {"width": 16}), (variant, "method", {"box_mode": "shared"})):
        config = json.loads((folder / "config.json").read_text())
        config["values"][section] |= values
        (folder / "config.json").write_text(json.dumps(config))
    found = gather([runs / "a0", small, variant, runs / "b0"])
    assert [section.slug for section in found] == ["scenes", "scenes-2"]
    assert [group.name for group in found[0].groups] == [
        "moco", "approach1 box_mode=shared", "approach1 box_mode=independent",
    ]  # fmt: skip
    places = {published.method: group for published, group in verdict.rows(found[0]) if group}
    assert places["approach1"].name == "approach1 box_mode=independent"
    assert "width 16" in found[1].title


def test_images_of_a_folder_can_be_given_a_name(runs: Path, tmp_path: Path) -> None:
    folder, other = copied(runs, tmp_path, "a0", "a1")
    for place, path in ((folder, "data/train"), (other, "elsewhere/train")):
        config = json.loads((place / "config.json").read_text())
        config["values"]["data"] |= {"kind": "folder", "path": path}
        (place / "config.json").write_text(json.dumps(config))
    scenes, named = gather([runs / "a0", folder], "CIFAR-10 (JPEG q75)")
    assert named.title.startswith("CIFAR-10 (JPEG q75), ") and scenes.title.startswith("scenes, ")
    for paths, count in (([runs / "a0"], 0), ([folder, other], 2)):
        with pytest.raises(ConfigError, match=f"--folder-name 'mine' names .* these runs read {count} folders"):
            gather(paths, "mine")


def test_forms_of_a_method_stand_beside_the_one_nearest_to_its_defaults(runs: Path, tmp_path: Path) -> None:
    shared = copied(runs, tmp_path, "b0", "b1")
    for folder in shared:
        config = json.loads((folder / "config.json").read_text())
        config["values"]["method"] |= {"box_mode": "shared"}
        (folder / "config.json").write_text(json.dumps(config))
    (section,) = gather([*shared, runs / "b0", runs / "b1"])
    plain, other = (f"approach1 box_mode={mode}" for mode in ("independent", "shared"))
    ((base, forms),) = verdict.variants(_scored(section, {plain: [40.0, 44.0], other: [43.0, 46.0]}))
    assert base.name == plain and [group.name for group in forms] == [other, plain], "the others, best first"
    half = 12.706 * 0.5  # of the differences 3 and 2: deviation sqrt(1/2) over sqrt(2)
    row = [f"`{other}`", "+2.5", f"{2.5 - half:+.1f} to {2.5 + half:+.1f}"]
    assert row_of(tables.to_base(base, forms), row[0])[:3] == row
    assert tables.to_base(base, [base]) == ""


def _scored(section: Section, scores: dict[str, list[float]]) -> Section:
    """The section with other last scores on h, by group and seed."""
    groups = []
    for group in section.groups:
        members = []
        for member, score in zip(group.members, scores[group.name], strict=False):
            last = {"kind": "eval", "epoch": member.config.train.epochs, "knn_h": score, "knn_z": score}
            members.append(type(member)(member.folder, member.config, member.preset, [last]))
        groups.append(Group(group.name, group.recipe, members))
    return Section(section.title, section.slug, groups)


@pytest.mark.parametrize(
    ("approach", "sentence"),
    [
        ([30.0, 31.2], "Approach 1 **loses** to MoCo: -19.9 points (95 % interval -21.2 to -18.6, 2 seeds)"),
        ([70.0, 71.2], "Approach 1 is above MoCo: +20.1 points (95 % interval +18.8 to +21.4, 2 seeds)"),
        ([40.0, 61.0], "Approach 1 is not told apart from MoCo: +0.0 points (95 % interval -127.1 to +127.1, 2 seeds)"),
    ],
)
def test_verdict_claims_no_more_than_the_seeds_carry(approach: list[float], sentence: str, runs: Path) -> None:
    (section,) = gather([runs / name for name in ("a0", "a1", "b0", "b1")])
    said = "\n".join(verdict.verdict(_scored(section, {"moco": [50.0, 51.0], "approach1": approach})))
    assert sentence in said and "the paper claims +1.18" in said
    assert ("beyond the spread of the seeds" in said) == ("not told apart" not in sentence)


def test_verdict_of_one_seed_claims_nothing(runs: Path) -> None:
    (section,) = gather([runs / "a0", runs / "b0"])
    said = "\n".join(verdict.verdict(_scored(section, {"moco": [70.0], "approach1": [50.0]})))
    assert "+20.0 points (one seed: no interval), and one seed cannot say" in said
    assert "one seed only: `approach1` (-20.0)." in said and "Approach 1 against MoCo: -20.0 points (one seed" in said
    assert "loses" not in said and "beyond" not in said


def test_markdown_elsewhere_links_to_the_folder(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    arguments = [str(runs / "a0"), "--out", str(tmp_path / "docs" / "results"), "--page", str(page), *QUICK]
    assert main(arguments) == 0
    assert "](results/scenes-knn.png)" in page.read_text()
    assert {path.name for path in page.parent.iterdir()} == {"results", "results.md"}
    assert not (page.parent / "results" / "report.md").exists()
    assert main(arguments) == 2 and main([*arguments, "--overwrite"]) == 0


def test_refusals(runs: Path, tmp_path: Path, capsys: Any) -> None:
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "results.json").write_text("{}")
    out = tmp_path / "out"
    twin = shutil.copytree(runs / "a0", tmp_path / "twin")
    cases = [
        ([], 2, "give at least one RUN"),
        ([runs / "a0", twin], 2, "are the same run (moco, seed 0)"),
        ([tmp_path], 4, "is not the folder of a run"),
        ([runs / "a0", "--out", foreign, "--overwrite"], 2, "is no report of this command: not touched"),
        ([runs / "a0", "--overwrite"], 2, "--overwrite needs --out"),
        ([runs / "a0", "--count", "0"], 2, "--count and --validation must be at least 1"),
        ([runs / "a0", "--out", out, "--localise", "voc"], 2, "--localise"),
    ]
    for arguments, code, message in cases:
        assert main([*map(str, arguments), *(() if "--localise" in arguments else QUICK)]) == code, message
        assert message in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixfast.compare.build.page", None)
        assert main([str(runs / "a0"), "--out", str(out), *QUICK]) == 1
        assert "internal error: TypeError" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "twin"}, "nothing half-written stays"


def test_reports_are_numbered_and_replaced_only_when_asked(runs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert main([str(runs / "a0"), *QUICK]) == 0
        assert (tmp_path / "runs" / f"comparison-000{number}" / "report.md").is_file()
    again = [str(runs / "a1"), "--out", "runs/comparison-0002", *QUICK]
    assert main(again) == 2 and main([*again, "--overwrite"]) == 0
    assert "`moco`: 1" in (tmp_path / "runs/comparison-0002/report.md").read_text()
