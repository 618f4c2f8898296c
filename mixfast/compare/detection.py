"""Average precision of detectors, CorLoc and kNN: tables by protocol, and rank correlations between the scores."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mixfast.compare.recorded import BASELINES, METRICS, OWN_SEED, Detection, Protocol, Values, listed
from mixfast.compare.statistics import baselines, kendall, plain_moco, scores, spearman
from mixfast.compare.tables import cell, markdown
from mixfast.scoring.paired import Difference, difference, spread

_TITLES = {"ap": "AP", "ap50": "AP50", "any_class_ap": "any class AP", "corloc": "CorLoc", "knn_h": "kNN on h"}
_PAIRS = (("knn_h", "ap"), ("knn_h", "any_class_ap"), ("corloc", "ap"), ("corloc", "any_class_ap"), ("knn_h", "corloc"))
_SCORES = """Recorded by `evaluate detect`; one table for each way of training and scoring detectors. Percent, mean \
and standard deviation over runs, whose number is in the last column; the highest AP comes first. AP and AP50 are \
COCO's; any class AP ignores the classes of the boxes: it scores finding objects, not naming them.{corloc}"""
_GAPS = """Differences are means over seeds of paired runs; intervals are Student's t, not corrected for the number of \
rows."""
_RANKS = """Rank correlations (Kendall's is tau-b) of the methods, without the baselines: 1 is the same order, 0 no \
relation. Runs of one method are similar, so a correlation over runs rests on fewer independent values than the number \
of runs."""


def _about(protocol: Protocol) -> str:
    """A sentence on how the detectors were trained and scored."""
    settings = protocol.settings
    stages = ", ".join(
        f"{layer} (stride {stride})" for layer, stride in zip(settings["layers"], settings["strides"], strict=False)
    )
    seeds = (
        "that of the run's pre-training"
        if settings["seeds"] == OWN_SEED
        else f"{listed(settings['seeds'])}, the mean of them"
    )
    return (
        f"{settings['detector']} on stage {stages}: {settings['training_images']} images, {settings['steps']} steps of "
        f"{settings['batch_size']}; scored on {settings['test_images']} images of {settings['side']} pixels with "
        f"{settings['test_objects']} objects of {settings['classes']} classes. Seed of the detector: {seeds}."
    )


def _columns(detection: Detection, protocol: Protocol) -> dict[str, Values]:
    """The scores by column; CorLoc and kNN of the runs that have an AP."""
    section, runs = detection.section, protocol.values["ap"]
    knn = {name: row["knn_h"] for name, row in baselines(section).items() if "knn_h" in row}
    knn |= {group.name: scores(group, "knn_h") for group in section.groups}
    columns: dict[str, Values] = {key: protocol.values.get(key, {}) for key in METRICS}
    for key, values in (("corloc", detection.corloc), ("knn_h", knn)):
        recorded = {
            row: {seed: value for seed, value in values.get(row, {}).items() if seed in seeds}
            for row, seeds in runs.items()
        }
        if any(recorded.values()):
            columns[key] = recorded
    return columns


def _order(protocol: Protocol) -> list[str]:
    """The rows: methods, the highest AP first, then the baselines."""
    ap = protocol.values["ap"]
    return sorted(ap, key=lambda row: (row in BASELINES, -statistics.fmean(ap[row].values())))


def _title(row: str) -> str:
    return row if row in BASELINES else f"`{row}`"


def score_table(detection: Detection, protocol: Protocol) -> str:
    """A line per method and baseline: means and standard deviations over runs."""
    columns = _columns(detection, protocol)
    body = []
    for row in _order(protocol):
        cells = [cell(values.get(row, {}).values()) for values in columns.values()]
        body.append([_title(row), *cells, str(len(protocol.values["ap"][row]))])
    return markdown(["", *(_TITLES[key] for key in columns), "seeds"], body)


def base_of(detection: Detection, protocol: Protocol) -> str:
    """The row that the others are compared with: plain MoCo's, or the first method of the paper's table."""
    moco, rows = plain_moco(detection.section), protocol.values["ap"]
    names = [group.name for group in (*([moco] if moco else []), *detection.section.groups)]
    return next(name for name in names if name in rows)


def gaps(detection: Detection, protocol: Protocol) -> dict[str, dict[str, Difference]]:
    """By metric and row, the scores minus those of the row `base_of`; no entry without a common seed."""
    base, by_metric = base_of(detection, protocol), {}
    for metric, values in protocol.values.items():
        rows = {row: difference(values[row], values.get(base, {})) for row in _order(protocol) if row in values}
        by_metric[metric] = {row: gap for row, gap in rows.items() if gap and row != base}
    return by_metric


def gap_table(detection: Detection, protocol: Protocol) -> str:
    """AP and any class AP of every row minus those of the base; "" without a common seed."""
    by_metric, body = gaps(detection, protocol), []
    for row, gap in by_metric["ap"].items():
        cells = []
        for entry in (gap, by_metric.get("any_class_ap", {}).get(row)):
            interval = "-" if entry is None or entry.low is None else f"{entry.low:+.1f} to {entry.high:+.1f}"
            cells += ["-" if entry is None else f"{entry.mean:+.1f}", interval]
        body.append([_title(row), *cells, str(gap.n)])
    head = [f"minus `{base_of(detection, protocol)}`", "AP", "95 % interval", _TITLES["any_class_ap"], "95 % interval"]
    return markdown([*head, "seeds"], body) if body else ""


def correlations(columns: Mapping[str, Values], pairs: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Rank correlations of pairs of columns, over runs and over means of methods; only pairs with 3 methods or more."""
    entries = []
    for pair in pairs:
        first, second = (columns.get(title, {}) for title in pair)
        methods = {row: [seed for seed in first[row] if seed in second.get(row, {})] for row in first}
        methods = {row: seeds for row, seeds in methods.items() if seeds and row not in BASELINES}
        if len(methods) < 3:
            continue
        runs = [(row, seed) for row, seeds in methods.items() for seed in seeds]
        single = [[side[row][seed] for row, seed in runs] for side in (first, second)]
        means = [
            [statistics.fmean(side[row][seed] for seed in seeds) for row, seeds in methods.items()]
            for side in (first, second)
        ]
        entry: dict[str, Any] = {"pair": list(pair), "runs": len(runs), "methods": len(methods)}
        for name, (first_values, second_values) in (("over_runs", single), ("over_methods", means)):
            entry[name] = {
                "spearman": spearman(first_values, second_values),
                "kendall": kendall(first_values, second_values),
            }
        entries.append(entry)
    return entries


def _between(detection: Detection) -> list[dict[str, Any]]:
    """Rank correlations of AP between protocols."""
    columns = {protocol.title: protocol.values["ap"] for protocol in detection.protocols}
    return correlations(columns, itertools.combinations(columns, 2))


def _rank_table(entries: Sequence[dict[str, Any]], title: str = "") -> str:
    def signed(value: float | None) -> str:
        return "-" if value is None else f"{value:+.2f}"

    head = [title, "runs", "Spearman", "Kendall", "methods", "Spearman of means", "Kendall of means"]
    body = []
    for entry in entries:
        cells = [" and ".join(_TITLES.get(key, key) for key in entry["pair"])]
        for count, level in (("runs", "over_runs"), ("methods", "over_methods")):
            cells += [str(entry[count]), signed(entry[level]["spearman"]), signed(entry[level]["kendall"])]
        body.append(cells)
    return markdown(head, body) if body else ""


def paragraphs(detection: Detection) -> list[str]:
    """The section of the page; [] if no run has recorded detection scores."""
    if not detection.protocols:
        return []
    corloc = f" CorLoc: of attention maps on {detection.corloc_title}." if detection.corloc else ""
    parts, gapped, ranked = [], False, False
    for protocol in detection.protocols:
        parts += [f"#### {protocol.title}", _about(protocol), score_table(detection, protocol)]
        tables = gap_table(detection, protocol), _rank_table(correlations(_columns(detection, protocol), _PAIRS))
        parts += filter(None, tables)
        gapped, ranked = gapped or bool(tables[0]), ranked or bool(tables[1])
    if table := _rank_table(_between(detection), "AP of"):
        parts += ["#### Agreement between protocols", table]
    captions = [_SCORES.format(corloc=corloc), *([_GAPS] if gapped else []), *([_RANKS] if ranked else [])]
    return ["### Detection", " ".join(captions), *parts]


def facts(detection: Detection) -> dict[str, Any] | None:
    """The numbers of the section; None if no run has recorded detection scores."""
    if not detection.protocols:
        return None
    entries = []
    for protocol in detection.protocols:
        columns = _columns(detection, protocol)
        rows = {
            row: {key: _numbers(values[row]) for key, values in columns.items() if values.get(row)}
            for row in _order(protocol)
        }
        above_base = {
            key: {row: asdict(gap) for row, gap in by_row.items()} for key, by_row in gaps(detection, protocol).items()
        }
        entries.append(
            {
                "title": protocol.title,
                "settings": protocol.settings,
                "rows": rows,
                "base": base_of(detection, protocol),
                "above_base": above_base,
                "rank_correlations": correlations(columns, _PAIRS),
            }
        )
    return {"corloc": detection.corloc_title, "protocols": entries, "rank_correlations_of_ap": _between(detection)}


def _numbers(values: Mapping[int, float]) -> dict[str, Any]:
    row = spread(list(values.values()))
    return {"values": dict(values), **(asdict(row) if row else {})}
