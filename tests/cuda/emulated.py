"""CUDA kernels run without a GPU: compiled for the host with a sanitizer, called with tensors on the CPU.

    kernels = emulated("tests/cuda/pool_driver.cpp", "csrc/pool/cuda.cu")      # a fixture

    def test_pool(kernels: Emulated) -> None:
        kernels("pool_weights", 2, 0.5, None, features, out, order=REVERSE)      # `out` is written in place

The driver (emulator/driver.h) maps names to C++ functions. An int arrives as int64, a float as double, None as a null
pointer, a tensor as an allocation of exactly its size, aligned to 256 bytes plus `offset`; every tensor is read back.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
EMULATOR = "tests/cuda/emulator"
FORWARD, REVERSE = 0, -1  # orders of blocks, warps and lanes; a positive order is the seed of a shuffle
ORDERS = (FORWARD, REVERSE, 1, 2)
Sanitizer = Literal["address", "thread"]
_SANITIZE: dict[Sanitizer, str] = {"address": "-fsanitize=address", "thread": "-fsanitize=thread"}
# Most of the time is the compiler's: kernels are not optimised; the emulator itself is, which runs them, and of its own
# arithmetic nothing is checked.
_OF_KERNELS: dict[Sanitizer, list[str]] = {"address": ["-O0", "-fsanitize=undefined"], "thread": ["-O0"]}
_OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0"}
_SECONDS = 120  # a call that takes longer has hung


class EmulationError(AssertionError):
    """What the emulator or a sanitizer found, with the end of its output."""


@cache
def toolkit_headers() -> Path | None:
    """The CUDA toolkit's headers: the emulator takes types and 16-bit numbers from them."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if nvcc := shutil.which("nvcc"):
        done = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
        homes += [Path(line[7:].strip()) for line in done.stderr.splitlines() if line.startswith("#$ TOP=")]
    homes.append(Path(os.sep, "usr", "local", "cuda"))
    found = (home / "include" for home in homes)
    return next((path for path in found if (path / "crt/host_config.h").exists()), None)


@cache
def unavailable(sanitizer: Sanitizer) -> str | None:
    """Why kernels cannot be emulated here."""
    if not shutil.which("g++"):
        return "no g++"
    if toolkit_headers() is None:
        return "no headers of a CUDA toolkit"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.cpp").write_text("#include <source_location>\nint main() {}\n")
        command = ["g++", "-std=c++20", _SANITIZE[sanitizer], *_OF_KERNELS[sanitizer], "probe.cpp", "-o", "probe"]
        for step in (command, [f"{folder}/probe"]):
            done = subprocess.run(step, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                return f"g++ -std=c++20 {_SANITIZE[sanitizer]} does not work: {done.stderr.strip()[-200:]}"
    return None


def emulated(*sources: str, sanitizers: tuple[Sanitizer, ...] = ("address", "thread")) -> Any:
    """A fixture: the program of a driver and kernels under each sanitizer; skipped with the reason where none works."""

    # Slow, since the program is compiled first.
    @pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in sanitizers])
    def kernels(request: pytest.FixtureRequest) -> "Iterator[Emulated]":
        if reason := unavailable(request.param):
            pytest.skip(reason)
        with Emulated(sources, request.param) as program:
            yield program

    return kernels


class Emulated:
    """A running program; a call that it does not survive ends it, and the next call starts another."""

    def __init__(self, sources: tuple[str, ...], sanitizer: Sanitizer) -> None:
        self.sanitizer = sanitizer
        self._program = _built(sources, sanitizer)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115

    def __call__(self, operation: str, *operands: Any, order: int = FORWARD, offset: int = 0) -> None:
        """Run an operation; raises EmulationError if it reports an error, or if the emulator or a sanitizer does."""
        process = self._process = self._process or self._started()
        assert process.stdin and process.stdout
        head = f"{operation} {order} {len(operands)}\n".encode()
        answers = None
        watchdog = threading.Timer(_SECONDS, process.kill)
        watchdog.start()
        try:
            process.stdin.write(b"".join([head, *(_encoded(operand, offset) for operand in operands)]))
            process.stdin.flush()
            verdict = process.stdout.readline().decode().strip()
            if verdict == "ok":
                answers = _read(process.stdout, [operand for operand in operands if isinstance(operand, Tensor)])
        except BrokenPipeError:
            verdict = ""
        finally:
            watchdog.cancel()
        if answers is not None:
            for tensor, answer in answers:
                _bytes_of(tensor).copy_(answer)
        elif verdict and verdict != "ok":
            raise EmulationError(f"{operation}: {verdict}")
        else:
            self._stop()
            self._log.seek(0)
            raise EmulationError(f"{operation} ended the program:\n{self._log.read().decode(errors='replace')[-6000:]}")

    def _started(self) -> subprocess.Popen[bytes]:
        self._log.seek(0)
        self._log.truncate()
        pipe, environment = subprocess.PIPE, {**os.environ, **_OPTIONS}
        return subprocess.Popen([self._program], stdin=pipe, stdout=pipe, stderr=self._log, env=environment)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin and process.stdout:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            process.wait(_SECONDS)

    def __enter__(self) -> "Emulated":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
        self._log.close()


def _built(sources: tuple[str, ...], sanitizer: Sanitizer) -> Path:
    """The program. What it is made of is kept, and made anew when a source, or a header that it could see, changes."""
    own = [f"{EMULATOR}/{path.name}" for path in sorted((ROOT / EMULATOR).glob("*.cpp"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _object(source, sanitizer), [*sources, *own]))
    return _made(f"{Path(sources[0]).stem}-{sanitizer}", sanitizer, [], *map(str, objects))


def _object(source: str, sanitizer: Sanitizer) -> Path:
    own = source.startswith(EMULATOR)
    files = [ROOT / source, *_headers(EMULATOR), *([] if own else _headers("csrc"))]
    precompiled = [] if own else ["-include", str(_precompiled(sanitizer).with_suffix(""))]
    return _made(f"{source.replace('/', '-')}-{sanitizer}", sanitizer, files, *precompiled, "-x", "c++", "-c", source)


def _precompiled(sanitizer: Sanitizer) -> Path:
    files = _headers(EMULATOR)
    return _made(f"headers-{sanitizer}", sanitizer, files, "-x", "c++-header", f"{EMULATOR}/precompiled.h")


def _headers(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in (".h", ".cuh"))


def _made(name: str, sanitizer: Sanitizer, files: list[Path], *arguments: str) -> Path:
    """What g++ makes with these arguments; kept under a name that the files, the flags and the compiler decide."""
    flags = ["-std=c++20", "-O1", "-g1", _SANITIZE[sanitizer], "-fno-sanitize-recover=all", "-Wall", "-Wextra"]
    flags += ["-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"]
    flags += [] if re.match(f"{EMULATOR}/.*cpp", arguments[-1]) else _OF_KERNELS[sanitizer]
    flags += [f"-isystem{toolkit_headers()}", "-Icsrc", f"-I{EMULATOR}"]
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout
    key = hashlib.sha1(repr((flags, arguments, version)).encode())
    for path in files:
        key.update(path.read_bytes())
    suffix = ".gch" if "c++-header" in arguments else ""  # by which g++ finds it
    made = ROOT / "build/emulated" / f"{name}-{key.hexdigest()[:12]}{suffix}"
    made.parent.mkdir(parents=True, exist_ok=True)
    with open(made.parent / f"{name}.lock", "w") as lock, tempfile.TemporaryDirectory(dir=made.parent) as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)  # what another process is making is waited for
        if made.exists():
            return made
        for stale in set(made.parent.glob(f"{name}-*")) - {made}:
            stale.unlink(missing_ok=True)
        command = ["g++", *flags, *arguments, "-o", f"{folder}/made"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        Path(folder, "made").replace(made)  # whole or not at all
    return made


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


def _encoded(operand: Any, offset: int) -> bytes:
    if operand is None:
        return b"n\n"
    if isinstance(operand, Tensor):
        data = _bytes_of(operand).numpy().tobytes()
        return f"b {len(data)} {offset}\n".encode() + data
    if isinstance(operand, float):
        return f"r {operand.hex()}\n".encode()
    return f"i {int(operand)}\n".encode()


def _read(stream: IO[bytes], tensors: list[Tensor]) -> list[tuple[Tensor, Tensor]] | None:
    """Each tensor with its new bytes, or None if the program ended in between."""
    answers = []
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        data = bytearray(stream.read(size))
        if len(data) < size:
            return None
        answers.append((tensor, torch.frombuffer(data, dtype=torch.uint8) if size else torch.empty(0).byte()))
    return answers
