r"""Compute the Hessian's smallest and largest eigenvalue at each point of a grid.

    python plot_hessian_eigen.py --model_file ../to_plot/model_GCN_SAM_rho0.05.pt \
        --x=-1:1:21 --y=-1:1:21 --plot
    python plot_hessian_eigen.py --model_file ../to_plot/model_cifar_SGD_rho0.0.pt \
        --dir_file ../to_plot/model_cifar_SGD_rho0.0.h5 --samples 500 --x=-1:1:11 --y=-1:1:11

writes ``min_eig`` and ``max_eig``, with the residuals of both and the training loss, to
``to_plot/<checkpoint>_eigen.h5``; ``--plot`` draws |min / max|. Where that is near 0, a surface
that looks convex nearly is so in all directions (Li et al. 2018, section 6); it is known to about
``--tol``. ``certain_eig`` is 1 where an eigenvalue beyond either by 1 % of the largest magnitude
would have been seen, and 0 where the residuals alone say that these are the ends. A point costs
some ten to some hundred products with the Hessian, so take few samples. A run that was stopped goes
on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loss_landscape import plot_1D, plot_2D
from loss_landscape.directions import Direction, coordinates, fingerprint, with_counters
from loss_landscape.evaluation import axis, compute, loss_and_accuracy, moved
from loss_landscape.my_pyhessian.operators import HessianOperator
from loss_landscape.my_pyhessian.spectrum_ends import spectrum_ends
from loss_landscape.plane.chosen_directions import directions_and_kind
from loss_landscape.plane.direction_flags import add_direction_flags, check_directions, described
from loss_landscape.plot_surface import refuse_another
from loss_landscape.points.surface_measure import grid_of, source
from loss_landscape.restore import Restored, add_restore_flags, restore
from loss_landscape.surface_file import Surface, create, read_surface
from utilities.cli import Parser, add_run_flags, positive_float, positive_int, report_files, run
from utilities.files import locked, remove_parts
from utilities.ranks import refuse_several


class Eigenvalues:
    """A ``Measure`` of the Hessian's ends, at each point by Lanczos from one and the same vector.

    To start from a neighbour's eigenvector would save products, and make a point's last digits
    hang on where a stopped run was gone on with.

    Args:
        restored: model and loss.
        batches: of the samples whose mean loss is meant.
        directions: one for each axis, of ``weights``.
        weights: the live ones.
        args: the flags ``max_steps``, ``tol`` and ``seed``.

    Raises:
        ValueError: the model has one parameter; see CurvatureOperator.
    """

    names: tuple[str, ...] = (
        "train_loss",
        *("min_eig", "max_eig", "min_eig_residual", "max_eig_residual"),
        *("certain_eig", "eig_ratio"),
    )
    block = 1

    def __init__(
        self,
        restored: Restored,
        batches: list,
        weights: Direction,
        directions: Sequence[Direction],
        args: argparse.Namespace,
    ) -> None:
        self.restored, self.batches = restored, batches
        self.weights, self.directions = weights, directions
        self.how = args.max_steps, args.tol, args.seed
        self.operator = HessianOperator(restored.model, restored.loss, batches, restored.forward)
        if self.operator.flat.numel() < 2:
            raise ValueError(f"{restored.path}: a model of one parameter has no two eigenvalues")

    def __call__(self, points: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.array([self.at(steps) for steps in points.tolist()])
        return dict(zip(self.names, rows.T, strict=True))

    def at(self, steps: Sequence[float]) -> tuple[float, ...]:
        """The values in the order of ``names``; NaN where loss or Hessian are not finite."""
        with moved(self.weights, self.directions, steps):
            loss = loss_and_accuracy(self.restored, {"train": self.batches})["train_loss"]
            ends = self.ends() if np.isfinite(loss) else (np.nan,) * 5
        low, high = ends[:2]
        return (loss, *ends, abs(low / high) if high else np.nan)

    def ends(self) -> tuple[float, ...]:
        """Smallest and largest eigenvalue, the residuals of both, and whether they are certain."""
        try:
            return spectrum_ends(self.operator, self.operator.flat, *self.how)[:5]
        except ValueError:  # a product is not finite
            return (np.nan,) * 5


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_restore_flags(parser, batch_size=256)
    group = parser.add_argument_group("grid and directions")
    group.add_argument("--x", type=axis, default="-1:1:21", help="min:max:num (write --x=-1:1:21)")
    group.add_argument("--y", type=axis, help="the same for the second direction; none: 1D")
    add_direction_flags(group)
    group = parser.add_argument_group("eigenvalues")
    group.add_argument("--max_steps", type=positive_int, default=200, help="products a point")
    group.add_argument(
        "--tol", type=positive_float, default=1e-3, help="residual over the largest eigenvalue"
    )
    group = parser.add_argument_group("results")
    group.add_argument("--surf_file", type=Path, help="default: <checkpoint>_eigen.h5")
    for flag, text in (
        ("--overwrite", "replace another surface of that name"),
        ("--plot", "draw the eigenvalues' ratio"),
    ):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=False, help=text)
    add_run_flags(parser, seed=123)
    args = parser.parse_args(argv)
    check_directions(args)
    if args.max_steps < 2:
        raise ValueError("--max_steps 1: two eigenvalues take 2 products or more")
    if args.plot and args.y and min(args.x.num, args.y.num) == 1:
        raise ValueError("--plot: a grid of one line can't be drawn; leave --plot or --y out")
    return args


def main(argv: Sequence[str] | None = None) -> Path:
    """Compute the eigenvalues as the command line says; return the file's path."""
    args = parse_args(argv)
    refuse_several()
    restored = restore(args)
    path = args.surf_file or args.out_dir / "to_plot" / f"{args.model_file.stem}_eigen.h5"
    weights = coordinates(restored.model, args.dir_type)
    directions, kind = directions_and_kind(args, restored, weights, path)
    batches = restored.batches("train", args.samples, args.batch_size)
    measure = Eigenvalues(restored, batches, list(weights.values()), directions, args)
    surface = grid_of(args)
    surface.attributes = {**_attributes(args, restored, directions), **kind}
    if args.dir_type == "states":
        directions = [with_counters(restored.model, direction) for direction in directions]
    with locked(path, "name this surface with --surf_file"):
        remove_parts(path)
        if path.exists() and path.stat().st_size and not args.overwrite:
            refuse_another(path, surface, measure.names)
        else:
            create(path, surface, directions, measure.names)
        compute(path, surface, measure)
        found = read_surface(path)
        print("\n".join(summary(found, args.tol)))
        pictures = draw(path, found, args) if args.plot else []
    report_files([path, *pictures])
    return path


def _attributes(
    args: argparse.Namespace, restored: Restored, directions: list[Direction]
) -> dict[str, object]:
    """What makes two of these surfaces the same; ``arguments`` and title are for the record."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    same = ("dir_type", "seed", "max_steps", "tol", "batch_size")
    return {
        **source(args, restored),
        "directions_sha256": fingerprint(directions),
        "norm": f"{args.xnorm} {args.ynorm}",
        "samples": args.samples or 0,
        **{name: plain[name] for name in same},
        **described(args),
        "title": restored.run.title,
        "arguments": json.dumps(plain, default=str),
    }


def draw(path: Path, surface: Surface, args: argparse.Namespace) -> list[Path]:
    """Draw the eigenvalues' ratio; what of it is below ``--tol`` is noise, and has one colour."""
    if surface.y is None:
        return plot_1D.draw(path, "eig_ratio", args.out_dir)
    ratio = surface.values["eig_ratio"]
    high = np.nanmax(ratio, initial=0.0, where=np.isfinite(ratio))
    vmin = args.tol if high > 10 * args.tol else None
    return plot_2D.draw(path, "eig_ratio", args.out_dir, vmin)


def summary(surface: Surface, tol: float) -> list[str]:
    """The range of both eigenvalues, and at how many points they are only roughly known."""
    lines = []
    for name in ("min_eig", "max_eig"):
        value = surface.values[name]
        finite = value[np.isfinite(value)]
        lines.append(
            f"{name}: {finite.min():.4g} to {finite.max():.4g}" if len(finite) else f"{name}: -"
        )
    residual = np.maximum(*(surface.values[f"{end}_eig_residual"] for end in ("min", "max")))
    largest = np.maximum(*(abs(surface.values[f"{end}_eig"]) for end in ("min", "max")))
    rough = int((residual > 1.001 * tol * largest).sum())
    if rough:
        lines.append(f"not within --tol after --max_steps at {rough:,} of {residual.size:,} points")
    unsure = int((surface.values["certain_eig"] == 0).sum())
    if unsure:
        lines.append(f"others may lie beyond both at {unsure:,} of {residual.size:,} points")
    if not np.isfinite(residual).all():
        bad = int((~np.isfinite(residual)).sum())
        lines.append(f"loss or Hessian not finite at {bad:,} of {residual.size:,} points")
    return lines


if __name__ == "__main__":
    run(main)
