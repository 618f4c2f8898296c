"""python -m benchmarks.gpu.machine: the machine and its software as JSON; reads settings, changes none."""

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("numpy", "triton", "pytest", "hypothesis", "lightly", "inf_cl", "matplotlib")
QUERIED = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"
ROOT = Path(__file__).parents[2]


def describe() -> dict[str, Any]:
    """Commit, versions, GPU with its clocks at this moment, processor, date; no path and no name of the machine."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "source": os.environ.get("MIXFAST_SOURCE", ""),  # a digest of the files, by scripts/gpu_check.py
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda_runtime": torch.version.cuda,
        "nvcc": output("nvcc", "--version").splitlines()[-2:-1],
        "packages": {name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu() if torch.cuda.is_available() else None,
    }


def commit() -> str:
    """The commit from git, or from the variable MIXFAST_COMMIT for files without their history."""
    from_environment = os.environ.get("MIXFAST_COMMIT")
    return (
        from_environment
        or output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12").strip()
        or "unknown"
    )


def gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    values = output(
        "nvidia-smi", f"--query-gpu={QUERIED}", "--format=csv,noheader", f"--id={torch.cuda.current_device()}"
    )
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": properties.L2_cache_size >> 20,
        "memory_mib": properties.total_memory >> 20,
        "count": torch.cuda.device_count(),
        **dict(zip(QUERIED.split(","), map(str.strip, values.split(",")), strict=False)),
    }


def processor() -> str:
    """As Linux calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def output(*command: str) -> str:
    """What a command prints; nothing if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout if done.returncode == 0 else ""


if __name__ == "__main__":
    print(json.dumps(describe(), indent=1))
