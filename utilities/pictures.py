"""How a picture is saved, and the colours of all of them."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utilities.files import atomic_write, target

DPI = 150
SMALL_DPI = 100  # of pictures that are kept in git
PALETTE = 256
DRAWN_FROM = "Drawn from"  # the PNG's text that lists files, one a line
SUFFIXES = (".png", ".pdf", ".svg", ".eps", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
# Okabe & Ito 2008, which colour-blind people tell apart; without yellow, too pale for a line, and
# with a wine red and a grey.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#882255", "#999999"),
)
STYLES = ("-", "--", "-.", ":")  # 9 and 4: 36 pairs, and a curve shows below one that covers it
HEIGHTS = "viridis"  # matplotlib's name of the colours of a surface, from low to high
MARK = "#D55E00"  # of a point on a surface, the checkpoint; seen on all of viridis


def line_style(number: int) -> dict[str, str]:
    """Colour and style of a figure's curve ``number``, from 0, as matplotlib's keywords."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}


def plain_number(value: float, digits: int = 3) -> str:
    """To so many significant digits, and up to a million without a power: 1350, not 1.35e+03."""
    return f"{float(f'{value:.{digits}g}'):g}"


def picture_path(text: str) -> Path:
    """The path of a picture, as argparse's ``type`` of a flag such as ``--output``.

    Raises:
        argparse.ArgumentTypeError: the name doesn't end as a picture's, or is a folder's or that
            of a link to nothing.
    """
    try:
        return check_picture(Path(text))
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def check_picture(path: Path) -> Path:
    """Return ``path`` if a picture can have this name.

    Raises:
        ValueError: it doesn't end in one of ``SUFFIXES``.
        OSError: it is a folder, or a link to nothing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: no picture's name; end it in {', '.join(SUFFIXES)}")
    target(path)
    return path


def save_picture(figure: Figure, path: Path) -> Path:
    """Write ``figure`` to ``path``, whole or not at all, and return ``path``.

    Two that write one name at once leave the picture of one of them, whole.

    Raises:
        ValueError: the name is not a picture's.
        OSError: see ``utilities.files.atomic_write``.
    """
    with atomic_write(check_picture(path)) as part:
        figure.savefig(part, dpi=DPI)
    return path


def small_png(figure: Figure, files: Iterable[str] = ()) -> bytes:
    """The figure as a PNG with a palette, a third as large as one without: some 50 KB.

    Args:
        figure: what to save.
        files: names of the files that it was drawn from, which the PNG lists for ``files_of_png``.
    """
    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=SMALL_DPI)
    image = Image.open(whole).convert("RGB")
    # Other methods melt a colour that is seldom with the pale ones of many points.
    palette = image.quantize(PALETTE, Image.Quantize.MAXCOVERAGE, 1, dither=Image.Dither.NONE)
    said = PngInfo()
    if files:
        said.add_itxt(DRAWN_FROM, "\n".join(files))
    palette.save(small, format="PNG", optimize=True, pnginfo=said)
    return small.getvalue()


def files_of_png(content: bytes) -> frozenset[str]:
    """Names of the files that a PNG says it was drawn from; none where it says nothing.

    Raises:
        ValueError: it is no picture.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return frozenset(str(image.info.get(DRAWN_FROM, "")).split("\n")) - {""}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"no picture that can be read ({error})") from None
