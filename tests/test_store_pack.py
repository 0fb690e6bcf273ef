"""Zeros take no bytes in a file: what lives survives packing, and packing always saves."""

import hypothesis.strategies as st
import timm
import torch
from hypothesis import example, given
from tiny import same, weights_of
from torch import Tensor

from svite import methods
from svite.io.pack import packed, unpacked
from svite.io.saved import load, save


def bits_of(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


SHAPES = st.lists(st.integers(0, 5), min_size=0, max_size=3)
SPECIAL = torch.tensor([1.5, -0.0, -2.25, float("inf"), float("-inf"), float("nan")])


@st.composite
def tensors(draw) -> Tensor:
    """Of any shape and type, with few zeros or many, and values that are easily lost."""
    shape, dtype = draw(SHAPES), draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    values = SPECIAL if dtype.is_floating_point else torch.tensor([1.0, -2.0])
    chosen = values[torch.randint(len(values), shape, generator=generator)].to(dtype)
    share = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    return chosen.masked_fill(torch.rand(shape, generator=generator) < share, 0)


@given(tensors(), st.data())
def test_living_values_survive_packing_bit_for_bit(tensor, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    alive = torch.rand(tensor.shape, generator=generator) < data.draw(st.floats(0, 1))
    small, shapes = packed({"w": tensor}, {"w": alive})
    assert small["w"].numel() == int(alive.sum())
    back, masks = unpacked(small, shapes)
    assert torch.equal(masks["w"], alive)
    assert bits_of(back["w"]) == bits_of(torch.where(alive, tensor, torch.zeros_like(tensor)))
    assert back["w"].shape == tensor.shape


@given(tensors())
@example(torch.tensor([0, -1], dtype=torch.int16).view(torch.bfloat16))  # not any not-a-number: this one
@example(torch.tensor([0.0] + [1.0] * 32))  # five bytes of bits would save four
def test_zeros_are_packed_only_where_it_saves_bytes(tensor):
    small, shapes = packed({"w": tensor}, {})
    zero = tensor == 0
    assert ("w" in shapes) == (-(-tensor.numel() // 8) < int(zero.sum()) * tensor.element_size())
    assert sum(value.nbytes for value in small.values()) <= tensor.nbytes
    back, masks = unpacked(small, shapes)
    assert not masks
    assert bits_of(back["w"][~zero]) == bits_of(tensor[~zero])
    assert not back["w"][zero].any()


def test_two_blocks_of_deit_small_with_a_tenth_of_their_weights_take_2_7_mb_not_17(tmp_path):
    build = ("deit_small_patch16_224", {"depth": 2})
    model = timm.create_model(build[0], **build[1])
    sparsifier = methods.omp(model, 0.1)
    save(model, tmp_path / "sparse", sparsifier, build=build)
    loaded, again = load(tmp_path / "sparse")
    assert (tmp_path / "sparse").stat().st_size <= 2_700_000
    assert sum(value.nbytes for value in model.state_dict().values()) > 17_000_000
    assert same(weights_of(model), weights_of(loaded))
    assert again.density == sparsifier.density
