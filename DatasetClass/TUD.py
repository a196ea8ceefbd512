"""Any graph classification set of TUDataset (Morris et al. 2020, arXiv:2007.08663).

Read from its raw text files. PyTorch Geometric's own cache is not used: it is read back with
``torch.load(weights_only=False)``, so a planted one would run code. MUTAG comes with this file:
``MUTAG.zip`` is TUDataset's own archive, from https://www.chrsmrrs.com/graphkerneldatasets/.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

import pooch
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Batch as GraphBatch
from torch_geometric.data import Data
from torch_geometric.io import read_tu_data
from torch_geometric.utils import degree

from DatasetClass.batches import Batch, Dataset, stratified_split

URL = "https://www.chrsmrrs.com/graphkerneldatasets/{name}.zip"
SHA256 = {
    "ENZYMES": "0ca7125d7978788346fc6ba5c3cc643b6122153b304220c2230bcb09f99f8ffb",
    "MUTAG": "20f52db82d6d85d5f67d2fa42c3fb705d05934be44329314ab17b05d0c012f7e",
    "NCI1": "eae6b0c076d59e667c67de0039cfc3214eefb91a8dddc2fa3099126da02d4376",
    "PROTEINS": "fe9d19741637486ea1fd285bf669fce0b117e10b03cdd379f6a5e6197fc830ae",
}
EMBEDDED = Path(__file__).with_name("MUTAG.zip")
UNPACKED_LIMIT = 2**31  # bytes; the largest sets of TUDataset unpack to about 1 GB
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


class TUD(Dataset):
    """Graphs on the device; batches are (torch_geometric Batch, labels (B,)).

    Node features are the node labels, one-hot; where a set has none, the degree, one-hot.

    Args:
        name: the set's name, such as "MUTAG" or "PROTEINS".
        data_dir: folder that holds ``TUDataset/<name>/raw``.
        batch_size: graphs a batch.
        device: where the graphs lie.
        seed: of the splits and the order.
        train_samples: use only this many training graphs.
        node_attributes: add the continuous node attributes to the features.

    Raises:
        FileNotFoundError: the set is neither there nor to be downloaded.
        ValueError: damaged files, or no graph labels.
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
    ) -> None:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"--dataset {name!r}: not a name of TUDataset")
        self.name = name
        graphs = read_graphs(_raw_folder(data_dir, name), name, node_attributes)
        self.graphs = [graph.to(device) for graph in graphs]
        self.labels = torch.tensor([int(graph.y) for graph in graphs], device=device)
        self.num_classes = int(self.labels.max()) + 1
        features = graphs[0].num_node_features
        self.model_args = {"in_channels": features, "num_classes": self.num_classes}
        self.data_args = {
            "seed": seed,
            "train_samples": train_samples,
            "node_attributes": node_attributes,
        }
        splits = stratified_split(self.labels.cpu(), SHARES, seed)
        self.make_splits(splits, batch_size, seed, train_samples)

    def fetch(self, indices: Tensor) -> Batch:
        graphs = [self.graphs[i] for i in indices.tolist()]
        return GraphBatch.from_data_list(graphs), self.labels[indices.to(self.labels.device)]

    def describe(self) -> str:
        counts = "/".join(str(n) for n in self.labels.bincount().tolist())
        features = self.model_args["in_channels"]
        return f"{super().describe()}; {counts} graphs a class, {features} node features"


def read_graphs(raw: Path, name: str, node_attributes: bool = False) -> list[Data]:
    """Read the raw text files of one set, a ``Data`` with x, edge_index and y for each graph.

    Raises:
        ValueError: a file is missing, damaged, or the set has no graph labels.
    """
    try:
        data, slices, sizes = read_tu_data(str(raw), name)
    except Exception as error:  # PyG's text reader raises nearly anything on damaged files
        raise ValueError(f"{raw}: unreadable ({error}); remove the folder") from error
    if data.y is None or "y" not in slices or data.y.dtype != torch.int64:
        raise ValueError(f"{raw}: {name} has no graph labels; not a classification set")
    nodes = _node_counts(data, slices)
    edge_slice = slices["edge_index"].tolist()
    edge_slice += edge_slice[-1:] * (len(nodes) + 1 - len(edge_slice))  # last graphs edgeless
    graphs, start = [], 0
    for i, count in enumerate(nodes):
        edges = data.edge_index[:, edge_slice[i] : edge_slice[i + 1]]
        if edges.numel() and not (int(edges.min()) >= 0 and int(edges.max()) < count):
            raise ValueError(f"{raw}: graph {i + 1} has an edge to a node outside it")
        x = None if data.x is None else data.x[start : start + count]
        graphs.append(Data(x=x, edge_index=edges, y=data.y[i], num_nodes=count))
        start += count
    _set_features(graphs, 0 if node_attributes else sizes["num_node_attributes"])
    return graphs


def _node_counts(data: Data, slices: dict[str, Tensor]) -> list[int]:
    if "x" in slices:
        return slices["x"].diff().tolist()
    return list(data._num_nodes)


def _set_features(graphs: list[Data], skip: int) -> None:
    """Drop the first ``skip`` columns of x; where none are left, set the degree, one-hot."""
    if graphs[0].x is not None and graphs[0].x.size(1) > skip:
        for graph in graphs:
            graph.x = graph.x[:, skip:]
        return
    degrees = [degree(g.edge_index[0], g.num_nodes, dtype=torch.long) for g in graphs]
    classes = max(int(d.max()) for d in degrees if len(d)) + 1
    for graph, d in zip(graphs, degrees, strict=True):
        graph.x = F.one_hot(d, classes).float()


def _raw_folder(data_dir: Path, name: str) -> Path:
    """The folder of the raw files; unpacked from the embedded or a downloaded zip if absent."""
    raw = data_dir / "TUDataset" / name / "raw"
    if not raw.is_dir():
        archive = EMBEDDED if name == "MUTAG" else _download(data_dir, name)
        if name in SHA256 and pooch.file_hash(str(archive)) != SHA256[name]:
            raise ValueError(f"{archive}: wrong SHA-256, damaged; remove it or install again")
        unpack(archive, raw)
    return raw


def _download(data_dir: Path, name: str) -> Path:
    known = SHA256.get(name)
    try:
        return Path(
            pooch.retrieve(
                URL.format(name=name),
                known_hash=None if known is None else f"sha256:{known}",
                fname=f"{name}.zip",
                path=data_dir / "TUDataset",
            )
        )
    except Exception as error:  # pooch lets through whatever its HTTP client raises
        raise FileNotFoundError(
            f"{data_dir / 'TUDataset' / name}: not there, and the download failed "
            f"({type(error).__name__}); check the name, or put {name}_*.txt into its raw/ folder"
        ) from error


def unpack(archive: Path, raw: Path) -> None:
    """Unpack the text files of a TUDataset zip, without folders, into ``raw``, all or none.

    Raises:
        ValueError: not a zip, or it unpacks to more than 2 GiB.
    """
    raw.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=raw.parent) as part:
        whole = Path(part) / "raw"
        whole.mkdir()
        try:
            with zipfile.ZipFile(archive) as source:
                members = [m for m in source.infolist() if m.filename.endswith(".txt")]
                if sum(member.file_size for member in members) > UNPACKED_LIMIT:
                    raise ValueError(f"{archive}: unpacks to more than 2 GiB")
                for member in members:
                    with source.open(member) as inside:
                        # Only the last part of the name: no member leaves the folder.
                        target = whole / Path(member.filename).name
                        with target.open("wb") as file:
                            shutil.copyfileobj(inside, file)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{archive}: not a zip or a damaged one; remove it") from error
        if not raw.is_dir():  # another process may have been faster
            whole.rename(raw)
