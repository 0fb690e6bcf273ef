"""Dead heads, neurons and branches removed for real: a smaller model with the same outputs."""

from jaxtyping import Bool
from torch import Tensor, nn

from svite.vit.opaque import refuse_unreadable
from svite.vit.surgery import fold_constant, hidden, keep_members
from svite.vit.surgery_alive import Alive, Masked, copied, living
from svite.vit.surgery_branches import Branch, cuttable_branches


def shrink(model: nn.Module, sparsifier: Masked | None = None, *, branches: bool = False) -> nn.Module:
    """A copy without its dead heads and neurons, of the same outputs in eval mode; a plain timm module.

    A head is dead if none of its features both has living value weights and is read by living weights of proj; a
    neuron likewise between fc1 and fc2; all of a branch is if its LayerScale is. What the dead still add, a value bias
    or the activation of a bias, is folded into the bias of proj or fc2. The heads of an attention pool stay.

    Args:
        model: a timm Vision Transformer; not changed.
        sparsifier: whose masks say what is active (an active zero stays); without one, what is not zero is.
        branches: replace an attention or MLP that is dead as a whole by `Zero`.

    Raises:
        ValueError: a part of the model can't be cut exactly; the masks do not fit the model; all heads or all neurons
            of a block are dead, and `branches` was not asked for; the model is deployed, quantized or parametrized, or
            has no values yet.
    """
    refuse_unreadable(model, "svite.shrink")
    small = copied(model)
    alive = living(small, sparsifier)
    members = {branch: _living_members(branch, alive) for branch in cuttable_branches(small)}
    dead = [branch.name for branch, kept in members.items() if not kept.any()]
    if dead and not branches:
        raise ValueError(f"Nothing is alive in {', '.join(dead)}; pass `branches=True` to remove a whole branch.")
    for branch, kept in members.items():
        _cut(branch, kept)
    return small


def _living_members(branch: Branch, alive: Alive) -> Bool[Tensor, " member"]:
    """Which heads or neurons of a branch make a difference to its output."""
    inside = hidden(branch.layer)
    read = alive[inside.write.weight]
    if branch.gamma is not None:
        read = read & alive[branch.gamma][:, None]
    made = alive[inside.read.weight].any(1).unflatten(0, (-1, inside.width))
    features = made[-1] & read.any(0)
    return features.view(-1, inside.size).any(1)


def _cut(branch: Branch, kept: Bool[Tensor, " member"]) -> None:
    if kept.all():
        return
    fold_constant(branch.layer, ~kept)
    if kept.any():
        keep_members(branch.layer, kept)
    else:
        branch.remove()
