"""The Markdown of a comparison, and its numbers."""

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mixfast.compare import objects, tables
from mixfast.compare.gather import Group, Member, Section, differing
from mixfast.compare.published import SOURCE, TABLE
from mixfast.compare.statistics import KEYS, Difference, baselines, scores, spread
from mixfast.compare.verdict import above, changed, comparable, differences, ranked, reference, rows, variants, verdict
from mixfast.evaluate.localise import Result

SCHEMA = 1
_HEALTH = """Of the last epoch, means over seeds. std of z: 0 if it has collapsed, 1 if directions are used \
evenly. Effective rank: directions that h uses. Alignment: squared distance of two views of a test \
image, lower is closer; uniformity: lower is more even. Queue age: steps after which a key is \
overwritten."""
_FOUND = """On one batch of {batch} training images, so in steps of {step:.2g} %: the share of the positives \
that beat every key of their queue, and of *another image's* positives that do. The second column \
should be at chance, 1 in the number of keys and the positive; what is above it is found by what a \
batch has in common, such as its box, and not by the image."""
_SCORES = """Weighted kNN (k = {k}, temperature {t}) in percent of the test images after the last epoch, mean and \
standard deviation over seeds; z is the head's output, h the pooled features. **max** is the best of \
all evaluations: chosen on the test images, so it is no result. "untrained" is the network before \
training with BatchNorm statistics of the data (z of the first run's head)."""
_GAPS = """Means of the differences seed by seed, with Student's t; each interval stands for itself, none is widened \
for the number of rows. Runs of one seed share images, order and first weights. Where a method was \
run in several forms, the others stand beside the one nearest to its defaults."""
_COST = """Encoder passes count a pass with gradient as three, forward and backward; training is the wall time without \
evaluations, mean over seeds, on the machines below."""
_PLACES = """Percent of {images} images ({data}); map and threshold are chosen on {validation} others. ± over \
seeds; in brackets 95 % of bootstrap draws of the images. Oracle: threshold chosen on the images \
that are scored, an upper bound."""


_CURVES = "Lines: means over seeds; bands: lowest to highest. Loss: the first seed, others fainter."


@dataclass
class Chapter:
    """A section with what was measured for it; names of pictures that were drawn."""

    section: Section
    knn: str = ""
    loss: str = ""
    maps: str = ""
    maps_title: str = ""
    places: str = ""
    result: Result | None = None
    map_scores: dict[str, dict[str, float]] = field(default_factory=dict)
    place_facts: dict[str, Any] | None = None
    heads: dict[str, str] = field(default_factory=dict)  # names of the untrained networks, by row
    notes: list[str] = field(default_factory=list)  # on what is missing, and why


def page(chapters: Sequence[Chapter], prefix: str = "") -> str:
    """The report; `prefix` stands before the names of pictures."""
    runs = sum(len(chapter.section.members) for chapter in chapters)
    intro = f"# Comparison of {runs} runs\n\nMade by `python -m mixfast.compare`; every number is in `results.json`."
    if len(chapters) > 1:
        titles = "\n".join(f"- {chapter.section.title}" for chapter in chapters)
        intro += f" Scores of different sections answer different questions:\n\n{titles}"
    return "\n\n".join([intro, *(_section(chapter, prefix) for chapter in chapters), _appendix(chapters)]) + "\n"


def _section(chapter: Chapter, prefix: str) -> str:
    section = chapter.section
    parts = [f"## {section.title}", "### In short", *verdict(section)]
    parts += ["### Table 1", tables.table_1(section), _caption(section), comparable(section)]
    parts += [f"Origin of the paper's numbers ({SOURCE}):\n\n{tables.remarks()}"]
    if missing := [*tables.unfinished(section), *chapter.notes]:
        parts += ["\n".join(f"- {line}" for line in missing)]
    base = reference(section)
    tables_of_gaps = [tables.to_base(base, ranked(section)) if base else ""]
    tables_of_gaps += [tables.to_base(plain, forms) for plain, forms in variants(section)]
    if gaps := [table for table in tables_of_gaps if table]:
        parts += ["### Differences", *gaps, _GAPS]
    parts += ["### What it cost", tables.cost(section), _COST]
    pictures = [(chapter.knn, "kNN"), (chapter.loss, "loss")]
    drawn = [f"![{title}]({prefix}{name})" for name, title in pictures if name]
    parts += ["### Curves", *drawn, _CURVES]
    if health := tables.health(section):
        parts += ["### Health", health, _HEALTH]
    if found := tables.positives(section):
        batch = section.config.train.batch_size // section.config.train.accumulate
        parts += [found, _FOUND.format(batch=batch, step=100 / batch)]
    return "\n\n".join([*parts, *_where(chapter, prefix)])


def _caption(section: Section) -> str:
    scorer = section.config.eval
    return _SCORES.format(k=scorer.k, t=scorer.temperature)


def _where(chapter: Chapter, prefix: str) -> list[str]:
    parts = []
    if chapter.result:
        settings = chapter.result.settings
        parts += ["### Where the objects are", "\n".join(f"- {line}" for line in objects.margins(chapter.result))]
        parts += [objects.table(chapter.result, chapter.heads)]
        parts += [_PLACES.format(**settings), f"![maps and boxes]({prefix}{chapter.places})"]
    if chapter.maps:
        parts += ["### Attention maps", f"![attention maps]({prefix}{chapter.maps})"]
        parts += [f"One seed of each method ({chapter.maps_title}): pictures to look at, not evidence."]
    return parts


def _appendix(chapters: Sequence[Chapter]) -> str:
    parts = ["## How it was made"]
    for chapter in chapters:
        section = chapter.section
        parts += [f"### {section.title}", "Options in which recipes differ, and methods' own that are no defaults:"]
        parts += [tables.options(section)]
        commands = [_command(group) for group in section.groups]
        parts += ["Commands (the first seed's; absolute paths are cut to their last part):"]
        parts += ["```text\n" + "\n".join(commands) + "\n```"]
        seeds = [f"`{g.name}`: {', '.join(str(one.config.seed) for one in g.members)}" for g in section.groups]
        parts += [f"Seeds: {'; '.join(seeds)}."]
    members = [one for chapter in chapters for one in chapter.section.members]
    machines = dict.fromkeys(filter(None, map(_machine, members)))
    parts += ["Machines and versions:\n\n" + ("\n".join(f"- {line}" for line in machines) or "not written down")]
    return "\n\n".join(parts)


def _command(group: Group) -> str:
    member = group.members[0]
    lines = member.fact("command.txt")
    if not lines:
        return f"{group.name}: no command.txt ({member.label})"
    words = shlex.split(lines[0].partition("  ")[2])
    return shlex.join([word.rstrip("/").rpartition("/")[2] if word.startswith("/") else word for word in words])


def _machine(member: Member) -> str:
    env = member.fact("env.json")
    if not env:
        return ""
    git = env.get("git") or {}
    commit = git.get("commit", "")[:7] or "not a checkout"
    changed_files = ", with changes" if git.get("modified") else ""
    where = env.get("gpu") or f"{env['cpu']}, {env['threads']} thread{'s' if env['threads'] > 1 else ''}"
    return f"mixfast {env['mixfast']} ({commit}{changed_files}), torch {env['torch']}, Python {env['python']}, {where}"


def numbers(chapters: Sequence[Chapter], command: Sequence[str], time: str) -> dict[str, Any]:
    """The content of results.json."""
    about = {"schema": SCHEMA, "command": "compare", "time": time, "words": list(command)}
    paper = [dataclasses.asdict(row) for row in TABLE]
    return {**about, "paper": {"source": SOURCE, "rows": paper}, "sections": [_numbers(one) for one in chapters]}


def _numbers(chapter: Chapter) -> dict[str, Any]:
    section = chapter.section
    places = {group.name: published.row for published, group in rows(section) if group}
    return {
        "title": section.title,
        "verdict": verdict(section),
        "groups": [{**_group(group), "paper_row": places.get(group.name)} for group in section.groups],
        "baselines": {
            name: {key: {"values": found, **_spread(found)} for key, found in row.items()}
            for name, row in baselines(section).items()
        },
        "above_moco": {key: _gaps(differences(section, key)) for key in KEYS},
        "above_plain_form": {
            key: {plain.name: _gaps(above(plain, forms, key)) for plain, forms in variants(section)} for key in KEYS
        },
        "differing_options": differing(section),
        "maps": chapter.map_scores or None,
        "localise": chapter.place_facts,
        "notes": [*tables.unfinished(section), *chapter.notes],
    }


def _gaps(found: dict[str, Difference]) -> dict[str, Any]:
    return {name: dataclasses.asdict(gap) for name, gap in found.items()}


def _spread(values: dict[int, float]) -> dict[str, Any]:
    found = spread(list(values.values()))
    return dataclasses.asdict(found) if found else {}


def _group(group: Group) -> dict[str, Any]:
    kinds = (("last", False), ("max", True))
    return {
        "name": group.name,
        "method": group.config.method_name,
        "recipe": group.recipe,
        "epochs": group.config.train.epochs,
        "method_options": changed(group),
        "cost_of_a_step": group.cost,
        "total_cost": group.total,
        **{
            f"{kind}_{key}": {"values": values, **_spread(values)}
            for kind, best in kinds
            for key in KEYS
            if (values := scores(group, key, best))
        },
        "runs": [_run(one) for one in group.members],
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
