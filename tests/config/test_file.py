"""--config FILE: what a file says comes above its preset and below the command line; errors name file and key."""

import json
from pathlib import Path
from typing import Any

import pytest

from mixfast.config.presets import build
from mixfast.errors import CheckpointError, ConfigError, PlatformError
from mixfast.run.folder import RunFolder
from mixfast.train import cli

YAML = """
preset: moco augment_v2
optim: {lr: 1e-3, steps: [0.5, 0.75]}
optim.weight-decay: 1.0e-4
train:
  epochs: 7
  compile: on          # a word, as in YAML 1.2
data: {download: true, limit: null}
augment: {gray: 0.5, crop_scale: [0.3, 1]}
method: {queue_size: 8192}
"""


def written(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_a_file_is_above_its_preset_and_below_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.yaml", YAML)
    found = cli.parse(["--config", path, "--train.epochs", "9", "--optim.lr", "0.5"])
    config = found.config
    assert (found.preset, config.method_name, config.augment.blur) == ("moco", "moco", 0.5)
    assert (config.train.epochs, config.optim.lr) == (9, 0.5)
    assert (config.optim.weight_decay, config.optim.steps, config.train.compile) == (1e-4, (0.5, 0.75), "on")
    assert (config.data.download, config.data.limit, config.method.queue_size) == (True, None, 8192)
    assert (config.augment.grey, config.augment.crop_scale) == (0.5, (0.3, 1.0))
    origins = [found.origins[key] for key in ("optim.lr", "optim.weight_decay", "augment.blur", "data.kind")]
    assert origins == ["command line", f"file {path}", "modifier augment_v2", "preset moco"]
    assert cli.parse(["--config", path]).config.optim.lr == 1e-3  # a number, though PyYAML alone makes it a text


def test_arguments_of_the_command_line_replace_preset_and_method_of_a_file(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.json", {"preset": "moco_sym", "augment.blur": 0.1, "method": {"queue_size": 1024}})
    assert cli.parse(["moco", "--config", path]).config.method.symmetric is False
    other = cli.parse(["--config", path, "augment_v2", "--method", "approach2"])
    assert (other.config.method_name, other.config.method.queue_size) == ("approach2", 1024)
    assert (other.config.augment.blur, other.origins["method_name"]) == (0.5, "command line")
    named = written(tmp_path / "named.json", {"method_name": "approach1", "init": "weights.pth"})
    assert cli.parse(["--config", named]).config == build("approach1", [], None)[0]
    assert cli.parse(["--config", named]).init == Path("weights.pth")


def test_the_file_of_a_run_gives_the_same_run_and_other_methods(tmp_path: Path) -> None:
    first = cli.parse(["moco_v2", "--train.epochs", "3", "--compare", "simclr", "--seed", "5"])
    RunFolder(tmp_path).write_config(first.config, first.preset, first.origins)
    again = cli.parse(["--config", str(tmp_path / "config.json")])
    assert (again.config, again.preset) == (first.config, "moco_v2")
    assert "optim.lr" not in again.origins  # a default
    other = cli.parse(["--config", str(tmp_path / "config.json"), "--method", "approach1", "--seed", "6"]).config
    assert (other.method_name, other.seed, other.compare, other.augment.blur) == ("approach1", 6, (), 0.5)


BAD: list[tuple[Any, str]] = [
    ({"optim": {"lrr": 1}}, "unknown key optim.lrr; did you mean optim.lr"),
    ({"optim": {"lr": "fast"}}, "optim.lr must be a number; got 'fast'"),
    ({"optim": {"lr": -1}}, "optim.lr must be at least 0; got -1.0"),
    ({"train": {"epochs": 1.5}}, "train.epochs must be a whole number; got 1.5"),
    ({"train": {"precision": "fp64"}}, "train.precision must be one of auto, fp32, bf16; got 'fp64'"),
    ({"train": {"compile": True}}, "train.compile must be one of auto, on, off; got True"),
    ({"augment.flip": 2}, "augment.flip must be a probability"),
    ({"optim.lr": 1, "optim": {"lr": 1}}, "optim.lr is there more than once."),
    ({"data.cache_dir": "x", "data.cache-dir": "x"}, "data.cache_dir is there more than once."),
    ('{"seed": 1, "seed": 2}', "cannot be read: seed is there more than once"),
    ("[1", "cannot be read: "),
    ([1], "must hold keys and values; got [1]"),
    ({"method": "moco"}, "unknown key method"),
    ({"preset": 3}, "preset must be a string; got 3"),
    ({"values": {}, "preset": "moco"}, "values.method_name must be the name of a method"),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=str)
def test_an_error_names_the_file_and_the_key(content: Any, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "bad.json", content)
    with pytest.raises(ConfigError) as caught:
        cli.parse(["moco", "--config", path])
    assert str(caught.value).startswith(f"--config {path}") and message in str(caught.value)


@pytest.mark.parametrize("content", ["a: 1\na: 2", "a: [1"], ids=str)
def test_what_is_no_yaml_names_the_file(content: str, tmp_path: Path) -> None:
    path = written(tmp_path / "bad.yml", content)
    with pytest.raises(ConfigError, match=r"bad\.yml cannot be read: "):
        cli.parse(["--config", path])


def test_yaml_without_its_package_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(PlatformError, match=r"pip install pyyaml, or write the file as JSON"):
        cli.parse(["--config", written(tmp_path / "mine.yaml", YAML)])
    assert cli.parse(["--config", written(tmp_path / "mine.json", {"seed": 3})]).config.seed == 3


def test_what_a_file_cannot_be_combined_with(tmp_path: Path) -> None:
    path = str(tmp_path / "config.json")
    found = cli.parse(["moco"])
    RunFolder(tmp_path).write_config(found.config, found.preset, found.origins)
    with pytest.raises(ConfigError, match="it is the configuration of a whole run; omit the preset byol"):
        cli.parse(["byol", "--config", path])
    with pytest.raises(ConfigError, match="omit the preset, --method, --out, --overwrite, --init and --config"):
        cli.parse(["--resume", str(tmp_path), "--config", path])
    with pytest.raises(ConfigError, match=r"absent.json cannot be read: No such file"):
        cli.parse(["--config", str(tmp_path / "absent.json")])


def test_code_that_was_sent_with_a_file_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sent_here").mkdir()
    (tmp_path / "sent_here" / "method.py").write_text("raise KeyError('imported')")
    path = written(tmp_path / "sent_here" / "mine.json", {"method_name": "sent_here.method"})
    with pytest.raises(CheckpointError, match=r"names code .* add --trust sent_here.method"):
        cli.parse(["--config", path])
    with pytest.raises(KeyError, match="imported"):
        cli.parse(["--config", path, "--trust", "sent_here.method"])
    beside = written(tmp_path / "mine.json", {"method_name": "sent_here.method"})  # the user's own, in the open
    with pytest.raises(KeyError, match="imported"):
        cli.parse(["--config", beside])
