"""Pictures of a few samples of each class: images, signals or graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from DatasetClass.batches import Dataset
from DatasetClass.describe.panels import bare, choose, head, label_row
from utilities.pictures import COLOURS

IMAGES, SIGNALS = 12, 5  # of each class


def picture_samples(dataset: Dataset, names: Sequence[str], seed: int) -> Figure:
    """Show training samples of each class, chosen at random from ``seed``; ``names`` by label."""
    inputs, _ = dataset.fetch(dataset.train.indices[:1])
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(inputs, Tensor):
        from DatasetClass.describe.graph_pictures import graphs  # PyTorch Geometric takes seconds

        return graphs(dataset, names, generator)
    return (_images if inputs.ndim == 4 else _signals)(dataset, names, generator)


# --- images ---------------------------------------------------------------------------------------
def _images(dataset: Dataset, names: Sequence[str], generator: torch.Generator) -> Figure:
    """A strip of images a class; many classes stand in columns with fewer images each."""
    classes = dataset.num_classes
    columns = -(-classes // 25)
    rows, count = -(-classes // columns), max(3, IMAGES // columns)
    chosen = [choose(dataset, label, count, generator) for label in range(classes)]
    pictures, _ = dataset.fetch(torch.cat(chosen))
    pictures = _visible(pictures)
    margin = 0.4 + 0.09 * max(map(len, names))  # inches
    size = (columns * (margin + 0.52 * count), 0.6 + 0.52 * rows)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(head(dataset, "images"))
    grid = figure.subplots(rows, columns, squeeze=False)
    strips = pictures.split([len(part) for part in chosen])
    for axes in grid.flat:
        bare(axes)
    for label, strip in enumerate(strips):
        axes = grid[label % rows][label // rows]
        if len(strip):  # a class may have no training samples
            row = [np.pad(picture, _GAP, constant_values=1) for picture in strip]
            axes.imshow(np.concatenate(row, axis=1))
        label_row(axes, dataset, names, label, count=columns == 1)
    return figure


_GAP = ((0, 0), (0, 1), (0, 0))  # a white line right of each image


def _visible(images: Tensor) -> Tensor:
    """(B, C, H, W) normalised to (B, H, W, 3) from 0 to 1.

    Among so many images each channel reaches black and white, so its range undoes whatever
    normalisation the data set applies.
    """
    images = images.float().cpu()
    low, high = images.amin(dim=(0, 2, 3), keepdim=True), images.amax(dim=(0, 2, 3), keepdim=True)
    images = (images - low) / (high - low).clamp_min(1e-6)
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


# --- signals --------------------------------------------------------------------------------------
def _signals(dataset: Dataset, names: Sequence[str], generator: torch.Generator) -> Figure:
    """A row a class; zeros that only pad the signal are grey."""
    classes, count = dataset.num_classes, SIGNALS
    rate: float | None = getattr(dataset, "rate", None)
    figure = Figure(figsize=(2.2 + 1.9 * count, 0.9 + 1.15 * classes), layout="constrained")
    figure.suptitle(head(dataset, "signals"))
    grid = figure.subplots(classes, count, squeeze=False, sharex=True, sharey=True)
    for label in range(classes):
        signals, _ = dataset.fetch(choose(dataset, label, count, generator))
        signals = signals[:, : dataset.model_args.get("length")]  # R-R intervals are no signal
        for axes in grid[label][len(signals) :]:
            axes.set_axis_off()
        for axes, signal in zip(grid[label], signals.cpu().flatten(1).numpy(), strict=False):
            _plot_signal(axes, signal, rate, COLOURS[label % len(COLOURS)])
        label_row(grid[label][0], dataset, names, label)
    unit = "sample" if rate is None else f"seconds ({rate:g} Hz); grey: padding"
    figure.supxlabel(unit, fontsize=10)
    return figure


def _plot_signal(axes: Axes, signal: np.ndarray, rate: float | None, colour: str) -> None:
    time = np.arange(len(signal)) / (rate or 1)
    used = int(np.flatnonzero(signal)[-1]) + 1 if signal.any() else 0
    axes.plot(time[:used], signal[:used], color=colour, lw=1.2)
    axes.plot(time[used:], signal[used:], color="0.7", lw=1.2)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
