"""Runs of ResNet-18 that were stopped after a step, and what docs/use-the-backbone.md writes of one."""

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mixfast.export import export, main
from mixfast.run import engine
from tests.tiny_run import open_tiny, process_settings_kept

PAGE = (Path(__file__).parents[2] / "docs" / "use-the-backbone.md").read_text()
SHAPE = {"model__depth": 18, "model__width": 64, "data__scenes": 16, "data__test_scenes": 4, "data__size": 32}


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of MoCo with a stem, and its export; made when it is first asked for, not to be changed."""
    made: dict[str, Path] = {}

    def folder(stem: str) -> Path:
        if stem not in made:
            made[stem] = tmp_path_factory.mktemp("stopped") / stem
            with process_settings_kept():
                run = open_tiny(made[stem], "moco", model__stem=stem, method__queue_size=16, **SHAPE)
                run.folder.write_config(run.config, "demo", {})
                engine.train_step(run, run.batches.images[:16], check=False)
                run.save()
                export(run)
        return made[stem]

    return folder


class Written(NamedTuple):
    """What the commands of the page did."""

    folder: Path  # with a folder for each --to, "mixfast" and "key"
    codes: dict[str, int]  # exit codes, by folder
    said: dict[str, str]  # what was printed


@pytest.fixture(scope="session")
def written(stopped: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The exports of the page, of a ResNet-18 with the stem imagenet."""
    place, codes, said = tmp_path_factory.mktemp("page"), {}, {}
    for line in re.findall(r"^python -m mixfast.export (RUN .*)$", PAGE, re.MULTILINE):
        words = line.replace("RUN", str(stopped("imagenet"))).replace("weights/", f"{place}/weights/").split()
        name, output = Path(words[-1]).name, io.StringIO()
        with process_settings_kept(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            codes[name] = main([*words, "--threads", "1"])
        said[name] = output.getvalue()
    return Written(place / "weights", codes, said)
