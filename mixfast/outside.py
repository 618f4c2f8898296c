"""Import modules outside this package, which an option or a run's config.json names by their dotted path."""

import importlib
import importlib.machinery
import keyword
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import ModuleType

from mixfast.errors import CheckpointError, ConfigError

_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()


def import_module(path: str, option: str) -> ModuleType:
    """Import the module `path`, which must be on Python's search path.

    Args:
        path: dotted name of the module.
        option: name of the option that gave `path`, for error messages.

    Raises:
        ConfigError: there is no such module, or `path` is not a dotted name. An error inside the module, such as a
            missing import of its own, is not changed.
    """
    check_dotted(path, option)
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # the module exists, and something that it imports does not
        raise ConfigError(
            f"{option}: cannot import {path!r} (no module named {error.name!r}); run from the folder that holds it, "
            "or put that folder on PYTHONPATH."
        ) from error


def check_dotted(path: str, option: str) -> None:
    """Raise a ConfigError unless `path` is a dotted name such as my_lab.my_method."""
    parts = path.split(".")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        as_name = path.removesuffix(".py").replace(os.sep, ".").strip(".")
        named = "." in as_name and all(part.isidentifier() for part in as_name.split("."))
        hint = f", as in {as_name}" if named else ""
        raise ConfigError(
            f"{option}: {path!r} is not the dotted name of a module. Omit .py, use dots{hint}, and run from the folder "
            "that contains it, or put that folder on PYTHONPATH."
        )


def check_trusted(names: Iterable[tuple[str, str]], folder: Path, trusted: Collection[str]) -> None:
    """Refuse code that a run's config.json names and that may be harmful; nothing is imported.

    Three kinds of code are refused:
    - modules of Python's standard library;
    - modules that Python would load from the run's folder, from another run's folder, or through a package that
      contains the run's folder (such as "runs"); this holds for their parent packages too;
    - functions of installed packages, since they would be called with arguments from the run's config.json.

    Args:
        names: for each name its (config key, dotted name of a module, or module:function).
        folder: the run's folder.
        trusted: modules that the user named on the command line; they are not checked.

    Raises:
        CheckpointError: a name is refused; the message says how to trust it.
        ConfigError: a name is not a dotted name.
    """
    for key, name in names:
        module, function, _ = name.partition(":")
        if module in trusted:
            continue
        check_dotted(module, key)
        reason = "of Python's own library" if module.partition(".")[0] in sys.stdlib_module_names else ""
        for location in [] if reason else _locations(module):
            installed = {"site-packages", "dist-packages"} & {*location.parts, *location.resolve().parts}
            if _may_come_with(folder, location):
                reason = f"found at {location}, in or around the folder of a run"
            elif (function and installed) or (not installed and location.resolve().is_relative_to(_STANDARD)):
                reason = f"of a library, found at {location}"
        if reason:
            raise CheckpointError(
                f"{folder} names code that does not run because a file says so: {key} is {name}, {reason}. "
                f"If you trust it, add --trust {module}."
            )


def _locations(module: str) -> Iterator[Path]:
    """Yield the files and folders that importing a dotted name would run or search; nothing is imported."""
    importlib.invalidate_caches()
    name, _, remaining = module.partition(".")
    search: list[str] = sys.path
    while True:
        origin, search = _find(name, search)
        yield from map(Path, [*([origin] if origin else []), *search])
        if not (remaining and search):
            return
        part, _, remaining = remaining.partition(".")
        name = f"{name}.{part}"


def _find(name: str, search: Iterable[str]) -> tuple[str | None, list[str]]:
    """The file of a module (None for a namespace package), and the folders that contain its submodules.

    `importlib.util.find_spec` is not used: it imports the parent packages of the module.
    """
    portions: list[str] = []
    for entry in search:
        finder = pkgutil.get_importer(entry or os.getcwd())
        spec = finder.find_spec(name) if finder is not None else None
        if spec is not None and spec.loader is not None:
            return spec.origin, list(spec.submodule_search_locations or ())
        if spec is not None:
            portions += spec.submodule_search_locations or ()
    if not portions:  # an editable install has a finder of its own
        for meta_finder in sys.meta_path:
            spec = None if meta_finder is importlib.machinery.PathFinder else meta_finder.find_spec(name, None)
            if spec is not None and spec.origin:
                return spec.origin, list(spec.submodule_search_locations or ())
    return None, portions


def _may_come_with(folder: Path, location: Path) -> bool:
    """Whether a file or folder of code may have been sent together with the folder of a run."""
    runs, paths = ({Path(os.path.abspath(path)), path.resolve()} for path in (folder, location))
    for path in paths:
        ancestors = [path, *path.parents]
        if any(run in ancestors or run.is_relative_to(path) for run in runs):
            return True
        if any((above / "config.json").is_file() and (above / "checkpoints").is_dir() for above in ancestors):
            return True
    return False
