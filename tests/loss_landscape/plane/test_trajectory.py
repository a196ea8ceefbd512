"""A path in weight space: its plane and coordinates, against numpy and points made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from loss_landscape.directions import Direction
from loss_landscape.plane.trajectory import point_of, principal_directions, project

SHAPES = ((4, 3), (5,), (2, 2, 2))
SIZE = 25


def cut(vector: Tensor) -> Direction:
    parts = vector.split([int(np.prod(shape)) for shape in SHAPES])
    return [part.view(shape) for part, shape in zip(parts, SHAPES, strict=True)]


def joined(direction: Direction) -> np.ndarray:
    return torch.cat([t.flatten() for t in direction]).numpy()


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


seeds = st.integers(0, 10_000)


@given(seeds, st.integers(3, 12))
def test_points_of_a_plane_give_the_plane_and_their_coordinates(seed: int, count: int) -> None:
    basis = torch.linalg.qr(drawn(seed, SIZE, 2))[0].T
    origin = 100 * drawn(seed + 1, SIZE)  # far away: only differences count
    within = drawn(seed + 2, count, 2) * torch.tensor([3.0, 1.0])
    points = [cut(origin + step @ basis) for step in within]
    directions = principal_directions(points, cut(origin))
    found = np.stack([joined(d) for d in directions])
    np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-8)
    np.testing.assert_allclose(found @ basis.T.numpy() @ basis.numpy(), found, atol=1e-7)
    projection = project(points, cut(origin), directions)
    made = projection.coordinates @ found
    np.testing.assert_allclose(made, (within @ basis).numpy(), atol=1e-7)
    assert projection.share == pytest.approx(1) == projection.shares.sum()
    assert (projection.coordinates[0] >= projection.coordinates[-1] - 1e-9).all()


@given(seeds, st.integers(3, 12))
def test_components_and_their_variance_are_numpys(seed: int, count: int) -> None:
    matrix = drawn(seed, count, SIZE).numpy() * np.linspace(0.1, 3, SIZE)
    points = [cut(torch.from_numpy(row)) for row in matrix]
    directions = principal_directions(points, points[-1])
    _, s, rows = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
    for direction, row in zip(directions, rows, strict=False):
        assert abs(joined(direction) @ row) == pytest.approx(1, abs=1e-6)
    shares = project(points, points[-1], directions).shares
    np.testing.assert_allclose(shares, s[:2] ** 2 / (s**2).sum(), rtol=1e-7)


@given(seeds, st.floats(0.1, 10), st.floats(0.1, 10))
def test_steps_are_those_of_any_directions_long_short_or_oblique(seed: int, a, b) -> None:
    """The inner product over the length, not its square, would be off by the length."""
    directions = [cut(a * drawn(seed, SIZE)), cut(b * drawn(seed + 1, SIZE))]
    made = drawn(seed + 2, 5, 2)
    origin = cut(drawn(seed + 3, SIZE))
    points = [
        [o + x * d + y * e for o, d, e in zip(origin, *directions, strict=True)] for x, y in made
    ]
    projection = project(points, origin, directions)
    np.testing.assert_allclose(projection.coordinates, made.numpy(), rtol=1e-6, atol=1e-8)
    assert projection.share == pytest.approx(1)


def test_a_plane_shows_the_part_that_lies_in_it() -> None:
    """Points at 3, 4 and 12 along three axes: the plane of the first two has their share."""
    axes = torch.eye(SIZE, dtype=torch.float64)
    points = [cut(sign * s * axes[i]) for i, s in enumerate((3.0, 4.0, 12.0)) for sign in (1, -1)]
    zero = cut(0 * axes[0])
    projection = project(points, zero, [cut(2 * axes[0]), cut(5 * axes[1])])
    np.testing.assert_allclose(projection.shares, np.array([9, 16]) / 169)
    assert projection.share == pytest.approx(25 / 169)
    np.testing.assert_allclose(projection.coordinates[0], [1.5, 0], atol=1e-12)
    found = principal_directions(points, zero)
    np.testing.assert_allclose(np.abs(joined(found[0])), axes[2], atol=1e-8)
    np.testing.assert_allclose(np.abs(joined(found[1])), axes[1], atol=1e-8)


def test_no_plane_is_refused() -> None:
    start, step = drawn(0, SIZE), drawn(1, SIZE)
    line = [cut(start + k * step) for k in range(4)]
    with pytest.raises(ValueError, match="lie on a line or a point"):
        principal_directions(line, line[-1])
    for second in (step * 2, step * 0):
        with pytest.raises(ValueError, match="span no plane"):
            project(line, line[-1], [cut(step), cut(second)])
    with pytest.raises(ValueError, match="same weights"):
        project([line[0]] * 3, line[0], [cut(step), cut(drawn(2, SIZE))])


def test_a_point_holds_weights_or_states_too_and_no_nan() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = {name: t + 1 for name, t in model.state_dict().items()}
    point = point_of(model, {"state_dict": state}, Path("a.pt"), "weights")
    assert [t.shape for t in point] == [p.shape for p in model.parameters()]
    point = point_of(model, {"state_dict": state}, Path("a.pt"), "states")
    assert torch.equal(point[4], state["1.running_mean"]) and len(point) == 6
    state["1.running_var"] = state["1.running_var"] * torch.nan
    with pytest.raises(ValueError, match=r"a\.pt: its weights are NaN"):
        point_of(model, {"state_dict": state}, Path("a.pt"), "states")
