"""Plugins: user modules that register rules, operations, spaces, datasets or methods when imported.

Importing executes code, so only plugins named by the caller are imported, never those named in a run folder or a
settings file; an error about an unknown name lists these instead.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bionas_fast.config import CONFIG, RunRecord
from bionas_fast.errors import InputError, Unregistered, shown

#: The modules of the plugins that this process has imported.
_imported: set[str] = set()


def import_plugins(names: Sequence[str]) -> None:
    """Import modules by dotted name, or by the path of a file, ``mine.py``, unless already imported.

    Raises:
        InputError: no such module or file, or an exception raised by it, in one line.
    """
    for name in names:
        if name.endswith(".py"):
            _import_file(name)
        elif all(word.isidentifier() for word in name.split(".")):
            _import_module(name)
        else:
            raise InputError(f"plugin {shown(name)}: give a module's name or a path that ends in .py")


def is_of_plugin(file: str) -> bool:
    """Whether a file belongs to a plugin that was imported, as one module or as a package."""
    path = os.path.realpath(file)
    for name in _imported:
        own = getattr(sys.modules.get(name), "__file__", None)
        if own is not None:
            own = os.path.realpath(own)
            package = os.path.basename(own) == "__init__.py"
            if path == own or (package and path.startswith(os.path.dirname(own) + os.sep)):
                return True
    return False


def plugin_options(names: Sequence[str]) -> list[str]:
    """Return the command-line options that import the plugins."""
    return [word for name in names for word in ("--plugin", name)]


@contextmanager
def plugins_explained(*places: str | Path | None, given: Sequence[str] = ()) -> Iterator[None]:
    """Extend errors about unknown names by the plugins that the run had imported.

    Args:
        places: the run folders or settings files.
        given: the plugins already imported.

    Raises:
        Unregistered: the error raised inside, extended.
    """
    try:
        yield
    except Unregistered as error:
        missing = [name for place in places if place for name in _recorded(Path(place)) if name not in given]
        if not missing or error.explained:
            raise
        raise Unregistered(
            f"{error}; this run used the plugin {', '.join(missing)}; plugins are never imported automatically: "
            f"give {shlex.join(plugin_options(missing))}, in Python plugins={tuple(missing)!r}",
            explained=True,
        ) from error


def _recorded(place: Path) -> tuple[str, ...]:
    """Read the plugins named in a run folder or a settings file; none if it is unreadable."""
    try:
        return RunRecord.read(place / CONFIG if place.is_dir() else place).plugins
    except InputError:
        return ()


def _import_module(name: str) -> None:
    try:
        _imported.add(name)  # before it is: it may warn while it is imported
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error
        hint = f"; to import the file, give {name}.py" if os.path.isfile(f"{name}.py") else ""
        raise InputError(f"plugin {shown(name)}: no module of that name is installed{hint}") from None
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error


def _import_file(name: str) -> None:
    path = Path(os.path.realpath(os.path.expanduser(name)))
    if not os.path.isfile(path):  # unlike that of Path, never raises
        raise InputError(f"plugin {shown(name)}: no file {shown(str(path), 1000)}")
    if any(_is_of(module, path) for module in list(sys.modules.values())):
        return
    # A name that no other module can have, for any file name.
    spec = importlib.util.spec_from_file_location(f"plugin {path}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _imported.add(spec.name)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[spec.name]
        if isinstance(error, (Exception, SystemExit)):
            raise _failed(name, error) from error
        raise


def _is_of(module: object, path: Path) -> bool:
    # Through __dict__, because attribute access would import lazy modules.
    file = getattr(module, "__dict__", {}).get("__file__")
    return isinstance(file, str) and os.path.basename(file) == path.name and Path(file).resolve() == path


def _failed(name: str, error: BaseException) -> InputError:
    """Wrap an exception raised by a plugin, with the plugin's file and line."""
    frames = [f for f in traceback.extract_tb(error.__traceback__)[1:] if "importlib" not in f.filename]
    place = f" ({Path(frames[0].filename).name}, line {frames[0].lineno})" if frames else ""
    message = str(error).partition("\n")[0]
    return InputError(f"plugin {name!r} raised {type(error).__name__}{place}: {message}")
