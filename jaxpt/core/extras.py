"""Packages: those that only some need, imported when they are asked for; and which versions there are."""

import importlib
import importlib.metadata
import platform
from typing import Any

from jaxpt.core import __version__

_CORE = ("jax", "jaxlib", "flax", "optax", "numpy")


def versions() -> dict[str, str]:
    """Returns {package: its version}, Python's too."""
    own = {"python": platform.python_version(), "jaxpt": __version__}
    return own | {name: importlib.metadata.version(name) for name in _CORE}


def extra(module: str, name: str, what: str) -> Any:
    """Returns a module of a package that is no core dependency.

    Args:
        module: its full name.
        name: the extra of jaxpt that brings it.
        what: which use asks for it, for the error message.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says how to install it.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f'{what} needs {package}, which is not installed: pip install "jaxpt[{name}]"', name=package
        ) from None
