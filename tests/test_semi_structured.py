"""2:4 on a GPU: the outputs of the masked model; on a CPU, a clear refusal."""

import pytest
import timm
import torch

from svite import methods
from svite.deployment.semi_structured import _fits, semi_structured


def pruned() -> torch.nn.Module:
    model = timm.create_model("deit_tiny_patch16_224", depth=2)
    methods.nm(model, 0.5, 10, layers=["blocks.*"])
    return model.eval()


@pytest.mark.parametrize("make", [lambda: timm.create_model("test_vit"), torch.nn.Identity])
def test_a_model_on_a_cpu_is_refused(make):
    with pytest.raises(ValueError, match=r"is torch\.float32 on cpu; 2:4 kernels take float16 or bfloat16 on CUDA"):
        semi_structured(make())


def test_only_2_of_4_fits():
    model = pruned()
    assert _fits(model.blocks[0].mlp.fc1.weight)
    assert not _fits(model.head.weight)
    assert not _fits(torch.ones(64, 64))


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor is in prototype stage")
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_outputs_of_the_masked_model():
    model, images = pruned().cuda().half(), torch.randn(8, 3, 224, 224, device="cuda").half()
    fast = semi_structured(model)
    with torch.inference_mode():
        assert torch.allclose(fast(images), model(images), atol=2e-2, rtol=2e-2)
    with pytest.raises(ValueError, match="No linear layer holds 2:4 weights"):
        semi_structured(timm.create_model("test_vit").cuda().half())
