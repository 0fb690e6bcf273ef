"""2:4 weights on a GPU, through torch's own semi-structured kernels."""

from copy import deepcopy

import torch
from torch import nn
from torch.sparse import to_sparse_semi_structured

LEAST = 64  # torch's kernels want dimensions that divide by it in half precision


def semi_structured(model: nn.Module) -> nn.Module:
    """A copy whose linear layers with 2:4 weights run on a GPU's sparse tensor cores; all others stay as they are.

    Args:
        model: on a CUDA device of compute capability 8.0 or more, in float16 or bfloat16; not changed.

    Raises:
        ValueError: a model elsewhere or of another dtype, or one without a layer that fits.
    """
    first = next(model.parameters(), torch.empty(0))
    if first.device.type != "cuda" or first.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"The model is {first.dtype} on {first.device}; 2:4 kernels take float16 or bfloat16 on CUDA.")
    fast = deepcopy(model).eval().requires_grad_(False)
    fitting = [layer for layer in fast.modules() if isinstance(layer, nn.Linear) and _fits(layer.weight)]
    if not fitting:
        raise ValueError("No linear layer holds 2:4 weights of sizes that divide by 64; train with svite.methods.nm.")
    for layer in fitting:
        layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight), requires_grad=False)
    return fast


def _fits(weight: torch.Tensor) -> bool:
    if weight.shape[0] % LEAST or weight.shape[1] % LEAST:
        return False
    return bool(((weight != 0).unflatten(1, (-1, 4)).sum(2) <= 2).all())
