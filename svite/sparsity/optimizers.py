"""What a topology asks of an optimizer: masked or dense gradients, and fresh state for what was born.

Element-wise optimizers get masked gradients, so a dead weight's moments stay zero. Optimizers that mix the entries of
a matrix get the dense gradient: masking it ruins Muon, whose orthogonalisation amplifies what was cut. State of another
shape than its parameter (the factored moments of Adafactor, Kron's preconditioners) is left as it is. Adamax, AdaBelief
and Adafactor add their epsilon to a moment, so the dead hold that much (at most 1e-8). RMSpropTF is not known here, for
it starts its moments at one.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from svite.sparsity.mask import silence
from svite.sparsity.sharded import local, whole

MIXING = frozenset({"Kron", "Muon"})
ELEMENTWISE = frozenset(
    {
        *("Adafactor", "AdafactorBigVision", "Adagrad", "Adam", "Adamax", "AdamW", "AdamWLegacy", "Adan", "AdaBelief"),
        *("Lamb", "LaProp", "Lars", "Lion", "NAdam", "NAdamW", "NAdamLegacy", "RAdam", "RAdamLegacy", "RMSprop"),
        *("SGD", "SGDW"),
    }
)


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def mixes_entries(optimizer: Optimizer) -> bool:
    """Whether an update of one weight depends on the gradients of others.

    Raises ValueError, by name, for an optimizer of which this is not known.
    """
    name = type(unwrapped(optimizer)).__name__
    if name not in MIXING | ELEMENTWISE:
        known = ", ".join(sorted(MIXING | ELEMENTWISE))
        raise ValueError(f"{name} is not known to keep dead weights dead; use one of {known}.")
    return name in MIXING


def skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler made a fused optimizer's step do nothing; others it does not call at all."""
    return bool(getattr(unwrapped(optimizer), "found_inf", None) or 0)


@torch.no_grad()
def keep_state(optimizer: Optimizer, keep: Mapping[Tensor, Tensor]) -> None:
    """Zero every state tensor of a parameter's own shape where `keep` is false."""
    states = unwrapped(optimizer).state
    for parameter, kept in keep.items():
        for value in states.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                silence(value, kept)


@torch.no_grad()
def calm(optimizer: Optimizer, born: Mapping[Tensor, Tensor]) -> None:
    """Start the second moment of newborn weights at the mean of the living ones of their tensor.

    Adam counts steps per tensor, so a newborn with no second moment takes steps up to 6.5 times as long as Adam's
    bias correction allows a new parameter; with the mean they are as long as everybody's.
    """
    states = unwrapped(optimizer).state
    for parameter, newborn in born.items():
        second = states.get(parameter, {}).get("exp_avg_sq")
        if second is None or second.shape != parameter.shape:
            continue
        living = whole(second)
        if bool((living > 0).any()):
            local(second).masked_fill_(local(newborn), living[living > 0].mean())
