"""Train a Transformer on the heartbeats of the MIT-BIH Arrhythmia Database.

    python trainings/my_train_mitbih.py --optimizer=ADAM                  # 20 epochs: 10 min
    python trainings/my_train_mitbih.py --optimizer=SAM --rho=0.05        # SAM on ADAM: 20 min
    python trainings/my_train_mitbih.py --optimizer=SAM --epochs=1        # a first look: 1 min

Times are those of two CPU cores. The beats of one patient lie in all splits, as in the Kaggle
files, unless --split=inter_patient (DatasetClass/mitbih.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import DatasetClass
import models
from trainings.fit import fit
from trainings.options import Defaults, add_flags, read_args, start
from utilities.cli import Parser, fraction, non_negative_float, positive_int, run

DEFAULTS = Defaults(
    task="mitbih",
    model="mitbih",
    dataset="mitbih",
    optimizer="ADAM",
    base_optimizer="ADAM",
    epochs=20,
    batch_size=128,
    learning_rate=0.001,
    weight_decay=0.0,
    label_smoothing=0.0,
    schedule="cosine",
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_beat_flags(parser)
    add_model_flags(parser)
    add_flags(parser, DEFAULTS)
    return read_args(parser, DEFAULTS, argv)


def add_beat_flags(parser: Parser) -> None:
    """Which beats, and how they are cut and scaled."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default=DEFAULTS.dataset, choices=["mitbih"])
    group.add_argument(
        "--source",
        choices=["auto", "kaggle", "physionet"],
        default="auto",
        help="Kaggle's CSV files or the PhysioNet records, downloaded where absent; auto takes the "
        "CSV files if they are there and the split can be had from them",
    )
    group.add_argument(
        "--split",
        choices=["random", "inter_patient"],
        default="random",
        help="random: over beats as in Kaggle's files, a patient's beats in training, validation "
        "and test, so that results say nothing on new patients; inter_patient: DS1 and DS2 of "
        "de Chazal et al. 2004, validation by patient, from the PhysioNet records",
    )
    group.add_argument(
        "--rr_intervals",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="add the intervals to the beats around each one, by which premature beats are known, "
        "from the PhysioNet records",
    )
    group.add_argument(
        "--before",
        type=non_negative_float,
        default=0.0,
        help="the R peak each beat begins, in s, at most 0.5; 0 as in Kaggle's files, 0.2 has the "
        "P wave; more than 0 from the PhysioNet records",
    )
    group.add_argument(
        "--scale",
        choices=["beat", "record"],
        default="beat",
        help="beat: each from 0 to 1, as in Kaggle's files; record: beats keep their heights, in "
        "standard deviations of their record, from the PhysioNet records",
    )


def add_model_flags(parser: Parser) -> None:
    """How large the Transformer is."""
    group = parser.add_argument_group("model")
    group.add_argument("--dim", type=positive_int, default=64, help="width, a multiple of --heads")
    group.add_argument("--heads", type=positive_int, default=4, help="attention heads")
    group.add_argument("--layers", type=positive_int, default=2, help="encoder layers")
    group.add_argument("--feedforward", type=positive_int, default=128, help="hidden width")
    group.add_argument("--patch", type=positive_int, default=4, help="samples a time step")
    group.add_argument("--dropout", type=fraction, default=0.1, help="in all sublayers")
    group.add_argument(
        "--attention_dropout",
        type=fraction,
        default=0.0,
        help="of attention weights; more than 0 rules out the CPU's fused kernel",
    )


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
            source=args.source,
            split=args.split,
            rr_intervals=args.rr_intervals,
            before=args.before,
            scale=args.scale,
        )

    # model
    model_args = {
        **dataset.model_args,
        "dim": args.dim,
        "heads": args.heads,
        "layers": args.layers,
        "feedforward": args.feedforward,
        "patch": args.patch,
        "dropout": args.dropout,
        "attention_dropout": args.attention_dropout,
    }
    model = models.build(DEFAULTS.model, **model_args).to(ranks.device)

    # training
    return fit(args, DEFAULTS, dataset, model, model_args, ranks)


if __name__ == "__main__":
    run(main)
