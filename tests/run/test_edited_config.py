"""A config.json that somebody edited is refused by the name of the key, whatever stands there."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixfast.config.options import flatten
from mixfast.config.presets import build, presets
from mixfast.errors import CheckpointError, UserError
from mixfast.run.folder import RunFolder
from mixfast.train import cli

OTHERS: list[Any] = [None, True, "zzz", [1], {"a": 1}, 10**400]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    config, origins = build("approach1", [], None)
    folder = RunFolder(tmp_path)
    folder.write_config(config, "approach1", origins)
    return folder


def content_of(folder: RunFolder) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder.path / "config.json").read_text())
    return content


def write(folder: RunFolder, content: Any) -> None:
    (folder.path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))


def leaves(values: dict[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any], str]]:
    for key, value in values.items():
        yield f"{name}{key}", values, key
        if isinstance(value, dict):
            yield from leaves(value, f"{name}{key}.")


def test_every_key_must_be_there_and_of_its_type(folder: RunFolder) -> None:
    """A value of another type that is taken all the same is one of the key's own."""
    content = content_of(folder)
    whole = copy.deepcopy(content)
    saved = folder.read_config()[0]
    for name, holder, key in list(leaves(content["values"])):
        before = holder.pop(key)
        write(folder, content)
        with pytest.raises(CheckpointError, match=rf"config.json cannot be read: .*{key}"):
            folder.read_config()
        for other in OTHERS:
            holder[key] = other
            write(folder, content)
            try:
                found = flatten(folder.read_config()[0])
            except UserError as error:
                assert key in str(error) or str(other) in str(error), (name, other)
            else:
                assert type(found[name]) is type(flatten(saved)[name]) or None in (found[name], flatten(saved)[name])
        holder[key] = before
    assert content == whole


def test_what_the_files_of_all_presets_hold_is_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in presets():
        config, origins = build(name, [], None)
        folder.write_config(config, name, origins)
        assert folder.read_config() == (config, name, origins)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("3", "values must be an object; got 3"),
        ('{"values": {}, "preset": "moco", "origins": null}', "origins must be an object; got None"),
        ('{"values": [], "preset": "moco", "origins": {}}', r"values must be an object; got \[\]"),
        ('{"values": {}, "preset": 5, "origins": {}}', "preset must be a string; got 5"),
        ('{"values": {}, "preset": "moco", "origins": {}}', "method_name must be a method's name; got None"),
        ('{"values": {"method_name": ["moco"]}, "preset": "moco", "origins": {}}', "method_name must be"),
        ('{"values": {"method_name": "moco"}, "preset": "moco", "origins": {}}', "method is missing; .*compare is"),
    ],
)  # fmt: skip
def test_another_structure_is_refused(content: str, message: str, folder: RunFolder) -> None:
    write(folder, content)
    with pytest.raises(CheckpointError, match=message):
        folder.read_config()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        cli.parse(["--resume", str(folder.path)])


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "graph", "zzz", "train.graph must be one of auto, on, off; got 'zzz'"),
        ("train", "epochs", "7", "train.epochs must be a whole number; got '7'"),
        ("train", "epochs", True, "train.epochs must be a whole number; got True"),
        ("optim", "cosine_origin", True, "optim.cosine_origin must be one of 0, 1; got True"),
        ("optim", "steps", ["a"], r"optim.steps must be a number; got 'a'"),
        ("augment", "crop_scale", [0.5], r"augment.crop_scale must be a list of 2, each a number; got \[0.5\]"),
        ("model", "hidden", 1.5, "model.hidden must be a whole number or null; got 1.5"),
        ("model", "colour", 1, "ModelConfig has no key colour"),
        ("data", "scene", None, "data.scene must be an object of keys and values; got None"),
        ("method", "temperature", None, "method.temperature must be a number; got None"),
    ],
)
def test_messages_say_what_is_expected(section: str, key: str, value: Any, message: str, folder: RunFolder) -> None:
    content = content_of(folder)
    content["values"][section][key] = value
    write(folder, content)
    with pytest.raises(CheckpointError, match=message):
        folder.read_config()
