"""Builds the two native modules: `_mixfast_C` (CPU, always) and `_mixfast_cuda` (where an nvcc works).

Through CMake where there is one, else by plain compiler calls; csrc/sources.txt lists the sources for both.
Nothing here needs torch. Environment: MIXFAST_CUDA = auto (default), on (no CUDA is an error) or off;
MIXFAST_CUDA_ARCHS, for instance "80 90": compute capabilities without their dots;
CXX, CXXFLAGS, CUDACXX, CUDA_HOME, MAX_JOBS as everywhere.
"""

import hashlib
import importlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
MODE = os.environ.get("MIXFAST_CUDA", "auto").lower()
JOBS = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 2)
ARCHS = os.environ.get("MIXFAST_CUDA_ARCHS", "80 86 89 90 100 120").split()  # and PTX of the last that nvcc knows
BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop"} & set(sys.argv)
FAILURES = (OSError, subprocess.CalledProcessError)


def output(*command: str, **options) -> subprocess.CompletedProcess:
    """Run a command quietly; a failure raises, with what it printed."""
    return subprocess.run(command, check=True, capture_output=True, text=True, **options)


def probe(nvcc: str) -> list[str]:
    """Compile a kernel and link it with the host compiler; the GPU codes that this nvcc knows."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.cu").write_text("#include <cuda_runtime.h>\n__global__ void k(float* x) { *x = 1; }\n")
        output(nvcc, "-std=c++17", "-c", "probe.cu", "-o", "probe.o", cwd=folder)
    return output(nvcc, "--list-gpu-code").stdout.split()


def find_nvcc() -> tuple[str | None, str]:
    """(nvcc, architectures in CMake's notation), or (None, "") and a one-line notice."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = [os.path.join(home, "bin", "nvcc") for home in homes]
    found += [shutil.which("nvcc"), os.path.join(os.sep, "usr", "local", "cuda", "bin", "nvcc")]
    asked = os.environ.get("CUDACXX")
    reason = "nvcc not found"
    for nvcc in [asked] if asked else found:
        if not (nvcc and os.access(nvcc, os.X_OK)):
            continue
        try:
            known = [arch for arch in ARCHS if f"sm_{arch}" in probe(nvcc)]
        except FAILURES as error:
            reason = f"{nvcc}: {(getattr(error, 'stderr', '') or str(error)).strip()[-300:]}"
            continue
        if known:
            return nvcc, ";".join([f"{arch}-real" for arch in known] + [f"{known[-1]}-virtual"])
        reason = f"{nvcc} knows none of sm_{', sm_'.join(ARCHS)}"
    if MODE == "on":
        raise SystemExit(f"mixfast: MIXFAST_CUDA=on, but {reason}")
    print(f"mixfast: CUDA kernels are not built: {reason}", file=sys.stderr)
    return None, ""


def tool(name: str, oldest: tuple[int, int] = (0, 0)) -> str | None:
    """A program that really starts and is new enough: from PATH, else from its PyPI package."""
    candidates = [shutil.which(name)]
    try:
        package = importlib.import_module(name)
        folder = package.CMAKE_BIN_DIR if name == "cmake" else package.BIN_DIR
        candidates.append(os.path.join(folder, name))
    except (ImportError, AttributeError):
        pass
    for path in filter(None, candidates):
        try:
            version = re.search(r"(\d+)\.(\d+)", output(path, "--version").stdout)
        except FAILURES:  # for instance a PyPI start script whose package the isolated build does not see
            continue
        if version and tuple(map(int, version.groups())) >= oldest:
            return path
    return None


def sources(target: str) -> list[tuple[str, list[str]]]:
    """(path, extra flags) of each source of a target."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    listed = []
    for line in (ROOT / "csrc" / "sources.txt").read_text().splitlines():
        words = line.split()
        if words and words[0] == target:
            listed.append((words[1], [flag for flag in words[2:] if x86 or not flag.startswith("-m")]))
    return listed


def cuda_sources() -> list[tuple[str, list[str]]]:
    """(path, extra flags) of each source of the CUDA module, with those that name its architectures."""
    codes = GPU_CODES.split(";")
    listed = [(path, flags + (gencode(codes) if path.endswith(".cu") else [])) for path, flags in sources("cuda")]
    if {"90-real", "90a-real"} & set(codes):
        listed += [(path, flags + gencode(["90a-real"])) for path, flags in sources("cuda_sm_90a")]
    return listed


class CleanBuildPy(build_py):
    """Empties the staging folder first: it may hold a module that this build leaves out."""

    def run(self) -> None:
        if not getattr(self, "editable_mode", False):
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class NativeBuild(build_ext):
    """Builds each module and copies it to where setuptools expects it."""

    def run(self) -> None:
        if not (self.inplace or getattr(self, "editable_mode", False)):
            for stale in ROOT.glob(f"_mixfast_*{SUFFIX}"):  # of an earlier editable install: it would win from the root
                stale.unlink()
        super().run()

    def build_extensions(self) -> None:
        cmake = tool("cmake", (3, 20))
        folder = configure(cmake) if cmake else None
        for ext in self.extensions:
            try:
                built = with_cmake(ext.name, cmake, folder) if cmake and folder else without_cmake(ext.name)
            except FAILURES as error:
                if ext.name == "_mixfast_C" or MODE == "on":
                    raise
                print(f"mixfast: WARNING: CUDA kernels are not built: {error}", file=sys.stderr)
                continue
            target = Path(self.get_ext_fullpath(ext.name)).resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # not written in place: a running process may have it mapped
            shutil.copy2(built, target)


def configure(cmake: str) -> Path:
    """Run CMake in a folder kept between builds; once more from nothing if what is kept there is stale."""
    import pybind11

    ninja = tool("ninja")
    key = repr((sys.version, str(ROOT), bool(ninja), NVCC, [os.environ.get(name) for name in ("CXX", "CXXFLAGS")]))
    folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{hashlib.sha1(key.encode()).hexdigest()[:8]}"
    command = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja" if ninja else "Unix Makefiles"]
    command += ["-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DMIXFAST_CUDA={MODE if NVCC else 'off'}"]
    command += [f"-DMIXFAST_CUDA_ARCHS={GPU_CODES}"] + ([f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else [])
    env = {**os.environ, **({"CUDACXX": NVCC} if NVCC else {})}  # CMAKE_CUDA_COMPILER would skip CMake's own check
    if subprocess.run(command, env=env).returncode:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(command, env=env, check=True)
    return folder


def with_cmake(name: str, cmake: str, folder: Path) -> Path:
    """Build one module in a configured folder."""
    subprocess.run([cmake, "--build", str(folder), "--target", name, "-j", str(JOBS)], check=True)
    return folder / (name + SUFFIX)


def without_cmake(name: str) -> Path:
    """The same sources and flags by plain compiler calls."""
    import pybind11

    folder = ROOT / "build" / f"plain-{sys.implementation.cache_tag}"
    folder.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = ["-O3", "-DNDEBUG", "-std=gnu++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
    flags += [f'-DMIXFAST_CUDA_ARCHS="{GPU_CODES.replace(";", ",")}"', *shlex.split(os.environ.get("CXXFLAGS", ""))]
    python = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    openmp = ["-fopenmp"] if name == "_mixfast_C" else []

    def compiled(path: str, extra: list[str]) -> str:
        target = str(folder / (path.replace("/", "-") + ".o"))
        if path.endswith(".cu"):
            host = "-fPIC,-fvisibility=hidden,-ffp-contract=off"
            command = [str(NVCC), "-O3", "-std=c++17", "--threads=0", "-Xcompiler", host]
        else:
            command = compiler + flags + openmp + (python if Path(path).name.startswith("bind_") else [])
        subprocess.run([*command, *extra, "-Icsrc", "-c", path, "-o", target], check=True, cwd=ROOT)
        return target

    with ThreadPoolExecutor(JOBS) as pool:
        listed = sources("cpu") if name == "_mixfast_C" else cuda_sources()
        objects = list(pool.map(compiled, *zip(*listed, strict=True)))
    libraries = openmp or [f"-L{cudart()}", "-lcudart_static", "-lrt", "-lpthread", "-ldl"]
    library = folder / (name + SUFFIX)
    subprocess.run([*compiler, *flags, "-shared", "-o", str(library), *objects, *libraries], check=True)
    return library


def gencode(codes: list[str]) -> list[str]:
    """nvcc's flags for architectures in CMake's notation."""
    named = [code.split("-") for code in codes]
    return [f"-gencode=arch=compute_{a},code={'sm' if kind == 'real' else 'compute'}_{a}" for a, kind in named]


def cudart() -> Path:
    """The folder of libcudart_static.a; a dry run names the toolkit, also where nvcc is a wrapper script."""
    named = re.search(r"#\$ TOP=(.*)", output(str(NVCC), "--dryrun", "-c", "x.cu").stderr)
    top = Path(named[1].strip()) if named else Path(str(NVCC)).resolve().parents[1]
    for folder in (top / "lib64", top / "lib", *top.glob("targets/*/lib")):
        if (folder / "libcudart_static.a").exists():
            return folder
    raise FileNotFoundError(f"no libcudart_static.a in the CUDA toolkit {top}")


if MODE not in ("auto", "on", "off"):
    raise SystemExit(f"mixfast: MIXFAST_CUDA must be auto, on or off; got {MODE!r}")
NVCC, GPU_CODES = find_nvcc() if BUILDING and MODE != "off" else (None, "")
setup(
    license="MIT",  # here, since setuptools before 77 and after 2026 disagree on its form in pyproject.toml
    ext_modules=[Extension("_mixfast_C", [])] + ([Extension("_mixfast_cuda", [], optional=True)] if NVCC else []),
    cmdclass={"build_ext": NativeBuild, "build_py": CleanBuildPy},
    # Read by an isolated build only, which then installs what the machine lacks; elsewhere both are optional.
    setup_requires=[name for name in ("cmake", "ninja") if "egg_info" in sys.argv and not tool(name)],
)
