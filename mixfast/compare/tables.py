"""The tables of a comparison, in Markdown."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from mixfast.compare.gather import TABLE_1, Group, Section, differing_options
from mixfast.compare.statistics import KEYS, baselines, differences, plain_moco, ranked, scores
from mixfast.run.console import duration
from mixfast.run.sanity import candidates
from mixfast.scoring.paired import Difference, spread


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column aligned to the left, the others to the right."""
    aligned = ["---", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, aligned, *body))


def cell(values: Iterable[float], form: str = ".1f") -> str:
    """ "71.3", "70.1 ± 1.2" for several, "-" for none."""
    row = spread(list(values))
    return "-" if row is None else row.text(form)


def _scores(group: Group) -> list[str]:
    if not group.finished:
        return ["*unfinished*", "", "", "", ""]
    cells = [cell(scores(group, key, best).values()) for best in (False, True) for key in KEYS]
    return [*cells, str(len(group.finished))]


def table_1(section: Section) -> str:
    """The paper's rows that were run in its order, then their variants and other methods, then the baselines."""
    head = ["", "runs", "paper", "kNN on z", "kNN on h", "max z", "max h", "seeds"]
    body = []
    groups = section.table_1_groups()
    for recipe, group in groups.items():
        row, score = TABLE_1[recipe]
        body.append([row, f"`{group.name}`", f"{score:.2f}", *_scores(group)])
    listed = [group.name for group in groups.values()]
    for group in section.groups:
        if group.name not in listed:
            row = f"{TABLE_1[group.recipe][0]}, variant" if group.recipe in TABLE_1 else "not in the paper"
            body.append([row, f"`{group.name}`", "", *_scores(group)])
    for name, by_key in baselines(section).items():
        seeds = max(map(len, by_key.values()))
        body.append([name, "", "", *(cell(by_key.get(key, {}).values()) for key in KEYS), "", "", str(seeds)])
    return markdown(head, body)


def cost(section: Section) -> str:
    """Encoder passes, training time and speed of each group."""
    head = ["", "epochs", "encoder passes of a step, MoCo = 1", "in total, epochs of MoCo", "training", "images/s"]
    body = []
    for group in section.groups:
        finished = group.finished
        seconds = statistics.fmean(run.result.seconds for run in finished) if finished else None
        rate = cell((run.result.images_per_s for run in finished), ".0f")
        time = "-" if seconds is None else duration(seconds)
        epochs = group.config.train.epochs
        body.append([f"`{group.name}`", str(epochs), f"{group.cost:.2f}", f"{group.total_cost:g}", time, rate])
    return markdown(head, body)


def difference_table(base: Group, groups: Sequence[Group]) -> str:
    """Scores of `groups` minus those of `base`, paired over seeds, with intervals; "" without a common seed."""
    by_metric = {key: differences(base, groups, key) for key in KEYS}
    body = []
    for name, first in by_metric["knn_h"].items():
        body.append([f"`{name}`", *_gap(first), *_gap(by_metric["knn_z"].get(name)), str(first.n)])
    head = [f"minus `{base.name}`", "h", "95 % interval", "z", "95 % interval", "seeds"]
    return markdown(head, body) if body else ""


def _gap(gap: Difference | None) -> tuple[str, str]:
    """Mean and interval of a difference."""
    interval = "-" if gap is None or gap.low is None else f"{gap.low:+.1f} to {gap.high:+.1f}"
    return "-" if gap is None else f"{gap.mean:+.1f}", interval


def equal_steps(section: Section) -> str:
    """Scores of each group and of plain MoCo trained for as many optimiser steps; "" without any such pair."""
    moco, groups = plain_moco(section), ranked(section)
    if moco is None:
        return ""
    plain = {group.steps: group for group in groups if group.config.method == moco.config.method}
    plain[moco.steps] = moco
    compared = [group for group in groups if group not in plain.values()]
    if not any(group.steps in plain for group in compared):
        return ""
    body = []
    for group in compared:
        base = plain.get(group.steps)
        gap = differences(base, [group], "knn_h").get(group.name) if base else None
        cells = [f"`{group.name}`", str(group.steps), cell(scores(group, "knn_h").values())]
        cells += [f"`{base.name}`", cell(scores(base, "knn_h").values())] if base else ["-", "-"]
        body.append([*cells, *_gap(gap), str(gap.n) if gap else "-"])
    head = ["", "optimiser steps", "kNN on h", "MoCo of as many", "kNN on h", "difference", "95 % interval", "seeds"]
    return markdown(head, body)


_DIAGNOSTICS = (
    ("std_z", "std of z", ".2f"),
    ("effective_rank_h", "effective rank of h", ".1f"),
    ("alignment", "alignment", ".2f"),
    ("uniformity", "uniformity", ".2f"),
    ("queue_age", "queue age, steps", ".0f"),
)


def _last(group: Group, key: str) -> list[float]:
    records = [run.last("diagnostics") for run in group.finished]
    values = [float(record[key]) for record in records if record and key in record]
    return values[:1] if key == "queue_age" else values  # queue_age does not depend on the seed


def diagnostics(section: Section) -> str:
    """Diagnostics of the last epoch, means over seeds; "" if no finished run has diagnostics."""
    groups = [group for group in section.groups if _last(group, "std_z")]
    body = [[f"`{g.name}`", *(cell(_last(g, key), form) for key, _, form in _DIAGNOSTICS)] for g in groups]
    return markdown(["", *(title for _, title, _ in _DIAGNOSTICS)], body) if body else ""


def accuracies(section: Section) -> str:
    """Top-1 accuracies of terms with queues, as in `mixfast.run.diagnosis.diagnose`; "" without such terms."""
    body = []
    for group in section.groups:
        records = [record for run in group.finished if (record := run.last("diagnostics"))]
        keys = [key for key in (records[0] if records else ()) if key.startswith("top1_other_")]
        terms = [key.removeprefix("top1_other_") for key in keys]
        candidate_count = candidates(group.config)
        chance = f"{100 / candidate_count:.3f}" if candidate_count else "-"
        for term in terms:
            kinds = ("top1", "top1_fresh", "top1_other")
            accuracy, fresh_patches, other_image = (
                [100 * value for value in _last(group, f"{kind}_{term}")] for kind in kinds
            )
            cells = [cell(accuracy), cell(fresh_patches), cell(other_image, ".2f"), chance]
            body.append([f"`{group.name}`", term.replace("_", " "), *cells])
    head = ["", "term", "top-1, %", "with fresh patches, %", "with another image's positive, %", "chance level, %"]
    return markdown(head, body) if body else ""


def options(section: Section) -> str:
    """A list of the options in which groups differ, and of the methods' own options that are not at their defaults."""
    differing = differing_options(section)
    keys = next(iter(differing.values()), {})
    usual = {key: Counter(repr(values[key]) for values in differing.values()).most_common(1)[0][0] for key in keys}
    lines = [f"- unless stated otherwise: {', '.join(f'{key} = {value}' for key, value in usual.items())}"]
    for group in section.groups:
        values = {key: repr(value) for key, value in differing[group.name].items() if repr(value) != usual[key]}
        values |= {f"method.{key}": repr(value) for key, value in group.changed_options.items()}
        if values:
            lines.append(f"- `{group.name}`: {', '.join(f'{key} = {value}' for key, value in values.items())}")
    return "\n".join(lines[not usual :]) or "none."


def unfinished(section: Section) -> list[str]:
    """A sentence for each run that is not finished."""
    return [
        f"`{run.label}` is not finished (epoch {run.result.epochs} of {run.config.train.epochs}): only in the curves."
        for run in section.members
        if not run.finished
    ]
