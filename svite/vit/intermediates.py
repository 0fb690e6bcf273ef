"""Feature maps of single blocks, refused where a model no longer has the patches or the blocks that timm counts on."""

from functools import partial
from typing import NoReturn

from torch import nn


def without_intermediates(model: nn.Module, why: str) -> None:
    """Let a model refuse what timm would compute as if nothing had changed, with a RuntimeError that says `why`.

    That is `forward_intermediates`, with what calls it (`get_intermediate_layers`, timm's feature wrappers), and
    `prune_intermediate_layers`, with which such a wrapper starts. Copies, pickled ones too, refuse as well.
    """
    refuse = partial(_refuse, why)  # not a closure: that can't be pickled
    model.forward_intermediates = model.prune_intermediate_layers = refuse


def _refuse(why: str, *_: object, **__: object) -> NoReturn:
    raise RuntimeError(why)
