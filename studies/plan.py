"""A study's jobs in their order, and the command line that each of them is."""

from __future__ import annotations

import argparse
import importlib
import io
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from studies.section import Flags
from studies.table import ALONG, SCRIPTS, Measures, Optimizer, Study
from utilities.runs import DATA_SETS, Run

STAGES = ("trials", "runs", "measures")
TRAINING = "training"
KEPT = "kept_epochs"  # a training run once more to keep epochs, and the folder of its results


@dataclass(frozen=True)
class Job:
    """One command line of a study.

    Attributes:
        stage: "trials", "runs" or "measures".
        kind: "training", what is measured, or "kept_epochs": a training run once more for that.
        data, optimizer: their names.
        value: of the tuned flag; None where the study still has to choose it.
        taken: flags with the values that were chosen for other optimizers; empty where the study
            still has to choose them.
    """

    stage: str
    kind: str
    data: str
    optimizer: str
    seed: int
    fold: int | None
    value: float | None = None
    taken: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Command:
    """A script of the project, its flags, and those that say in which folders it works."""

    script: str
    flags: tuple[str, ...]
    folders: tuple[str, ...]

    @property
    def argv(self) -> list[str]:
        return [*self.flags, *self.folders]

    @property
    def module(self) -> str:
        return module_of(self.script)

    @property
    def line(self) -> str:
        """To be typed in the repository's root."""
        return shlex.join(["python", self.script, *self.argv])

    def parse(self) -> argparse.Namespace:
        """What the script reads from it.

        Raises:
            ValueError: the script would refuse it, or says that a flag has no effect.
        """
        module = importlib.import_module(self.module)
        said, err = io.StringIO(), io.StringIO()
        try:
            with redirect_stdout(said), redirect_stderr(err):
                args = module.parse_args(self.argv)
        except SystemExit as end:
            text = err.getvalue().partition("error: ")[2] or "can't be read"
            raise ValueError(text.removesuffix(" (--help lists the flags)\n")) from end
        if "no effect" in said.getvalue():
            raise ValueError(said.getvalue().strip().removeprefix("note: "))
        return args


def module_of(script: str) -> str:
    """Under which name a script is imported."""
    return ".".join(PurePosixPath(script).with_suffix("").parts)


class Plan:
    """A study in its folders.

    Args:
        study: its table.
        out_dir: folder of its results.
        data_dir: folder of the data sets.
        threads: of each command.
    """

    def __init__(self, study: Study, out_dir: Path, data_dir: Path, threads: int = 1) -> None:
        self.study, self.out_dir, self.data_dir = study, out_dir, data_dir
        self.threads = threads
        self.measures: Mapping[str, Measures] = {m.kind: m for m in study.measures}
        self._commands: dict[Job, Command] = {}
        self._args: dict[Job, argparse.Namespace] = {}

    # --- which, in which order --------------------------------------------------------------------
    def trials(self) -> Iterator[Job]:
        """Each optimizer's own, seed after seed."""
        for seed in self.study.trials.seeds:
            for data in self.study.data:
                for optimizer in self.study.optimizers:
                    if optimizer.has_trials:
                        yield from self._values(data.name, optimizer, seed)

    def _values(self, data: str, optimizer: Optimizer, seed: int) -> Iterator[Job]:
        for fold in self.study.trials.folds:
            for value in optimizer.values:
                yield Job("trials", TRAINING, data, optimizer.name, seed, fold, value)

    def runs(self, seed: int) -> Iterator[Job]:
        """The trainings of a seed, fold after fold, so that what is there is balanced."""
        for fold in self.study.folds:
            for data in self.study.data:
                for optimizer in self.study.optimizers:
                    yield Job("runs", TRAINING, data.name, optimizer.name, seed, fold)

    def jobs(self) -> Iterator[Job]:
        """All, without the values that are to be chosen: trials, then seed after seed.

        A seed's measures come before the next seed's trainings, so that a study cut short has all
        of fewer seeds.
        """
        yield from self.trials()
        for seed in self.study.seeds:
            yield from self.runs(seed)
            for measures in self.study.measures:
                yield from self._measured(measures, seed)

    def _measured(self, measures: Measures, seed: int) -> Iterator[Job]:
        for job in self.runs(seed):
            if measures.are_of(job.seed, job.fold, job.data, job.optimizer):
                measure = replace(job, stage="measures", kind=measures.kind)
                needed = self.needs(measure)
                yield from [needed] if needed and needed.kind == KEPT else []
                yield measure

    def needs(self, job: Job) -> Job | None:
        """The training that a measure is of; None for a training."""
        if job.kind in (TRAINING, KEPT):
            return None
        if job.kind == ALONG and not self.study.keeps_epochs(job.data, job.optimizer):
            return replace(job, kind=KEPT)
        return self.training_of(job)

    def measures_of(self, training: Job) -> Iterator[Job]:
        """What is measured of a training's minimum; of a trial's nothing."""
        which = (training.seed, training.fold, training.data, training.optimizer)
        for measures in self.study.measures:
            if training.stage == "runs" and measures.are_of(*which):
                yield replace(training, stage="measures", kind=measures.kind)

    def label(self, job: Job) -> str:
        """For people: "MUTAG, SAM, rho 0.05, seed 1, fold 0, spectrum"."""
        optimizer = self.study.optimizer(job.optimizer)
        words = [job.data, job.optimizer]
        words += [] if job.value is None else [f"{optimizer.tuned} {job.value:g}"]
        words += [f"trial seed {job.seed}" if job.stage == "trials" else f"seed {job.seed}"]
        words += [] if job.fold is None else [f"fold {job.fold}"]
        return ", ".join([*words, *([] if job.kind == TRAINING else [job.kind])])

    # --- command lines ----------------------------------------------------------------------------
    def command(self, job: Job) -> Command:
        """The command line of a job whose value is known."""
        if job not in self._commands:
            make = self._training if job.kind in (TRAINING, KEPT) else self._measure
            self._commands[job] = make(job)
        return self._commands[job]

    def args(self, job: Job) -> argparse.Namespace:
        """What its script reads.

        Raises:
            ValueError: the script would refuse it; the message names the table and the job.
        """
        if job not in self._args:
            try:
                self._args[job] = self.command(job).parse()
            except ValueError as error:
                raise ValueError(f"{self.study.path}, {self.label(job)}: {error}") from error
        return self._args[job]

    def run_of(self, job: Job) -> Run:
        """The training that the job is, or whose minimum it measures."""
        return self.args(self.training_of(job)).run

    def training_of(self, job: Job) -> Job:
        """The run whose minimum a job measures, or which it runs once more."""
        stage = "runs" if job.stage == "measures" else job.stage
        return replace(job, stage=stage, kind=TRAINING)

    def log(self, job: Job) -> Path:
        ending = "" if job.kind == TRAINING else f"_{job.kind}"
        return self.out_dir / "logs" / f"{self.run_of(job).best.stem}{ending}.log"

    def check(self) -> None:
        """See that each command line can be read and says all, and that no two share a file.

        Raises:
            ValueError: names the table and the job.
        """
        names: dict[Path, Job] = {}
        for job in self._all_values():
            args = self.args(job)
            if getattr(args, "precision", None) == "auto":
                raise ValueError(
                    f"{self.study.path}, {self.label(job)}: precision auto is bf16 on some "
                    "machines and fp32 on others, whose results can't be compared; give the "
                    'precision "fp32" or "bf16" among the flags'
                )
            if job.kind != TRAINING:
                continue
            other = names.setdefault(args.run.best, job)
            if other != job:
                raise ValueError(
                    f"{self.study.path}: {self.label(other)} and {self.label(job)} would write the "
                    f"same {args.run.best.name}; give them names that differ in letters or digits"
                )

    def _all_values(self) -> Iterator[Job]:
        """Every job that there may be, of the first seed and fold: the others are like them."""
        first = (self.study.seeds[0], self.study.folds[0])
        trials = self.study.trials
        yield from (self.assumed(job) for job in self.trials() if job.fold == trials.folds[0])
        for job in self.jobs():
            if job.stage == "runs" and (job.seed, job.fold) == first:
                values = self.study.optimizer(job.optimizer).values
                yield from (self.assumed(replace(job, value=value)) for value in values)
        for measures in self.study.measures:
            for job in islice(self._measured(measures, measures.seeds[0]), 2):  # KEPT is the first
                yield self.assumed(job)

    def assumed(self, job: Job) -> Job:
        """The job with the first of the values that may be chosen for it, to look at its flags."""
        study = self.study
        value = study.optimizer(job.optimizer).values[0] if job.value is None else job.value
        others = study.taken(job.data, job.optimizer, job.stage == "trials")
        taken = {flag: study.optimizer(other).values[0] for flag, other in others.items()}
        return replace(job, value=value, taken=tuple(taken.items()))

    def _training(self, job: Job) -> Command:
        study, optimizer = self.study, self.study.optimizer(job.optimizer)
        flags: dict[str, Any] = dict(study.flags_of(job.data, job.optimizer, job.stage == "trials"))
        flags |= {"keep_epochs": self.measures[ALONG].keep_epochs} if job.kind == KEPT else {}
        assert job.value is not None, job
        flags |= {**dict(job.taken), optimizer.tuned: job.value}
        if optimizer.times_epochs > 1:
            flags["epochs"] = self._epochs(flags) * optimizer.times_epochs
        flags["seed"] = job.seed
        flags |= {} if job.fold is None else {"fold": job.fold}
        tag = self._tag(job, flags)
        flags |= {"tag": tag} if tag else {}
        out_dir = self.out_dir / KEPT if job.kind == KEPT else self.out_dir
        return self._with_folders(study.script, [*words(flags), "--resume"], out_dir)

    def _epochs(self, flags: Flags) -> int:
        return self._with_folders(self.study.script, words(flags), self.out_dir).parse().epochs

    def _tag(self, job: Job, flags: Mapping[str, Any]) -> str:
        """What the names of a run's files don't say else, of the run alone.

        A table that grows therefore leaves the names of the runs that are there as they are.
        """
        optimizer = self.study.optimizer(job.optimizer)
        dataset = str(flags.get("dataset"))
        parts = [] if job.data in (dataset, DATA_SETS.get(dataset)) else [job.data]
        parts += [] if job.optimizer == flags.get("optimizer") else [job.optimizer]
        if optimizer.tuned != "rho":  # which the names have
            short = "".join(word[0] for word in optimizer.tuned.split("_"))  # lr: 50 characters
            parts.append(f"{short}{job.value:g}".replace(".", "p").replace("+", ""))
        return "_".join(re.sub(r"[^A-Za-z0-9_-]+", "-", part).strip("-") for part in parts)

    def _measure(self, job: Job) -> Command:
        flags = words(self.measures[job.kind].flags)
        if job.kind == ALONG:
            flags = [*map(str, self.kept_files(job).values()), *flags]
        else:
            flags.append(f"--model_file={self.run_of(job).best}")
        return self._with_folders(SCRIPTS[job.kind], flags, self.out_dir)

    def kept_files(self, job: Job) -> dict[int, Path]:
        """By epoch, the weights that a training keeps, or that a measure is of."""
        args = self.args(self.needs(job) or job)
        return {e: args.run.kept(e) for e in range(0, args.epochs + 1, args.keep_epochs)}

    def _with_folders(self, script: str, flags: list[str], out_dir: Path) -> Command:
        folders = (f"--data_dir={self.data_dir}", f"--out_dir={out_dir}")
        return Command(script, (*flags, f"--threads={self.threads}"), folders)


def words(flags: Flags) -> list[str]:
    """Flags as a command line has them."""
    found: list[str] = []
    for name, value in flags.items():
        if isinstance(value, bool):
            found.append(f"--{'' if value else 'no-'}{name}")
        elif isinstance(value, list):
            found += [f"--{name}", *map(str, value)]
        else:
            found.append(f"--{name}={value}")
    return found
