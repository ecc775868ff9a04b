"""Code from outside the package: modules and files by name, and installed entry points.

What is imported registers methods, benchmarks, streams or heads. ``--import MODULE_OR_FILE`` puts a
name into the environment variable ``AVALANCHE_RWF_IMPORT`` (several are separated as in ``PATH``),
so that worker processes and the tests import the same. An installed package names its modules in
the entry point groups ``avalanche_rwf.methods``, ``.benchmarks``, ``.streams`` and ``.heads``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from avalanche_rwf.errors import UsageError

VARIABLE = "AVALANCHE_RWF_IMPORT"
ENTRY_POINTS = "avalanche_rwf."
"""Before the kind: the groups of entry points."""
_LOADED: set[str] = set()


def _is_file(name: str) -> bool:
    return name.endswith(".py") or os.sep in name or "/" in name


def add_imports(names: Iterable[str]) -> None:
    """Let this process and those it starts import `names` before anything is looked up.

    Files become absolute paths: a worker may stand in another folder.
    """
    known = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    known += [str(Path(name).resolve()) if _is_file(name) else name for name in names]
    if known:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(known))


def import_now(names: Iterable[str]) -> None:
    """:func:`add_imports`, and import them.

    :raises UsageError: if something cannot be imported; nothing is then added.
    """
    before = os.environ.get(VARIABLE)
    add_imports(names)
    try:
        _load_named()
    except UsageError:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
        raise


def may_import(method: str) -> bool:
    """Whether a method that a file names needs no import, or one that the user asked for.

    :param method: a registered name, ``avalanche:NAME``, or ``MODULE:NAME`` with a module or a file
        of :func:`add_imports`.
    """
    module = method.rpartition(":")[0]
    if module in ("", "avalanche"):
        return True
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    return (str(Path(module).resolve()) if _is_file(module) else module) in named


def import_code(name: str, asked: str) -> ModuleType:
    """Import a module by its dotted name or from a ``.py`` file; a second call gives the same one.

    The current folder can be imported from, as with ``python -m``, and so can a file's own folder.

    :param name: such as ``"mypackage.mymodule"`` or ``"examples/add_your_method.py"``; a relative
        path is one from the current folder.
    :param asked: what asked for it, for the error's sentence, such as ``"--import"``.
    :raises UsageError: if there is no such module or file, or importing it fails.
    """
    try:
        return _import_file(Path(name)) if _is_file(name) else _import_module(name)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and name.startswith(error.name or " ")
        why = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(". ")[:200]
        if missing or isinstance(error, FileNotFoundError):
            what = "file" if _is_file(name) else "module"
            raise UsageError(
                f"{asked} takes a module that can be imported or a .py file, and there is no "
                f"{what} {name!r}."
            ) from None
        raise UsageError(f"{asked} {name!r} cannot be imported ({why}).") from error


def _import_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file() or path.suffix != ".py":
        raise FileNotFoundError(path)
    # A name of its own: two files of one name, or of an installed module's, are not mixed up.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    module_name = f"avalanche_rwf_import_{digest}_{path.stem}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _load_named() -> None:
    for name in os.environ.get(VARIABLE, "").split(os.pathsep):
        if name and name not in _LOADED:
            import_code(name, "--import")
            _LOADED.add(name)


def load_extensions(kind: str) -> None:
    """Import what the environment variable and installed packages name, each once per process.

    :param kind: of what is looked up, such as "methods": the group of entry points.
    :raises UsageError: if something of the environment variable cannot be imported. An installed
        package's module that cannot be is left out with a warning.
    """
    _load_named()
    group = f"{ENTRY_POINTS}{kind}"
    if group in _LOADED:
        return
    _LOADED.add(group)
    from importlib import metadata  # 20 ms, which `--help` does not need

    for entry in metadata.entry_points(group=group):
        try:
            entry.load()
        except (Exception, SystemExit) as error:
            warnings.warn(
                f"The {kind} of {entry.value!r} (entry point {entry.name!r}) are left out: "
                f"{type(error).__name__}: {error}",
                UserWarning,
                stacklevel=2,
            )


def origin_of(code: Any) -> dict[str, str]:
    """Where a function or class comes from, for a run's record.

    :returns: "module", and "file" with its "sha256" (the file alone, not what it imports), and the
        installed distribution's "version" if it has one; empty for this package's own.
    """
    module = sys.modules.get(code.__module__)
    top = code.__module__.partition(".")[0]
    if top == __name__.partition(".")[0]:
        return {}
    origin = {"module": code.__module__}
    file = getattr(module, "__file__", None)
    if file is not None:
        path = Path(file).resolve()
        origin["file"] = str(path)
        origin["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    names = _distributions(tuple(sys.path)).get(top, [])
    if names:
        from importlib import metadata

        origin["version"] = f"{names[0]} {metadata.version(names[0])}"
    return origin


@contextlib.contextmanager
def told(what: str, origin: Mapping[str, str]) -> Iterator[None]:
    """Within it, an error of code from outside is one sentence.

    :param what: failed, such as "the benchmark 'mine'".
    :param origin: of :func:`origin_of`; errors of this package's own code are left as they are.
    :raises UsageError: naming what failed, where, and why.
    """
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        if not origin:
            raise
        why = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(". ")[:200]
        where = origin.get("file", origin["module"])
        raise UsageError(f"{what} of {where!r} failed ({why}).") from error


@functools.lru_cache(maxsize=1)
def _distributions(path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Installed distributions by top-level module; their file lists are read once for a path."""
    from importlib import metadata

    return metadata.packages_distributions()
