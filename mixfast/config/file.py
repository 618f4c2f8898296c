"""A configuration file: what a run is made of as YAML or JSON, or the config.json of a run.

Keys are those of the command line, nested or with dots (`optim: {lr: 0.03}` or `optim.lr: 0.03`), and three more:
`preset` (with its modifiers, as on the command line), `method_name` and `init`, for --method and --init.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixfast.config.options import RunConfig, flatten, from_json, hint_of
from mixfast.config.words import nearest, same
from mixfast.errors import ConfigError, PlatformError
from mixfast.outside import check_trusted

_WHOLE = {"preset", "values", "origins"}  # of the config.json of a run


@dataclass(frozen=True)
class ConfigFile:
    """The content of a configuration file, before the options of its method are known."""

    path: Path
    names: list[str]  # preset and modifiers
    method: str  # "" if the file names none
    init: str  # "" if the file names none
    values: dict[str, Any]  # dotted key as written: value
    whole: bool  # the config.json of a run: every value is there

    def error(self, text: str) -> ConfigError:
        """An error that begins with the name of the file."""
        return ConfigError(f"--config {self.path}: {text}")

    def typed(self, config: RunConfig[Any]) -> dict[str, Any]:
        """The values by the exact key and of the type of each option of `config`.

        Raises:
            ConfigError: an unknown key, a key that is there twice, or a value of another type.
        """
        known = [key for key in flatten(config) if key not in ("method_name", "init")]
        found: dict[str, Any] = {}
        for written, value in self.values.items():
            key = same(written, known)
            if key is None:
                near = nearest(written, known)
                hint = f"; did you mean {' or '.join(near)}?" if near else "; python -m mixfast.train --help-all"
                raise self.error(f"unknown key {written}{hint}")
            if key in found:
                raise self.error(f"{key} is there more than once.")
            try:
                found[key] = from_json(value, hint_of(config, key), key)
            except ConfigError as error:
                raise self.error(str(error)) from error
        return found

    def check_trusted(self, named: list[tuple[str, str]], trusted: Collection[str]) -> None:
        """Refuse code that the file names and that may have been sent with it (`mixfast.outside.check_trusted`)."""
        check_trusted(named, self.path.parent if self.whole else self.path, trusted)


def read(path: Path) -> ConfigFile:
    """The content of a configuration file: YAML if its name ends in .yaml or .yml, else JSON.

    Raises:
        ConfigError: it cannot be read, or does not hold keys and values. PlatformError: PyYAML is missing.
    """
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    try:
        content = (_yaml if is_yaml else _json)(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        shown = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"--config {path} cannot be read: {shown}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} must hold keys and values; got {content!r:.100}.")
    whole = "values" in content and content.keys() <= _WHOLE
    values = content["values"] if whole else {key: value for key, value in content.items() if key != "preset"}
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: values must be keys and values; got {values!r:.100}.")
    flat: dict[str, Any] = {}
    _flatten(values, "", flat, path)
    texts = {"preset": content.get("preset", ""), **{key: flat.pop(key, "") for key in ("method_name", "init")}}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ConfigError(f"--config {path}: {key} must be a string; got {text!r:.100}.")
    if whole and not texts["method_name"]:
        raise ConfigError(f"--config {path}: values.method_name must be the name of a method; got nothing.")
    init = str(path.parent / "initial.safetensors") if whole and texts["init"] else texts["init"]
    return ConfigFile(path, texts["preset"].split(), texts["method_name"], init, flat, whole)


def _flatten(content: dict[str, Any], prefix: str, into: dict[str, Any], path: Path) -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            _flatten(value, f"{name}.", into, path)
        elif name in into:
            raise ConfigError(f"--config {path}: {name} is there more than once.")
        else:
            into[name] = value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Pairs as a dictionary; ValueError if a key is there twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} is there more than once")
    return content


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _yaml(text: str) -> Any:
    """YAML with the numbers and flags of its version 1.2: 1e-4 is a number, and yes and on are texts.

    Raises:
        ValueError: it is no YAML. PlatformError: PyYAML is missing.
    """
    try:
        import yaml
    except ImportError as error:
        raise PlatformError(
            "--config with a YAML file needs a package that is missing: pip install pyyaml, or write the file as JSON."
        ) from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
        def mapping(self, node: Any) -> dict[str, Any]:
            pairs = [[self.construct_object(part, deep=True) for part in pair] for pair in node.value]
            return _once([(str(key), value) for key, value in pairs])

    changed = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in changed]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(changed[0], re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    number = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
    Loader.add_implicit_resolver(changed[1], number, list("-+.0123456789"))
    Loader.add_constructor("tag:yaml.org,2002:map", Loader.mapping)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
