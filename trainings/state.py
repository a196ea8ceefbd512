"""All that changes while a run trains: what a step needs, and what a resumed run needs."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn

from DatasetClass.batches import RANK_SEED, Dataset
from models.smooth_crossentropy import Loss
from trainings.optimizers import Average, learning_rate, make_optimizer
from utilities.metrics import Total
from utilities.precision import make_scaler
from utilities.ranks import Ranks


class TrainingState:
    """A run's data, model and optimizer, and how far it is.

    Attributes:
        model: the plain module, whose weights a checkpoint holds.
        network: the same, as it is called in training: data parallel, compiled.
        epoch, steps: finished so far.
        total: sums of the present epoch.
        metrics: of the last epoch.
        rows: of the history.
        best: metrics of the best epoch, with "epoch"; empty before the first.
    """

    def __init__(
        self, args: argparse.Namespace, dataset: Dataset, model: nn.Module, ranks: Ranks
    ) -> None:
        self.args, self.dataset, self.ranks = args, dataset, ranks
        dataset.share(ranks.rank, ranks.world)
        if args.balanced_sampling:
            dataset.balance()
        weights = dataset.class_weights().to(ranks.device) if args.class_weights else None
        self.class_weights: Tensor | None = weights
        self.model = model.to(memory_format=torch.channels_last)  # that of convolutions
        self.network = ranks.wrap(self.model, args.sync_batch_norm)
        self.optimizer = make_optimizer(args, self.network, len(dataset.train))
        if args.compile:
            self.network = torch.compile(self.network)  # type: ignore[assignment]
        self.scaler = make_scaler(args.precision, ranks.device)
        self.average = Average(args, self.model)
        self.epoch = self.steps = 0
        self.total = self.new_total()
        self.metrics: dict[str, float] = {}
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        # Processes must not share dropout's masks, nor runs whose seeds are neighbours.
        torch.manual_seed(args.seed + RANK_SEED * ranks.rank)

    def new_total(self) -> Total:
        return Total(self.dataset.num_classes, self.ranks.device)

    def rate(self, step: int) -> float:
        """Learning rate of the ``step``-th step of the run, counted from 0."""
        return learning_rate(self.args, step, len(self.dataset.train))

    def step(self, closure: Any) -> Tensor:
        """One step of the optimizer, with the learning rate before it and all that follows."""
        rate = self.rate(self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.optimizer.step(closure, self.scaler)
        self.scaler.update()
        self.average.after_step()
        self.steps += 1
        return loss

    def end_epoch(self) -> None:
        self.epoch += 1
        self.average.after_epoch(self.epoch, self.dataset)
        self.ranks.share_buffers(self.average.evaluated())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Any, loss: Loss) -> Total:
        """Loss and confusion over ``batches``, in eval mode and fp32, over all processes."""
        model.eval()
        total = self.new_total()
        for inputs, targets in batches:
            logits = model(inputs)
            total.add(logits, loss(logits, targets), targets)
        return total.over(self.ranks)

    def state_dict(self) -> dict[str, Any]:
        """All by which a resumed run goes on bit for bit; every process must call it."""
        cuda, optimizer = self.ranks.device.type == "cuda", self.optimizer.state_dict()
        own = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.ranks.device) if cuda else None,
            "augmentation": self.dataset.generator.get_state(),
            "total": self.total.state_dict(),
            # Friendly SAM's mean of gradients, which processes that climb alone have each.
            "mean": {} if self.args.ascent_sync else optimizer["sam"]["mean"],
        }
        return {
            "model": self.model.state_dict(),
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict(),
            "train": self.dataset.train.state_dict(),
            "ranks": self.ranks.gather(own),
            **{name: getattr(self, name) for name in ("epoch", "steps", "metrics", "rows", "best")},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: it was taken within an epoch by another number of processes.
        """
        same_processes = len(state["ranks"]) == self.ranks.world
        if same_processes and state["ranks"][self.ranks.rank]["mean"]:
            state["optimizer"]["sam"]["mean"] = state["ranks"][self.ranks.rank]["mean"]
        for name in ("model", "optimizer", "scaler", "average"):
            if state[name]:  # a disabled scaler's is empty
                getattr(self, name).load_state_dict(state[name])
        self.dataset.train.load_state_dict(state["train"])
        for name in ("epoch", "steps", "metrics", "rows", "best"):
            setattr(self, name, state[name])
        if same_processes:
            self._load_own(state["ranks"][self.ranks.rank])
        elif state["train"]["order"] is not None:
            raise ValueError(
                f"--resume: {self.args.last} was saved within an epoch by {len(state['ranks'])} "
                f"processes, not {self.ranks.world}; start as many"
            )
        else:
            self._start_anew()

    def _start_anew(self) -> None:
        """Go on with another number of processes: new draws, and epochs of another length."""
        own = RANK_SEED * self.ranks.rank + self.epoch
        torch.manual_seed(self.args.seed + own)
        self.dataset.generator.manual_seed(self.args.seed + 1 + own)
        self.steps = self.epoch * len(self.dataset.train)

    def _load_own(self, own: dict[str, Any]) -> None:
        torch.set_rng_state(own["torch"])
        if own["cuda"] is not None and self.ranks.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], self.ranks.device)
        self.dataset.generator.set_state(own["augmentation"])
        self.total.load_state_dict(own["total"])
