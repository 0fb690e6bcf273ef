"""Pruning without training: what each layer loses is judged by its inputs on some images."""

from svite.calibration.sparsegpt import sparsegpt
from svite.calibration.wanda import wanda

__all__ = ["sparsegpt", "wanda"]
