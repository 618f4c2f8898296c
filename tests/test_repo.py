"""What holds for every file: size, style, types, no dead option, no undocumented name, no trace of a machine."""

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import mixfast
from mixfast import methods

ROOT = Path(__file__).parents[1]
NATIVE = (".cpp", ".cu", ".h", ".cuh")
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_KERNEL = 400, 60, 120  # lines


def git(*args: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so what belongs to the repository is unknown")
    done = subprocess.run(["git", *args, "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@cache
def files() -> list[Path]:
    """Every file that is tracked, or would be by `git add .`."""
    return [Path(name) for name in git("ls-files", "--cached", "--others", "--exclude-standard")]


def texts(*suffixes: str) -> dict[Path, str]:
    return {path: (ROOT / path).read_text() for path in files() if path.suffix in suffixes}


def test_no_source_is_ignored_by_git() -> None:
    ignored = git("ls-files", "--others", "--ignored", "--exclude-standard", "csrc", "mixfast", "tests", "benchmarks")
    sources = [name for name in ignored if Path(name).suffix in (".py", ".txt", ".toml", *NATIVE)]
    assert not sources


def test_files_are_short() -> None:
    lengths = {path: len(text.splitlines()) for path, text in texts(".py", *NATIVE).items()}
    assert not {str(path): n for path, n in lengths.items() if n > LONGEST_FILE}
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 120


def test_functions_are_short() -> None:
    long = {}
    for path, text in texts(".py").items():
        limit = LONGEST_KERNEL if path.name.startswith("gpu_triton") else LONGEST_FUNCTION
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = int(node.end_lineno or 0) - node.lineno + 1
                if lines > limit:
                    long[f"{path}:{node.name}"] = lines
    assert not long


def test_kernels_are_short() -> None:
    """clang-format puts the braces of a function in column 0, of a namespace too: those are left out."""
    long = {}
    for path, text in texts(*NATIVE).items():
        start = None
        for number, line in enumerate(text.splitlines(), 1):
            if start is None and re.match(r"\S.*\{$", line) and not re.match(r"(inline )?namespace|extern", line):
                start = number
            elif start is not None and line.startswith("}"):
                if number - start + 1 > LONGEST_KERNEL:
                    long[f"{path}:{start}"] = number - start + 1
                start = None
    assert not long


def parsed(folder: str) -> dict[Path, list[ast.AST]]:
    """All nodes of every Python file under a folder."""
    return {path: list(ast.walk(ast.parse(text))) for path, text in texts(".py").items() if path.parts[0] == folder}


@cache
def options() -> dict[str, Path]:
    """The fields of every class of the package whose name ends in Config, with the file of each."""
    found = {}
    for path, nodes in parsed("mixfast").items():
        for node in nodes:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                fields = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
                found |= {field.id: path for field in fields if isinstance(field, ast.Name)}
    return found


@pytest.mark.slow
def test_every_option_is_read() -> None:
    """As an attribute of what is called config, or of one of its sections; a check in its own class does not count."""
    holders = {"config", "cfg", "options", *options()}
    read = set()
    for node in (node for nodes in parsed("mixfast").values() for node in nodes):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            holder = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            read |= {node.attr} if holder in holders else set()
    dead = {name: str(path) for name, path in options().items() if name not in read}
    assert len(options()) > 30 and not dead


def test_every_public_name_is_documented() -> None:
    documents = "".join(text for path, text in texts(".md").items() if path.name != "CHANGELOG.md")
    names = [name for name in mixfast.__all__ if name != "__version__"]
    assert not [name for name in [*names, *methods.names()] if not re.search(rf"\b{name}\b", documents)]


def test_version_is_the_same_everywhere() -> None:
    assert f'\nversion = "{mixfast.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"[{mixfast.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {mixfast.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_native_source_is_listed() -> None:
    lines = [line.split() for line in (ROOT / "csrc/sources.txt").read_text().splitlines() if line[0] != "#"]
    listed = [(target, path) for target, path, *_ in lines]
    assert len(listed) == len(set(listed))
    assert sorted({path for _, path in listed}) == sorted(
        str(path) for path in files() if path.suffix in (".cpp", ".cu") and path.parts[0] == "csrc"
    )


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?<![\w.~:/-])/(?:home|root|work|opt|farm|mnt|Users)/\w",  # a path of one machine
        r"(?<![\w.~:/-])/tmp/\w",
        r"[Hh]ttps?://(?:pypi|registry|files\.pythonhosted)\b",
        r"--(?:extra-)?index-url",
        r"\b(?:TO[D]O|FIX[M]E|XX[X])\b(?!\()",  # one with a reason, as in name(event), is fine
        r"print\((?:f?\")?DEBUG|breakpoint\(\)",
    ],
)
def test_forbidden_text(pattern: str) -> None:
    hits = []
    for path, text in texts(".py", ".md", ".txt", ".toml", ".yaml", ".json", ".csv", ".in", "", *NATIVE).items():
        if path != Path("tests/test_repo.py"):
            hits += [f"{path}:{n}: {line}" for n, line in enumerate(text.splitlines(), 1) if re.search(pattern, line)]
    assert not hits


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check ."])
def test_python_style(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


USE = """
import mixfast
from torch import Tensor

def use(rows: Tensor, reduction: str) -> None:
    queues, which = [rows], [0]
    mean: Tensor = mixfast.multi_queue_infonce([rows], [rows], queues, which)
    total: Tensor = mixfast.multi_queue_infonce([rows], [rows], queues, which, reduction="sum").sum()
    each: list[Tensor] = mixfast.multi_queue_infonce([rows], [rows], queues, which, reduction="none")
    any_of_both: Tensor | list[Tensor] = mixfast.multi_queue_infonce([rows], [rows], queues, which, reduction=reduction)
"""


@pytest.mark.slow
def test_types(tmp_path: Path) -> None:
    """The package, what the first pages show, and each reduction, by mypy --strict, in one run of it."""
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/operations.md")]
    codes = [*(code for page in pages for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)), USE]
    for number, code in enumerate(codes):
        (tmp_path / f"written_{number}.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "mixfast", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert len(codes) > 2 and done.returncode == 0, done.stdout + done.stderr


def test_native_style() -> None:
    formatter = shutil.which("clang-format", path=f"{Path(sys.executable).parent}")
    assert formatter, "the test extra installs clang-format"
    sources = [str(path) for path in files() if path.suffix in NATIVE]
    done = subprocess.run([formatter, "--dry-run", "--Werror", *sources], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
