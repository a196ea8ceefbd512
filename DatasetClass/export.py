"""Write the heartbeats cut from PhysioNet's records as Kaggle's two files, for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from DatasetClass.mitbih import export_kaggle
from utilities.cli import Parser, non_negative_int, report_files
from utilities.files import ROOT


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and write the files."""
    parser = Parser(__doc__)
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", help="folder of mitdb/")
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="where mitbih_train.csv and mitbih_test.csv go, 310 MB; never over files there",
    )
    parser.add_argument("--seed", type=non_negative_int, default=42, help="of the split")
    args = parser.parse_args(argv)
    report_files(export_kaggle(args.data_dir, args.folder, args.seed))
