"""What the program runs with that is not its own: code of the user's, and libraries of other versions."""

import contextlib
import importlib.metadata
import os
import pathlib
import sys
import warnings
from typing import Any, Iterable, Iterator

from packaging.requirements import Requirement

from selftrain_jax.core.errors import InputWarning


@contextlib.contextmanager
def fresh_imports(*folders: str) -> Iterator[None]:
    """Within the body, modules are compiled from their source: bytecode beside it may be of another file of the same
    size and time. After it, those that were imported from `folders`, or from folders that the body has put on the path,
    are forgotten."""
    path, known = list(sys.path), set(sys.modules)
    kept = sys.pycache_prefix, sys.dont_write_bytecode
    sys.pycache_prefix, sys.dont_write_bytecode = os.path.join(os.devnull, "none"), True
    try:
        yield
    finally:
        sys.pycache_prefix, sys.dont_write_bytecode = kept
        places = {*map(os.path.realpath, {*folders, *set(sys.path) - set(path)})}
        for name in set(sys.modules) - known:
            if _is_of(name, sys.modules[name], places):
                del sys.modules[name]


def _is_of(name: str, module: Any, folders: Iterable[str]) -> bool:
    """Whether a module lies in or below one of the folders, and is part of no library that is installed there."""
    files = [file for file in (getattr(module, "__file__", None), *getattr(module, "__path__", ())) if file]
    if name.partition(".")[0] in (__package__.partition(".")[0], *sys.stdlib_module_names):
        return False
    if any({"site-packages", "dist-packages"} & {*pathlib.Path(file).parts} for file in files):
        return False
    return any(pathlib.Path(os.path.realpath(file)).is_relative_to(folder) for file in files for folder in folders)


def warn_of_versions(package: str) -> None:
    """Warns of libraries that `package` needs and that are here in a version that it does not know, as where another
    installation has exchanged them."""
    try:
        needs = map(Requirement, importlib.metadata.requires(package) or ())
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path
        return
    for need in needs:
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # who imports it says so
                version = importlib.metadata.version(need.name)
                if not need.specifier.contains(version, prereleases=True):
                    what = f"{need.name} {version} is installed, and {package} was tested with {need.specifier} alone"
                    warnings.warn(f"{what}: figures may be others", InputWarning, stacklevel=2)
