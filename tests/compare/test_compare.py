"""The comparison of runs: its numbers by hand from the metrics, its tables, its pictures, and what it refuses."""

import json
import math
import shutil
import signal
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from mixfast.compare import attention, curves, tables
from mixfast.compare.__main__ import main
from mixfast.compare.gather import Group, Section, gather
from mixfast.compare.page import Chapter, page
from mixfast.compare.statistics import variants
from mixfast.compare.tables import table_1
from mixfast.errors import ConfigError
from mixfast.run.failure import USER_CODE
from mixfast.scoring.paired import difference, spread
from mixfast.train.__main__ import main as train
from tests.compare.recorded_runs import detected, finished_run
from tests.tiny_run import records, train_in_child, words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command_settings")]

RUNS = (("a0", "moco", 0), ("a1", "moco", 1), ("b0", "approach1", 0), ("b1", "approach1", 1), ("c1", "simclr", 1))
QUICK = ("--localise", "none", "--maps", "0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders a0, a1 (moco), b0, b1 (approach1), c1 (simclr) by seed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, method, seed in RUNS:
        changes = {"model__head": "mlp"} if method == "simclr" else {}
        options = {"train__epochs": 2, "eval__every": 1, "eval__diagnostics": (), "seed": seed, **changes}
        assert train(words(folder / name, method, **options)) == 0
    return folder


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
    assert cells[1:3] == ["`approach1`", "90.15"] and cells[7] == "2"
    for cell, key, pick in zip(cells[3:7], ["knn_z", "knn_h"] * 2, ["last", "last", "max", "max"], strict=True):
        ours = [max(r[key] for r in one) if pick == "max" else one[-1][key] for one in (first, second)]
        mean = (ours[0] + ours[1]) / 2
        deviation = math.sqrt((ours[0] - mean) ** 2 + (ours[1] - mean) ** 2)
        assert cell == f"{mean:.1f} ± {deviation:.1f}", (key, pick)
    lonely = evaluations(runs / "c1")[-1]
    assert row_of(text, "SimCLR")[3:5] == [f"{lonely[key]:.1f}" for key in ("knn_z", "knn_h")]
    assert "\n| BYOL |" not in text  # not run
    pixels = [record["knn_h"] for name in ("a0", "a1") for record in records(runs / name) if record["step"] == 0][::2]
    assert row_of(text, "raw pixels")[3:5] == ["-", f"{sum(pixels) / 2:.1f} ± {statistics.stdev(pixels):.1f}"]
    places = [text.index(f"\n| {row} |") for row in ("SimCLR", "MoCo", "Approach 1")]
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
    assert gap is not None and gap.n == 3 and gap.mean == 2
    half = 4.303 / math.sqrt(3)
    assert (gap.low, gap.high) == pytest.approx((2 - half, 2 + half))
    alone = difference({0: 1.0}, {0: 3.0})
    assert alone is not None and (alone.mean, alone.low, alone.high, alone.n) == (-2.0, None, None, 1)


@pytest.mark.parametrize("pairs", [2, 3, 5, 12, 31])
def test_intervals_hold_95_percent_of_students_t(pairs: int) -> None:
    """The density of Student's t, integrated over the interval in units of the standard error, is 0.95."""
    gap = difference({seed: float(seed % 2) for seed in range(pairs)}, dict.fromkeys(range(pairs), 0.0))
    assert gap is not None and gap.high is not None
    error = statistics.stdev(seed % 2 for seed in range(pairs)) / math.sqrt(pairs)
    limit, degrees, steps = (gap.high - gap.mean) / error, pairs - 1, 20000
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    middles = ((step + 0.5) * limit / steps for step in range(steps))
    density = (scale * (1 + t * t / degrees) ** (-(degrees + 1) / 2) for t in middles)
    assert 2 * sum(density) * limit / steps == pytest.approx(0.95, abs=1e-4)  # the table has three decimals


def test_costs_are_relative_to_moco(report: Path) -> None:
    """moco: 3 + 1 passes; Approach 1: twice that; SimCLR: 2 trained passes, 6 of 4."""
    text = (report / "report.md").read_text()
    cells = {name: row_of(text[text.index("### Cost") :], f"`{name}`") for name in ("moco", "approach1", "simclr")}
    assert [row[1:4] for row in cells.values()] == [["2", "1.00", "2"], ["2", "2.00", "4"], ["2", "1.50", "3"]]


def test_methods_stand_beside_moco_of_as_many_steps(tmp_path: Path) -> None:
    """MoCo was trained for 6 and for 3 epochs; Approach 1 for 3, BYOL for 2."""
    runs = [
        ("moco", 6, (60.0, 64.0)),
        ("moco", 3, (50.0, 54.0)),
        ("approach1", 3, (49.0, 51.0)),
        ("byol", 2, (30.0, 30.0)),
    ]
    folders = [
        finished_run(tmp_path / f"{method}{epochs}{seed}", method, seed, score, epochs)
        for method, epochs, both in runs
        for seed, score in enumerate(both)
    ]
    (section,) = gather(folders)
    text = tables.equal_steps(section)
    half = 12.706 * math.sqrt(2) / math.sqrt(2)  # differences -1 and -3; t of one degree of freedom
    shown = ["12", "50.0 ± 1.4", "`moco epochs=3`", "52.0 ± 2.8", "-2.0", f"{-2 - half:+.1f} to {-2 + half:+.1f}", "2"]
    assert row_of(text, "`approach1`")[1:] == shown
    assert row_of(text, "`byol`")[1:] == ["8", "30.0 ± 0.0", "-", "-", "-", "-", "-"]
    assert len(text.splitlines()) == 4
    assert section.table_1_groups()["moco"].name == "moco epochs=6", "the longer run is the baseline at equal cost"
    assert "### Equal steps" in page([Chapter(section)]) and not tables.equal_steps(gather(folders[:4])[0])
    assert page([Chapter(gather(folders[:4])[0])]).count("| minus `moco epochs=6` |") == 1, "one table, if all are MoCo"


def test_report_is_whole_and_names_no_place(runs: Path, report: Path) -> None:
    text = (report / "report.md").read_text()
    pictures = {"scenes-knn.png", "scenes-loss.png", "scenes-localisation.png", "scenes-maps.png"}
    vectors = {"scenes-knn.svg", "scenes-loss.svg"}
    assert {path.name for path in report.iterdir()} == pictures | vectors | {"report.md", "results.json"}
    for name in pictures:
        assert f"]({name})" in text
        with Image.open(report / name) as picture:
            assert picture.width > 400 and len(picture.convert("L").getcolors() or []) > 30
    assert "for CIFAR-10, ResNet-18, batch 512, 1000 epochs" in text, "the paper's column says its setting"
    assert "| `approach1` | local global |" in text and "1.538" in text  # 1 / (64 + 1), in percent
    assert "python -m mixfast.train --out a0 demo --method moco" in text
    for content in (text, (report / "results.json").read_text()):
        assert str(runs) not in content and str(report.parent) not in content
    scores = json.loads((report / "results.json").read_text())["sections"][0]["localise"]
    assert scores["settings"]["images"] == 12 and len(scores["runs"]) == 5
    margins = text[text.index("| minus untrained |") :]
    for row in (row for row in scores["rows"] if row["role"] == "run"):
        margin = row["above_untrained"]["corloc"]
        cells = [f"`{row['name']}`", f"{margin['mean']:+.1f}", f"{margin['low']:+.1f} to {margin['high']:+.1f}"]
        assert row_of(margins, cells[0]) == cells
    assert not list(runs.glob("*/evaluations.jsonl")), "a comparison changes no run"


@pytest.mark.usefixtures("undrawn")
def test_corloc_of_this_comparison_stands_beside_detection(runs: Path, tmp_path: Path) -> None:
    folders = copied(runs, tmp_path, "a0", "a1", "b1")
    for folder, seed in zip(folders, (0, 1, 1), strict=True):
        detected(folder, [seed], 10.0 + seed, epoch=2)
    few = ("--count", "12", "--validation", "10", "--maps", "0", "--threads", "1")
    assert main([*map(str, folders), "--out", str(tmp_path / "out"), *few]) == 0
    (section,) = json.loads((tmp_path / "out" / "results.json").read_text())["sections"]
    rows = {row["name"]: row["scores"]["corloc"]["values"] for row in section["localise"]["rows"]}
    shown = section["detection"]["protocols"][0]["rows"]
    assert shown["moco"]["corloc"]["values"] == dict(zip("01", rows["moco"], strict=True))
    assert shown["approach1"]["corloc"]["values"] == {"1": rows["approach1"][0]}
    assert shown["untrained"]["corloc"]["values"] == dict(zip("01", rows["untrained"], strict=True))
    assert "CorLoc: of attention maps on 12 images (scenes)." in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("second", "names"), [(1.0, ["untrained", ""]), (2.0, ["untrained, as `a`, `c`", "untrained, as `b`"])]
)
def test_untrained_networks_that_score_alike_are_one_row(second: float, names: list[str]) -> None:
    runs: Any = [
        SimpleNamespace(name=name, start=model) for name, model in (("a", "linear"), ("b", "mlp"), ("c", "linear"))
    ]
    rows = [SimpleNamespace(name=name, role="untrained") for name in ("first", "second")]
    result: Any = SimpleNamespace(rows=rows, scores={"first": {"corloc": 1.0}, "second": {"corloc": second}})
    assert attention.untrained_names(runs, result) == dict(zip(("first", "second"), names, strict=True))


def test_corloc_of_the_first_of_several_untrained_networks() -> None:
    """Runs of one architecture that began with other weights have untrained networks of their own."""
    runs: Any = [
        SimpleNamespace(name=name, start=start, setup=SimpleNamespace(config=SimpleNamespace(seed=seed)))
        for name, start, seed in (("a", "drawn", 0), ("a", "drawn", 1), ("b", "file", 0))
    ]
    rows = [
        SimpleNamespace(name=name, role=role) for name, role in (("a", "run"), ("b", "run"), ("old 1", "untrained"))
    ]
    scores = {"a": [1.0, 2.0], "b": [3.0], "old 1": [4.0, 5.0]}
    result: Any = SimpleNamespace(rows=rows, scores={name: {"corloc": {"values": v}} for name, v in scores.items()})
    assert attention.corloc(runs, result) == {"untrained": {0: 4.0, 1: 5.0}, "a": {0: 1.0, 1: 2.0}, "b": {0: 3.0}}


@pytest.mark.usefixtures("undrawn")
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
    assert row_of(text, "MoCo")[3] == "*unfinished*" and "### Differences" not in text
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
    assert found[0].table_1_groups()["approach1"].name == "approach1 box_mode=independent"
    rows = table_1(found[0])
    assert "| Approach 1 | `approach1 box_mode=independent` | 90.15 |" in rows
    assert "| Approach 1, variant | `approach1 box_mode=shared` |  |" in rows
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


def test_variants_of_a_method_are_compared_with_the_one_nearest_to_its_defaults(runs: Path, tmp_path: Path) -> None:
    shared = copied(runs, tmp_path, "b0", "b1")
    for folder in shared:
        config = json.loads((folder / "config.json").read_text())
        config["values"]["method"] |= {"box_mode": "shared"}
        (folder / "config.json").write_text(json.dumps(config))
    (section,) = gather([*shared, runs / "b0", runs / "b1"])
    plain, other = (f"approach1 box_mode={mode}" for mode in ("independent", "shared"))
    ((base, groups),) = variants(_scored(section, {plain: [40.0, 44.0], other: [43.0, 46.0]}))
    assert base.name == plain and [group.name for group in groups] == [other, plain], "best first"
    half = 12.706 * 0.5  # of the differences 3 and 2: deviation sqrt(1/2) over sqrt(2)
    row = [f"`{other}`", "+2.5", f"{2.5 - half:+.1f} to {2.5 + half:+.1f}"]
    assert row_of(tables.difference_table(base, groups), row[0])[:3] == row
    assert tables.difference_table(base, [base]) == ""


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


@pytest.mark.usefixtures("undrawn")
def test_markdown_elsewhere_links_to_the_folder(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    arguments = [str(runs / "a0"), "--out", str(tmp_path / "docs" / "results"), "--page", str(page), *QUICK]
    assert main(arguments) == 0
    assert "](results/scenes-knn.png)" in page.read_text()
    assert {path.name for path in page.parent.iterdir()} == {"results", "results.md"}
    assert not (page.parent / "results" / "report.md").exists()
    assert main(arguments) == 2 and main([*arguments, "--overwrite"]) == 0


@pytest.mark.usefixtures("undrawn")
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
        ([runs / "a0", "--out", foreign, "--overwrite"], 2, "is not a report of this command, so it is not replaced"),
        ([runs / "a0", "--overwrite"], 2, "--overwrite needs --out"),
        ([runs], 4, f"holds {len(list(runs.iterdir()))} runs; name those that you mean: {runs / 'a0'}"),
        ([runs / "a0", "--count", "0"], 2, "--count must be at least 1; got 0"),
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


@pytest.mark.usefixtures("undrawn")
def test_reports_are_numbered_and_replaced_only_when_asked(runs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert main([str(runs / "a0"), *QUICK]) == 0
        assert (tmp_path / "runs" / f"comparison-000{number}" / "report.md").is_file()
    again = [str(runs / "a1"), "--out", "runs/comparison-0002", *QUICK]
    assert main(again) == 2 and main([*again, "--overwrite"]) == 0
    assert "`moco`: 1" in (tmp_path / "runs/comparison-0002/report.md").read_text()
    monkeypatch.setattr("mixfast.compare.build.page", lambda *_: 1 / 0)
    assert main([str(runs / "a0"), *QUICK]) == USER_CODE  # which a test counts as
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["comparison-0001", "comparison-0002"]


@pytest.mark.usefixtures("undrawn")
def test_two_at_once_take_two_numbers(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins and ends while the first is at work."""
    monkeypatch.chdir(tmp_path)
    draw, begun = curves.losses, []

    def draw_and_compare(*arguments: Any) -> None:
        if not begun:
            begun.append(True)
            assert main([str(runs / "a1"), *QUICK]) == 0
        draw(*arguments)

    monkeypatch.setattr("mixfast.compare.build.curves.losses", draw_and_compare)
    assert main([str(runs / "a0"), *QUICK]) == 0
    reports = sorted((tmp_path / "runs").iterdir())
    assert [report.name for report in reports] == ["comparison-0001", "comparison-0002"]
    commands = [json.loads((report / "results.json").read_text())["words"][0] for report in reports]
    assert sorted(commands) == ["a0", "a1"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_one_leaves_nothing_beside_out(number: int, code: int, runs: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "place").mkdir()
    (tmp_path / "temporary").mkdir()
    command = [str(runs / "a0"), "--out", str(tmp_path / "place" / "out"), *QUICK]
    at, temporary = "mixfast.compare.curves:losses", str(tmp_path / "temporary")
    ended = train_in_child(command, log, [number], where=at, program="compare", TMPDIR=temporary)
    assert ended == code, log.read_text()
    assert not list((tmp_path / "place").iterdir())
    assert bool(list((tmp_path / "temporary").iterdir())) == (number == signal.SIGKILL)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1, 2]", b'"x', b"{}", b'2026  python "x'], ids=str)
@pytest.mark.usefixtures("undrawn")
def test_damaged_side_files_are_done_without(content: bytes, runs: Path, tmp_path: Path) -> None:
    """Another file of each run."""
    folders = copied(runs, tmp_path, "a0", "a1", "b0")
    for folder, name in zip(folders, ("status.json", "env.json", "command.txt"), strict=True):
        (folder / name).write_bytes(content)
    assert main([*map(str, folders), "--out", str(tmp_path / "out"), *QUICK]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert (row_of(text, "MoCo")[7], row_of(text, "Approach 1")[7]) == ("2", "1")


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"kind": "train", "step": 1, "epoch": 0}', '{"kind": "eval"}'])
def test_damaged_metrics_are_named(line: str, runs: Path, tmp_path: Path, capsys: Any) -> None:
    (folder,) = copied(runs, tmp_path, "a0")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    number = len((folder / "metrics.jsonl").read_text().splitlines())
    assert main([str(folder), "--out", str(tmp_path / "out"), *QUICK]) == 4
    assert f"metrics.jsonl, line {number}: " in capsys.readouterr().err
