"""The Markdown of a comparison, and its numbers."""

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mixfast.compare import attention, detection, tables
from mixfast.compare.gather import PAPER, PAPER_SETTING, TABLE_1, Group, Member, Section, differing_options
from mixfast.compare.recorded import Detection
from mixfast.compare.statistics import (
    KEYS,
    baselines,
    differences,
    plain_moco,
    ranked,
    scores,
    variants,
)
from mixfast.evaluate.localise import Result
from mixfast.scoring.paired import Difference, spread

SCHEMA = 2  # 1 also held a verdict in words and remarks on the paper's numbers
_SCORES = """Weighted kNN (k = {k}, temperature {t}) in percent of the test images after the last epoch, mean and \
standard deviation over seeds; z is the head's output, h the pooled features. **max** is the best of \
all evaluations: it is chosen on the test images, so it is too high. "untrained" is the network before \
training, with BatchNorm statistics of the data (z is that of the first run's head). **paper**: {paper}, for \
{setting}; in any other setting, compare the order of the methods, not the scores."""
_GAPS = """Differences are taken seed by seed, as runs of one seed share images, order and first weights; shown are \
their means. Intervals are Student's t, not corrected for the number of rows: an interval that contains 0 means no \
significant difference. Of a recipe with several variants, each is compared with the one nearest to the method's \
defaults."""
_COST = """An encoder pass with gradient counts as three passes (forward and backward). Training is wall time without \
evaluations, the mean over seeds, on the machines listed below."""
_STEPS = """Each group is compared with plain MoCo trained for as many optimiser steps, in a run of its own with its \
whole learning rate schedule. If a method is worse than MoCo at equal cost but not here, the cause is the cost of its \
steps. "-": there is no such run; `moco --train.epochs N` trains one."""
_CURVES = (
    "kNN: lines are means over seeds, bands reach from the lowest to the highest seed. Loss: other seeds are fainter."
)
_DIAGNOSTICS = """Diagnostics of the last epoch, means over seeds. std of z: 0 if the network has collapsed, 1 if all \
directions are used evenly. Effective rank: the number of directions that h uses. Alignment: squared distance between \
two views of a test image; lower is closer. Uniformity: lower means that the embeddings are spread more evenly. Queue \
age: steps after which a key is overwritten."""
_ACCURACIES = """Measured on one batch of {batch} training images, so in steps of {step:.2g} %. Top-1 accuracy: the \
share of queries that are more similar to their positive than to every key of the queue. With fresh patches: top-1 \
accuracy when every pasted patch shows a view that no other vector shares; if it is far below the plain top-1 \
accuracy, the network recognises positives by the colours and the crop of a shared patch. With *another image's* \
positive: should be at chance level, 1 / (keys + 1); above it, the network recognises positives by something that a \
whole batch shares, such as the box, and not by the image."""
_LOCALISATION = """Percent of {images} images ({data}); map and threshold are chosen on {validation} others. ±: \
standard deviation over seeds. In brackets: 95 % interval from bootstrap draws of the images. Oracle: the threshold is \
chosen on the scored images themselves, which gives an upper bound."""
_MARGINS = "CorLoc minus the CorLoc of the same network untrained; intervals are from bootstrap draws of the images."
_OPTIONS = "Options in which runs differ, and options of methods that are not at their defaults:"


@dataclass
class Chapter:
    """A section with its scores, and the file names of its pictures ("" if not drawn)."""

    section: Section
    knn: str = ""
    loss: str = ""
    maps: str = ""
    maps_title: str = ""
    map_scores: dict[str, dict[str, float]] = field(default_factory=dict)
    localisation: str = ""
    result: Result | None = None
    result_numbers: dict[str, Any] | None = None
    untrained_names: dict[str, str] = field(default_factory=dict)  # name in the table by name of the row
    corloc: dict[str, dict[int, float]] = field(default_factory=dict)  # by group and seed
    corloc_title: str = ""  # the data of `corloc`
    detection: Detection | None = None
    notes: list[str] = field(default_factory=list)  # sentences on missing parts


def page(chapters: Sequence[Chapter], prefix: str = "") -> str:
    """The report in Markdown; `prefix` is put before the file names of pictures."""
    runs = sum(len(chapter.section.members) for chapter in chapters)
    intro = f"# Comparison of {runs} runs\n\nMade by `python -m mixfast.compare`; every number is in `results.json`."
    if len(chapters) > 1:
        titles = "\n".join(f"- {chapter.section.title}" for chapter in chapters)
        intro += f" Scores of different sections cannot be compared:\n\n{titles}"
    return "\n\n".join([intro, *(_section(chapter, prefix) for chapter in chapters), _appendix(chapters)]) + "\n"


def _section(chapter: Chapter, prefix: str) -> str:
    section = chapter.section
    scorer, batch = section.config.eval, section.config.train.batch_size // section.config.train.accumulate
    caption = _SCORES.format(k=scorer.k, t=scorer.temperature, paper=PAPER, setting=PAPER_SETTING)
    parts = [f"## {section.title}", "### Table 1", tables.table_1(section), caption]
    if missing := [*tables.unfinished(section), *chapter.notes]:
        parts += ["\n".join(f"- {line}" for line in missing)]
    base = plain_moco(section)
    gaps = [tables.difference_table(base, ranked(section)) if base else ""]
    gaps += [tables.difference_table(plain, groups) for plain, groups in variants(section)]
    if gaps := [table for table in dict.fromkeys(gaps) if table]:  # both are one where all are MoCo
        parts += ["### Differences", *gaps, _GAPS]
    parts += ["### Cost", tables.cost(section), _COST]
    if steps := tables.equal_steps(section):
        parts += ["### Equal steps", steps, _STEPS]
    pictures = [(chapter.knn, "kNN"), (chapter.loss, "loss")]
    drawn = [f"![{title}]({prefix}{name})" for name, title in pictures if name]
    parts += ["### Curves", *drawn, _CURVES]
    if diagnostics := tables.diagnostics(section):
        parts += ["### Diagnostics", diagnostics, _DIAGNOSTICS]
    if accuracies := tables.accuracies(section):
        parts += [accuracies, _ACCURACIES.format(batch=batch, step=100 / batch)]
    detected = detection.paragraphs(chapter.detection) if chapter.detection else []
    return "\n\n".join([*parts, *_maps(chapter, prefix), *detected])


def _maps(chapter: Chapter, prefix: str) -> list[str]:
    parts = []
    if chapter.result:
        parts += ["### Localisation", attention.localisation_table(chapter.result, chapter.untrained_names)]
        parts += [_LOCALISATION.format(**chapter.result.settings), attention.margin_table(chapter.result), _MARGINS]
        parts += [f"![maps and boxes]({prefix}{chapter.localisation})"]
    if chapter.maps:
        parts += ["### Attention maps", f"![attention maps]({prefix}{chapter.maps})"]
        parts += [f"One seed of each method ({chapter.maps_title}): examples, not evidence."]
    return parts


def _appendix(chapters: Sequence[Chapter]) -> str:
    parts = ["## How it was made"]
    for chapter in chapters:
        section = chapter.section
        parts += [f"### {section.title}", _OPTIONS, tables.options(section)]
        commands = [_command(group) for group in section.groups]
        parts += ["Commands of the first seed; absolute paths are cut to their last part:"]
        parts += ["```text\n" + "\n".join(commands) + "\n```"]
        seeds = [f"`{g.name}`: {', '.join(str(run.config.seed) for run in g.members)}" for g in section.groups]
        parts += [f"Seeds: {'; '.join(seeds)}."]
    members = [run for chapter in chapters for run in chapter.section.members]
    machines = dict.fromkeys(filter(None, map(_machine, members)))
    parts += ["Machines and versions:\n\n" + ("\n".join(f"- {line}" for line in machines) or "not recorded")]
    return "\n\n".join(parts)


def _command(group: Group) -> str:
    member = group.members[0]
    lines = member.read_file("command.txt")
    try:
        arguments = shlex.split(lines[0].partition("  ")[2] if lines else "")
    except ValueError:  # a quotation mark that is not closed
        arguments = []
    if not arguments:
        return f"{group.name}: no command.txt that can be read ({member.label})"
    return shlex.join(
        [argument.rstrip("/").rpartition("/")[2] if argument.startswith("/") else argument for argument in arguments]
    )


def _machine(member: Member) -> str:
    env = member.read_file("env.json")
    if not (isinstance(env, dict) and {"cpu", "threads", "mixfast", "torch", "python"} <= env.keys()):
        return ""
    git = env.get("git")
    git = git if isinstance(git, dict) else {}
    commit = str(git.get("commit") or "")[:7] or "not a checkout"
    changed_files = ", with changes" if git.get("modified") else ""
    device = env.get("gpu") or f"{env['cpu']}, {env['threads']} thread{'s' if env['threads'] != 1 else ''}"
    return f"mixfast {env['mixfast']} ({commit}{changed_files}), torch {env['torch']}, Python {env['python']}, {device}"


def numbers(chapters: Sequence[Chapter], command: Sequence[str], time: str) -> dict[str, Any]:
    """The content of results.json."""
    about = {"schema": SCHEMA, "command": "compare", "time": time, "words": list(command)}
    rows = [{"row": row, "method": recipe, "score": score} for recipe, (row, score) in TABLE_1.items()]
    return {**about, "paper": {"source": PAPER, "rows": rows}, "sections": [_numbers(chapter) for chapter in chapters]}


def _numbers(chapter: Chapter) -> dict[str, Any]:
    section = chapter.section
    base = plain_moco(section)
    paper_rows = {group.name: TABLE_1[recipe][0] for recipe, group in section.table_1_groups().items()}
    return {
        "title": section.title,
        "groups": [{**_group(group), "paper_row": paper_rows.get(group.name)} for group in section.groups],
        "baselines": {
            name: {key: {"values": values, **_spread(values)} for key, values in row.items()}
            for name, row in baselines(section).items()
        },
        "above_moco": {key: _gaps(differences(base, ranked(section), key)) if base else {} for key in KEYS},
        "above_plain_form": {
            key: {plain.name: _gaps(differences(plain, groups, key)) for plain, groups in variants(section)}
            for key in KEYS
        },
        "differing_options": differing_options(section),
        "maps": chapter.map_scores or None,
        "localise": chapter.result_numbers,
        "detection": detection.facts(chapter.detection) if chapter.detection else None,
        "notes": [*tables.unfinished(section), *chapter.notes],
    }


def _gaps(gaps: dict[str, Difference]) -> dict[str, Any]:
    return {name: dataclasses.asdict(gap) for name, gap in gaps.items()}


def _spread(values: dict[int, float]) -> dict[str, Any]:
    row = spread(list(values.values()))
    return dataclasses.asdict(row) if row else {}


def _group(group: Group) -> dict[str, Any]:
    kinds = (("last", False), ("max", True))
    return {
        "name": group.name,
        "method": group.config.method_name,
        "recipe": group.recipe,
        "epochs": group.config.train.epochs,
        "steps": group.steps,
        "method_options": group.changed_options,
        "cost_of_a_step": group.cost,
        "total_cost": group.total_cost,
        **{
            f"{kind}_{key}": {"values": values, **_spread(values)}
            for kind, best in kinds
            for key in KEYS
            if (values := scores(group, key, best))
        },
        "runs": [_run(member) for member in group.members],
    }


def _run(member: Member) -> dict[str, Any]:
    row = member.result
    return {
        "folder": member.label,
        "seed": member.config.seed,
        "finished": member.finished,
        "epochs": row.epochs,
        "last": row.last,
        "max": row.best,
        "seconds": row.seconds,
        "images_per_s": row.images_per_s,
        "diagnostics": member.last("diagnostics"),
    }
