"""scripts/gpu_check.sh: the dry run, what it keeps and resumes, limits, and processes that a broken kernel ends."""

import importlib
import json
import os
import subprocess
import sys
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
    made.deadline = check.time.monotonic() + 60
    return made


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    command = ["bash", "scripts/gpu_check.sh", str(tmp_path), "--dry-run"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == [
        *("| build", "| doctor", "| parity", "| sanitizer", "| profile", "| benchmarks", "| summary")
    ]
    assert {row[1] for row in rows} == {"passed"}
    assert int(rows[2][3].split()[0]) > 300  # tests would run
    records = [json.loads(line) for line in (tmp_path / "benchmarks.jsonl").read_text().splitlines()]
    measured = [record for record in records if record["kind"] == "row"]
    assert len(measured) > 150 and all(row["median_us"] > 0 for row in measured if not row.get("reason"))
    assert json.loads((tmp_path / "environment.json").read_text())["source"]


def test_finished_parts_are_kept_and_only_for_the_same_sources(check: ModuleType, machine: object) -> None:
    ran: list[str] = []

    def work(name: str, status: str) -> tuple[float, object]:
        return -check.RESERVE, lambda _: ran.append(name) or check.Outcome(status)

    parts = {"build": work("build", "passed"), "parity": work("parity", "failed"), "late": work("late", "cut off")}
    assert check.perform(machine, check.Parts(machine), parts, "") == 1
    assert check.perform(machine, check.Parts(machine), {**parts, "parity": work("parity", "passed")}, "parity") == 0
    assert check.perform(machine, check.Parts(machine), parts, "") == 3  # one is still unfinished
    assert ran == ["build", "parity", "late", "parity", "late"]
    machine.digest = "other"
    check.perform(machine, check.Parts(machine), parts, "build")
    assert ran[5:] == ["build"]


def test_parts_without_time_are_reported(check: ModuleType, machine: object) -> None:
    machine.deadline = check.time.monotonic() + 40
    work = {"build": (30.0, lambda _: check.Outcome("passed")), "summary": (-check.RESERVE, lambda _: 1 / 0)}
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
    parts, done = importlib.import_module("gpu_parts"), importlib.import_module("gpu_machine").Done
    assert parts.last_line(done(1, "x\nno file /somewhere/on/it.py here\n\n")) == "no file ... here"
    assert parts.verdict(done(0, "== ERROR SUMMARY: 0 errors\nbye")) == "0 errors"


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
    outcome = gpu_parts.profile(machine)
    assert outcome.status == "passed" and "cifar-moco 1.25" in outcome.note
    assert "somewhere" in outcome.note and "0 unfinished" in outcome.note
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json"))
    presets = [f"{shape}-{preset}" for shape, names in gpu_parts.PROFILED.items() for preset in names]
    kept = [name for name in presets if "byol" not in name]
    assert written == sorted([f"{name}/profile.json" for name in kept] + [f"train-step-{name}.json" for name in kept])
    (folder / "cifar-moco/profile.json").write_text(json.dumps({"profiles": [{"ratio": 2.0}]}))
    assert "cifar-moco 2.00" in gpu_parts.profile(machine).note  # not measured again
    machine.digest = "other"
    assert "cifar-moco 1.25" in gpu_parts.profile(machine).note
