"""One file a method, one function a paper: each puts a first topology on a model and returns its `Sparsifier`."""

from svite.methods.block import block
from svite.methods.gmp import gmp
from svite.methods.group import group
from svite.methods.l1 import l1
from svite.methods.layer import layer
from svite.methods.nm import nm
from svite.methods.nm8 import nm8
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

__all__ = [
    "block",
    "gmp",
    "group",
    "l1",
    "layer",
    "nm",
    "nm8",
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
