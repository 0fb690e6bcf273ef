"""One file a method, one function a paper: each puts a first topology on a model and returns its `Sparsifier`."""

from svite.methods.gmp import gmp
from svite.methods.nm import nm
from svite.methods.omp import omp
from svite.methods.rigl import rigl
from svite.methods.set import set
from svite.methods.snip import snip
from svite.methods.srigl import srigl
from svite.methods.svite import svite
from svite.methods.taylor import taylor

__all__ = ["gmp", "nm", "omp", "rigl", "set", "snip", "srigl", "svite", "taylor"]
