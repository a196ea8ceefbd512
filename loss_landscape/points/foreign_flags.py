"""Flags of loss-landscape's that have another name here, or can't be right; each says so."""

from __future__ import annotations

import argparse

ELSEWHERE = {
    "--mpi": "write --ray, which hands the points to several processes",
    "--cuda": "write --device cuda",
    "--ngpu": "write --device cuda:0 or another; one process takes one GPU",
    "--datapath": "write --data_dir",
    "--model_folder": "write the whole path after --model_file, --model_file2 and --model_file3",
    "--trainloader": "write --dataset package.module:loader",
    "--testloader": "write --dataset package.module:loader",
    "--raw_data": "the model was trained on normalised inputs and means nothing on others; give "
    "inputs of your own with --dataset package.module:loader",
    "--loss_max": "write --vmax",
}


class Elsewhere(argparse.Action):
    """A flag of loss-landscape's that has another name here, or can't be right."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: object,
        values: object,
        flag: str | None = None,
    ) -> None:
        parser.error(f"{flag}: {self.metavar}")


def add_foreign_flags(parser: argparse.ArgumentParser) -> None:
    """Add them, without a word in ``--help``."""
    for flag, said in ELSEWHERE.items():
        parser.add_argument(flag, nargs="?", action=Elsewhere, metavar=said, help=argparse.SUPPRESS)
