r"""Draw a training on the plane of its principal components (Li et al. 2018, section 7).

    python plot_trajectory.py --model_file ../to_plot/model_GCN_SAM_rho0.05.pt
    python plot_trajectory.py --prefix ../to_plot/model_GCN_SAM_rho0.05_epoch --max_epoch 150

takes the epochs that a training with ``--keep_epochs 1`` kept, writes the plane and the path to
``to_plot/<checkpoint>_pca.h5`` and draws it. The loss on that plane, and the path on it:

    python plot_surface.py --model_file ../to_plot/model_GCN_SAM_rho0.05.pt \
        --dir_file ../to_plot/model_GCN_SAM_rho0.05_pca.h5 --x=-1:9:51 --y=-3:3:51
    python plot_trajectory.py --model_file ../to_plot/model_GCN_SAM_rho0.05.pt \
        --surf_file ../to_plot/model_GCN_SAM_rho0.05.h5

``--model_file`` is the point (0, 0), the one that the surface is taken around.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loss_landscape.directions import Direction, cosine, fingerprint
from loss_landscape.own_model.model import build, is_own, keyword_arguments
from loss_landscape.pictures.path_picture import PCA, draw
from loss_landscape.plane.direction_flags import directions_of
from loss_landscape.plane.trajectory import (
    Projection,
    Trajectory,
    kept_beside,
    principal_directions,
    project,
    read_own_trajectory,
    read_trajectory,
)
from loss_landscape.surface_file import (
    PathOnPlane,
    Surface,
    read_path,
    read_surface,
    write_path,
)
from utilities import checkpoint
from utilities.cli import Parser, non_negative_int, positive_int, report_files, run
from utilities.files import ROOT, locked, sha256_of
from utilities.ranks import refuse_several
from utilities.runs import EPOCH, refuse_other

REMEDY = "name this one with --proj_file or replace that with --overwrite"
MARGIN = 0.25  # of the path's length along an axis, in the grid that is proposed


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    _add_checkpoint_flags(parser.add_argument_group("checkpoints of one run"))
    _add_plane_flags(parser.add_argument_group("plane"))
    group = parser.add_argument_group("results")
    group.add_argument(
        "--proj_file",
        type=Path,
        help="plane and path (default: named as the checkpoint, or as the plane's file)",
    )
    group.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace another path of that name",
    )
    group.add_argument("--out_dir", type=Path, default=ROOT, help="holds to_plot/ and plots/")
    args = parser.parse_args(argv)
    _check(args)
    return args


def _add_checkpoint_flags(group: Any) -> None:
    group.add_argument(
        "--model_file",
        type=Path,
        help="the point (0, 0), whose run's kept epochs are taken where no others are named "
        "(default: the last of those named)",
    )
    group.add_argument("--model_files", type=Path, nargs="+", help="the path's checkpoints")
    group.add_argument(
        "--model",
        help="your own model, package.module:factory, if the files are its state dicts, whose last "
        "number is the epoch",
    )
    group.add_argument("--model_args", help="of the factory, such as \"depth=20, act='relu'\"")
    group.add_argument("--prefix", help="or what their names begin with, before the epoch")
    group.add_argument("--suffix", default=".pt", help="and end in, after it")
    group.add_argument("--start_epoch", type=non_negative_int, default=0, help="the first")
    group.add_argument("--max_epoch", type=positive_int, help="the last (default: all there are)")
    group.add_argument("--save_epoch", type=positive_int, default=1, help="take each k-th epoch")


def _add_plane_flags(group: Any) -> None:
    group.add_argument(
        "--dir_type",
        choices=["weights", "states"],
        default="weights",
        help="states: batch-norm statistics too",
    )
    group.add_argument(
        "--ignore",
        choices=["none", "biasbn"],
        default="none",
        help="biasbn: leave biases and normalisation parameters out of the principal components",
    )
    group.add_argument("--dir_file", type=Path, help="the plane of these directions instead")
    group.add_argument("--surf_file", type=Path, help="that of this surface, and draw on it")
    group.add_argument("--surf_name", default="train_loss", help="which values to draw")


def _check(args: argparse.Namespace) -> None:
    """Refuse flags that can't be meant together, before anything is read."""
    every = (args.prefix, args.start_epoch, args.max_epoch, args.save_epoch)
    if args.model_files and every != (None, 0, None, 1):
        raise ValueError(
            "--model_files: names each checkpoint; leave --prefix, --start_epoch, --max_epoch and "
            "--save_epoch out"
        )
    if not (args.model_file or args.model_files or args.prefix):
        raise ValueError("no checkpoint: name --model_file, --model_files or --prefix")
    if is_own(args.model) and not (args.model_files or args.prefix):
        raise ValueError("--model: your own; name its checkpoints with --model_files or --prefix")
    if args.model_args and not is_own(args.model):
        raise ValueError("--model_args: is for a model of your own, --model package.module:factory")
    if args.dir_file and args.surf_file:
        raise ValueError("--dir_file, --surf_file: both say the plane; leave one out")
    if args.ignore != "none" and (args.dir_file or args.surf_file):
        raise ValueError("--ignore: of principal components; leave it or the plane's file out")


def main(argv: Sequence[str] | None = None) -> Path:
    """Project and draw as the command line says; return the projection file's path."""
    args = parse_args(argv)
    refuse_several()
    trajectory = _read(args)
    model_file, origin = trajectory.model_file, trajectory.origin
    sha256 = sha256_of(model_file)
    surface = _surface_around(args.surf_file, model_file, sha256) if args.surf_file else None
    directions, plane = _plane(args, trajectory)
    projection = project(trajectory.points, origin, directions)
    found = PathOnPlane(
        projection.coordinates,
        np.array(trajectory.epochs),
        {
            "checkpoint_sha256": sha256,
            "dir_type": args.dir_type,
            "plane": plane,
            "epochs_of_path": str(trajectory.epochs),
            "explained_variance_ratio": projection.shares,
            "title": trajectory.title,
        },
    )
    path = args.proj_file or args.out_dir / "to_plot" / _default_name(args, model_file)
    with locked(path, "name this path with --proj_file"):
        if path.exists() and path.stat().st_size and not args.overwrite:
            old, new = (_settings(path_on_plane) for path_on_plane in (read_path(path), found))
            refuse_other(path, old, new, "path", REMEDY)
        write_path(path, found, directions)
        picture = args.out_dir / "plots" / f"{path.stem}.png"
        draw(found, picture, surface, args.surf_name)
    print("\n".join(summary(projection, directions)))
    if surface is None:
        files = ["--model_file", str(model_file), "--dir_file", str(path)]
        if is_own(args.model):
            files += ["--model", args.model, "--dataset", "package.module:loader"]
        print(f"the loss there: {surface_command(files, projection.coordinates)}")
    report_files([path, picture])
    return path


def _read(args: argparse.Namespace) -> Trajectory:
    files = named_files(args)
    if not is_own(args.model):
        return read_trajectory(files, args.model_file, args.dir_type, args.model)
    model = build(args.model, keyword_arguments("--model_args", args.model_args))
    return read_own_trajectory(files, args.model_file, args.dir_type, model)


def named_files(args: argparse.Namespace) -> list[Path]:
    """The checkpoints that the flags name.

    Raises:
        FileNotFoundError: an epoch up to ``--max_epoch`` is not there, or none is.
        ValueError: the run of ``--model_file`` kept none.
    """
    if args.model_files:
        return args.model_files
    if args.prefix is None:
        there = kept_beside(args.model_file, checkpoint.load(args.model_file))
        prefix, suffix = str(next(iter(there.values()))).rpartition(EPOCH)[0] + EPOCH, ".pt"
    else:
        prefix, suffix = args.prefix, args.suffix
        folder, start = Path(f"{prefix}0").parent, Path(f"{prefix}0").name[:-1]
        name = re.compile(rf"{re.escape(start)}(\d+){re.escape(suffix)}", re.ASCII)
        matches = [(name.fullmatch(path.name), path) for path in folder.glob("*")]
        there = {int(match[1]): path for match, path in matches if match}
    last = args.max_epoch or max(there, default=0)
    wanted = range(args.start_epoch, last + 1, args.save_epoch)
    missing = [epoch for epoch in wanted if epoch not in there]
    if missing and (args.max_epoch or not there):
        raise FileNotFoundError(
            f"{prefix}{missing[0]}{suffix}: no such checkpoint; --start_epoch, --max_epoch and "
            "--save_epoch say which there are"
        )
    return [there[epoch] for epoch in wanted if epoch in there]


def _surface_around(path: Path, model_file: Path, sha256: str) -> Surface:
    """The surface to draw on, which must have the checkpoint at (0, 0)."""
    surface = read_surface(path)
    if surface.attributes.get("checkpoint_sha256", sha256) != sha256:
        raise ValueError(
            f"{path}: not taken around {model_file}; name its checkpoint with --model_file"
        )
    return surface


def _plane(args: argparse.Namespace, trajectory: Trajectory) -> tuple[list[Direction], str]:
    """The directions to project on, and what they are."""
    points, origin = trajectory.points, trajectory.origin
    given = args.surf_file or args.dir_file
    if given:
        directions = directions_of(given, origin, 2)
        return directions, f"directions {fingerprint(directions)}"
    if args.ignore == "biasbn":
        points = [
            [o if o.ndim <= 1 else t for t, o in zip(point, origin, strict=True)]
            for point in points
        ]
    return principal_directions(points, origin), f"{PCA}, ignore {args.ignore}"


def _default_name(args: argparse.Namespace, model_file: Path) -> str:
    given = args.surf_file or args.dir_file
    return f"{given.stem}_proj.h5" if given else f"{model_file.stem}_pca.h5"


def _settings(path: PathOnPlane) -> dict[str, Any]:
    names = ("checkpoint_sha256", "dir_type", "plane", "epochs_of_path")
    return {name: path.attributes.get(name) for name in names}


def summary(projection: Projection, directions: Sequence[Direction]) -> list[str]:
    """How much of the path the plane shows."""
    x, y = 100 * projection.shares
    return [
        f"cosine of the angle between the directions: {cosine(directions[0], directions[1]):.4f}",
        f"of the path's variance: {x:.1f} % along x, {y:.1f} % along y, "
        f"{100 * projection.share:.1f} % on the plane",
    ]


def surface_command(files: Sequence[str], steps: np.ndarray) -> str:
    """The command that takes the loss on a grid around a path (T, 2)."""
    low, high = np.minimum(steps.min(axis=0), 0), np.maximum(steps.max(axis=0), 0)
    edge = MARGIN * (high - low)
    ends = zip(low - edge, high + edge, "xy", strict=True)
    grid = " ".join(f"--{name}={a:.3g}:{b:.3g}:51" for a, b, name in ends)
    return f"plot_surface.py {shlex.join(files)} {grid}"


if __name__ == "__main__":
    run(main)
