"""The calls of timm's train.py in its order: mixed precision, accumulation, clipping, an EMA, checkpoints."""

import svite

import timm
import torch
from timm.data import Mixup, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.models import load_checkpoint, model_parameters, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler, random_seed
from torchvision.datasets import FakeData

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(data, folder, epochs=2, batch=8, accumulate=4, clip_mode="norm", resume=None, interval=100, **vit):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=data.num_classes, **vit).to(DEVICE)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    updates = -(-(len(data) // batch) // accumulate)  # optimizer steps an epoch
    sparsifier = svite.methods.svite(model, density=0.5, steps=epochs * updates, interval=interval)
    sparsifier.attach(optimizer)  # before a checkpoint is loaded

    scaler = NativeScaler(DEVICE.type)
    first = resume_checkpoint(model, resume, optimizer, scaler) if resume else 0
    ema = ModelEmaV3(model, decay=0.9)
    if resume:
        load_checkpoint(ema.module, resume, use_ema=True)
    size = data.image_size
    loader = create_loader(data, size, batch, is_training=True, num_workers=0, use_prefetcher=False, device=DEVICE)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=epochs, updates_per_epoch=updates, step_on_epochs=False)
    scheduler.step_update(first * updates)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, amp_scaler=scaler, checkpoint_dir=folder)
    for epoch in range(first, epochs):
        random_seed(epoch)  # train.py seeds once: there, a resumed run sees other images
        train_one_epoch(epoch, model, loader, optimizer, scheduler, scaler, ema, sparsifier, accumulate, clip_mode)
        scheduler.step(epoch + 1)
        saver.save_checkpoint(epoch)
    return model, ema, sparsifier


def train_one_epoch(epoch, model, loader, optimizer, scheduler, scaler, ema, sparsifier, accumulate, clip_mode):
    mixup, loss_fn = Mixup(num_classes=model.num_classes), SoftTargetCrossEntropy()
    num_updates = epoch * -(-len(loader) // accumulate)
    model.train()
    for index, (images, labels) in enumerate(loader):
        images, targets = mixup(images.to(DEVICE), labels.to(DEVICE))
        need_update = (index + 1) % accumulate == 0 or index + 1 == len(loader)
        with torch.autocast(DEVICE.type, torch.float16):
            loss = loss_fn(model(images), targets) / accumulate
        clipped = model_parameters(model, exclude_head="agc" in clip_mode)
        scaler(loss, optimizer, clip_grad=1.0, clip_mode=clip_mode, parameters=clipped, need_update=need_update)
        if need_update:
            num_updates += 1
            optimizer.zero_grad()
            ema.update(model, step=num_updates)
            sparsifier.apply(ema)  # who died leaves the average too
            scheduler.step_update(num_updates)


if __name__ == "__main__":
    train(FakeData(128, (3, 32, 32), 10), ".", interval=2, img_size=32, patch_size=8, depth=2)
