"""Penalties for any training loop: each pulls on the members of a model, and ends with a cut to the asked density."""

from svite.methods.group import group
from svite.methods.l1 import l1
from svite.methods.layer import layer

__all__ = ["group", "l1", "layer"]
