"""Modules outside this package, which an option names by their dotted path."""

import importlib
from types import ModuleType

from mixfast.errors import ConfigError


def import_module(path: str, option: str) -> ModuleType:
    """The module `path`, found on Python's path.

    Args:
        path: dotted name.
        option: whose value names it, for the message.

    Raises:
        ConfigError: there is no such module. An error inside it, such as a missing import of its own, passes as it is.
    """
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # the module exists, and something that it imports does not
        raise ConfigError(
            f"{option}: cannot import {path!r} (no module named {error.name!r}); run from the folder that holds it, "
            "or put that folder on PYTHONPATH."
        ) from error
