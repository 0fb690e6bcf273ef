"""The runs of a study: trained, saved, and looked at in the end."""

import warnings
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """What `svite.study` was before it became `svite.params.study`."""
    if name in ("Grid", "Pair", "Run", "Study", "Training", "load"):
        warnings.warn(f"svite.study.{name} is svite.params.study.{name} now.", DeprecationWarning, stacklevel=2)
        return getattr(import_module("svite.params.study"), name)
    raise AttributeError(f"module 'svite.study' has no attribute '{name}'")
