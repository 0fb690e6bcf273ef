"""Input features that no output reads: gathered away (what VTP's gates leave, arXiv 2104.08500)."""

from jaxtyping import Bool
from torch import Tensor, nn

from svite.vit.opaque import refuse_unreadable
from svite.vit.parts import Select
from svite.vit.surgery import keep_columns
from svite.vit.surgery_alive import Masked, copied, living
from svite.vit.surgery_branches import cuttable_branches

_READERS = ("qkv", "proj", "fc1")


def gather_inputs(model: nn.Module, sparsifier: Masked | None = None) -> nn.Module:
    """A copy whose qkv, proj and fc1 read only the features that they have living weights for.

    Such a layer becomes `nn.Sequential(Select, Linear)`; where all features are read it stays as it is. Dead neurons
    and heads are for `shrink` to remove, before: a gathered model can't be shrunk any more.

    Args:
        model: a timm Vision Transformer; not changed.
        sparsifier: whose masks say what is active; without one, or after `shrink`, what is not zero is.

    Raises:
        ValueError: a part of the model can't be cut exactly; the masks do not fit the model; the model is deployed,
            quantized or parametrized, or has no values yet.
    """
    refuse_unreadable(model, "svite.gather_inputs")
    small = copied(model)
    alive = living(small, sparsifier)
    for branch in cuttable_branches(small):
        for name in _READERS:
            linear = getattr(branch.layer, name, None)
            if linear is not None:
                setattr(branch.layer, name, _gathered(linear, alive[linear.weight].any(0)))
    return small


def _gathered(linear: nn.Linear, features: Bool[Tensor, " in"]) -> nn.Module:
    """The layer, changed in place to read `features` only, behind what selects them."""
    if features.all():
        return linear
    keep_columns(linear, features)
    return nn.Sequential(Select(features.nonzero().flatten()), linear).train(linear.training)
