"""svite: train and prune sparse Vision Transformers."""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "methods": "svite.methods",
    "tokens": "svite.tokens",
    "Sparsifier": "svite.sparsity.sparsifier",
    "advise": "svite.deployment.advise",
    "calibration": "svite.calibration",
    "attention_maps": "svite.vit.attention",
    "cost": "svite.vit.cost",
    "deploy": "svite.deployment.deploy",
    "export": "svite.io.export",
    "heads": "svite.vit.structure",
    "load": "svite.io.saved",
    "narrow": "svite.vit.narrow",
    "neurons": "svite.vit.structure",
    "save": "svite.io.saved",
    "shrink": "svite.vit.shrink",
    "structures": "svite.vit.structure",
    "fold": "svite.vit.gates",
    "gather_inputs": "svite.vit.gather",
    "verify": "svite.vit.verify",
    "with_branches": "svite.sparsity.pool",
    "workspace": "svite.params.paths",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import svite` costs nothing."""
    if name == "penalty":
        warnings.warn("svite.penalty is svite.methods now.", DeprecationWarning, stacklevel=2)
        return import_module("svite.methods")
    if name not in _HOMES:
        raise AttributeError(f"module 'svite' has no attribute '{name}'")
    home = import_module(_HOMES[name])
    value = home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _BeforeTorchvision:
    """Finds torchvision where Python does; `svite.vit._torchvision` mends it before it runs, whoever imports it."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Nothing for any other module; looking for torchvision loads nothing yet."""
        spec = PathFinder.find_spec(name) if name == "torchvision" else None
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(_mended, spec.loader.exec_module)
        return spec


def _mended(load: Callable[[ModuleType], None], module: ModuleType) -> None:
    import_module("svite.vit._torchvision")
    load(module)


if "torchvision" not in sys.modules:  # else it fits
    sys.meta_path.insert(0, _BeforeTorchvision)
