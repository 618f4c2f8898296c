"""What the parts of gpu_check.py do, with a GPU and, dry, without one."""

import json
import os
import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gpu_machine import RESERVE, Done, Machine, Outcome, Work

TESTS = ("tests/ops", "tests/gpu")
PYTEST = (
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "tests.shard",
    "-m",
    "gpu",
    "-W",
    "default",
    "--tb=short",
)
PROCESSES = 8  # beside each other on one GPU, if it has MEMORY for each
MEMORY = 8 << 10  # MiB
DEVICE_LOST = (70, 4)  # exit codes of the tests and of the benchmarks
TRIES = 5  # of either, after an error that a GPU does not recover from
TOOLS = ("memcheck", "racecheck", "initcheck")
BACKENDS = ("cuda", "triton")
LONGEST = 170.0  # seconds of the tests
LONGEST_PROFILE = 120.0  # of the whole steps; the rest comes with the next call
SHOWN = 20  # failed tests
PROFILED = {  # shape: presets; torch.compile would take longer than the measurement
    "cifar": ("approach1", "moco", "approach2", "moco_unmix", "simclr", "byol"),
    "imagenet": ("approach1", "moco"),
}
TINY = ("--model.depth", "8", "--model.width", "8", "--train.batch_size", "16", "--seconds", "0")


def build(machine: Machine) -> Outcome:
    """The machine first: without torch or a GPU nothing else can work."""
    asked = machine.run(machine.python("-m", "benchmarks.gpu.machine"), 60)
    if asked.code != 0:
        return Outcome("failed", f"python3 cannot describe the machine: {last_line(asked)}")
    found = json.loads(asked.text[asked.text.index("{") :])
    (machine.out / "environment.json").write_text(json.dumps(found, indent=1) + "\n")
    gpu = found["gpu"]
    arch = gpu["capability"].replace(".", "") if gpu else "90"
    command = machine.python("setup.py", "build_ext", "--inplace")
    settings = {"MIXFAST_CUDA": "on", "MIXFAST_CUDA_ARCHS": arch}
    if machine.dry:
        words = " ".join(f"{name}={value}" for name, value in settings.items())
        return Outcome("passed", f"would run {words} python3 {' '.join(command[1:])}")
    if gpu is None:
        return Outcome("failed", "torch finds no GPU; --dry-run does what can be done without one")
    done = machine.run(command, 200, **settings)
    if done.code != 0:
        return Outcome("failed", last_line(done) if done.code else "it took too long")
    return Outcome("passed", f"for sm_{arch} of {gpu['name']}")


def is_built(machine: Machine) -> bool:
    return machine.dry or any(machine.source.glob("_mixfast_cuda*.so"))


def doctor(machine: Machine) -> Outcome:
    done = machine.run(machine.python("-m", "mixfast.doctor"), 60)
    lines = [" ".join(line.split()) for line in done.text.splitlines()]
    wrong = [line for line in lines if re.match(r"\w+ (cuda|triton) (?!available)", line)]
    if done.code != 0 or (wrong and not machine.dry):
        return Outcome("failed", "; ".join(wrong) or last_line(done))
    return Outcome("passed", "cuda and triton are available" if not wrong else "; ".join(wrong))


def parity(machine: Machine) -> Outcome:
    """The tests of the operations, in several processes; a process that a broken kernel ends is started again."""
    if machine.dry:
        return collected(machine)
    known = machine.out / "tests.jsonl"
    gpu = json.loads((machine.out / "environment.json").read_text())["gpu"]
    count = max(1, min(PROCESSES, len(os.sched_getaffinity(0)) // 2, gpu["memory_mib"] // MEMORY))
    shards = {f"{number + 1}/{count}": machine.work / f"tests-{number}.jsonl" for number in range(count)}
    for path in shards.values():
        path.unlink(missing_ok=True)
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))
    end, pending, failed = time.monotonic() + LONGEST, list(shards), ""
    for _ in range(TRIES):
        words = [("--shard", each, "--results", str(shards[each]), "--known", str(known)) for each in pending]
        commands = [machine.python(*PYTEST, *TESTS, *each) for each in words]
        results = machine.run_all(commands, end - time.monotonic(), OMP_NUM_THREADS=threads)
        failed = failed or next((last_line(done) for done in results if done.code in (2, 3, 4)), "")
        lost = zip(pending, results, strict=True)
        pending = [each for each, done in lost if done.code in DEVICE_LOST or (done.code or 0) < 0]
        if not pending:
            break
    with known.open("a") as file:
        file.writelines(path.read_text() for path in shards.values() if path.exists())
    return judged(outcomes(known), failed, complete=not pending and all(done.code is not None for done in results))


def collected(machine: Machine) -> Outcome:
    commands = [machine.python(*PYTEST, *TESTS, "--collect-only", "--shard", f"{number}/2") for number in (1, 2)]
    results = machine.run_all(commands, 200, OMP_NUM_THREADS="1")
    tests = [line for done in results for line in done.text.splitlines() if "::" in line]
    if any(done.code != 0 for done in results) or not tests or len(set(tests)) < len(tests):
        return Outcome("failed", f"{len(tests)} tests, {len(set(tests))} different; {last_line(results[0])}")
    return Outcome("passed", f"{len(tests)} tests would run")


def outcomes(path: Path) -> dict[str, dict[str, Any]]:
    """The last word on each test."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["test"]: record for record in map(json.loads, lines)}


def judged(tests: dict[str, dict[str, Any]], failed: str, complete: bool) -> Outcome:
    counts = Counter(record["outcome"] for record in tests.values())
    note = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) + (
        f"; {failed}" if failed else ""
    )
    if counts["failed"] or failed:
        return Outcome("failed", note)
    if not complete or counts["begun"]:
        return Outcome("cut off", note)
    return Outcome("passed" if counts["passed"] else "failed", note or "no test ran")


def sanitizer(machine: Machine) -> Outcome:
    """Every kernel once without a sanitizer, which also fills Triton's cache, then under each of the three."""
    script = ("-m", "tests.gpu.every_kernel")
    if machine.dry:
        done = machine.run(machine.python(*script, "cpu"), 200, OMP_NUM_THREADS="1")
        return Outcome("passed" if done.code == 0 else "failed", f"on the CPU: {last_line(done)}")
    plain = machine.run_all([machine.python(*script, backend) for backend in BACKENDS], 90)
    if any(done.code != 0 for done in plain):
        return Outcome(
            "failed", "; ".join(f"without a sanitizer: {last_line(done)}" for done in plain if done.code != 0)
        )
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=toolkit())
    if program is None:
        return Outcome("skipped", "there is no compute-sanitizer; without it every kernel agrees with the reference")
    runs = [(tool, backend) for tool in TOOLS for backend in BACKENDS]
    options = ("--target-processes", "application-only", "--error-exitcode", "97")
    commands = [[program, "--tool", tool, *options, *machine.python(*script, backend)] for tool, backend in runs]
    results = machine.run_all(commands, 150, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if all("Device not supported" in done.text for done in results):
        return Outcome("skipped", "compute-sanitizer does not support this device or its virtual machine")
    notes = [f"{tool} {backend}: {verdict(done)}" for (tool, backend), done in zip(runs, results, strict=True)]
    if any(done.code not in (0, None) for done in results):
        return Outcome("failed", "; ".join(notes))
    return Outcome("cut off" if any(done.code is None for done in results) else "passed", "; ".join(notes))


def toolkit() -> str:
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    return os.pathsep.join(os.path.join(home, "bin") for home in [*filter(None, homes), "/usr/local/cuda"])


def verdict(done: Done) -> str:
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", done.text)
    return "stopped at its limit" if done.code is None else found[-1] if found else last_line(done)


def profile(machine: Machine) -> Outcome:
    """Whole steps by part, and beside those of others; a file for each, and what is there is not measured again."""
    folder = machine.out / "profile"
    if machine.dry:
        done = machine.run(machine.python("-m", "mixfast.profile", *TINY, "--out", str(folder)), 120)
        return Outcome("passed" if done.code == 0 else "failed", f"on the CPU: {ratios(folder.parent)}")
    source = folder / "source.txt"
    if not source.exists() or source.read_text() != machine.digest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        source.write_text(machine.digest)
    failed, missing, unfinished, end = [], set(), 0, time.monotonic() + LONGEST_PROFILE
    for file, command in steps(machine, folder).items():
        if (folder / file).exists():
            continue
        left = end - time.monotonic()
        done = machine.run(command, left) if left > 0 else None
        if done is None or done.code is None:
            unfinished += 1
        elif "No module named" in done.text:  # a requirement of mixfast or of its benchmarks that is not there
            missing.add(last_line(done))
        elif done.code != 0:
            failed.append(f"{file}: {last_line(done)}")
    status = "failed" if failed else "cut off" if unfinished else "passed"
    return Outcome(status, "; ".join([*failed, *sorted(missing), f"{unfinished} unfinished", ratios(folder)]))


def steps(machine: Machine, folder: Path) -> dict[str, list[str]]:
    """The commands by the file that each writes."""
    found = {}
    for shape, preset in ((shape, preset) for shape, names in PROFILED.items() for preset in names):
        words = (preset, "--shape", shape, "--seconds", "4", "--train.compile", "off")
        out = folder / f"{shape}-{preset}"
        found[f"{shape}-{preset}/profile.json"] = machine.python("-m", "mixfast.profile", *words, "--out", str(out))
    plugin = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_benchmark.plugin")
    for shape, preset in ((shape, preset) for shape, names in PROFILED.items() for preset in names):
        file = f"train-step-{shape}-{preset}.json"
        test = f"benchmarks/test_train_step.py::test_train_step[{preset}-{shape}]"
        found[file] = machine.python(*plugin, test, f"--benchmark-json={folder / file}")
    return found


def ratios(folder: Path) -> str:
    """Step over bare encoder of each profile below a folder."""
    files = sorted(folder.glob("*/profile.json"))
    found = [(path.parent.name, json.loads(path.read_text())["profiles"][0]["ratio"]) for path in files]
    return "step / bare encoder: " + (", ".join(f"{name} {ratio:.2f}" for name, ratio in found) or "none")


def benchmarks(machine: Machine) -> Outcome:
    """All the time that is left; what does not fit comes with the next call."""
    command = ("-m", "benchmarks.gpu", "--out", str(machine.out))
    if machine.dry:
        done = machine.run(machine.python(*command, "--smoke", "--seconds", "200"), 250, OMP_NUM_THREADS="1")
        rows = sum('"kind": "row"' in line for line in (machine.out / "benchmarks.jsonl").read_text().splitlines())
        return Outcome("passed" if done.code == 0 else "failed", f"{rows} rows on the CPU; {last_line(done)}")
    for _ in range(TRIES):
        seconds = machine.left() - RESERVE - 20
        done = machine.run(machine.python(*command, "--seconds", f"{seconds:.0f}"), seconds + 15)
        if done.code is None or (done.code >= 0 and done.code not in DEVICE_LOST):
            break
    if done.code == 0:
        return Outcome("passed", "every group is measured")
    return Outcome("cut off" if done.code in (None, 3) else "failed", last_line(done))


def last_line(done: Done) -> str:
    """Without the paths of this machine: the note is committed."""
    lines = [line.strip() for line in done.text.splitlines() if line.strip()]
    return re.sub(r"(?<!\w)/[\w.+-]+(?:/[\w.+-]+)+", "...", lines[-1])[:300] if lines else "it printed nothing"


def summary(machine: Machine) -> Outcome:
    """summary.md: failures, then every table."""
    title = "# GPU check" + (", dry: nothing was measured" if machine.dry else "")
    (machine.out / "summary.md").write_text(f"{title}\n\n{failures(machine)}{tables(machine, '--all')}")
    return Outcome("passed", "summary.md")


def report(machine: Machine) -> str:
    """What is worth a screen."""
    return failures(machine) if machine.dry else tables(machine) + failures(machine)


def tables(machine: Machine, *words: str) -> str:
    measured = machine.out / "benchmarks.jsonl"
    if not measured.exists():
        return "No benchmark has run.\n"
    return machine.run(machine.python("-m", "benchmarks.gpu.report", str(measured), *words), RESERVE).text


def failures(machine: Machine) -> str:
    failed = [test for test, record in outcomes(machine.out / "tests.jsonl").items() if record["outcome"] == "failed"]
    names = "".join(f"- {test}\n" for test in failed[:SHOWN])
    return f"{len(failed)} tests failed:\n\n{names}\n" if failed else ""


# In order, with the seconds below which a part is not begun.
PARTS: dict[str, tuple[float, Work]] = {
    "build": (30.0, build),
    "doctor": (10.0, doctor),
    "parity": (40.0, parity),
    "sanitizer": (40.0, sanitizer),
    "profile": (30.0, profile),
    "benchmarks": (30.0, benchmarks),
    "summary": (-RESERVE, summary),
}
