"""The speed card: one model run in every way, at three batch sizes, each in turn with all others; and the roofline."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.deployed import pruned
from benchmarks.inference import KEEP, halved
from benchmarks.interleave import interleave, spread, timed
from benchmarks.memory import rise
from benchmarks.peers_runtime import runtimes
from svite import tokens
from svite.deployment.deploy import deploy
from svite.io.saved import save
from svite.methods import block, nm
from svite.vit.cost import cost, input_shape, macs

ROUNDS = {1: 12, 8: 6, 64: 2}


def variants(build: Callable[[], nn.Module], at: Sequence[int]) -> dict[str, nn.Module]:
    """The models of the card that `deploy` gets, by what a reader calls them."""
    dense = build().eval()
    small, patterned, squared = halved(build()), build(), build()
    nm(patterned, 0.5, 1, layers=["blocks.*"])
    block(squared, 0.1, 1, layers=["blocks.*"])
    return {
        "dense": dense,
        "2:4": patterned.eval(),
        **{f"{sparsity:.0%} sparse": pruned(dense, sparsity) for sparsity in (0.8, 0.9, 0.95)},
        "90% sparse squares of 16": squared.eval(),
        "half of heads and neurons": small,
        "half, tokens 0.7": tokens.select(halved(build()), KEEP, at).eval(),
        "half, 80% sparse": pruned(small, 0.8),
        "90% sparse, tokens 0.7": tokens.select(pruned(dense, 0.9), KEEP, at).eval(),
    }


def measure(name: str, build: Callable[[], nn.Module], rounds: int, at: Sequence[int]) -> dict[str, Any]:
    """Rows of the card, and the ceilings of this machine that they are held against."""
    models, copy, gemm = variants(build, at), copy_bandwidth(), gemm_rate()
    rows: list[dict[str, Any]] = []
    sizes = {key: stored(model, name) for key, model in models.items()}
    dense = models["dense"]
    others = runtimes(dense, torch.randn(2, *input_shape(dense)))
    for batch, limit in ROUNDS.items():
        images = torch.randn(batch, *input_shape(dense))
        ways = {("dense", "eager"): dense}
        ways |= {("dense", runtime): call for runtime, call in others.items()}
        ways |= {(key, "svite.deploy"): deploy(model, images) for key, model in models.items()}
        ways |= {(key, "eager"): models[key] for key in ("half of heads and neurons", "half, tokens 0.7")}
        seconds = timed({"\n".join(way): call for way, call in ways.items()}, images, min(rounds, limit))
        for (key, runtime), call in ways.items():
            taken = seconds[f"{key}\n{runtime}"]
            row = {"model": key, "runtime": runtime, "batch": batch}
            row |= _times(taken, seconds["dense\neager"], batch, fastest_possible(models[key], batch, copy, gemm))
            row["megabytes_peak"] = round(peak(call, images) / 1e6, 1)
            rows.append(row | {"megabytes_stored": round(sizes[key] / 1e6, 2)})
    return {"name": name, "copy_gigabytes_a_second": copy / 1e9, "gemm_gigaflops": gemm / 1e9, "rows": rows}


def _times(
    taken: Float[np.ndarray, " rounds"], dense: Float[np.ndarray, " rounds"], batch: int, least: dict[str, Any]
) -> dict[str, Any]:
    median = float(np.median(taken))
    return {
        "milliseconds": round(median * 1e3, 2),
        "images_a_second": round(batch / median, 1),
        "speedup": {name: np.round(value, 3).tolist() for name, value in spread(dense / taken).items()},
        "of_the_limit": round(least["seconds"] / median, 3),
        "limited_by": least["by"],
    }


def peak(call: Callable[[Tensor], object], images: Tensor) -> int:
    """Bytes that a forward pass takes at its peak, beside what the model holds."""
    with torch.inference_mode():
        return rise(lambda: call(images))


def stored(model: nn.Module, name: str) -> int:
    """Bytes of the file that `svite.save` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(model, path, build=(name, {}))
        return path.stat().st_size


def copy_bandwidth() -> float:
    """Bytes a second that memory is read and written at."""
    source = torch.empty(2**26)  # 256 MB, beyond any cache
    target = torch.empty_like(source)
    seconds = interleave({"copy": lambda: target.copy_(source)}, 5)["copy"]
    return 2 * source.nbytes / float(seconds.min())


def gemm_rate(size: int = 1536) -> float:
    """Floating-point operations a second of a large dense product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = interleave({"gemm": lambda: a @ b}, 8)["gemm"]
    return 2 * size**3 / float(seconds.min())


def fastest_possible(model: nn.Module, batch: int, copy: float, gemm: float) -> dict[str, Any]:
    """The roofline: no less than the operations on what lives, nor than weights and tokens once through memory.

    A living single weight is eight bytes, value and column; a dense one four.
    """
    counted, costs = macs(model), cost(model)
    matrices = [p.detach() for p in model.parameters() if p.dim() > 1]
    weights = sum(min(4 * p.numel(), 8 * int(p.count_nonzero())) for p in matrices)
    widths = {name: p.shape for name, p in model.named_parameters() if name in counted.uses and p.dim() == 2}
    tokens_moved = 4 * batch * sum(counted.uses[name] * sum(shape) for name, shape in widths.items())
    limits = {
        "operations": 2 * costs.sparse_macs * batch / gemm,
        "bytes": (weights + tokens_moved) / copy,
    }
    slowest = max(limits, key=limits.get)
    return {"seconds": limits[slowest], "by": slowest}
