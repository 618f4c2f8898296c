"""README.md of an export: a model card, with the header that Hugging Face reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mixfast
from mixfast.errors import CheckpointError
from mixfast.formats.snapshot import Snapshot
from mixfast.run.folder import RunFolder
from mixfast.run.log import read_lines
from mixfast.run.monitor import bank_size
from mixfast.run.records import read
from mixfast.run.setup import Setup

FILE = "README.md"
_LISTED = 8  # values of a setting that are written out


def card(subject: Snapshot, digests: Mapping[str, str], usage: str, library: str) -> str:
    """The text of the card.

    Args:
        subject: the weights.
        digests: SHA-256 of each file, by its name.
        usage: Python that loads the files.
        library: the library that reads the files.

    Raises:
        CheckpointError: a line of the run's metrics.jsonl or evaluations.jsonl is not a record.
    """
    setup = subject.setup
    config, data = setup.config, _data(setup)
    title = f"{config.model.title}, {config.method_name} on {data}"
    files = "\n".join(f"| `{name}` | `{digest}` |" for name, digest in digests.items())
    facts = "\n".join(f"| {name} | {value} |" for name, value in _facts(subject).items())
    return f"""---
{_header(subject, title, library)}
---
# {title}

The backbone of a network that learnt from images without their labels; there is no classifier.

| | |
|---|---|
{facts}

## Load it

```python
{usage}
```

| file | SHA-256 |
|---|---|
{files}

## Scores

{_scores(subject)}

## Licence

mixfast, the code that made these weights, is under the MIT licence. The licence and the terms of the training data \
({data}) apply to the weights: whoever passes them on or uses them must keep to those.
"""


def _data(setup: Setup) -> str:
    """The data set by its name: of a folder, the last two parts of its path."""
    path = setup.config.data.path
    if setup.splits.name == "folder" and path is not None:
        return "/".join(Path(path).parts[-2:]).strip("/")
    return setup.splits.name


def _header(subject: Snapshot, title: str, library: str) -> str:
    """YAML without its lines of dashes; JSON is YAML."""
    config = subject.setup.config
    entries: dict[str, Any] = {
        "library_name": library,
        "license": "other",
        "license_name": "of-the-training-data",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised-learning", "mixfast", config.method_name],
    }
    record = _trained_score(subject)
    if "knn_h" in record:
        name = _data(subject.setup)
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": name, "name": f"{name}, {len(subject.setup.splits.test)} test images"},
            "metrics": [{"type": "accuracy", "name": _protocol(subject.setup), "value": round(record["knn_h"], 2)}],
        }
        entries["model-index"] = [{"name": title, "results": [result]}]
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in entries.items())


def _facts(subject: Snapshot) -> dict[str, str]:
    """Facts about the weights, as rows of a table."""
    setup = subject.setup
    config, splits, backbone = setup.config, setup.splits, setup.method.encoder.backbone
    side = splits.train.images.shape[-1]
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (splits.mean, splits.std))
    stages = ", ".join(f"{c} at {s}" for c, s in zip(backbone.channels, backbone.strides, strict=True))
    network = ", ".join(f"{key} {value}" for key, value in config.model.architecture.items())
    return {
        "method": f"`{config.method_name}`: {setup.method.summary}",
        "encoder": "query: the one that is trained" if subject.encoder_name == "query" else "key: the moving average",
        "network": f"{config.model.title} ({network})",
        "channels of each stage at its pixels per cell": stages,
        "data": f"{_data(setup)}: {len(splits.train)} training images of {side} x {side} pixels",
        "trained for": f"{subject.epoch} of {config.train.epochs} epochs, {subject.step} steps of "
        f"{config.train.batch_size} images",
        "seed": str(config.seed),
        "code": f"mixfast {mixfast.__version__}, commit {_commit(subject.folder)}",
        "input": f"channels in the order R, G, B, in [0, 1], minus mean ({mean}), over std ({std})",
    }


def _commit(folder: RunFolder) -> str:
    """The commit that the run was trained with, from env.json."""
    try:
        git = json.loads((folder.path / "env.json").read_text(encoding="utf-8"))["git"]
        return f"{git['commit']}{' with changes' if git['modified'] else ''}"
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return "unknown"


def _trained_score(subject: Snapshot) -> dict[str, Any]:
    """The record of the training's evaluation of these weights; {} if there is none."""
    if subject.encoder_name != "query":
        return {}
    records = read(subject.folder.metrics)
    evaluations = [record for record in records if record["kind"] == "eval" and record["step"] == subject.step]
    return evaluations[-1] if evaluations else {}


def _protocol(setup: Setup) -> str:
    options, size = setup.config.eval, bank_size(setup)
    return f"weighted kNN on pooled features, k = {min(options.k, size)} of {size}, temperature {options.temperature}"


def _scores(subject: Snapshot) -> str:
    """A table of every score of these weights with its protocol."""
    if subject.encoder_name != "query":
        return "None: evaluations are of the query encoder."
    rows: list[tuple[str, str, dict[str, Any]]] = []
    if record := _trained_score(subject):
        training_scores: dict[str, Any] = {key: record[key] for key in ("knn_h", "knn_z") if key in record}
        rows.append((f"in training: {_protocol(subject.setup)} (h), and on the head's output (z)", "", training_scores))
    latest: dict[str, dict[str, dict[str, Any]]] = {}
    for number, line in enumerate(read_lines(subject.folder.evaluations), 1):
        if (line.get("epoch"), line.get("step")) != (subject.epoch, subject.step):
            continue
        settings, scores = line.get("settings"), line.get("scores")
        if not (isinstance(settings, dict) and isinstance(scores, dict)) or not all(
            isinstance(values, dict) for values in scores.values()
        ):
            raise CheckpointError(
                f"{subject.folder.evaluations}, line {number}: settings and scores must be objects; "
                "repair or delete it."
            )
        description = ", ".join(f"{key} {json.dumps(_short(value))}" for key, value in settings.items())
        latest[f"evaluate {line.get('command')}: {description}"] = scores
    rows += [(protocol, name, values) for protocol, scores in latest.items() for name, values in scores.items()]
    if not rows:
        return "None: these weights have not been evaluated."
    lines = ["| protocol | network | scores |", "|---|---|---|"]
    for protocol, name, values in rows:
        lines.append(f"| {_cell(protocol)} | {_cell(name)} | {_cell(_values(values))} |")
    return "\n".join(lines)


def _short(value: Any) -> Any:
    """A setting, with an absolute path cut to its last part and a long list replaced by its length."""
    if isinstance(value, list):
        return [_short(item) for item in value] if len(value) <= _LISTED else f"{len(value)} of them"
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _values(scores: Mapping[str, Any]) -> str:
    """Scores as text; of a score with an interval, the mean."""
    means = {key: value.get("mean") if isinstance(value, dict) else value for key, value in scores.items()}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, int | float) else f"{key} {value}" for key, value in means.items()
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
