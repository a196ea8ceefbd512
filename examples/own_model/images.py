r"""A ResNet of torchvision's on CIFAR-10, trained by a plain loop and looked at from outside.

From the repository's root, in minutes:

    python examples/own_model/images.py --file resnet.pt
    python loss_landscape/plot_surface.py --model_file resnet.pt \
        --model examples.own_model.images:resnet --dataset examples.own_model.images:loader \
        --x=-1:1:11 --y=-1:1:11 --samples 200 --plot
    python loss_landscape/my_pyhessian/hessian.py --model_file resnet.pt \
        --model examples.own_model.images:resnet --dataset examples.own_model.images:loader \
        --samples 100 --max_steps 30 --probes 1 --lanczos_steps 20 --trace_probes 10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet as resnets

from DatasetClass.raw.cifar_files import read_cifar

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def resnet(blocks: int = 2) -> nn.Module:
    """ResNet-18 as torchvision has it, or another one of so many blocks on each of four levels."""
    return resnets.ResNet(resnets.BasicBlock, [blocks] * 4, num_classes=10)


def loader(split: str = "train", samples: int = 2000, data_dir: str = "data") -> TensorDataset:
    """The first images of a split, (3, 32, 32) each, with their classes."""
    arrays = read_cifar("cifar10", Path(data_dir))
    images = torch.from_numpy(arrays[f"x_{split}"][:samples]).float() / 255
    images = (images - torch.tensor(MEAN)) / torch.tensor(STD)
    labels = torch.from_numpy(arrays[f"y_{split}"][:samples])
    return TensorDataset(images.permute(0, 3, 1, 2), labels)


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", default="resnet.pt")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--data_dir", default="data")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = resnet(args.blocks).train()
    batches = DataLoader(loader("train", args.samples, args.data_dir), 64, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for epoch in range(args.epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")
    torch.save({"state_dict": model.state_dict()}, args.file)


if __name__ == "__main__":
    main()
