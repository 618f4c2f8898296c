"""Modules outside this package, which an option or the folder of a run names by their dotted path."""

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
    """The module `path`, found on Python's path.

    Args:
        path: dotted name.
        option: whose value names it, for the message.

    Raises:
        ConfigError: there is no such module, or `path` is no dotted name. An error inside the module, such as a missing
            import of its own, passes as it is.
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
    """Refuse code that the folder of a run names and that may harm whoever opens it; nothing is imported.

    Refused are modules of Python's own library; modules that Python would take, or a package above them, from the
    folder itself or from that of another run, or by way of a package that contains the folder, such as "runs"; and
    functions of installed packages, since they would be called with what the folder says.

    Args:
        names: (key of the configuration, dotted name of a module or module:function) of each.
        folder: of the run.
        trusted: modules that the user gave on the command line; they are not looked at.

    Raises:
        CheckpointError: a name is refused; the message says how to trust it.
        ConfigError: a name is no dotted name.
    """
    for key, name in names:
        module, called, _ = name.partition(":")
        if module in trusted:
            continue
        check_dotted(module, key)
        reason = "of Python's own library" if module.partition(".")[0] in sys.stdlib_module_names else ""
        for place in [] if reason else _places(module):
            installed = {"site-packages", "dist-packages"} & {*place.parts, *place.resolve().parts}
            if _comes_with(folder, place):
                reason = f"found at {place}, in or around the folder of a run"
            elif (called and installed) or (not installed and place.resolve().is_relative_to(_STANDARD)):
                reason = f"of a library, found at {place}"
        if reason:
            raise CheckpointError(
                f"{folder} names code that does not run because a file says so: {key} is {name}, {reason}. "
                f"If you trust it, add --trust {module}."
            )


def _places(module: str) -> Iterator[Path]:
    """The files and folders that importing a dotted name would run or search, without importing anything."""
    importlib.invalidate_caches()
    name, _, rest = module.partition(".")
    search: list[str] = sys.path
    while True:
        origin, search = _find(name, search)
        yield from map(Path, [*([origin] if origin else []), *search])
        if not (rest and search):
            return
        part, _, rest = rest.partition(".")
        name = f"{name}.{part}"


def _find(name: str, search: Iterable[str]) -> tuple[str | None, list[str]]:
    """The file of a module, None for a namespace package, and the folders of its own modules.

    Not by `importlib.util.find_spec`, which imports the packages above the module.
    """
    portions: list[str] = []
    for entry in search:
        finder = pkgutil.get_importer(entry or os.getcwd())
        spec = finder.find_spec(name) if finder is not None else None
        if spec is not None and spec.loader is not None:
            return spec.origin, list(spec.submodule_search_locations or ())
        if spec is not None:
            portions += spec.submodule_search_locations or ()
    if not portions:  # a package that is installed as a link to its sources has a finder of its own
        for own in sys.meta_path:
            spec = None if own is importlib.machinery.PathFinder else own.find_spec(name, None)
            if spec is not None and spec.origin:
                return spec.origin, list(spec.submodule_search_locations or ())
    return None, portions


def _comes_with(folder: Path, place: Path) -> bool:
    """Whether a file or folder of code may have been sent together with the folder of a run."""
    runs, places = ({Path(os.path.abspath(path)), path.resolve()} for path in (folder, place))
    for found in places:
        around = [found, *found.parents]
        if any(run in around or run.is_relative_to(found) for run in runs):
            return True
        if any((above / "config.json").is_file() and (above / "checkpoints").is_dir() for above in around):
            return True
    return False
