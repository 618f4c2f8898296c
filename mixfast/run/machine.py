"""The machine a run is on: device, threads, memory, and what to write down about all of it."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import mixfast
from mixfast.errors import ConfigError, PlatformError
from mixfast.ops import _dispatch
from mixfast.world import current


def pick_device(wanted: str, option: str = "--train.device") -> torch.device:
    """The device that an option names: auto is the first GPU, else the CPU.

    Raises:
        ConfigError: not a device this trainer knows. PlatformError: this machine has no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = wanted.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or (kind == "cpu" and index):
        raise ConfigError(f"{option} {wanted}: must be auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise PlatformError(
            f"{option} {wanted}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs. "
            f"Use {option} cpu, or install a build of torch for your GPU and driver (https://pytorch.org)."
        )
    return torch.device(wanted)


def pick_own_device(wanted: str, option: str = "--train.device") -> torch.device:
    """The device that an option names; of several processes on a machine each has the GPU of its number.

    Raises:
        ConfigError: several processes are to share a device. PlatformError: this machine has no such device.
    """
    here = current()
    device = pick_device(wanted, option)
    if here.size == 1 or device.type == "cpu":
        return device
    if device.index is not None:
        raise ConfigError(
            f"{option} {wanted}: each of the {here.size} processes takes a GPU of its own. Leave it at auto, and "
            "choose GPUs by CUDA_VISIBLE_DEVICES."
        )
    if here.local_rank >= (count := torch.cuda.device_count()):
        raise PlatformError(
            f"process {here.rank} is number {here.local_rank} on its machine and sees {count} GPUs: give torchrun "
            f"--nproc-per-node {count}, or srun --ntasks-per-node {count} --gpu-bind=none."
        )
    return torch.device("cuda", here.local_rank)


def cpu_quota() -> int:
    """CPU cores this process may use at once: its affinity, cut by the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, period in (_cgroup_v2(), _cgroup_v1()):
        if quota > 0 and period > 0:
            cores = min(cores, max(1, round(quota / period)))
    return cores


def _cgroup_v2() -> tuple[float, float]:
    words = _read("/sys/fs/cgroup/cpu.max").split()
    return (float(words[0]), float(words[1])) if len(words) == 2 and words[0] != "max" else (0.0, 0.0)


def _cgroup_v1() -> tuple[float, float]:
    quota, period = (_read(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    return (float(quota), float(period)) if quota and period else (0.0, 0.0)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def set_threads(wanted: int) -> int:
    """Give torch `wanted` threads; 0 leaves OMP_NUM_THREADS in charge if set, else takes the quota. Returns the count.

    More threads than the quota are not only slower: they burn several times the CPU time while they wait.
    """
    if wanted or not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(wanted or cpu_quota())
    return torch.get_num_threads()


def set_determinism(wanted: bool) -> None:
    """Allow only deterministic kernels, or let cuDNN time its kernels and take the fastest."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses to be deterministic without it
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a cost, for tests
    if wanted != torch.are_deterministic_algorithms_enabled():  # the call imports torch's compiler: seconds
        torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted


def keep_freed_memory() -> bool:
    """Tell glibc to keep large blocks that are freed instead of giving them back to the kernel; whether it did.

    A training step frees and asks again for the same large tensors. By default each comes from the kernel anew, page
    by page: 15 to 20 % of the time of a step on a CPU. Process-wide: only the commands that train or profile do it.
    """
    return _set_malloc(mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1)


def return_freed_memory() -> bool:
    """Tell glibc to return freed blocks at once: resident memory then follows the tensors. Slow; whether it did."""
    return _set_malloc(mmap_threshold=1 << 16, trim_threshold=1 << 17)


def _set_malloc(mmap_threshold: int, trim_threshold: int) -> bool:
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not Linux, or another C library
        return False
    mmap, trim = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    return bool(mallopt(mmap, mmap_threshold) and mallopt(trim, trim_threshold))


def pick_memory_format(wanted: str) -> torch.memory_format:
    """channels_last unless told otherwise: the fastest layout in every CPU measurement, and what cuDNN prefers."""
    return torch.contiguous_format if wanted == "contiguous" else torch.channels_last


def pick_compile(wanted: str, device: torch.device) -> tuple[bool, str]:
    """Whether training passes of the encoder go through torch.compile, and a phrase that says so and why.

    Raises:
        PlatformError: they are to, and this machine has no C++ compiler.
    """
    if wanted == "on" and current().size > 1:
        raise ConfigError("--train.compile on: not with several processes, where it is not tested. Leave it at auto.")
    if wanted != "auto":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # which torch.compile takes
        if wanted == "on" and not shutil.which(compiler):
            raise PlatformError(
                f"--train.compile on: torch.compile needs a C++ compiler, and there is no {compiler} on PATH. "
                "Install it, let the environment variable CXX name another, or leave the option at auto."
            )
        return wanted == "on", f"compile {wanted} (as asked)"
    if device.type == "cpu":
        return False, "compile off (auto: on a CPU 3 to 7 % faster, after more than a minute of compiling)"
    return False, "compile off (auto: not measured yet on a GPU)"


def pick_graph(wanted: str, device: torch.device) -> tuple[bool, str]:
    """Whether the step is replayed as CUDA graphs, and a phrase that says so and why.

    Raises:
        ConfigError: it is to be, and the device is no GPU.
    """
    if wanted == "on" and device.type != "cuda":
        raise ConfigError(f"--train.graph on: CUDA graphs need a GPU, and this run is on {device}. Leave it at auto.")
    if wanted == "on" and current().size > 1:
        raise ConfigError("--train.graph on: not with several processes, where it is not tested. Leave it at auto.")
    if wanted != "auto":
        return wanted == "on", f"graph {wanted} (as asked)"
    if device.type != "cuda":
        return False, "graph off (auto: no GPU)"
    return False, "graph off (auto: not measured yet)"


def kernels(device: torch.device) -> str:
    """The backend that "auto" would take first on `device` for most operations, and which are the exceptions."""
    by_backend: dict[str, list[str]] = {}
    for op, found in mixfast.backends().items():
        names = [name for name in _dispatch.automatic(op, device.type) if found[name] is None]
        by_backend.setdefault(names[0] if names else "none", []).append(op)
    most, *others = sorted(by_backend, key=lambda backend: -len(by_backend[backend]))
    return ", ".join([most, *(f"{backend} for {' and '.join(by_backend[backend])}" for backend in others)])


def memory_bytes(device: torch.device) -> int:
    """Memory of a GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def room(device: torch.device) -> dict[str, Any]:
    """What `data.load` asks of the machine: cores for decoding, and the memory of a GPU."""
    return {
        "cores": max(1, cpu_quota() // current().local_size),
        **({"device_bytes": memory_bytes(device)} if device.type == "cuda" else {}),
    }


def environment(device: torch.device, **facts: Any) -> dict[str, Any]:
    """Versions, hardware, threads, backends and git state, for env.json; and further facts."""
    gpu = {}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return {
        "mixfast": mixfast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": cpu_quota(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        **gpu,
        "backends": mixfast.backends(),
        "git": git_state(Path(__file__).parent),
        "argv": sys.argv,
        **facts,
    }


def _cpu_name() -> str:
    lines = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return lines[0].partition(":")[2].strip() if lines else platform.processor()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, and whether tracked files differ from it; None outside a checkout."""
    commit, status = (_git(folder, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
    return None if commit is None else {"commit": commit, "modified": bool(status)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
