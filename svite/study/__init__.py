"""The runs of a study: trained, saved, and looked at in the end."""

import warnings
from importlib import import_module
from typing import Any

_MOVED = {"Run": "run", "Training": "run", "Study": "study", "load": "study"}


def __getattr__(name: str) -> Any:
    """What `svite.study` was before it became `svite.params.run` and `svite.params.study`."""
    if name in _MOVED:
        home = f"svite.params.{_MOVED[name]}"
        warnings.warn(f"svite.study.{name} is {home}.{name} now.", DeprecationWarning, stacklevel=2)
        return getattr(import_module(home), name)
    raise AttributeError(f"module 'svite.study' has no attribute '{name}'")
