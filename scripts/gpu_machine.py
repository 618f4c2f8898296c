"""The environment of the parts of gpu_check.py: a copy of the sources, the remaining time, commands with limits."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("csrc", "mixfast", "tests", "benchmarks", "scripts", "setup.py", "CMakeLists.txt", "pyproject.toml")
LEFT_OUT = ("__pycache__", "results")
SUFFIXES = (".so", ".pyc")
GRACE = 15.0  # seconds that a process at its limit gets to write what it has
LOGGED = 1 << 20  # characters of what a command printed, the last ones
RESERVE = 35.0  # seconds kept for the summary, more than GRACE


class Outcome(NamedTuple):
    status: str  # passed, failed, skipped, cut off, not reached
    note: str = ""


class Finished(NamedTuple):
    code: int | None  # None: it ran into its limit
    text: str  # what it printed


class Machine:
    """Where the parts run: the copy of the sources (dry: the checkout, where nothing is built), the limits, the log."""

    def __init__(self, out: Path, dry: bool, seconds: float, wheels: Path | None, images: Path | None) -> None:
        self.out, self.dry, self.images = out.resolve(), dry, images and images.resolve()
        self.deadline = time.monotonic() + seconds
        self.work = ROOT / "build" / ("gpu-check-dry" if dry else "gpu-check")
        self.source = ROOT if dry else self.work / "source"
        self.log = self.out / "check.log"
        self.digest = digest()
        for folder in (self.out, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        if not dry:
            copy_sources(self.source)
        site = self.work / "site"
        self.environment = {
            **os.environ,
            "MIXFAST_SOURCE": self.digest,
            "MIXFAST_COMMIT": commit(),
            "PYTHONPATH": joined(str(site) if wheels else "", os.environ.get("PYTHONPATH")),
            "PATH": joined(str(site / "bin") if wheels else "", os.environ.get("PATH")),  # ninja comes as a wheel
            "PYTHONUNBUFFERED": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the machine's plugins are not ours
            "TRITON_CACHE_DIR": str(self.work / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
        }
        if wheels:
            files = sorted(map(str, wheels.resolve().glob("*.whl")))
            pip = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target"]
            unpacked = self.run([sys.executable, *pip, str(site), *files], 120)
            if unpacked.code != 0:
                raise SystemExit(f"the wheels could not be unpacked:\n{unpacked.text[-2000:]}")

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, command: Sequence[str], seconds: float, **environment: str) -> Finished:
        return self.run_all([command], seconds, **environment)[0]

    def run_all(self, commands: Sequence[Sequence[str]], seconds: float, **environment: str) -> list[Finished]:
        """Runs commands beside each other, in the copy, each in a process group that ends with it or at the limit."""
        end = time.monotonic() + max(0.0, min(seconds, self.left() - GRACE))
        begun = []
        for number, command in enumerate(commands):
            file = (self.work / f"output-{number}").open("w+")
            options = {"cwd": self.source, "env": {**self.environment, **environment}, "start_new_session": True}
            begun.append((subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **options), file))
        results = []
        for command, (process, file) in zip(commands, begun, strict=True):
            in_time = ended(process, end - time.monotonic())
            file.seek(0)
            text = file.read()
            file.close()
            results.append(Finished(process.returncode if in_time else None, text))
            end_of_it = f"exit code {process.returncode}" if in_time else "stopped at its limit"
            with self.log.open("a") as log:
                log.write(f"$ {' '.join(command)}\n{text[-LOGGED:]}\n[{end_of_it}]\n\n")
        return results

    def python(self, *arguments: str) -> list[str]:
        return [sys.executable, *arguments]


def joined(*folders: str | None) -> str:
    """A search path of the folders that are not empty or None."""
    return os.pathsep.join(filter(None, folders))


def ended(process: subprocess.Popen, seconds: float) -> bool:
    """Whether the process ends by itself; if not, it is interrupted, and after a while killed, with its children."""
    for attempt, kind in enumerate((signal.SIGINT, signal.SIGKILL)):
        try:
            process.wait(max(seconds, 0.0) if attempt == 0 else GRACE)
            return attempt == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, kind)
    process.wait()
    return False


def files() -> list[Path]:
    """The files to be copied, relative to the root."""
    paths = []
    for name in SOURCES:
        path = ROOT / name
        paths += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    relative = [path.relative_to(ROOT) for path in paths]
    return sorted(path for path in relative if path.suffix not in SUFFIXES and not set(path.parts) & set(LEFT_OUT))


def digest() -> str:
    """Hash of names and contents of the sources, committed or not; results are filed under it."""
    result = hashlib.sha256()
    for path in files():
        result.update(f"{path}\0".encode() + (ROOT / path).read_bytes() + b"\0")
    return result.hexdigest()[:16]


def copy_sources(target: Path) -> None:
    """Copy files that differ, so that a second build compiles only those, and remove files that are gone."""
    expected = set(files())
    for path in expected:
        copied = target / path
        if not copied.exists() or copied.read_bytes() != (ROOT / path).read_bytes():
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, copied)
    for name in SOURCES:
        for copied in (target / name).rglob("*"):
            if copied.is_file() and "__pycache__" not in copied.parts and copied.relative_to(target) not in expected:
                copied.unlink()


def commit() -> str:
    """Commit of the checkout; the variable MIXFAST_COMMIT names it where there is no .git."""
    from_environment = os.environ.get("MIXFAST_COMMIT", "")
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    if from_environment or not (ROOT / ".git").exists() or shutil.which("git") is None:
        return from_environment or "unknown"
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


class Part(NamedTuple):
    """What is done, and how it is planned; the seconds are for a machine with 16 cores."""

    call: int  # of CALLS: the one that it is planned for; 0: each
    least: float  # seconds below which it is not begun
    estimate: float  # seconds that it is expected to take; never measured
    limit: float  # seconds after which it is cut off, and goes on in the next call
    do: Callable[[Machine, float], Outcome]  # gets the seconds that it has


CALLS = {1: 570.0, 2: 200.0}  # seconds of the planned calls
