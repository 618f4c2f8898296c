"""Every command and every Python block in the documents runs."""

import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from mixfast import doctor, drawing, export
from mixfast.compare import __main__ as compare
from mixfast.config.options import flatten
from mixfast.evaluate import __main__ as evaluate
from mixfast.profile import __main__ as profile
from mixfast.train import __main__ as train
from mixfast.train import cli
from tests.tiny_run import SMALL, process_settings_kept

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

RECIPES = "use-the-backbone.md"  # its blocks need exports: tests/formats/test_targets.py runs them
# Run by what stands beside it, not here.
ELSEWHERE = {
    "make train": "tests/test_install.py builds and starts it; its run is the first command of docs/reproduce.md",
    "make test": "this suite",
    "make test-fast": "this suite, in part",
    "python -m benchmarks --smoke": "tests/test_benchmarks_smoke.py",
    "python -m benchmarks.report": "tests/test_benchmarks_smoke.py",
    "python -m benchmarks.profile_page": "tests/profile/test_profile_page.py",
    "python -m benchmarks.scaling": "tests/profile/test_profile_page.py",
    "bash scripts/gpu_check.sh runs/gpu": "needs a GPU",
    "bash scripts/gpu_check.sh runs/dry --dry-run": "tests/test_gpu_check.py",
    "torchrun --standalone --nproc-per-node 2 -m mixfast.train": "tests/run/test_processes.py, with a smaller run",
    "pip install .": "tests/test_install.py",
    "pip install setuptools wheel pybind11 cmake ninja": "the test extra",
    'pip install --no-build-isolation -e ".[dev]"': "tests/test_install.py",
    "python setup.py build_ext --inplace": "tests/test_install.py",
    "pre-commit install --hook-type pre-commit --hook-type pre-push": "its hooks' commands are in tests/test_repo.py",
}


FEW = ["--count", "4", "--validation", "4"]
FEW_BOXES = ["--count", "4", "--images", "8", "--steps", "2", "--seeds", "0", "--supervised-epochs", "1"]
FEWER = {"localise": FEW, "detect": FEW_BOXES, "linear": ["--epochs", "2"]}
# Of one preset; all have a test of their own.
QUICK = {"--seconds": "0", "--model.depth": "8", "--model.width": "8", "--data.size": "16", "--train.batch_size": "16"}


def blocks(language: str) -> list[tuple[Path, str]]:
    """(document, text) of each fenced block."""
    found = []
    for path in DOCUMENTS:
        found += [(path, text) for text in re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)]
    return found


def commands() -> list[str]:
    """Every command line of the shell blocks once, without its comment."""
    lines = [line.split(" #")[0].strip() for _, text in blocks("bash") for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


OURS = [line for line in commands() if line.startswith("python -m mixfast.")]
ON_RUNS = [line for line in OURS if "runs/" in line]
ALONE = [line for line in OURS if line not in ON_RUNS]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 32 training and 8 test images of two classes under data/, and the documents' modules."""
    for split, count in (("train", 16), ("test", 4)):
        for label, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
            place = tmp_path / "data" / split / label
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (16, 16), tuple(min(255, c + 3 * number) for c in colour)).save(
                    place / f"{number}.png"
                )
    for _, text in blocks("yaml"):
        if (name := re.match(r"# (\S+\.yaml)\n", text)) is not None:
            (tmp_path / name[1]).write_text(text)
    for _, text in blocks("python"):
        if (name := re.match(r"# (\S+\.py)\n", text)) is not None:
            module = tmp_path / name[1]
            module.parent.mkdir(exist_ok=True)
            module.write_text(text)
            for loaded in [each for each in sys.modules if each.partition(".")[0] == module.parent.name]:
                monkeypatch.delitem(sys.modules, loaded)  # another test's module of that name
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # `python -m` looks in the working directory first
    monkeypatch.setattr(drawing, "save", lambda page, path, svg=False: path.touch())  # tests of each command draw
    return tmp_path


def shrunk(words: list[str]) -> list[str]:
    """The words of a training command with the sizes of a run that takes a second, the method and data kept."""
    if {"--help", "--help-all", "--resume"} & set(words):
        return words
    known = flatten(cli.parse(words).config)
    sizes = {**SMALL, "train.epochs": 1, "data.limit": 32}
    sizes = {f"--{key}": str(value) for key, value in sizes.items() if key in known}
    if "--model.backbone" in words:
        del sizes["--model.depth"], sizes["--model.width"]  # of a ResNet
    return [*replaced(words, sizes), "--data.no-cache", "--eval.no-diagnostics", "--compare"]


def replaced(words: list[str], values: dict[str, str]) -> list[str]:
    """The words with these values of options, each of one word, in place of theirs."""
    for flag in values.keys() & set(words):
        place = words.index(flag)
        words = words[:place] + words[place + 2 :]
    return [*words, *(word for pair in values.items() for word in pair)]


def run(line: str) -> int:
    """The exit code of a command line of the documents, made small."""
    module, words = line.split()[2], line.split()[3:]
    if module == "mixfast.doctor":
        return doctor.main(words)
    if module == "mixfast.evaluate":
        return evaluate.main(
            [*words, *{"localise": FEW, "detect": FEW_BOXES, "linear": ["--epochs", "2"]}.get(words[0], [])]
        )
    if module == "mixfast.compare":
        return compare.main([*words, *FEW, "--maps", "1"])
    if module == "mixfast.export":
        return export.main(words)
    if module == "mixfast.profile":
        words = [word for word in words if word != "--all"]
        return profile.main(words if "--help" in words else replaced(words, QUICK))
    return train.main(shrunk(words))


@pytest.mark.slow
@pytest.mark.parametrize("line", ALONE)
def test_every_command_that_stands_alone_runs(line: str, folder: Path) -> None:
    with process_settings_kept():
        assert run(line) == 0


@pytest.mark.slow
def test_every_command_on_earlier_runs_runs(folder: Path) -> None:
    """Evaluating, comparing and resuming: the runs that they name are the first of their presets."""
    presets = {name for line in ON_RUNS for name in re.findall(r"runs/(\w+)-0001", line)}
    assert len(ALONE) >= 8 and len(ON_RUNS) >= 4 and presets
    with process_settings_kept():
        for preset in sorted(presets):
            starts = [line for line in ALONE if line.startswith(f"python -m mixfast.train {preset} ")]
            other_network = re.compile("--model\\.|my_lab|imagenet")
            assert run(min(starts, key=lambda line: other_network.search(line) is not None)) == 0
        for line in ON_RUNS:
            assert run(line) == 0, line


def test_every_other_command_is_known() -> None:
    """Make targets exist; pip commands are those that tests/test_install.py performs."""
    for line in commands():
        if line in OURS or line in ELSEWHERE:
            continue
        assert line.startswith("make "), f"{line}: no test runs it"
        subprocess.run(["make", "--dry-run", *shlex.split(line)[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    "path, code",
    [block for block in blocks("python") if block[0].name != RECIPES],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_every_python_block_runs(path: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "from pytorch_lightning" in code:
        pytest.importorskip("pytorch_lightning", reason="lightning is not installed: pip install mixfast[bench]")
        warnings.simplefilter("ignore")  # its own, until the end of this test
    monkeypatch.chdir(tmp_path)  # where logs, runs and checkpoints go
    exec(compile(code, str(path), "exec"), {"__name__": path.stem})
