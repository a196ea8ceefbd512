r"""Train a wide residual network on CIFAR-10 or CIFAR-100.

    python trainings/my_train_cifar.py --optimizer=SGD                    # WRN-16-8: for a GPU
    python trainings/my_train_cifar.py --optimizer=SAM --rho=0.05         # twice the time
    python trainings/my_train_cifar.py --optimizer=SAM --depth=10 --width_factor=1 \
        --train_samples=10000 --epochs=2                                  # 2 CPU cores: 1 min

The defaults are those of davda54's SAM example: 200 epochs, batches of 128, learning rate 0.1
divided by 5 after 30, 60 and 80 percent, momentum 0.9, weight decay 5e-4, label smoothing 0.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import DatasetClass
import models
from trainings.fit import fit
from trainings.options import Defaults, add_flags, read_args, start
from utilities.cli import Parser, fraction, non_negative_int, positive_int, run

DEFAULTS = Defaults(
    task="cifar",
    model="cifar",
    dataset="cifar10",
    optimizer="SGD",
    base_optimizer="SGD",
    epochs=200,
    batch_size=128,
    learning_rate=0.1,
    weight_decay=0.0005,
    label_smoothing=0.1,
    schedule="step",
    precision="auto",
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default=DEFAULTS.dataset, choices=["cifar10", "cifar100"])
    group.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="crop, flip and cut out the training images",
    )
    group.add_argument(
        "--pad", default="zero", choices=["zero", "reflect"], help="what crops show past the edge"
    )
    group.add_argument(
        "--crop_padding",
        type=non_negative_int,
        default=4,
        help="pixels past the edge that crops reach; 0: none",
    )
    group.add_argument(
        "--cutout", type=non_negative_int, default=16, help="side of the hole, pixels; 0: none"
    )
    group = parser.add_argument_group("model")
    group.add_argument("--depth", type=positive_int, default=16, help="layers, 6n + 4")
    group.add_argument("--width_factor", type=positive_int, default=8, help="times 16 channels")
    group.add_argument("--dropout", type=fraction, default=0.0, help="between convolutions")
    add_flags(parser, DEFAULTS)
    return read_args(parser, DEFAULTS, argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train as the command line says; return the best epoch's metrics."""
    args = parse_args(argv)
    ranks = start(args)

    # data
    with ranks.in_turn():
        dataset = DatasetClass.load(
            args.dataset,
            data_dir=args.data_dir,
            batch_size=args.batch_size,
            device=ranks.device,
            seed=args.seed,
            train_samples=args.train_samples,
            augment=args.augment,
            pad=args.pad,
            crop_padding=args.crop_padding,
            cutout=args.cutout,
        )

    # model
    model_args = {
        **dataset.model_args,
        "depth": args.depth,
        "width_factor": args.width_factor,
        "dropout": args.dropout,
    }
    model = models.build(DEFAULTS.model, **model_args).to(ranks.device)

    # training
    return fit(args, DEFAULTS, dataset, model, model_args, ranks)


if __name__ == "__main__":
    run(main)
