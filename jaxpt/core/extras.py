"""Optional packages, imported when needed, and the versions of installed packages."""

import importlib
import importlib.metadata
import platform
from typing import Any

from jaxpt.core import __version__

_CORE = ("jax", "jaxlib", "flax", "optax", "numpy")


def versions() -> dict[str, str]:
    """Returns {package: version}, including Python's."""
    own = {"python": platform.python_version(), "jaxpt": __version__}
    return own | {name: importlib.metadata.version(name) for name in _CORE}


def extra(module: str, name: str, what: str) -> Any:
    """Returns a module of an optional package.

    Args:
        module: its full name.
        name: the extra of jaxpt that installs it.
        what: the feature that needs it, for the error message.

    Raises:
        ModuleNotFoundError: the package is not installed; the message states how to install it.
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
