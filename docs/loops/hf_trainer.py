"""A timm model in Hugging Face's Trainer: accumulation, clipping, checkpoints."""

import svite

import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainingArguments


class Classifier(nn.Module):
    """A timm model that answers as the Trainer asks."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, labels):
        logits = self.model(images)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def collate(items):
    images, labels = zip(*items, strict=True)
    return {"images": torch.stack(images), "labels": torch.stack(labels)}


def train(data, folder, epochs=2, batch=8, accumulate=4, resume=None, interval=100, **vit):
    model = timm.create_model("vit_tiny_patch16_224", **vit)
    steps = epochs * -(-len(data) // batch // accumulate)
    sparsifier = svite.methods.svite(model, density=0.5, steps=steps, interval=interval)
    arguments = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=1.0,
        save_strategy="epoch",
        report_to="none",
    )
    trainer = Trainer(Classifier(model), arguments, data_collator=collate, train_dataset=data)
    sparsifier.attach(trainer.create_optimizer())
    trainer.train(resume_from_checkpoint=resume)
    return model, sparsifier


if __name__ == "__main__":
    data = TensorDataset(torch.randn(128, 3, 32, 32), torch.randint(10, (128,)))
    train(data, ".", interval=2, num_classes=10, img_size=32, patch_size=8, depth=2)
