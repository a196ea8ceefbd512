"""One run: what it is called, where its files lie, and what makes two runs the same.

Every name of a file is built here. None is read back, but for the epochs that a run kept: a
checkpoint says which run it is of.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from utilities.files import ROOT

Settings = Mapping[str, Any]

# Settings that say where, how and when a result is made: two runs that differ in nothing else are
# the same one. Every other setting makes it another.
INCIDENTAL = frozenset(
    {
        *("device", "threads", "compile", "tensorboard", "save_seconds", "keep_epochs"),  # how
        *("argv", "run", "resume", "overwrite"),
        *("data_dir", "out_dir", "model_file"),  # where; a checkpoint is known by its hash
        *("command", "commit", "python", "torch", "platform", "started"),  # when, by which code
        "processor",
        # what only repeats or explains the others
        *("defaults", "arguments", "title", "xdirection_is", "ydirection_is"),
    }
)
# What a checkpoint says of its run, beside the arguments of the training.
DESCRIPTION = ("task", "model", "model_args", "dataset", "data_args")
# Names for readers, of what the command line calls otherwise.
DATA_SETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mitbih": "MIT-BIH"}
MODELS = {"cifar": "WRN-{depth}-{width_factor}", "mitbih": "Transformer"}
EPOCH = "_epoch"  # in the names of kept epochs, before the number
OFF = ("None", "False", "0.0")  # what a flag does that the version before didn't have yet
SAFE = re.compile(r"[\w.-]{0,100}", re.ASCII)


class NameDefaults(NamedTuple):
    """What the names of files leave out: a task's usual data set and seed, an optimizer's rho."""

    rho: float | None = None
    seed: int | None = None
    dataset: str | None = None


@dataclass(frozen=True)
class Run:
    """One training with one seed.

    Attributes:
        task: "cifar", "mitbih", "GCN" or a user's own; names the files.
        optimizer: as typed after ``--optimizer``.
        rho: radius of the neighbourhood, 0.0 for optimizers without one.
        dataset: as typed after ``--dataset``.
        seed: of everything random.
        fold: of a cross-validation, from 0; None without one.
        tag: what a user added to the names.
        defaults: values that the names leave out.
        model: what is trained, in a reader's words.
        is_state: whether this is the last epoch's state, not the best epoch's weights.
        epoch: whose weights these are, if they are those of a kept epoch.
        out_dir: the folder that holds outputs/, to_plot/, Eigenvalues/ and plots/.
    """

    task: str
    optimizer: str
    rho: float
    dataset: str
    seed: int
    fold: int | None = None
    tag: str = ""
    defaults: NameDefaults = field(default_factory=NameDefaults)
    model: str = ""
    is_state: bool = False
    epoch: int | None = None
    out_dir: Path = field(default=ROOT, compare=False)

    @classmethod
    def from_arguments(
        cls, task: str, model: str, args: Settings, defaults: NameDefaults, out_dir: Path
    ) -> Run:
        """The run that a command line asks for.

        Args:
            task: names the files.
            model: its name for ``models.build``.
            args: ``vars`` of the parsed arguments, or a checkpoint's ``train_args``.
            defaults: values that the names leave out.
            out_dir: folder of the results.
        """
        return cls(
            task=task,
            optimizer=args["optimizer"],
            rho=float(args["rho"]),
            dataset=args["dataset"],
            seed=int(args["seed"]),
            fold=None if args.get("fold") is None else int(args["fold"]),
            tag=args.get("tag") or "",
            defaults=defaults,
            model=model_title(model, args),
            out_dir=out_dir,
        )

    @classmethod
    def from_checkpoint(cls, content: Settings, out_dir: Path = ROOT) -> Run:
        """The run that a checkpoint is of.

        Args:
            content: as ``checkpoint.load`` returns it.
            out_dir: folder of the results.

        Raises:
            ValueError: what names the run is missing, or can't be a part of a file's name.
        """
        args = {"dataset": content["dataset"], **content["model_args"], **content["train_args"]}
        usual = args.get("defaults") or {}
        try:
            defaults = NameDefaults(*(usual.get(name) for name in NameDefaults._fields))
            run = cls.from_arguments(content["task"], content["model"], args, defaults, out_dir)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"a checkpoint whose train_args name no run ({error}); they need optimizer, rho "
                "and seed"
            ) from error
        for name in ("task", "optimizer", "dataset", "tag"):
            value = getattr(run, name)
            if not isinstance(value, str) or not SAFE.fullmatch(value):
                raise ValueError(
                    f"a checkpoint whose {name} is {str(value)[:60]!r}: it names files, so only "
                    "letters, digits, dots, - and _ can be in it"
                )
        epoch = content["epoch"] if content.get("kept") else None
        return replace(run, is_state="resume" in content, epoch=epoch)

    # --- files ------------------------------------------------------------------------------------
    @property
    def history(self) -> Path:
        """The ``.dat`` file, a row an epoch."""
        name = f"my_train_{self.task}_{self.optimizer}_{self.rho}{self._suffix}.dat"
        return self.out_dir / "outputs" / name

    @property
    def best(self) -> Path:
        """The best epoch's weights and the test's result."""
        name = f"model_{self.task}_{self.optimizer}_rho{self.rho}{self._suffix}.pt"
        return self.out_dir / "to_plot" / name

    @property
    def last(self) -> Path:
        """The last state, from which a training goes on."""
        return self.best.with_name(f"{self.best.stem}_last.pt")

    def kept(self, epoch: int) -> Path:
        """The weights of an epoch that the run keeps."""
        return self.best.with_name(f"{self.best.stem}{EPOCH}{epoch}.pt")

    def kept_epochs(self, folder: Path | None = None) -> dict[int, Path]:
        """The epochs whose weights are there, or in another ``folder``, in order."""
        folder, stem = folder or self.best.parent, self.best.stem + EPOCH
        files = folder.glob(f"{glob.escape(stem)}*.pt")
        numbers = [path.stem.removeprefix(stem) for path in files]
        epochs = sorted(int(n) for n in numbers if re.fullmatch(r"0|[1-9]\d*", n, re.ASCII))
        return {epoch: folder / self.kept(epoch).name for epoch in epochs}

    @property
    def surface(self) -> Path:
        """The loss surface around the run's checkpoint, named as it."""
        return self.best.with_name(f"{self.best.stem}{self._part}.h5")

    @property
    def spectrum(self) -> Path:
        """The Hessian's spectrum, without ``_eigen.npy``, ``_weight.npy`` or ``.json``."""
        usual = self.defaults
        name = f"{self.task}_{self.optimizer}"
        name += "" if self.rho == usual.rho else f"_rho{self.rho}"
        name += "" if self.seed == usual.seed else f"_seed{self.seed}"
        name += "" if self.dataset == usual.dataset else f"_{self.dataset}"
        name += "" if self.fold is None else f"_fold{self.fold}"
        name += f"_{self.tag}" if self.tag else ""
        return self.out_dir / "Eigenvalues" / f"{name}{self._part}"

    @property
    def spectrum_picture(self) -> Path:
        return self.out_dir / "plots" / f"eig_{self.spectrum.name}.png"

    def surface_picture(self, kind: str) -> Path:
        """A picture of the surface: "1d", "2dcontour", "2dcontourf", "2dheat" or "3dsurface"."""
        return self.out_dir / "plots" / f"{self.surface.name}_{kind}.png"

    @property
    def _part(self) -> str:
        """What the names of a state or a kept epoch, and of what is made of them, end in."""
        if self.epoch is not None:
            return f"{EPOCH}{self.epoch}"
        return "_last" if self.is_state else ""

    @property
    def _suffix(self) -> str:
        suffix = "" if self.dataset == self.defaults.dataset else f"_{self.dataset}"
        suffix += "" if self.fold is None else f"_fold{self.fold}"
        suffix += "" if self.seed == self.defaults.seed else f"_seed{self.seed}"
        return suffix + (f"_{self.tag}" if self.tag else "")

    # --- words ------------------------------------------------------------------------------------
    @property
    def title(self) -> str:
        """For pictures: "WRN-16-2 on CIFAR-10, SAM, rho 0.05", and what isn't the default."""
        words = [f"{self.model} on {DATA_SETS.get(self.dataset, self.dataset)}", self.optimizer]
        if self.rho or self.defaults.rho:  # 0 says something where there is a radius
            words.append(f"rho {self.rho:g}")
        if self.fold is not None:
            words.append(f"fold {self.fold}")
        if self.seed != self.defaults.seed:
            words.append(f"seed {self.seed}")
        words += [self.tag] if self.tag else []
        words += ["last epoch"] if self.is_state else []
        words += [f"epoch {self.epoch}"] if self.epoch is not None else []
        return ", ".join(words)


@dataclass(frozen=True)
class OwnRun:
    """A checkpoint that no training of this project wrote: results are named after its file.

    Attributes:
        model_file: the checkpoint.
        model: what was trained, in a reader's words.
        dataset: on what.
        out_dir: the folder that holds Eigenvalues/.
    """

    model_file: Path
    model: str
    dataset: str
    out_dir: Path = field(default=ROOT, compare=False)

    @property
    def spectrum(self) -> Path:
        """Without ``_eigen.npy``, ``_weight.npy`` or ``.json``."""
        return self.out_dir / "Eigenvalues" / self.model_file.stem

    @property
    def title(self) -> str:
        """For pictures: "resnet18 on cifar10, model_best"."""
        return f"{self.model} on {self.dataset}, {self.model_file.stem}"


def model_title(model: str, model_args: Settings) -> str:
    """A model in a reader's words: "WRN-16-2", "Transformer", "GCN", or a factory's own name."""
    try:
        return MODELS[model].format(**model_args) if model in MODELS else model.split(":")[-1]
    except KeyError:  # of a model with other arguments
        return model


# --- what makes two runs the same -----------------------------------------------------------------
def identity(settings: Settings, over: Collection[str] = ()) -> dict[str, Any]:
    """The settings that make a result this one.

    Args:
        settings: by name, or by flag.
        over: settings in which results may differ too, such as ("seed", "fold"); they are left
            out of nested dicts as well, because a data set has a seed and a fold of its own.
    """
    return {
        key: {k: v for k, v in value.items() if k not in over} if isinstance(value, dict) else value
        for key, value in settings.items()
        if key.removeprefix("--") not in INCIDENTAL and key not in over
    }


def run_settings(content: Settings) -> dict[str, Any]:
    """All settings of a checkpoint's run: the training's arguments, and what they made of it."""
    return {**content["train_args"], **{key: content[key] for key in DESCRIPTION}}


def differing(old: Settings, new: Settings) -> dict[str, Any]:
    """The settings that make two results different ones, with their values in ``old``.

    A setting that one of them lacks, because its version had no such flag, is off there.
    """
    before, now = identity(old), identity(new)
    either, both = {**before, **now}, before.keys() & now.keys()
    keys = [key for key in either if before.get(key) != now.get(key)]
    return {key: before.get(key) for key in keys if key in both or f"{either[key]}" not in OFF}


def flag_differences(first: Settings, other: Settings) -> list[str]:
    """Each flag in which ``other`` isn't as ``first``, with both values, for a message."""
    return [
        f"--{key} ({other.get(key)}, not {first.get(key)})"
        for key in {**first, **other}
        if first.get(key) != other.get(key)
    ]


def refuse_other(
    path: Path, old: Settings, new: Settings, kind: str, remedy: str, values: bool = False
) -> None:
    """Stop before another result is overwritten or gone on with.

    Args:
        path: the file that holds the old one.
        old: its settings.
        new: those of the one that is to be written there.
        kind: what it is, such as "run" or "surface".
        remedy: what the user can do.
        values: say the old ones' values, as flags.

    Raises:
        ValueError: names the settings that differ.
    """
    different = differing(old, new)
    if not different:
        return
    said = f"which differs in {', '.join(different)}"
    if values:
        said = "with " + ", ".join(f"--{key} {value}" for key, value in list(different.items())[:4])
    raise ValueError(f"{path}: holds another {kind}, {said}; {remedy}")
