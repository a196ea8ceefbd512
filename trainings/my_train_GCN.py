"""Train a graph convolutional network on a TUDataset.

    python trainings/my_train_GCN.py --optimizer=ADAM                     # MUTAG: 5 s on 2 cores
    python trainings/my_train_GCN.py --optimizer=SAM --rho=0.05           # SAM on ADAM: 8 s
    python trainings/my_train_GCN.py --optimizer=SAM --dataset=PROTEINS   # 1 minute

The defaults are those of PyTorch Geometric's notebook on MUTAG: three layers of 64, Adam with
learning rate 0.01, batches of 64.
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
    task="GCN",
    model="GCN",
    dataset="MUTAG",
    optimizer="ADAM",
    base_optimizer="ADAM",
    epochs=150,
    batch_size=64,
    learning_rate=0.01,
    weight_decay=0.0,
    label_smoothing=0.0,
    schedule="constant",
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default=DEFAULTS.dataset, help="a name of TUDataset")
    group.add_argument(
        "--node_attributes",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="add the continuous node attributes to the node labels",
    )
    group.add_argument(
        "--fold",
        type=non_negative_int,
        help="cross-validation: test on this fold, from 0, and validate on a tenth of the others "
        "(a fixed split of 70, 10 and 20 percent if not given)",
    )
    group.add_argument("--folds", type=positive_int, default=10, help="their number")
    group = parser.add_argument_group("model")
    group.add_argument("--hidden_channels", type=positive_int, default=64, help="width")
    group.add_argument("--dropout", type=fraction, default=0.5, help="before the linear layer")
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
            node_attributes=args.node_attributes,
            fold=args.fold,
            folds=args.folds,
        )

    # model
    model_args = {
        **dataset.model_args,
        "hidden_channels": args.hidden_channels,
        "dropout": args.dropout,
    }
    model = models.build(DEFAULTS.model, **model_args).to(ranks.device)

    # training
    return fit(args, DEFAULTS, dataset, model, model_args, ranks)


if __name__ == "__main__":
    run(main)
