"""A shrunk model against Torch-Pruning's of the same widths; needs `pip install torch-pruning`."""

from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec

import torch
from timm.layers import Attention
from torch import nn

from benchmarks.claim import Claim
from benchmarks.inference import halved
from benchmarks.interleave import timed
from svite.vit.cost import input_shape

SLOWER = 1.02  # two runs of one model differ by a percent or two


def measure(name: str, build: Callable[[], nn.Module], rounds: int) -> list[Claim]:
    """Seconds of ours over seconds of theirs at batch 1 and 8; nothing where Torch-Pruning is not installed."""
    if find_spec("torch_pruning") is None:
        print("Torch-Pruning is not installed (`pip install torch-pruning`), so it is not measured.")
        return []
    dense = build().eval()
    models = {"ours": halved(deepcopy(dense)), "theirs": pruned(dense)}
    widths = {part: sorted(tuple(p.shape) for p in model.parameters()) for part, model in models.items()}
    if widths["ours"] != widths["theirs"]:
        raise RuntimeError("Torch-Pruning's model has other widths than ours; these are not the same networks.")
    claims = []
    for batch in (1, 8):
        seconds = timed(models, torch.randn(batch, *input_shape(dense)), rounds)
        what = f"inference of {name} with half of the heads and neurons, batch {batch}, against Torch-Pruning"
        claims.append(Claim.of(what, "x its time", seconds["ours"] / seconds["theirs"], bound=SLOWER))
    return claims


def pruned(model: nn.Module) -> nn.Module:
    """Half of the heads and neurons of each block by Torch-Pruning, with the sizes that it leaves to its user set."""
    import torch_pruning

    images = torch.randn(1, *input_shape(model))
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    inner = [block.mlp.fc1 for block in model.blocks]
    kept = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in inner and m not in _queries(attentions)]
    torch_pruning.pruner.MagnitudePruner(
        model,
        images,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[*kept, model.patch_embed.proj],
        num_heads={attention.qkv: attention.num_heads for attention in attentions},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.5,
    ).step()
    for attention in attentions:
        attention.num_heads = attention.qkv.out_features // (3 * attention.head_dim)
        attention.attn_dim = attention.num_heads * attention.head_dim
    return model.eval()


def _queries(attentions: list[Attention]) -> list[nn.Linear]:
    return [attention.qkv for attention in attentions]
