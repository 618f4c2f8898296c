"""A configuration file: options of a run as YAML or JSON, or the config.json of a run.

Keys are those of the command line, nested or with dots (`optim: {lr: 0.03}` or `optim.lr: 0.03`), and three more:
`preset` (with its modifiers, as on the command line), `method_name` and `init`, for --method and --init.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixfast.config.arguments import matching_name, nearest
from mixfast.config.options import RunConfig, flatten, from_json, hint_of
from mixfast.errors import ConfigError, PlatformError
from mixfast.outside import check_trusted

_RUN_KEYS = {"preset", "values", "origins"}  # of the config.json of a run


@dataclass(frozen=True)
class ConfigFile:
    """The content of a configuration file, before the options of its method are known."""

    path: Path
    names: list[str]  # preset and modifiers
    method: str  # "" if the file names none
    init: str  # "" if the file names none
    values: dict[str, Any]  # by dotted key, as spelled in the file
    is_run_config: bool  # whether it is the config.json of a run, with all values

    def error(self, text: str) -> ConfigError:
        """A ConfigError whose message begins with the name of the file."""
        return ConfigError(f"--config {self.path}: {text}")

    def typed(self, config: RunConfig[Any]) -> dict[str, Any]:
        """The values by exact key, each converted to the type of the option in `config`.

        Raises:
            ConfigError: a key is unknown or occurs twice, or a value has another type.
        """
        option_keys = [key for key in flatten(config) if key not in ("method_name", "init")]
        values: dict[str, Any] = {}
        for written, value in self.values.items():
            key = matching_name(written, option_keys)
            if key is None:
                nearest_keys = nearest(written, option_keys)
                hint = (
                    f"; did you mean {' or '.join(nearest_keys)}?"
                    if nearest_keys
                    else "; python -m mixfast.train --help-all"
                )
                raise self.error(f"unknown key {written}{hint}")
            if key in values:
                raise self.error(f"{key} is there more than once.")
            try:
                values[key] = from_json(value, hint_of(config, key), key)
            except ConfigError as error:
                raise self.error(str(error)) from error
        return values

    def check_trusted(self, named: list[tuple[str, str]], trusted: Collection[str]) -> None:
        """Refuse code that the file names and that may have been sent with it (`mixfast.outside.check_trusted`)."""
        check_trusted(named, self.path.parent if self.is_run_config else self.path, trusted)


def read(path: Path) -> ConfigFile:
    """The content of a configuration file: YAML if its name ends in .yaml or .yml, else JSON.

    Raises:
        ConfigError: the file cannot be read, or does not hold keys and values. PlatformError: PyYAML is missing.
    """
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    try:
        content = (_yaml if is_yaml else _json)(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"--config {path} cannot be read: {reason}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} must hold keys and values; got {content!r:.100}.")
    is_run_config = "values" in content and content.keys() <= _RUN_KEYS
    values = content["values"] if is_run_config else {key: value for key, value in content.items() if key != "preset"}
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: values must be keys and values; got {values!r:.100}.")
    flat: dict[str, Any] = {}
    _flatten(values, "", flat, path)
    texts = {"preset": content.get("preset", ""), **{key: flat.pop(key, "") for key in ("method_name", "init")}}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ConfigError(f"--config {path}: {key} must be a string; got {text!r:.100}.")
    if is_run_config and not texts["method_name"]:
        raise ConfigError(f"--config {path}: values.method_name must be the name of a method; got nothing.")
    init = str(path.parent / "initial.safetensors") if is_run_config and texts["init"] else texts["init"]
    return ConfigFile(path, texts["preset"].split(), texts["method_name"], init, flat, is_run_config)


def _flatten(content: dict[str, Any], prefix: str, flat: dict[str, Any], path: Path) -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            _flatten(value, f"{name}.", flat, path)
        elif name in flat:
            raise ConfigError(f"--config {path}: {name} is there more than once.")
        else:
            flat[name] = value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Pairs as a dictionary; ValueError if a key occurs twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} is there more than once")
    return content


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _yaml(text: str) -> Any:
    """Parse YAML with the numbers and booleans of version 1.2: 1e-4 is a number, and yes and on are strings.

    Raises:
        ValueError: the text is not YAML. PlatformError: PyYAML is missing.
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
