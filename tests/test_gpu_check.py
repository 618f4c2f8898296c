"""scripts/gpu_check.sh: dry run, plan, what it keeps and resumes, limits, and processes that a broken kernel ends."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("gpu_check")


@pytest.fixture
def machine(check: ModuleType, tmp_path: Path) -> object:
    """One that runs in an empty folder, for a minute."""
    made = object.__new__(importlib.import_module("gpu_machine").Machine)
    made.out, made.work, made.source = (tmp_path / name for name in ("out", "work", "source"))
    for folder in (made.out, made.work, made.source):
        folder.mkdir()
    made.dry, made.digest, made.log, made.environment = False, "abc", made.out / "check.log", dict(os.environ)
    made.images = None
    made.deadline = check.time.monotonic() + 60
    return made


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["bash", "scripts/gpu_check.sh", str(out), "--dry-run"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    tables = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[-1] for row in tables if row[1].startswith("all, of")] == ["570", "200"]
    rows = {row[0]: row for row in tables[tables.index(["part", "result", "seconds", "note"]) + 1 :]}
    assert list(rows) == [
        *("build", "doctor", "kernels", "benchmarks", "training", "profile", "memcheck", "parity", "races", "summary")
    ]
    assert {row[1] for row in rows.values()} == {"passed"}
    assert int(rows["parity"][3].split()[0]) > 300  # tests would run
    assert "moco-graph-off" in rows["training"][3] and "images/s kNN" in rows["training"][3]
    records = [json.loads(line) for line in (out / "benchmarks.jsonl").read_text().splitlines()]
    measured = [record for record in records if record["kind"] == "row"]
    assert len(measured) > 150 and all(row["median_us"] > 0 for row in measured if not row.get("reason"))
    assert json.loads((out / "environment.json").read_text())["source"]
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        kept = set(archive.getnames())
    assert {"./parts.json", "./benchmarks.jsonl", "./training/moco-graph-off/metrics.jsonl", "./summary.md"} <= kept


def test_the_limits_of_the_parts_fit_in_the_calls(check: ModuleType) -> None:
    parts = check.gpu_parts.PARTS.values()
    assert all(0 < part.estimate <= part.limit for part in parts)
    for call, seconds in {1: 570, 2: 200}.items():
        assert sum(part.limit for part in parts if part.call in (0, call)) <= seconds


def test_finished_parts_are_kept_and_only_for_the_same_sources(check: ModuleType, machine: object) -> None:
    ran: list[str] = []

    def work(name: str, status: str) -> object:
        return check.Part(1, 0.0, 1.0, 1.0, lambda *_: ran.append(name) or check.Outcome(status))

    parts = {"build": work("build", "passed"), "parity": work("parity", "failed"), "late": work("late", "cut off")}
    assert check.perform(machine, check.Parts(machine), parts, "") == 1
    assert check.perform(machine, check.Parts(machine), {**parts, "parity": work("parity", "passed")}, "parity") == 0
    assert check.perform(machine, check.Parts(machine), parts, "") == 3  # one is still unfinished
    assert ran == ["build", "parity", "late", "parity", "late"]
    machine.digest = "other"
    check.perform(machine, check.Parts(machine), parts, "build")
    assert ran[5:] == ["build"]


def test_what_had_least_time_comes_first_within_its_limit(check: ModuleType, machine: object) -> None:
    parts, given = check.Parts(machine), {}
    for name, seconds in {"build": 5.0, "benchmarks": 150.0, "parity": 40.0, "summary": 1.0}.items():
        parts.set(name, check.Outcome("cut off"), seconds)

    def work(name: str, limit: float) -> object:
        return check.Part(1, -check.RESERVE, 1.0, limit, lambda _, seconds: given.update({name: seconds}) or 1 / 0)

    names = {"build": 7.0, "benchmarks": 8.0, "parity": 9.0, "races": 1e9, "summary": 3.0}
    passed = check.Part(1, 0.0, 1.0, 7.0, lambda *_: check.Outcome("passed"))
    work = {name: work(name, limit) for name, limit in names.items()} | {"build": passed}
    assert check.perform(machine, parts, work, "") == 1
    assert list(given) == ["races", "parity", "benchmarks", "summary"]
    assert given["parity"] == 9 and 20 < given["races"] <= 60 - check.RESERVE
    assert parts.records["parity"]["seconds"] == 40.0  # of both calls


def test_parts_without_time_are_reported(check: ModuleType, machine: object) -> None:
    machine.deadline = check.time.monotonic() + 40
    build = check.Part(1, 30.0, 30.0, 30.0, lambda *_: check.Outcome("passed"))
    work = {"build": build, "summary": check.Part(1, -check.RESERVE, 1.0, 1.0, lambda *_: 1 / 0)}
    parts = check.Parts(machine)
    assert check.perform(machine, parts, {"build": work["build"]}, "") == 3
    assert "| build | not reached | 0.0 | " in parts.table(["build"])
    assert check.perform(machine, parts, {"summary": work["summary"]}, "") == 1
    assert parts.records["summary"]["note"] == "ZeroDivisionError: division by zero"


def test_a_command_ends_at_its_limit_with_what_it_printed(check: ModuleType, machine: object) -> None:
    code = "import time; print('begun', flush=True); time.sleep(50)"
    quick, slow = machine.run_all([machine.python("-c", "print(1)"), machine.python("-c", code)], 2.0)
    assert (quick.code, quick.text) == (0, "1\n")
    assert slow.code is None and slow.text.startswith("begun")
    assert "stopped at its limit" in machine.log.read_text()


TESTS = """
import os, pytest
def test_a(): pass
def test_b(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_c(): os._exit(9)
@pytest.mark.skip(reason="no")
def test_d(): pass
def test_e(): pass
"""


def test_a_shard_goes_on_after_a_lost_gpu_and_a_crash(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    results, known = tmp_path / "results", tmp_path / "known"
    known.write_text(json.dumps({"test": "test_some.py::test_a", "outcome": "begun"}) + "\n")  # was cut off there
    words = ["-m", "pytest", "-q", "-p", "tests.shard", "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    words += ["--results", str(results), "--known", str(known), str(tmp_path / "test_some.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    codes = [
        subprocess.run([sys.executable, *words], env=environment, cwd=tmp_path, capture_output=True) for _ in "123"
    ]
    assert [done.returncode for done in codes] == [70, 9, 0]
    last = {
        test.split("::")[1]: record for test, record in importlib.import_module("tests.shard").read(results).items()
    }
    assert {name: record["outcome"] for name, record in last.items()} == {
        **{"test_a": "passed", "test_b": "failed", "test_c": "failed", "test_d": "skipped", "test_e": "passed"}
    }
    assert last["test_c"]["message"] == "it ended the process"


def test_shards_share_the_tests(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("".join(f"def test_{name}(): pass\n" for name in "abcde"))
    found = []
    for shard in ("1/2", "2/2"):
        words = [
            "-m",
            "pytest",
            "-q",
            "-p",
            "tests.shard",
            "--rootdir",
            str(tmp_path),
            "--collect-only",
            "--shard",
            shard,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run([sys.executable, *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
        found.append([line.split("::")[1] for line in done.stdout.splitlines() if "::" in line])
    assert found == [["test_a", "test_c", "test_e"], ["test_b", "test_d"]]


def test_notes_name_no_path_of_the_machine(check: ModuleType) -> None:
    parts, done = importlib.import_module("gpu_parts"), importlib.import_module("gpu_machine").Finished
    assert parts.last_line(done(1, "x\nno file /somewhere/on/it.py here\n\n")) == "no file ... here"
    assert parts.verdict(done(0, "== ERROR SUMMARY: 0 errors\nbye")) == "0 errors"


def test_a_run_at_its_limit_is_cut_off_and_not_failed(check: ModuleType) -> None:
    parts, done = importlib.import_module("gpu_parts"), importlib.import_module("gpu_machine").Finished
    whole, stopped, wrong = done(0, "5 checks, 0 wrong"), done(None, "begun"), done(1, "5 checks, 1 wrong")
    assert parts.agreed({"cuda": whole, "hopper": whole}).status == "passed"
    assert parts.agreed({"cuda": whole, "triton": stopped}) == (
        *("cut off", "cuda: 5 checks, 0 wrong; triton: stopped at its limit"),
    )
    assert parts.agreed({"cuda": wrong, "triton": stopped}).status == "failed"


def test_steps_are_measured_once_for_the_same_sources(check: ModuleType, machine: object) -> None:
    gpu_parts = importlib.import_module("gpu_parts")
    folder = machine.out / "profile"
    code = """
import json, pathlib, sys
file = pathlib.Path(sys.argv[1])
file.parent.mkdir(exist_ok=True)
if "byol" in str(file):
    sys.exit("ModuleNotFoundError: No module named 'somewhere'")
file.write_text(json.dumps({"profiles": [{"ratio": 1.25}]}))
"""

    def python(*words: str) -> list[str]:
        produced = words[-1].removeprefix("--benchmark-json=")
        return [sys.executable, "-c", code, produced if "json" in produced else f"{produced}/profile.json"]

    machine.python = python
    outcome = gpu_parts.profile(machine, 50.0)
    assert outcome.status == "passed" and "cifar-moco 1.25" in outcome.note
    assert "somewhere" in outcome.note and "0 unfinished" in outcome.note
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json"))
    presets = [f"{shape}-{preset}" for shape, names in gpu_parts.PROFILED.items() for preset in names]
    kept = [name for name in presets if "byol" not in name]
    assert written == sorted([f"{name}/profile.json" for name in kept] + [f"train-step-{name}.json" for name in kept])
    (folder / "cifar-moco/profile.json").write_text(json.dumps({"profiles": [{"ratio": 2.0}]}))
    assert "cifar-moco 2.00" in gpu_parts.profile(machine, 50.0).note  # not measured again
    machine.digest = "other"
    assert "cifar-moco 1.25" in gpu_parts.profile(machine, 50.0).note


def test_training_goes_on_from_its_checkpoint_and_is_kept(check: ModuleType, machine: object, tmp_path: Path) -> None:
    gpu_parts = importlib.import_module("gpu_parts")
    assert gpu_parts.training(machine, 50.0) == ("skipped", "--images names no images")
    (tmp_path / "data/train").mkdir(parents=True)
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "data/train", "train")
    machine.images = tmp_path / "images.tar.xz"
    place = machine.work / f"training-{machine.digest}"
    (place / "moco-graph-on/checkpoints").mkdir(parents=True)
    (place / "moco-graph-on/checkpoints/last").touch()
    asked: list[tuple[str, ...]] = []
    epoch, train, scores = {"kind": "epoch"}, {"kind": "train", "images_per_s": 100.0}, {"kind": "eval", "knn_z": 41.25}
    records = [{**train, "time": 4.0}, {**epoch, "time": 6.0}, {**epoch, "time": 8.0}, {**epoch, "time": 10.0}, scores]
    code = """
import pathlib, sys
folder, names, text = pathlib.Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3]
folder.mkdir(parents=True, exist_ok=True)
for name in names:
    (folder / name).write_text(text)
"""

    def python(*words: str) -> list[str]:
        asked.append(words)
        text = "\n".join(map(json.dumps, records))
        return [sys.executable, "-c", code, words[-1], " ".join(gpu_parts.EVIDENCE), text]

    machine.python = python
    outcome = gpu_parts.training(machine, 50.0)
    assert outcome.status == "passed"
    assert "moco-graph-on 2.00 s/epoch 100 images/s kNN 41.2" in outcome.note
    assert asked[0][2:] == ("--resume", str(place / "moco-graph-on"))
    assert asked[1][2] == "approach1" and str(machine.work / "images") in asked[1]
    assert (machine.work / "images/train").is_dir() and len(asked) == 4 and not any(place.iterdir())
    assert gpu_parts.training(machine, 50.0).status == "passed" and len(asked) == 4
