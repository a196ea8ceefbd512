"""Any graph classification set of TUDataset (Morris et al. 2020, arXiv:2007.08663).

It is read from its raw text files. PyTorch Geometric's cache is not used, because it is read back
with ``torch.load(weights_only=False)``, so that a planted one would run code. No other cache is
kept, because the text of NCI1's 4,110 graphs is read in half a second. MUTAG comes with this file:
``MUTAG.zip`` is TUDataset's archive, from https://www.chrsmrrs.com/graphkerneldatasets/.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from DatasetClass.batches import Batch, Dataset
from DatasetClass.graphs import GraphSet
from DatasetClass.raw.tu_files import node_features, read_graphs
from DatasetClass.splits import fold_split, stratified_split
from DatasetClass.storage.archives import unpack
from DatasetClass.storage.damaged import check_hash, set_aside
from DatasetClass.storage.download import download

URL = "https://www.chrsmrrs.com/graphkerneldatasets/{name}.zip"
SHA256 = {
    "ENZYMES": "0ca7125d7978788346fc6ba5c3cc643b6122153b304220c2230bcb09f99f8ffb",
    "MUTAG": "20f52db82d6d85d5f67d2fa42c3fb705d05934be44329314ab17b05d0c012f7e",
    "NCI1": "eae6b0c076d59e667c67de0039cfc3214eefb91a8dddc2fa3099126da02d4376",
    "PROTEINS": "fe9d19741637486ea1fd285bf669fce0b117e10b03cdd379f6a5e6197fc830ae",
}
EMBEDDED = Path(__file__).with_name("MUTAG.zip")
UNPACKED_LIMIT = 2**31  # bytes; the largest sets of TUDataset unpack to about 1 GB
FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}
# What the files give numbers for (Debnath et al. 1991, Borgwardt et al. 2005).
CLASS_NAMES = {"MUTAG": ("not mutagenic", "mutagenic"), "PROTEINS": ("enzyme", "no enzyme")}
NODE_NAMES = {"MUTAG": ("C", "N", "O", "F", "I", "Cl", "Br")}


class TUD(Dataset):
    """Graphs on the device; batches are (torch_geometric Batch, labels (B,)).

    Node features are the node labels, one-hot. Where a set has neither labels nor the attributes
    asked for they are the degrees, one-hot, or log(1 + degree) where one is 1000 or more.

    Without ``fold`` the split is fixed: 70 % train, 10 % val, 20 % test. With it the test part is
    one of ``folds`` equal parts and val a tenth of the others, so that epochs and settings are
    chosen without a look at the test graphs (Errica et al. 2020, arXiv:1912.09893). All splits
    are stratified by class.

    Args:
        name: the set's name, such as "MUTAG" or "PROTEINS".
        data_dir: folder that holds ``TUDataset/<name>/raw``.
        batch_size: graphs a batch.
        device: where the graphs lie.
        seed: of the splits and the order.
        train_samples: use only this many training graphs.
        node_attributes: add the continuous node attributes to the features.
        fold: from 0; the fold to test on, or None for the fixed split.
        folds: their number.

    Attributes:
        graphs: all graphs; ``graphs[i]`` is one of them, a torch_geometric Data.
        node_names: of the node labels, in rising order; empty where nobody names them.
        labels: (graphs,) int64, 0 to num_classes - 1 in the files' order of labels.

    Raises:
        FileNotFoundError: the set is neither there nor to be downloaded, or has no graph labels.
        ValueError: damaged files, or no such fold.
    """

    def __init__(
        self,
        name: str,
        data_dir: Path,
        batch_size: int,
        device: torch.device,
        seed: int = 42,
        train_samples: int | None = None,
        node_attributes: bool = False,
        fold: int | None = None,
        folds: int = 10,
    ) -> None:
        if not re.fullmatch(r"[\w-]{1,50}", name, re.ASCII):
            raise ValueError(f"--dataset {name[:60]!r}: not a name of TUDataset")
        raw = read_graphs(_raw_folder(data_dir, name), name)
        self.name = name
        self.class_names, self.node_names = CLASS_NAMES.get(name, ()), NODE_NAMES.get(name, ())
        x, count = node_features(raw, node_attributes), len(raw.classes)
        self.graphs = GraphSet(x, raw.edges, raw.graph, count, device)
        self.labels = torch.from_numpy(raw.classes).to(device)
        self.num_classes = int(raw.classes.max()) + 1
        self.model_args = {"in_channels": x.shape[1], "num_classes": self.num_classes}
        self.data_args = {
            "seed": seed,
            "train_samples": train_samples,
            "node_attributes": node_attributes,
            "fold": fold,
            "folds": folds,
        }
        labels = torch.from_numpy(raw.classes)
        if fold is None:
            splits = stratified_split(labels, FRACTIONS, seed)
        else:
            splits = fold_split(labels, fold, folds, seed)
        self.make_splits(splits, batch_size, seed, train_samples)

    def fetch(self, indices: Tensor) -> Batch:
        labels = self.labels[indices.to(self.labels.device, non_blocking=True)]
        return self.graphs.batch(indices), labels

    def describe(self) -> str:
        counts = "/".join(str(n) for n in self.labels.bincount().tolist())
        features = self.model_args["in_channels"]
        text = f"{super().describe()}; {counts} graphs a class, {features} node features"
        if self.data_args["fold"] is None:
            return text
        return f"{text}; fold {self.data_args['fold']} of 0 to {self.data_args['folds'] - 1}"


def _raw_folder(data_dir: Path, name: str) -> Path:
    """The folder of the raw files; unpacked from the embedded or a downloaded zip if absent."""
    raw = data_dir / "TUDataset" / name / "raw"
    if not raw.is_dir():
        if name == "MUTAG":
            archive = EMBEDDED
            check_hash(archive, SHA256[name])
        else:
            archive = download(
                URL.format(name=name),
                data_dir / "TUDataset" / f"{name}.zip",
                SHA256.get(name),
                f"{name} of TUDataset",
            )
        try:
            unpack(archive, raw, _text_file, UNPACKED_LIMIT)
        except ValueError as error:
            if archive == EMBEDDED:
                raise
            aside = set_aside(archive).name  # its hash isn't known, so only this tells
            raise ValueError(
                f"{error}; kept as {aside}, the next start downloads it anew"
            ) from error
    return raw


def _text_file(member: str) -> str | None:
    """Text files are unpacked without the folder that they are in."""
    return PurePosixPath(member).name if member.endswith(".txt") else None
