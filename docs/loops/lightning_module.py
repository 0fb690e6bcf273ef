"""A Lightning module: automatic optimization, any precision, accumulation, clipping, an EMA, checkpoints."""

import svite

import lightning
import timm
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Classifier(lightning.LightningModule):
    def __init__(self, steps, interval=100, **vit):
        super().__init__()
        self.model = timm.create_model("vit_tiny_patch16_224", **vit)
        self.sparsifier = svite.methods.svite(self.model, density=0.5, steps=steps, interval=interval)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        self.sparsifier.attach(optimizer)
        return optimizer

    def training_step(self, batch, index):
        images, labels = batch
        return cross_entropy(self.model(images), labels)


class SparseEMA(EMAWeightAveraging):
    """Lightning's EMA, as sparse as the model in each checkpoint and in the end."""

    def on_train_batch_end(self, trainer, module, *batch):
        super().on_train_batch_end(trainer, module, *batch)
        module.sparsifier.apply(self._average_model.module.model)


def train(data, folder, epochs=2, batch=8, accumulate=4, resume=None, **module):
    # DistributedSampler shuffles by epoch: Lightning keeps no random state, and a resumed run would see another order
    loader = DataLoader(data, batch, sampler=DistributedSampler(data, num_replicas=1, rank=0))
    classifier = Classifier(epochs * -(-len(loader) // accumulate), **module)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        precision="bf16-mixed",
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        callbacks=[SparseEMA(decay=0.9), ModelCheckpoint(folder, save_top_k=-1)],
        default_root_dir=folder,
    )
    trainer.fit(classifier, loader, ckpt_path=resume, weights_only=True)
    return classifier


if __name__ == "__main__":
    data = TensorDataset(torch.randn(128, 3, 32, 32), torch.randint(10, (128,)))
    train(data, ".", interval=2, num_classes=10, img_size=32, patch_size=8, depth=2)
