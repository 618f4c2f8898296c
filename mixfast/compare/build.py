"""Write the report of some run folders, completely or not at all."""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mixfast.compare import attention, curves, recorded
from mixfast.compare.attention import Data
from mixfast.compare.gather import Section, gather
from mixfast.compare.page import Chapter, numbers, page
from mixfast.errors import ConfigError
from mixfast.evaluate.runs import LoadedRun
from mixfast.ranges import Count, Index
from mixfast.run.folder import now, results_folder, write_json
from mixfast.run.reopen import MachineOptions

PAGE, RESULTS = "report.md", "results.json"


@dataclass(frozen=True)
class Compare(MachineOptions):
    """Put runs side by side: the paper's Table 1, differences over seeds, curves, localisation, maps."""

    # folders of runs
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...", help_behavior_hint="")] = ()
    out: Path | None = None  # folder of the report; none: runs/comparison-NNNN
    overwrite: bool = False  # replace an existing report
    page: Path | None = None  # write the Markdown to this file instead of report.md in the folder
    folder_name: str | None = None  # name of the images of runs on a folder; none: the folder's name
    localise: Data = "auto"  # images on which maps look for objects; auto: scenes for runs on scenes, else canvas
    count: Count = 1000  # images on which localisation is scored, at most
    validation: Count = 300  # other images, on which map and threshold are chosen
    maps: Index = 6  # images in the grid of attention maps; 0: no grid


def compare(options: Compare, arguments: Sequence[str]) -> Path:
    """Write the report of some runs; returns the file of its Markdown.

    Raises:
        ConfigError: no run, two runs with the same options and seed, or an existing folder that is not a report.
        CheckpointError: a folder that is not a run, or that cannot be read.
    """
    if options.page and options.page.exists() and not options.overwrite:
        raise ConfigError(f"--page {options.page} exists. Replace it with --overwrite, or choose another file.")
    sections = gather(options.runs, options.folder_name, options.trust)
    _check_out(options)
    temporary = Path(tempfile.mkdtemp(prefix="mixfast-compare-"))  # not beside the report, where a kill would leave it
    try:
        chapters = [_chapter(section, options, temporary) for section in sections]
        with results_folder(options.out, "comparison") as folder:
            return _write(chapters, temporary, folder, options, arguments)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    chapters: Sequence[Chapter], temporary: Path, folder: Path, options: Compare, arguments: Sequence[str]
) -> Path:
    """Write the page and the numbers beside the pictures in `fresh`, and move all to `folder`; returns the page."""
    file = options.page or folder / PAGE
    prefix = f"{os.path.relpath(folder, file.parent)}/" if options.page else ""
    text = page(chapters, prefix)
    write_json(temporary / RESULTS, numbers(chapters, [Path(argument).name for argument in arguments], now()))
    if not options.page:
        (temporary / PAGE).write_text(text, encoding="utf-8", errors="backslashreplace")
    if any(folder.iterdir()):
        shutil.rmtree(folder)
        folder.mkdir()
    for path in sorted(
        temporary.iterdir(), key=lambda path: path.name != RESULTS
    ):  # first the file that marks a report
        shutil.copyfile(path, folder / path.name)
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(text, encoding="utf-8", errors="backslashreplace")
    return file


def _check_out(options: Compare) -> None:
    """Raise a ConfigError unless --out is new, an empty folder, or with --overwrite an earlier report."""
    out = options.out
    if out is None:
        if options.overwrite:
            raise ConfigError("--overwrite needs --out FOLDER: the report to replace.")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not _is_report(out):
            raise ConfigError(
                f"--out {out} exists and is not a report of this command, so it is not replaced. Choose another --out."
            )
        if not options.overwrite:
            raise ConfigError(f"--out {out} holds a report. Replace it with --overwrite, or choose another --out.")


def _is_report(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / RESULTS).read_text(encoding="utf-8"))["command"] == "compare")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _chapter(section: Section, options: Compare, folder: Path) -> Chapter:
    chapter = Chapter(section)
    if curves.knn(folder / f"{section.slug}-knn.png", section):
        chapter.knn = f"{section.slug}-knn.png"
    else:
        chapter.notes.append("No run has kNN scores: no curves of them.")
    if any(member.last("train") for member in section.members):
        chapter.loss = f"{section.slug}-loss.png"
        curves.losses(folder / chapter.loss, section)
    if options.localise != "none" or options.maps:
        _networks(chapter, options, folder)
    chapter.detection = recorded.gather(section, chapter.corloc, chapter.corloc_title)
    chapter.notes += chapter.detection.notes
    return chapter


def _networks(chapter: Chapter, options: Compare, folder: Path) -> None:
    """Score and draw the networks of the finished runs that have a checkpoint."""
    section = chapter.section
    if missing := [run.label for run in section.members if run.finished and not run.has_checkpoint]:
        chapter.notes.append(f"No checkpoint, so neither maps nor localisation: {shlex.join(missing)}.")
    if runs := attention.open_finished(section, options):
        _maps(chapter, runs, options, folder)


def _maps(chapter: Chapter, runs: Sequence[LoadedRun], options: Compare, folder: Path) -> None:
    slug = chapter.section.slug
    if options.localise != "none":
        print(f"scoring attention maps of {len(runs)} runs, on {options.count} images; --localise none leaves them out")
        chapter.result = attention.score_localisation(runs, options.localise, options.count, options.validation)
        chapter.localisation = f"{slug}-localisation.png"
        attention.draw_localisation(folder / chapter.localisation, chapter.result)
        chapter.untrained_names = attention.untrained_names(runs, chapter.result)
        chapter.corloc = attention.corloc(runs, chapter.result)
        chapter.corloc_title = "{images} images ({data})".format(**chapter.result.settings)
        chapter.result_numbers = attention.localisation_numbers(runs, chapter.result)
    if options.maps:
        chapter.maps = f"{slug}-maps.png"
        chapter.maps_title, chapter.map_scores = attention.draw_maps(folder / chapter.maps, runs, options.maps)
