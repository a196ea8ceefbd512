"""All that changes while a run trains: what a step needs, and what a resumed run needs."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor, nn

from DatasetClass.batches import RANK_SEED, Dataset
from trainings.averaging import Average
from trainings.optimizers import make_optimizer
from trainings.schedules import Schedule
from utilities.metrics import Total
from utilities.precision import compile_options, make_scaler, resolve
from utilities.ranks import Ranks

PROGRESS = ("epoch", "steps", "metrics", "rows", "best")  # kept under these names


class TrainingState:
    """A run's data, model and optimizer, and how far it is.

    Attributes:
        model: the plain module, whose weights a checkpoint holds.
        network: the same, as it is called in training: data parallel, compiled.
        precision: of the forward pass: "fp32", "bf16" or "fp16".
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
        self.class_weights: Tensor | None = None
        if args.class_weights:
            weights = dataset.class_weights(exponent=0.5 if args.balance_sqrt else 1.0)
            self.class_weights = weights.to(ranks.device)
        self.model = model.to(memory_format=torch.channels_last)  # that of convolutions
        self.network = ranks.wrap(self.model, args.sync_batch_norm)
        epoch_steps = len(dataset.train)
        self.optimizer = make_optimizer(args, self.network, epoch_steps)
        self.schedule = Schedule(
            args.schedule,
            args.learning_rate,
            steps=args.epochs * epoch_steps,
            warmup_steps=args.warmup_epochs * epoch_steps,
        )
        self.precision = resolve(args.precision, ranks.device)
        if args.compile:
            options = compile_options(self.precision, ranks.device)
            self.network = torch.compile(self.network, options=options)  # type: ignore[assignment]
        self.scaler = make_scaler(self.precision, ranks.device)
        start = args.swa_start * args.epochs
        self.average = Average(args.average, self.model, decay=args.ema_decay, start=start)
        self.epoch = self.steps = 0
        self.total = self.new_total()
        self.metrics: dict[str, float] = {}
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}

    def new_total(self) -> Total:
        return Total(self.dataset.num_classes, self.ranks.device)

    def step(self, closure: Any) -> Tensor:
        """One step of the optimizer, with the learning rate before it and all that follows."""
        rate = self.schedule.rate(self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.optimizer.step(closure, self.scaler)
        self.scaler.update()
        self.average.after_step()
        self.steps += 1
        return loss

    def end_epoch(self) -> None:
        """Count the epoch, and bring the model to validate up to date in all processes."""
        self.epoch += 1
        self.average.after_epoch(self.epoch, self.dataset)
        self.ranks.broadcast_buffers(self.average.evaluated())

    def state_dict(self) -> dict[str, Any]:
        """All by which a resumed run goes on bit for bit; every process must call it."""
        cuda, optimizer = self.ranks.device.type == "cuda", self.optimizer.state_dict()
        of_process = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.ranks.device) if cuda else None,
            "augmentation": self.dataset.generator.get_state(),
            "total": self.total.state_dict(),
            # Friendly SAM's mean of gradients, which processes that climb alone have each.
            "mean": {}
            if self.args.ascent_sync
            else {i: s["fsam_m"] for i, s in optimizer["state"].items() if "fsam_m" in s},
        }
        return {
            "model": self.model.state_dict(),
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict(),
            "train": self.dataset.train.state_dict(),
            "ranks": self.ranks.gather(of_process),
            **{name: getattr(self, name) for name in PROGRESS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; the data set and the global generators do so too.

        Raises:
            ValueError: it was taken within an epoch by another number of processes.
        """
        same_processes = len(state["ranks"]) == self.ranks.world
        if not same_processes and state["train"]["order"] is not None:
            raise ValueError(
                f"--resume: {self.args.run.last} was saved within an epoch by "
                f"{len(state['ranks'])} processes, not {self.ranks.world}; start as many"
            )
        if same_processes:
            for i, mean in state["ranks"][self.ranks.rank]["mean"].items():
                state["optimizer"]["state"].setdefault(i, {})["fsam_m"] = mean
        for name in ("model", "optimizer", "scaler", "average"):
            if state[name]:  # a disabled scaler's is empty
                getattr(self, name).load_state_dict(state[name])
        self.dataset.train.load_state_dict(state["train"])
        for name in PROGRESS:
            setattr(self, name, state[name])
        if same_processes:
            self._load_process(state["ranks"][self.ranks.rank])
            return
        # New random numbers, and epochs of another length.
        seed = self.args.seed + RANK_SEED * self.ranks.rank + self.epoch
        torch.manual_seed(seed)
        self.dataset.generator.manual_seed(seed + 1)
        self.steps = self.epoch * len(self.dataset.train)

    def _load_process(self, of_process: dict[str, Any]) -> None:
        torch.set_rng_state(of_process["torch"])
        if of_process["cuda"] is not None and self.ranks.device.type == "cuda":
            torch.cuda.set_rng_state(of_process["cuda"], self.ranks.device)
        self.dataset.generator.set_state(of_process["augmentation"])
        self.total.load_state_dict(of_process["total"])


def better(new: dict[str, float], old: dict[str, float], by: str) -> bool:
    """By ``--select`` on validation; a small set gives ties, which the loss decides.

    An epoch whose loss is NaN or infinite is never better than one whose isn't: its accuracy may
    be, as argmax calls every NaN the first class.
    """
    if not old or not math.isfinite(old["val_loss"]):
        return True
    if not math.isfinite(new["val_loss"]):
        return False
    if by == "loss":
        return new["val_loss"] < old["val_loss"]
    key = f"val_{by}"
    return (new[key], -new["val_loss"]) > (old[key], -old["val_loss"])
