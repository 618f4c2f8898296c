"""The parts of gpu_check.py, which run with a GPU, or in a dry run without one."""

import itertools
import json
import os
import re
import shutil
import statistics
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gpu_machine import RESERVE, Finished, Machine, Outcome, Part

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
KERNELS = ("cuda", "hopper", "triton")  # as tests.gpu.every_kernel calls them
MAX_NAMES = 20  # failed tests
TRAINED = [(preset, graph) for graph in ("on", "off") for preset in ("moco", "approach1")]
RECIPE = ("--train.epochs", "10", "--train.compile", "off", "--eval.every", "10", "--eval.no-baselines")
EVIDENCE = ("metrics.jsonl", "config.json", "env.json", "log.txt", "status.json")  # of a run's folder
PROFILED = {  # shape: presets; torch.compile would take longer than the measurement
    "cifar": ("approach1", "moco", "approach2", "moco_unmix", "simclr", "byol"),
    "imagenet": ("approach1", "moco"),
}
TINY = ("--model.depth", "8", "--model.width", "8", "--train.batch_size", "16")
TINY_DATA = ("--data.kind", "scenes", "--data.scenes", "32", "--data.test_scenes", "20", "--data.size", "16")
TINY_RUN = (
    "--model.bn_splits",
    "2",
    "--method.queue_size",
    "32",
    "--train.epochs",
    "2",
    "--eval.k",
    "5",
    "--eval.no-baselines",
)


def build(machine: Machine, seconds: float) -> Outcome:
    """The machine first: without torch or a GPU nothing else can work."""
    described = machine.run(machine.python("-m", "benchmarks.gpu.machine"), 60)
    if described.code != 0:
        return Outcome("failed", f"python3 cannot describe the machine: {last_line(described)}")
    facts = json.loads(described.text[described.text.index("{") :])
    (machine.out / "environment.json").write_text(json.dumps(facts, indent=1) + "\n")
    gpu = facts["gpu"]
    arch = gpu["capability"].replace(".", "") if gpu else "90"
    command = machine.python("setup.py", "build_ext", "--inplace")
    settings = {"MIXFAST_CUDA": "on", "MIXFAST_CUDA_ARCHS": arch}
    if machine.dry:
        assignments = " ".join(f"{name}={value}" for name, value in settings.items())
        return Outcome("passed", f"would run {assignments} python3 {' '.join(command[1:])}")
    if gpu is None:
        return Outcome("failed", "torch finds no GPU; --dry-run does what can be done without one")
    built = machine.run(command, seconds, **settings)
    if built.code != 0:
        return Outcome("failed", last_line(built) if built.code else "it took too long")
    return Outcome("passed", f"for sm_{arch} of {gpu['name']}")


def is_built(machine: Machine) -> bool:
    return machine.dry or any(machine.source.glob("_mixfast_cuda*.so"))


def doctor(machine: Machine, seconds: float) -> Outcome:
    result = machine.run(machine.python("-m", "mixfast.doctor"), seconds)
    lines = [" ".join(line.split()) for line in result.text.splitlines()]
    unavailable = [line for line in lines if re.match(r"\w+ (cuda|triton) (?!available)", line)]
    if result.code != 0 or (unavailable and not machine.dry):
        return Outcome("failed", "; ".join(unavailable) or last_line(result))
    return Outcome("passed", "cuda and triton are available" if not unavailable else "; ".join(unavailable))


def parity(machine: Machine, seconds: float) -> Outcome:
    """The tests of the operations, in several processes; a process that a broken kernel ends is started again."""
    if machine.dry:
        return collected(machine, seconds)
    results_file = machine.out / "tests.jsonl"
    gpu = json.loads((machine.out / "environment.json").read_text())["gpu"]
    count = max(1, min(PROCESSES, len(os.sched_getaffinity(0)) // 2, gpu["memory_mib"] // MEMORY))
    shards = {f"{number + 1}/{count}": machine.work / f"tests-{number}.jsonl" for number in range(count)}
    for path in shards.values():
        path.unlink(missing_ok=True)
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))
    end, pending, failed = time.monotonic() + seconds, list(shards), ""
    for _ in range(TRIES):
        commands = [
            machine.python(
                *PYTEST, *TESTS, "--shard", shard, "--results", str(shards[shard]), "--known", str(results_file)
            )
            for shard in pending
        ]
        results = machine.run_all(commands, end - time.monotonic(), OMP_NUM_THREADS=threads)
        failed = failed or next((last_line(result) for result in results if result.code in (2, 3, 4)), "")
        lost = zip(pending, results, strict=True)
        pending = [shard for shard, result in lost if result.code in DEVICE_LOST or (result.code or 0) < 0]
        if not pending:
            break
    with results_file.open("a") as file:
        file.writelines(path.read_text() for path in shards.values() if path.exists())
    complete = not pending and all(result.code is not None for result in results)
    return judged(outcomes(results_file), failed, complete)


def collected(machine: Machine, seconds: float) -> Outcome:
    words = (*TESTS, "--collect-only", "--assert=plain")  # no assertion is made, so none is rewritten
    result = machine.run(machine.python(*PYTEST, *words), seconds, OMP_NUM_THREADS="1")
    tests = [line for line in result.text.splitlines() if "::" in line]
    if result.code != 0 or not tests:
        return Outcome("failed", f"{len(tests)} tests; {last_line(result)}")
    return Outcome("passed", f"{len(tests)} tests would run")


def outcomes(path: Path) -> dict[str, dict[str, Any]]:
    """The last record of each test."""
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


def kernels(machine: Machine, seconds: float) -> Outcome:
    """Every kernel once, both of InfoNCE's main kernels in CUDA C++ too; this also fills Triton's cache."""
    script = ("-m", "tests.gpu.every_kernel")
    if machine.dry:
        result = machine.run(machine.python(*script, "cpu"), seconds, OMP_NUM_THREADS="1")
        return Outcome("passed" if result.code == 0 else "failed", f"on the CPU: {last_line(result)}")
    results = machine.run_all([machine.python(*script, kernel) for kernel in KERNELS], seconds)
    return agreed(dict(zip(KERNELS, results, strict=True)))


def agreed(runs: dict[str, Finished]) -> Outcome:
    """Whether all passed; one that its limit stopped has shown no fault."""
    codes = {result.code for result in runs.values()}
    status = "failed" if codes - {0, None} else "cut off" if None in codes else "passed"
    return Outcome(status, "; ".join(f"{name}: {verdict(result)}" for name, result in runs.items()))


def memcheck(machine: Machine, seconds: float) -> Outcome:
    return sanitized(machine, ("memcheck",), seconds)


def races(machine: Machine, seconds: float) -> Outcome:
    return sanitized(machine, ("racecheck", "initcheck"), seconds)


def sanitized(machine: Machine, tools: tuple[str, ...], seconds: float) -> Outcome:
    """Every kernel once under tools of compute-sanitizer."""
    if machine.dry:
        return Outcome("passed", f"would run {', '.join(tools)} on {', '.join(KERNELS)}")
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=toolkit())
    if program is None:
        return Outcome("skipped", "there is no compute-sanitizer")
    options = ("--target-processes", "application-only", "--error-exitcode", "97")
    commands = {
        f"{tool} {kernel}": [program, "--tool", tool, *options, *machine.python("-m", "tests.gpu.every_kernel", kernel)]
        for tool in tools
        for kernel in KERNELS
    }
    results = machine.run_all(list(commands.values()), seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if all("Device not supported" in result.text for result in results):
        return Outcome("skipped", "compute-sanitizer does not support this device or its virtual machine")
    return agreed(dict(zip(commands, results, strict=True)))


def toolkit() -> str:
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    return os.pathsep.join(os.path.join(home, "bin") for home in [*filter(None, homes), "/usr/local/cuda"])


def verdict(result: Finished) -> str:
    fault = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", result.text)
    return "stopped at its limit" if result.code is None else fault[-1] if fault else last_line(result)


def own_folder(machine: Machine, name: str) -> Path:
    """A folder of OUT with results of these sources: those of others are removed."""
    folder = machine.out / name
    source = folder / "source.txt"
    if not source.exists() or source.read_text() != machine.digest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        source.write_text(machine.digest)
    return folder


def training(machine: Machine, seconds: float) -> Outcome:
    """Runs of ten epochs, as steps and as CUDA graphs; one that is cut off goes on from its checkpoint."""
    folder, end, failed, unfinished = own_folder(machine, "training"), time.monotonic() + seconds, [], 0
    images = image_folder(machine)
    if images is None and not machine.dry:
        return Outcome("skipped", "--images names no images")
    data = TINY_DATA if machine.dry else ("--data.kind", "folder", "--data.path", str(images))
    recipe = (*TINY, *TINY_RUN) if machine.dry else RECIPE
    for preset, graph in [("moco", "off")] if machine.dry else TRAINED:
        name = f"{preset}-graph-{graph}"
        run_folder = machine.work / f"training-{machine.digest}" / name
        if (folder / name).exists():
            continue
        arguments = ("--resume", str(run_folder))
        if not any(run_folder.glob("checkpoints/*")):
            shutil.rmtree(run_folder, ignore_errors=True)
            arguments = (preset, *data, *recipe, "--train.graph", graph, "--out", str(run_folder))
        remaining = end - time.monotonic()
        result = machine.run(machine.python("-m", "mixfast.train", *arguments), remaining) if remaining > 0 else None
        if result is None or result.code is None:
            unfinished += 1
        elif result.code != 0:
            failed.append(f"{name}: {last_line(result)}")
        else:
            (folder / name).mkdir()
            for file in EVIDENCE:
                shutil.copy(run_folder / file, folder / name)
            shutil.rmtree(run_folder)
    if failed and all("No module named" in message for message in failed):  # a requirement that --wheels would bring
        return Outcome("skipped", "; ".join(failed))
    status = "failed" if failed else "cut off" if unfinished else "passed"
    return Outcome(status, "; ".join([*failed, f"{unfinished} unfinished", *map(" ".join, learnt(folder))]))


def image_folder(machine: Machine) -> Path | None:
    """The images to train on, unpacked if they came as an archive."""
    if machine.images is None or machine.images.is_dir():
        return machine.images
    folder, begun = machine.work / "images", machine.work / "images-begun"
    if not folder.exists():
        shutil.rmtree(begun, ignore_errors=True)
        with tarfile.open(machine.images) as archive:
            archive.extractall(begun, filter="data")
        begun.rename(folder)
    return folder


def learnt(folder: Path) -> list[tuple[str, ...]]:
    """Run, seconds of an epoch, images per second, and kNN of each run that has ended."""
    rows = []
    for path in sorted(folder.glob("*/metrics.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        times = [0.0, *(record["time"] for record in records if record["kind"] == "epoch")]
        epoch = statistics.median(after - before for before, after in itertools.pairwise(times))
        rate = statistics.median(record["images_per_s"] for record in records if record["kind"] == "train")
        score = [record["knn_z"] for record in records if record["kind"] == "eval"][-1]
        rows.append((path.parent.name, f"{epoch:.2f} s/epoch", f"{rate:.0f} images/s", f"kNN {score:.1f}"))
    return rows


def profile(machine: Machine, seconds: float) -> Outcome:
    """Whole steps by part, and beside those of others; a file for each, and what is there is not measured again."""
    if machine.dry:
        folder = machine.out / "profile"
        arguments = (*TINY, "--seconds", "0", "--out", str(folder))
        result = machine.run(machine.python("-m", "mixfast.profile", *arguments), seconds)
        return Outcome("passed" if result.code == 0 else "failed", f"on the CPU: {ratios(folder.parent)}")
    folder = own_folder(machine, "profile")
    failed, missing, unfinished, end = [], set(), 0, time.monotonic() + seconds
    for file, command in steps(machine, folder).items():
        if (folder / file).exists():
            continue
        remaining = end - time.monotonic()
        result = machine.run(command, remaining) if remaining > 0 else None
        if result is None or result.code is None:
            unfinished += 1
        elif "No module named" in result.text:  # a requirement of mixfast or of its benchmarks that is not there
            missing.add(last_line(result))
        elif result.code != 0:
            failed.append(f"{file}: {last_line(result)}")
    status = "failed" if failed else "cut off" if unfinished else "passed"
    return Outcome(status, "; ".join([*failed, *sorted(missing), f"{unfinished} unfinished", ratios(folder)]))


def steps(machine: Machine, folder: Path) -> dict[str, list[str]]:
    """The commands by the file that each writes; a profile with a graph measures the step call by call too."""
    commands = {}
    for shape, preset in ((shape, preset) for shape, names in PROFILED.items() for preset in names):
        arguments = (preset, "--shape", shape, "--seconds", "4", "--train.compile", "off", "--train.graph", "on")
        output = folder / f"{shape}-{preset}"
        commands[f"{shape}-{preset}/profile.json"] = machine.python(
            "-m", "mixfast.profile", *arguments, "--out", str(output)
        )
    # Its warning that no benchmark has run would hide the reason.
    plugin = ("-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "-p", "pytest_benchmark.plugin")
    for shape, preset in ((shape, preset) for shape, names in PROFILED.items() for preset in names):
        file = f"train-step-{shape}-{preset}.json"
        test = f"benchmarks/test_train_step.py::test_train_step[{preset}-{shape}]"
        commands[file] = machine.python(*plugin, test, f"--benchmark-json={folder / file}")
    return commands


def ratios(folder: Path) -> str:
    """Step over bare encoder of each profile below a folder."""
    files = sorted(folder.glob("*/profile.json"))
    values = [(path.parent.name, json.loads(path.read_text())["profiles"][0]["ratio"]) for path in files]
    return "step / bare encoder: " + (", ".join(f"{name} {ratio:.2f}" for name, ratio in values) or "none")


def benchmarks(machine: Machine, seconds: float) -> Outcome:
    """The most important groups come first; what does not fit comes with the next call."""
    command = ("-m", "benchmarks.gpu", "--out", str(machine.out))
    if machine.dry:
        smoke = ("--smoke", "--seconds", f"{seconds:.0f}")
        result = machine.run(machine.python(*command, *smoke), seconds, OMP_NUM_THREADS="1")
        rows = sum('"kind": "row"' in line for line in (machine.out / "benchmarks.jsonl").read_text().splitlines())
        return Outcome("passed" if result.code == 0 else "failed", f"{rows} rows on the CPU; {last_line(result)}")
    end = time.monotonic() + seconds
    for _ in range(TRIES):
        remaining = end - time.monotonic()
        result = machine.run(machine.python(*command, "--seconds", f"{remaining - 15:.0f}"), remaining)
        if result.code is None or (result.code >= 0 and result.code not in DEVICE_LOST):
            break
    if result.code == 0:
        return Outcome("passed", "every group is measured")
    return Outcome("cut off" if result.code in (None, 3) else "failed", last_line(result))


def last_line(result: Finished) -> str:
    """Without the paths of this machine: the note is committed."""
    lines = [line.strip() for line in result.text.splitlines() if line.strip()]
    return re.sub(r"(?<!\w)/[\w.+-]+(?:/[\w.+-]+)+", "...", lines[-1])[:300] if lines else "it printed nothing"


def summary(machine: Machine, seconds: float) -> Outcome:
    """summary.md: failures, then every table."""
    title = "# GPU check" + (", dry: nothing was measured" if machine.dry else "")
    (machine.out / "summary.md").write_text(f"{title}\n\n{failures(machine)}{tables(machine, '--all')}")
    return Outcome("passed", "summary.md")


def report(machine: Machine) -> str:
    """The part of the report that is printed."""
    return failures(machine) if machine.dry else tables(machine) + failures(machine)


def tables(machine: Machine, *options: str) -> str:
    runs = "".join(f"- {', '.join(row)}\n" for row in learnt(machine.out / "training"))
    trained = f"Training, ten epochs each:\n\n{runs}\n" if runs else ""
    measured = machine.out / "benchmarks.jsonl"
    if not measured.exists():
        return f"{trained}No benchmark has run.\n"
    return trained + machine.run(machine.python("-m", "benchmarks.gpu.report", str(measured), *options), RESERVE).text


def failures(machine: Machine) -> str:
    failed = [test for test, record in outcomes(machine.out / "tests.jsonl").items() if record["outcome"] == "failed"]
    names = "".join(f"- {test}\n" for test in failed[:MAX_NAMES])
    return f"{len(failed)} tests failed:\n\n{names}\n" if failed else ""


# In order of worth. The limits of a call's parts, and of the summary, which belongs to each, add up to what it has.
PARTS = {
    "build": Part(1, 30.0, 45.0, 120.0, build),
    "doctor": Part(1, 5.0, 8.0, 15.0, doctor),
    "kernels": Part(1, 20.0, 40.0, 70.0, kernels),
    "benchmarks": Part(1, 40.0, 150.0, 150.0, benchmarks),
    "training": Part(1, 30.0, 95.0, 100.0, training),
    "profile": Part(1, 15.0, 30.0, 35.0, profile),
    "memcheck": Part(1, 20.0, 40.0, 45.0, memcheck),
    "parity": Part(2, 30.0, 90.0, 90.0, parity),
    "races": Part(2, 30.0, 60.0, 75.0, races),
    "summary": Part(0, -RESERVE, 5.0, RESERVE, summary),
}
