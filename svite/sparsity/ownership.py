"""Whose weights they are: those that a sparsifier masks have to be the model's, and have to be trained or frozen."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from svite.sparsity.cut import Unit
from svite.sparsity.names import named_parameters, unwrapped
from svite.sparsity.optimizers import trained_by
from svite.sparsity.sharded import is_sharded


def frozen(units: Iterable[Unit], weights: Mapping[str, Tensor]) -> frozenset[str]:
    """The units with a weight that asks for no gradient."""
    return frozenset(unit.name for unit in units if not all(weights[p.name].requires_grad for p in unit.parts))


def refuse_replaced(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """ValueError names the weights that are not, or no longer, the model's."""
    inner = unwrapped(model)
    if not all(_holds(inner, name, weight) for name, weight in weights.items()):
        present = named_parameters(model)
        replaced = [name for name, weight in weights.items() if present.get(name) is not weight]
        if replaced:
            raise ValueError(_of_replaced(replaced, weights, present))


def refuse_untrained(weights: Mapping[str, Tensor], optimizers: Sequence[Optimizer]) -> None:
    """ValueError names the weights that ask for gradients and train in no optimizer."""
    trained = {id(parameter) for optimizer in optimizers for parameter in trained_by(optimizer)}
    missing = [name for name, weight in weights.items() if weight.requires_grad and id(weight) not in trained]
    if missing:
        raise ValueError(
            f"The optimizer does not train {enumerated(missing)}, which the sparsifier prunes; build it after the "
            "sparsifier with all of the model's parameters, pass the optimizers of a step together, or freeze what is "
            "to rest (`requires_grad_(False)`)."
        )


def refuse_shared(weights: Mapping[str, Tensor], others: Iterable[Mapping[str, Tensor]]) -> None:
    """ValueError names a weight that another sparsifier masks in the same step."""
    masked = {id(weight) for other in others for weight in other.values()}
    shared = [name for name, weight in weights.items() if id(weight) in masked]
    if shared:
        raise ValueError(
            f"{enumerated(shared)} is masked by another sparsifier in the same step; `drop` it there, or end that one "
            "(`attachment.remove()`, `after_step()`)."
        )


def _holds(model: nn.Module, name: str, weight: Tensor) -> bool:
    """Whether a weight lies where its name says, as it does in all but odd cases: a look at every step costs little."""
    *path, last = name.split(".")
    module: nn.Module | None = model
    for part in path:
        module = module and module._modules.get(part)
    return module is not None and module._parameters.get(last) is weight and not hasattr(weight, "_fsdp_flattened")


def _of_replaced(replaced: list[str], weights: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> str:
    if is_sharded(present.values()) and not is_sharded(weights.values()):
        return f"`fully_shard` has replaced {replaced[0]}; build the sparsifier after it."
    return (
        f"The model's {enumerated(replaced)} is not what the sparsifier masks (`reset_classifier`, a copy or "
        "`load_state_dict(assign=True)` put another in its place); call `sparsifier.rebind(model)`."
    )


def enumerated(names: Collection[str]) -> str:
    """The first of some names, and how many more there are.

    >>> enumerated(["head.weight", "fc.weight", "stem.weight"])
    'head.weight (and 2 more)'
    """
    first, *others = names
    return f"{first} (and {len(others)} more)" if others else first
