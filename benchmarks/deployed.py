"""Sparse layers and models on the kernels of `svite.deploy`, against dense ones and against other runtimes."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.claim import Claim
from benchmarks.inference import KEEP, chosen
from benchmarks.interleave import interleave, timed
from benchmarks.peers_runtime import MklLinear, runtimes, through_mkl
from svite import tokens
from svite.deployment.blocks import columns_of
from svite.deployment.compiled import kernels_are_there
from svite.deployment.curves import pruned
from svite.deployment.deploy import deploy
from svite.deployment.weights import Csr
from svite.vit.cost import input_shape

SHAPES, IMAGES, TOKENS = ((1536, 384), (3072, 768)), 8, 192
LAYER_FLOORS = {0.8: 2.0, 0.9: 3.8, 0.95: 7.0}
MODEL_FLOORS = {(0.8, 8): 1.5, (0.9, 8): 2.4, (0.95, 8): 3.2, (0.9, 1): 1.8}
NEVER_SLOWER = 0.97


def layers(rounds: int) -> Iterator[Claim]:
    """One layer at a time, as people compare kernels; nothing where they can't be compiled."""
    if not kernels_are_there():
        return
    for outputs, inputs in SHAPES:
        rows, weight, bias = torch.randn(IMAGES, TOKENS, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        parts = columns_of(rows).split(1)  # one image at a time, as a deployed model runs
        calls = {"dense": partial(linear, rows, weight, bias)}
        for sparsity in LAYER_FLOORS:
            layer = Csr(weight * (torch.rand_like(weight) >= sparsity), bias)
            calls[str(sparsity)] = partial(_each, layer, parts)
        calls["MKL"] = partial(MklLinear(pruned_linear(weight, bias)), rows.flatten(0, 1))
        with torch.inference_mode():
            seconds = interleave(calls, rounds)
        what = f"layer of {outputs} x {inputs}, {IMAGES * TOKENS} tokens"
        for sparsity, floor in LAYER_FLOORS.items():
            faster = seconds["dense"] / seconds[str(sparsity)]
            yield Claim.of(f"{what}, {sparsity:.0%} sparse", "x the speed of dense", faster, floor=floor)
        faster = seconds["MKL"] / seconds["0.9"]
        yield Claim.of(f"{what}, 90% sparse, against torch.sparse (MKL CSR)", "x its speed", faster, floor=3.0)


def _each(layer: nn.Module, parts: Sequence[Tensor]) -> None:
    for part in parts:
        layer(part)


def pruned_linear(weight: Tensor, bias: Tensor, sparsity: float = 0.9) -> nn.Linear:
    """A layer with this share of its weights at zero."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight * (torch.rand_like(weight) >= sparsity), bias
    return layer


def models(name: str, build: Callable[[], nn.Module], rounds: int, at: Sequence[int]) -> Iterator[Claim]:
    """Whole models, as `deploy` chooses for them, from no sparsity at all on."""
    dense = build().eval()
    selected = tokens.select(pruned(dense, 0.9), KEEP, at).eval()
    for batch in (8, 1):
        images = torch.randn(batch, *input_shape(dense))
        calls: dict[str, nn.Module] = {"dense": dense}
        for sparsity in (0.0, 0.5, 0.7, 0.8, 0.9, 0.95):
            calls[f"{sparsity:.0%} sparse"] = deploy(pruned(dense, sparsity), images)
        both = f"90% sparse, {chosen(at)}"
        calls[both] = deploy(selected, images)
        seconds = timed(calls, images, rounds)
        for what in list(calls)[1:]:
            share = float(what.split("%")[0]) / 100
            floor = 3.5 if what == both and batch == 8 else MODEL_FLOORS.get((share, batch), NEVER_SLOWER)
            faster = seconds["dense"] / seconds[what]
            yield Claim.of(f"deploying {name}, {what}, batch {batch}", "x the speed of dense", faster, floor=floor)


def peers(name: str, build: Callable[[], nn.Module], rounds: int, batch: int = 8) -> Iterator[Claim]:
    """Against MKL's sparse product at 90 %, and against the dense model in OpenVINO at 75 %.

    One after the other, for OpenVINO's threads wait for work in what others are timed for.
    """
    dense = build().eval()
    images = torch.randn(batch, *input_shape(dense))
    what = f"deploying {name}, batch {batch}"
    sparse = pruned(dense, 0.9)
    seconds = timed({"deployed": deploy(sparse, images), "MKL": through_mkl(sparse)}, images, rounds)
    faster = seconds["MKL"] / seconds["deployed"]
    yield Claim.of(f"{what}, 90% sparse, against torch.sparse (MKL CSR)", "x its speed", faster, floor=3.0)
    if openvino := runtimes(dense, images).get("OpenVINO"):
        seconds = timed({"deployed": deploy(pruned(dense, 0.75), images), "OpenVINO": openvino}, images, rounds)
        faster = seconds["OpenVINO"] / seconds["deployed"]
        yield Claim.of(f"{what}, 75% sparse, against the dense model in OpenVINO", "x its speed", faster, floor=1.0)
