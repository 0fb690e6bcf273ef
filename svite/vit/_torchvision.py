"""Let timm import next to a torchvision whose compiled operators do not fit this torch.

A torchvision built for CUDA beside a CPU-only torch fails at import with "operator torchvision::nms does not exist".
The project needs its transforms and datasets only, so declaring the two missing schemas is enough. It has to happen
before torchvision runs, so `import svite` puts a finder before Python's that imports this module then, and not earlier.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _extension_loads(package: Path) -> bool:
    try:
        for library in [*package.glob("_C*.so"), *package.glob("_C*.pyd")]:
            torch.ops.load_library(str(library))
        return hasattr(torch.ops.torchvision, "nms")
    except (OSError, RuntimeError):
        return False


def declare_missing_operators() -> torch.library.Library | None:
    """Declare torchvision's operator schemas if its own extension cannot; the result must stay referenced."""
    spec = find_spec("torchvision")
    if spec is None or _extension_loads(Path(spec.origin).parent):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


library = declare_missing_operators()
