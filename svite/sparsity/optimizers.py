"""What a topology asks of an optimizer: masked or dense gradients, and fresh state for what was born.

Element-wise optimizers get masked gradients, so a dead weight's moments stay zero. Optimizers that mix the entries of
a matrix get the dense gradient: masking it ruins Muon, whose orthogonalisation amplifies what was cut. State of another
shape than its parameter (the factored moments of Adafactor, Kron's preconditioners) is left as it is. Adamax, AdaBelief
and Adafactor add their epsilon to a moment, so the dead hold that much (at most 1e-8). RMSpropTF is not known here, for
it starts its moments at one.

Whatever an optimizer computes over a whole tensor, it computes over the dead as well. Norms do not notice: the trust
ratios of LAMB and LARS are those of the living alone. Means do: Adafactor's moments by row and column let the living
move further, which is told; a cautious optimizer's share of agreeing entries makes their steps 1 / density times as
long, so it is refused (docs/LOG.md has the measurements, tests/test_sparsity_optimizers.py makes them).
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from svite.sparsity.mask import apply_mask

MIXING = frozenset({"Kron", "Muon"})
ELEMENTWISE = frozenset(
    {
        *("Adafactor", "AdafactorBigVision", "Adagrad", "Adam", "Adamax", "AdamW", "AdamWLegacy", "Adan", "AdaBelief"),
        *("Lamb", "LaProp", "Lars", "Lion", "NAdam", "NAdamW", "NAdamLegacy", "RAdam", "RAdamLegacy", "RMSprop"),
        *("SGD", "SGDW"),
    }
)


FACTORED = frozenset({"Adafactor", "AdafactorBigVision"})


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside Accelerate's wrapper.

    Raises ValueError for one of DeepSpeed's, which trains flattened copies of the weights.
    """
    if type(optimizer).__module__.partition(".")[0] == "deepspeed" or "DeepSpeed" in type(optimizer).__name__:
        raise ValueError(
            "DeepSpeed trains flattened copies of the weights, which no mask follows; use DDP or FSDP2 (`fully_shard`)."
        )
    return getattr(optimizer, "optimizer", optimizer)


def trained_by(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimizer."""
    return [parameter for group in innermost(optimizer).param_groups for parameter in group["params"]]


def mixes_entries(optimizer: Optimizer) -> bool:
    """Whether an update of one weight depends on the gradients of others.

    Raises ValueError, by name, for an optimizer of which this is not known.
    """
    name = type(innermost(optimizer)).__name__
    if name not in MIXING | ELEMENTWISE:
        known = ", ".join(sorted(MIXING | ELEMENTWISE))
        raise ValueError(f"{name} is not known to keep dead weights dead; use one of {known}.")
    return name in MIXING


def supported(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside Accelerate's wrapper, if masks can work with it.

    Raises ValueError, by name, for one of which this is not known, for DeepSpeed's, and for timm's cautious ones, which
    count dead entries as disagreeing (arXiv 2411.16085).
    """
    if isinstance(optimizer, Sequence):
        raise ValueError("Optimizers of one step are given one by one, (a, b) say, and not as a list.")
    mixes_entries(optimizer)
    inner = innermost(optimizer)
    if any(group.get("caution") for group in inner.param_groups):
        raise ValueError(
            f"{type(inner).__name__} with caution=True divides steps by the share of entries that agree, and counts "
            "the dead as disagreeing: living weights would move 1 / density times as far; leave caution off."
        )
    return inner


def tell_of_factored(optimizer: Optimizer) -> None:
    """Say of Adafactor what it makes of dead entries."""
    name = type(optimizer).__name__
    if name in FACTORED:
        warnings.warn(
            f"{name} keeps second moments by row and column, in whose means the dead count as zeros: at a density of "
            "0.1 living weights move some 3.4 times as far; lower the rate, or use AdamW.",
            stacklevel=4,
        )


def skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler made a fused optimizer's step do nothing; others it does not call at all."""
    return bool(getattr(innermost(optimizer), "found_inf", None) or 0)


def state_of(parameter: Tensor, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """What the optimizer that trains a parameter knows of it."""
    return next((o.state[parameter] for o in map(innermost, optimizers) if parameter in o.state), {})


@torch.no_grad()
def reset_optimizer_state(optimizers: Sequence[Optimizer], keep: Mapping[Tensor, Tensor]) -> None:
    """Zero every state tensor of a parameter's own shape where `keep` is false."""
    for parameter, kept in keep.items():
        for value in state_of(parameter, optimizers).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                apply_mask(value, kept)
