"""One file a method, one function a paper: each puts a first topology on a model and returns its `Sparsifier`."""

import warnings
from collections.abc import Callable
from functools import partial

from svite.methods.acdc import acdc
from svite.methods.block import block
from svite.methods.gmp import gmp
from svite.methods.granet import granet
from svite.methods.group import group
from svite.methods.isomorphic import isomorphic
from svite.methods.l1 import l1
from svite.methods.layer import layer
from svite.methods.nm import nm
from svite.methods.omp import omp
from svite.methods.rigl import rigl
from svite.methods.s2vite import s2vite
from svite.methods.set import set
from svite.methods.snip import snip
from svite.methods.srigl import srigl
from svite.methods.svite import svite
from svite.methods.sviteplus import sviteplus
from svite.methods.taylor import taylor
from svite.methods.vtp import vtp
from svite.sparsity.sparsifier import Sparsifier

__all__ = [
    "acdc",
    "block",
    "gmp",
    "granet",
    "group",
    "isomorphic",
    "l1",
    "layer",
    "nm",
    "omp",
    "rigl",
    "s2vite",
    "set",
    "snip",
    "srigl",
    "svite",
    "sviteplus",
    "taylor",
    "vtp",
]


def __getattr__(name: str) -> Callable[..., Sparsifier]:
    """What had a name of its own before it was an option."""
    if name == "nm8":
        warnings.warn("svite.methods.nm8(...) is svite.methods.nm(..., m=8) now.", DeprecationWarning, stacklevel=2)
        return partial(nm, m=8)
    raise AttributeError(f"module 'svite.methods' has no attribute '{name}'")
