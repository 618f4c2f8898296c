"""Builds the two native modules by CMake: `_mixfast_C` (CPU, always) and `_mixfast_cuda` (where an nvcc works).

Nothing here needs torch. Environment: MIXFAST_CUDA = auto (default), on (no CUDA is an error) or off;
MIXFAST_CUDA_ARCHS, for instance "80 90": compute capabilities without their dots;
CXX, CXXFLAGS, CUDACXX, CUDA_HOME, MAX_JOBS as everywhere.
"""

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
MODE = os.environ.get("MIXFAST_CUDA", "auto").lower()
ARCHS = os.environ.get("MIXFAST_CUDA_ARCHS", "80 86 89 90 100 120").split()  # and PTX of the last that nvcc knows
OLDEST = "12.5"  # CUDA: it brought cudaGetDriverEntryPointByVersion, by which csrc/infonce/hopper.cu finds the driver
FAILURES = (OSError, subprocess.CalledProcessError)


def probe(nvcc: str) -> list[str]:
    """Compile a kernel, with the host compiler behind nvcc; return the GPU codes that this nvcc knows."""
    major, minor = OLDEST.split(".")
    lines = [
        "#include <cuda_runtime.h>",
        f"#if CUDART_VERSION < {major}0{minor}0",
        f"#error mixfast needs CUDA {OLDEST} or newer",
        "#endif",
        "__global__ void k(float* x) { *x = 1; }",
    ]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.cu").write_text("\n".join(lines) + "\n")
        compile_ = [nvcc, "-std=c++17", "-c", "probe.cu", "-o", "probe.o"]
        subprocess.run(compile_, cwd=folder, check=True, capture_output=True, text=True)
    listed = subprocess.run([nvcc, "--list-gpu-code"], check=True, capture_output=True, text=True)
    return listed.stdout.split()


def find_nvcc() -> tuple[str | None, str]:
    """(nvcc, architectures in CMake's notation), or (None, "") and a one-line notice."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [os.path.join(home, "bin", "nvcc") for home in homes]
    candidates += [shutil.which("nvcc"), os.path.join(os.sep, "usr", "local", "cuda", "bin", "nvcc")]
    asked = os.environ.get("CUDACXX")
    reason = "nvcc not found"
    for nvcc in [asked] if asked else candidates:
        if not (nvcc and os.access(nvcc, os.X_OK)):
            continue
        try:
            codes = probe(nvcc)
        except FAILURES as error:
            reason = f"{nvcc}: {(getattr(error, 'stderr', '') or str(error)).strip()[-300:]}"
            continue
        if known := [arch for arch in ARCHS if f"sm_{arch}" in codes]:
            return nvcc, ";".join([f"{arch}-real" for arch in known] + [f"{known[-1]}-virtual"])
        reason = f"{nvcc} knows none of sm_{', sm_'.join(ARCHS)}"
    if MODE == "on":
        raise SystemExit(f"mixfast: MIXFAST_CUDA=on, but {reason}")
    print(f"mixfast: CUDA kernels are not built: {reason}", file=sys.stderr)
    return None, ""


def program(name: str) -> str:
    """The path of cmake or ninja: from the package of that name, else from PATH."""
    try:
        package = importlib.import_module(name)
        folder = package.CMAKE_BIN_DIR if name == "cmake" else package.BIN_DIR
    except (ImportError, AttributeError):
        folder = ""
    path = shutil.which(name, path=folder) or shutil.which(name)
    if path is None:
        raise SystemExit(f"mixfast: the build needs {name}, which is not installed: pip install {name}")
    return path


def compiled(module: str, nvcc: str | None, archs: str) -> Path:
    """Build a module in a folder of its own, kept between builds; once more from nothing if what is kept is stale."""
    import pybind11

    key = repr((sys.version, str(ROOT), nvcc, [os.environ.get(name) for name in ("CXX", "CXXFLAGS")]))
    name = f"cmake-{sys.implementation.cache_tag}-{module}-{hashlib.sha1(key.encode()).hexdigest()[:8]}"
    folder = ROOT / "build" / name
    command = [program("cmake"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={program('ninja')}", "-DCMAKE_BUILD_TYPE=Release"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={Path(pybind11.get_cmake_dir()).resolve()}"]
    command += [f"-DMIXFAST_CUDA={'ON' if nvcc else 'OFF'}", f"-DMIXFAST_CUDA_ARCHS={archs}"]
    env = {**os.environ, **({"CUDACXX": nvcc} if nvcc else {})}
    if subprocess.run(command, env=env).returncode:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(command, env=env, check=True)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 2)
    subprocess.run([program("cmake"), "--build", str(folder), "--target", module, "-j", jobs], check=True)
    return folder / f"{module}{SUFFIX}"


class CleanBuildPy(build_py):
    """Empties the staging folder first: it may hold a file that this build leaves out."""

    def run(self) -> None:
        if not getattr(self, "editable_mode", False):
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class NativeBuild(build_ext):
    """Builds each module and copies it to where setuptools expects it."""

    def build_extensions(self) -> None:
        nvcc, archs = find_nvcc() if MODE != "off" else (None, "")
        for ext in self.extensions:
            built = None
            try:
                if nvcc or not ext.optional:
                    built = compiled(ext.name, nvcc if ext.optional else None, archs)
            except FAILURES as error:
                if MODE == "on" or not ext.optional:
                    raise
                print(f"mixfast: WARNING: CUDA kernels are not built: {error}", file=sys.stderr)
            target = Path(self.get_ext_fullpath(ext.name)).resolve()
            for stale in (target, ROOT / target.name):  # the second, of an editable install, would win from the root
                stale.unlink(missing_ok=True)
            if built is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(built, target)


if MODE not in ("auto", "on", "off"):
    raise SystemExit(f"mixfast: MIXFAST_CUDA must be auto, on or off; got {MODE!r}")
setup(
    license="MIT",  # here, since setuptools before 77 and after 2026 disagree on its form in pyproject.toml
    ext_modules=[Extension("_mixfast_C", []), Extension("_mixfast_cuda", [], optional=True)],
    cmdclass={"build_ext": NativeBuild, "build_py": CleanBuildPy},
)
