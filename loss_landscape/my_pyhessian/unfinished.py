"""What a spectrum that was stopped has finished: one file a piece, in a folder beside the result.

A piece is one probe, one layer or the eigenvalues. Each file is written whole or not at all, and
says nothing but numbers; ``settings.json`` says whose they are.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from loss_landscape.my_pyhessian.spectrum_file import LATER
from utilities.files import atomic_write
from utilities.runs import refuse_other

Piece = dict[str, np.ndarray]


class Unfinished:
    """The pieces of one spectrum, ``<stem>.part/<piece>.npz``.

    Use it under the lock of the result, so that one process at a time writes it.

    Args:
        stem: the spectrum's name.
        settings: by flag; what makes two spectra the same.
        overwrite: begin anew where the pieces are another spectrum's.

    Attributes:
        pieces: by name.

    Raises:
        ValueError: the folder holds pieces of another spectrum, or unreadable ones.
        OSError: the folder can't be written.
    """

    def __init__(self, stem: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
        self.folder = stem.with_name(f"{stem.name}.part")
        self.pieces: dict[str, Piece] = {}
        said = self.folder / "settings.json"
        plain = json.loads(json.dumps(settings, default=str))
        if said.exists() and not self._is_of(said, plain, overwrite):
            self.remove()
        for path in sorted(self.folder.glob(".*.part.*")):  # of a writer that was killed
            path.unlink()
        for path in sorted(self.folder.glob("*.npz")):
            self.pieces[path.stem] = _read(path)
        with atomic_write(said) as part:
            part.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")

    def _is_of(self, said: Path, settings: Mapping[str, Any], overwrite: bool) -> bool:
        remedy = "give its flags again, or --overwrite begins anew"
        try:
            later = {f"--{name}": value for name, value in LATER.items()}
            old = {**later, **json.loads(said.read_text(encoding="utf-8"))}
        except (ValueError, TypeError) as error:
            if overwrite:
                return False
            raise ValueError(f"{said}: holds no settings; --overwrite begins anew") from error
        try:
            refuse_other(self.folder, old, settings, "unfinished spectrum", remedy)
        except ValueError:
            if overwrite:
                return False
            raise
        return True

    def add(self, name: str, piece: Piece) -> None:
        """Keep a piece on the disk, now."""
        with atomic_write(self.folder / f"{name}.npz") as part:
            np.savez(part, allow_pickle=False, **piece)
        self.pieces[name] = piece

    def remove(self) -> None:
        """Take the pieces away: the spectrum is finished, or begun anew."""
        for path in (*self.folder.glob("*.npz"), self.folder / "settings.json"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's file is in it
            self.folder.rmdir()


def _read(path: Path) -> Piece:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: damaged ({error}); remove this file, and its piece is computed again"
        ) from error
