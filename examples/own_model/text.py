r"""A small classifier of sentences whose batches are dicts and whose output is an object.

From the repository's root, in seconds:

    python examples/own_model/text.py --file text.safetensors
    python loss_landscape/plot_surface.py --model_file text.safetensors \
        --model examples.own_model.text:classifier --model_args "width=32" \
        --dataset examples.own_model.text:loader --forward examples.own_model.text:losses \
        --x=-1:1:31 --y=-1:1:31 --plot
    python loss_landscape/my_pyhessian/hessian.py --model_file text.safetensors \
        --model examples.own_model.text:classifier --model_args "width=32" \
        --dataset examples.own_model.text:loader --forward examples.own_model.text:losses
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

GOOD, BAD = ("good", "fine", "lovely", "bright"), ("bad", "dull", "awful", "grey")
REST = ("the", "film", "was", "and", "so", "we", "saw", "it", "today", "again")
WORDS = {word: number for number, word in enumerate(("", "not", *GOOD, *BAD, *REST))}
Batch = dict[str, Tensor]


@dataclass
class Output:
    """What a model of transformers gives, too: an object with ``logits`` (batch, 2)."""

    logits: Tensor


class Classifier(nn.Module):
    """A mean over the words' embeddings, and a layer above it that knows of "not"."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(WORDS), width)
        self.decide = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, input_ids: Tensor, mask: Tensor) -> Output:
        words = self.embed(input_ids) * mask.unsqueeze(2)  # (batch, words, width)
        return Output(self.decide(words.sum(dim=1) / mask.sum(dim=1, keepdim=True)))


def classifier(width: int = 32) -> Classifier:
    return Classifier(width)


def sentence(draw: random.Random) -> tuple[list[str], int]:
    """A few words and whether they praise; "not" turns it round."""
    word, negated = draw.choice(GOOD + BAD), draw.random() < 0.5
    words = draw.choices(REST, k=draw.randint(2, 8)) + ["not"] * negated + [word]
    return words + draw.choices(REST, k=draw.randint(0, 3)), int((word in GOOD) != negated)


def loader(split: str = "train", batches: int = 8) -> Iterator[Batch]:
    """Batches of 64 sentences as dicts, each padded to its longest."""
    draw = random.Random(split)
    for _ in range(batches):
        sentences, labels = zip(*(sentence(draw) for _ in range(64)), strict=True)
        longest = max(map(len, sentences))
        padded = [[*words, *[""] * (longest - len(words))] for words in sentences]
        ids = torch.tensor([[WORDS[word] for word in words] for words in padded])
        yield {"input_ids": ids, "mask": ids != 0, "labels": torch.tensor(labels)}


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """One loss a sentence, (batch,)."""
    logits = model(batch["input_ids"], batch["mask"]).logits
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", default="text.safetensors")
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(args.epochs):
        for batch in loader():
            optimizer.zero_grad()
            loss = losses(model, batch).mean()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        test = torch.cat([losses(model, batch) for batch in loader("test")])
    print(f"test loss {test.mean():.4f}")
    save_file(model.state_dict(), args.file)


if __name__ == "__main__":
    main()
