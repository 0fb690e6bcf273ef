"""A model in training on random images, dense or with a sparsifier: what the benchmarks time."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from svite.sparsity.sparsifier import Sparsifier

FOREVER = 1_000_000  # steps: a benchmark sees only the start of the schedules, where updates are largest


class Training:
    """AdamW, fused as in `svite train`, else at torch's defaults; `sparsify` makes the model's sparsifier."""

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        sparsify: Callable[[nn.Module], Sparsifier] | None = None,
    ) -> None:
        self.model = model.train()
        size, channels = model.patch_embed.img_size, model.patch_embed.proj.in_channels
        self.images = torch.randn(batch, channels, *size)
        self.labels = torch.randint(model.num_classes, (batch,))
        self.sparsifier = sparsify and sparsify(model)
        self.optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def backward(self, images: int | None = None) -> None:
        """New gradients, of the first `images` only if told so."""
        self.optimizer.zero_grad()
        cross_entropy(self.model(self.images[:images]), self.labels[:images]).backward()

    def before_step(self) -> None:
        """The sparsifier's part between backward and the optimizer, a topology update where one is due."""
        if self.sparsifier:
            self.sparsifier.before_step(self.optimizer)

    def finish(self) -> None:
        """The rest of a step."""
        self.optimizer.step()
        if self.sparsifier:
            self.sparsifier.after_step()

    def step(self) -> None:
        """A whole training step."""
        self.backward()
        self.before_step()
        self.finish()
