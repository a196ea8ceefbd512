"""The reader of TUDataset's text files: PyTorch Geometric's arrays, and damage named by row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.io import read_tu_data

from DatasetClass.raw.tu_files import Graphs, read_graphs

FILES = {
    # Two graphs of two nodes, one without nodes and one without edges.
    "A": "1, 2\n2, 1\n2,2\n1, 2\n3, 4\n4, 3\n",
    "graph_indicator": "1\n1\n2\n2\n4\n",
    "graph_labels": "-1\n1\n1\n-1\n",
    "node_labels": "3, 0\n5, 1\n3, 1\n3, 0\n4, 0\n",
    "node_attributes": "0.5\n 1e-3\n-2\n3.25\n0\n",
}


def write(raw: Path, **changes: str | None) -> Path:
    raw.mkdir(exist_ok=True)
    for part, text in {**FILES, **changes}.items():
        if text is not None:
            (raw / f"T_{part}.txt").write_bytes(text.encode("latin-1"))
    return raw


def test_sound_files(tmp_path: Path) -> None:
    graphs = read_graphs(write(tmp_path / "raw"), "T")
    assert graphs.edges.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]  # no loop, none twice
    assert graphs.graph.tolist() == [0, 0, 1, 1, 3]
    assert graphs.classes.tolist() == [0, 1, 1, 0]
    assert graphs.labels.argmax(axis=1).tolist() == [0, 2, 0, 0, 1]
    assert graphs.labels[:, 3:].tolist() == [[1, 0], [0, 1], [0, 1], [1, 0], [1, 0]]
    assert graphs.attributes.tolist() == [[0.5], [np.float32(1e-3)], [-2], [3.25], [0]]


def test_labels_and_attributes_may_be_absent_and_lines_end_in_any_way(tmp_path: Path) -> None:
    changes = {part: text.replace("\n", "\r\n") + "\r\n" for part, text in FILES.items()}
    changes["A"] = "\xef\xbb\xbf" + changes["A"]  # a byte order mark
    other = read_graphs(write(tmp_path / "crlf", **changes), "T")
    for a, b in zip(other, read_graphs(write(tmp_path / "lf"), "T"), strict=True):
        assert np.array_equal(a, b)
    bare = write(tmp_path / "bare", A="", node_labels=None, node_attributes=None)
    graphs = read_graphs(bare, "T")
    assert [a.shape for a in graphs] == [(2, 0), (5,), (4,), (5, 0), (5, 0)]


@pytest.mark.parametrize("part", [*FILES, "all"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n \n\t\n\n",
        lambda text: text.replace("\n", "\r\n") + "\r\n",
        lambda text: text.replace("\n", "\r"),
        lambda text: text.rstrip("\n"),
        lambda text: text.rstrip("\n") + "   ",
        lambda text: text.replace("\n", " \t\n"),
        lambda text: text.replace(",", " , "),
        lambda text: "\xef\xbb\xbf" + text,  # latin-1 for a byte order mark
    ],
)
def test_what_editors_add_changes_nothing(
    change: Callable[[str], str], part: str, tmp_path: Path
) -> None:
    """The kind: white space that says nothing, in each file alone and in all."""
    changed = {name: change(text) for name, text in FILES.items() if part in (name, "all")}
    other = read_graphs(write(tmp_path / "changed", **changed), "T")
    for ours, expected in zip(other, read_graphs(write(tmp_path / "raw"), "T"), strict=True):
        assert np.array_equal(ours, expected)


@pytest.mark.parametrize("edges", ["\n", "\r\n \n", "\xef\xbb\xbf"])
def test_a_set_of_single_nodes_may_have_blank_lines_for_edges(edges: str, tmp_path: Path) -> None:
    assert read_graphs(write(tmp_path / "raw", A=edges), "T").edges.shape == (2, 0)


@pytest.mark.parametrize("blank", ["", "  "])
@pytest.mark.parametrize("part", [part for part in FILES if part != "A"])
def test_a_blank_line_where_rows_are_counted_is_an_error(
    part: str, blank: str, tmp_path: Path
) -> None:
    """The n-th row is of the n-th node or graph: a lost value would move all after it."""
    lines = FILES[part].splitlines()
    raw = write(tmp_path / "raw", **{part: "\n".join([*lines[:2], blank, *lines[2:]])})
    with pytest.raises(ValueError, match=r"row 3: blank, and rows follow") as error:
        read_graphs(raw, "T")
    assert str(error.value).startswith(str(raw / f"T_{part}.txt"))


def test_a_lost_label_moves_no_other(tmp_path: Path) -> None:
    # The second graph's label is lost; no node is of the fourth graph, so the counts fit.
    changes = {"graph_labels": "-1\n\n1\n-1\n", "graph_indicator": "1\n1\n3\n3\n3\n"}
    raw = write(tmp_path / "raw", A="1, 2\n", **changes)
    with pytest.raises(ValueError, match=r"T_graph_labels\.txt: row 2: blank"):
        read_graphs(raw, "T")


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("A", "1, 2\n2, x\n", "row 2: '2, x' is not a row of numbers"),
        ("A", "1, 2\n\n2, 1\n2, 99\n", "row 4: nodes 2, 99; there are 1 to 5"),
        ("A", "1, 2\n0, 1\n", "row 2: nodes 0, 1; there are 1 to 5"),
        ("A", "1, 2\n2, 3\n", "row 2: nodes 2, 3 are of different graphs"),
        ("A", "1, 2\n2\n", "row 2: 1 columns, 2 in the rows before"),
        ("A", "1\n2\n", "row 1: 1 columns, 2 expected"),
        ("A", "1, 2\n1, 2.5\n", "row 2: 1.0, 2.5 is not a whole number"),
        ("A", "1, 2\n1, 1e300\n", "row 2: 1.0, 1e+300 is not a whole number"),
        ("A", "1, nan\n", "row 1: 1.0, nan is not finite"),
        ("A", "1, 2\n\x00\xff, 1\n", "row 2"),
        ("A", "1, 2\n1, ", "row 2: '1,' is not a row of numbers"),
        ("graph_indicator", "1\n1\n2\n2\n7\n", "row 5: graph 7 of 1 to 4"),
        ("graph_indicator", "1\n2\n1\n2\n4\n", "row 3: graph 1 after a higher one"),
        ("graph_indicator", "", "empty"),
        ("graph_indicator", "1\n1\n2\n", "A.txt: row 5: nodes 3, 4; there are 1 to 3"),
        ("graph_labels", "1\n1\n", "row 5: graph 4 of 1 to 2"),
        ("graph_labels", "", "empty"),
        ("graph_labels", "1\nb\n", "row 2: 'b'"),
        ("graph_labels", None, "no such file; remove the folder"),
        ("graph_indicator", None, "no such file"),
        ("node_labels", "1\n2\n", "2 rows for 5 nodes"),
        ("node_labels", "1\n1\n1\n1\n1000000000\n", "row 5: labels spread over more than"),
        ("node_attributes", "1\n2\n3\n4\ninf\n", "row 5: inf is not finite"),
        ("node_attributes", "1\n2\n3\n1e300\n5\n", "row 4: a value that float32 can't hold"),
        ("node_attributes", "1\n2\n", "2 rows for 5 nodes"),
    ],
)
def test_damage_is_named(part: str, text: str | None, message: str, tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", **{part: text})
    with pytest.raises((ValueError, OSError)) as error:
        read_graphs(raw, "T")
    assert message in str(error.value)
    assert str(raw / "T_") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_regression_set_is_called_one(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", graph_labels=None, graph_attributes="0.5\n")
    with pytest.raises(OSError, match="a regression set"):
        read_graphs(raw, "T")


Damage = Callable[[bytes], bytes]


@settings(max_examples=150, deadline=None)
@given(part=st.sampled_from(sorted(FILES)), at=st.integers(0, 40), junk=st.binary(max_size=6))
def test_any_damage_is_read_or_named(part: str, at: int, junk: bytes, tmp_path_factory) -> None:
    raw = write(tmp_path_factory.mktemp("fuzz") / "raw")
    path = raw / f"T_{part}.txt"
    sound = path.read_bytes()
    path.write_bytes(sound[:at] + junk + sound[at + len(junk) // 2 :])
    try:
        graphs = read_graphs(raw, "T")
    except ValueError as error:
        assert str(raw / "T_") in str(error)
    else:
        assert consistent(graphs)
    shutil.rmtree(raw)


def consistent(graphs: Graphs) -> bool:
    nodes, (source, target) = len(graphs.graph), graphs.edges
    return (
        len(graphs.labels) == len(graphs.attributes) == nodes
        and bool(np.all(graphs.graph[source] == graphs.graph[target]))
        and bool(np.all(np.diff(graphs.graph) >= 0))
        and int(graphs.graph.max()) < len(graphs.classes)
        and bool(np.isfinite(graphs.attributes).all())
    )


@pytest.mark.real
@pytest.mark.parametrize("name", ["MUTAG", "PROTEINS", "NCI1", "ENZYMES"])
def test_real_sets_are_as_pytorch_geometric_reads_them(name: str, real_data: Path) -> None:
    raw = real_data / "TUDataset" / name / "raw"
    graphs = read_graphs(raw, name)
    data, slices, sizes = read_tu_data(str(raw), name)
    assert np.array_equal(graphs.classes, data.y.numpy())
    assert np.array_equal(np.hstack([graphs.attributes, graphs.labels]), data.x.numpy())
    assert graphs.attributes.shape[1] == sizes["num_node_attributes"]
    starts = slices["x"].numpy()
    assert np.array_equal(graphs.graph, np.repeat(np.arange(len(starts) - 1), np.diff(starts)))
    local = graphs.edges - starts[graphs.graph[graphs.edges[0]]]
    assert np.array_equal(local, data.edge_index.numpy())
    counts = np.bincount(graphs.graph[graphs.edges[0]], minlength=len(graphs.classes))
    assert np.array_equal(counts, slices["edge_index"].diff().numpy())
