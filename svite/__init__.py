"""svite: train and prune sparse Vision Transformers."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "methods": "svite.methods",
    "Sparsifier": "svite.sparsity.sparsifier",
    "attention_maps": "svite.vit.attention",
    "cost": "svite.vit.cost",
    "workspace": "svite.paths",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import svite` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'svite' has no attribute '{name}'")
    import_module("svite._torchvision")
    home = import_module(_HOMES[name])
    value = home if name == "methods" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
