"""Writes docs/methods/NAME.md from a method's module: its docstring, options, presets and pictures.

    python scripts/method_pages.py

The docstring is the page: its first line gives title and summary, indented blocks become fenced ones. Options come from
the Config's fields and the comments behind them. No text of a page has a second source.
"""

import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mixfast import methods

DOCS = Path(__file__).parents[1] / "docs"
# Pictures of a method: ending of the file, and the options with which scripts/method_pictures.py draws it. The seed
# of that script mixes regions; Un-Mix is drawn mixing whole images too.
PICTURES: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "approach2_reference": (),  # its views are those of approach2
    "moco_unmix": (("", {"method.p_global": 0.0}), ("-global", {"method.p_global": 1.0})),
    "simclr_unmix": (("", {"method.p_global": 0.0}),),
    "byol_unmix": (("", {"method.p_global": 0.0}),),
    "moco_cutmix": (("", {}), ("-other_view", {"method.partner": "other_view"})),
    "aligned_mixture": (("", {}), ("-regions", {"method.p_mix": 0.0})),
    "one_pass": (("", {"method.p_mix": 1.0}),),
    "one_branch": (("", {}), ("-batch_reverse", {"method.partner": "batch_reverse"})),
}
# What the boxes of a picture are, where they are not those of a mixture.
BOXES = {
    "aligned_mixture": "a box of the query is compared with the key's box of its colour, the patch's with that of the "
    "last row, whose image the patch shows"
}
DATA = "--data.kind folder --data.path data/train --data.test_path data/test"
ONE_PICTURE: tuple[tuple[str, dict[str, Any]], ...] = (("", {}),)


def page(name: str) -> str:
    """The page of the method called `name`."""
    kind = methods.load(name)
    module = sys.modules[kind.__module__]
    first, _, body = inspect.getdoc(module).partition("\n")  # type: ignore[union-attr]
    title, _, summary = first.partition(": ")
    blocks = [
        f"<!-- Made by scripts/method_pages.py from mixfast/methods/{name}.py. -->\n\n# {title}",
        textwrap.fill(f"{summary[0].upper()}{summary[1:]}", 120),
        f"Code: [`mixfast/methods/{name}.py`](../../mixfast/methods/{name}.py).",
        *fenced(body),
        *pictures(name),
        "## Run it",
        f"```bash\npython -m mixfast.train {name} {DATA}\n```",
        presets(module),
        "[What cost and score mean](../conventions.md#costs-and-scores); measured here, at CPU sizes: "
        "[results](../results.md).",
        options(kind.Config),
        "[All methods](../../README.md#methods), [conventions](../conventions.md),\n[how to add one](../own-method.md)",
    ]
    return "\n\n".join(blocks) + "\n"


def fenced(text: str) -> list[str]:
    """The paragraphs of a docstring; consecutive indented ones are one fenced block."""
    paragraphs: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        indented = paragraph.startswith("    ")
        if indented and paragraphs and paragraphs[-1].startswith("    "):
            paragraphs[-1] += "\n\n" + paragraph
        else:
            paragraphs.append(paragraph)
    return [f"```text\n{textwrap.dedent(p)}\n```" if p.startswith("    ") else p for p in paragraphs]


def pictures(name: str) -> list[str]:
    """The pictures of a method's views, with what is special about each."""
    drawn = PICTURES.get(name, ONE_PICTURE)
    if not drawn:
        return []
    boxes = BOXES.get(name, "boxes are red")
    text = [textwrap.fill(f"Rows are four procedural scenes, columns the views of one step; {boxes}.", 120)]
    for ending, values in drawn:
        option_list = " ".join(f"--{key} {value:g}" if isinstance(value, float) else f"--{key} {value}"
                         for key, value in values.items())  # fmt: skip
        text.append(
            (f"With `{option_list}`:\n\n" if option_list else "") + f"![views](../pictures/methods/{name}{ending}.png)"
        )
    return text


def presets(module: ModuleType) -> str:
    """The table of a module's PRESETS with their HELP."""
    rows = ["| preset | changes | cost of a step | expected score |", "|---|---|---|---|"]
    for preset, values in module.PRESETS.items():
        changes = ", ".join(f"`{key} {_written(value)}`" for key, value in values.items())
        cost, score = module.HELP[preset]
        rows.append(f"| `{preset}` | {changes or '-'} | {cost} | {score} |")
    return "\n".join(rows)


def options(config: type[Any]) -> str:
    """The table of a Config's fields, the method's own first."""
    types = typing.get_type_hints(config)
    own_fields = vars(config).get("__annotations__", {})
    fields = sorted(dataclasses.fields(config), key=lambda field: field.name not in own_fields)
    comments = {name: text for kind in config.__mro__ for name, text in _comments(kind).items()}
    rows = ["| option `--method.` | default | values | what it does |", "|---|---|---|---|"]
    for field in fields:
        if field.name not in comments:
            raise ValueError(f"{config.__name__}.{field.name}: write what it does in a comment on its line")
        values = " or ".join(_values(types[field.name]))
        rows.append(f"| `{field.name}` | `{_written(field.default)}` | {values} | {comments[field.name]} |")
    return "\n".join(rows)


def _comments(kind: type) -> dict[str, str]:
    """The comments behind the fields that a class declares."""
    if not dataclasses.is_dataclass(kind):
        return {}
    return dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(kind), re.MULTILINE))


def _values(kind: Any) -> list[str]:
    """What an option of a type may be, in words."""
    if typing.get_origin(kind) is Literal:
        return [f"`{value}`" for value in typing.get_args(kind)]
    if typing.get_origin(kind) is tuple:
        return [", ".join(text for part in typing.get_args(kind) for text in _values(part))]
    if parts := typing.get_args(kind):
        return [text for part in parts for text in _values(part)]
    return [{bool: "flag", int: "integer", float: "number", type(None): "none"}[kind]]


def _written(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    return " ".join(map(_written, value)) if isinstance(value, tuple) else str(value)


def main() -> int:
    for name in methods.names():
        (DOCS / "methods" / f"{name}.md").write_text(page(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
