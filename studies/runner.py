"""Carry out a study: choose by trials, train, measure; go on where a killed one was.

    python study.py studies/gcn.toml --jobs 2                # two cores
    python study.py studies/gcn.toml --print --stage trials  # command lines, such as for SLURM
    python study.py studies/cifar_paper.toml --set epochs=1 --set train_samples=256   # a smoke test

Each run is one of the project's command lines. What is done is skipped, what fails is named and
the rest goes on; started again, a study does what is missing. docs/study.md tells more.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from studies.choice import as_table
from studies.collect import RUNS_FILE, collected
from studies.fewer_runs import add_fewer_runs_flag, replace_runs
from studies.finished import finished
from studies.known_runs import KnownRuns, add_known_flag
from studies.other_values import other_values
from studies.plan import KEPT, STAGES, Job, Plan, module_of
from studies.progression import Progression
from studies.runs_file import write_runs
from studies.section import Flags
from studies.table import SCRIPTS, read_study, tomllib
from studies.workers import Processes, Workers, on_cluster
from utilities.cli import Parser, positive_int
from utilities.files import ROOT, locked
from utilities.interrupt import Interrupted, Interruption
from utilities.progress import Progress, duration
from utilities.ranks import Ranks

DATA = {"GCN": ["DatasetClass.TUD"], "mitbih": ["DatasetClass.mitbih"]}  # scripts import them late
TICK = 1.0  # seconds between two looks at whether to stop


# --- carrying it out ------------------------------------------------------------------------------
class StudyProgress(Progress):
    """Runs done, running and failed, and the time left.

    The time is that of the jobs of one kind, data set and optimizer that this process has seen end;
    where some have none, it says "at least", and where most have none, nothing.
    """

    def __init__(self, state: Progression, slots: int) -> None:
        super().__init__("runs of the study", len(state.waiting))
        self.state, self.slots = state, slots
        self.running: dict[Job, float] = {}
        self.seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def begin(self, job: Job) -> None:
        self.running[job] = time.monotonic()

    def end(self, job: Job) -> None:
        self.seconds[_kind(job)].append(time.monotonic() - self.running.pop(job))
        self.update()

    def counted(self) -> str:
        failed = f", {len(self.state.failed)} failed" if self.state.failed else ""
        return f"{super().counted()} done, {len(self.running)} running{failed}"

    def rest(self) -> str:
        means = {kind: fmean(seconds) for kind, seconds in self.seconds.items()}
        now = time.monotonic()
        known = [means.get(_kind(job)) for job in self.state.waiting]
        known += [
            max(means[_kind(job)] - (now - begun), 0.0) if _kind(job) in means else None
            for job, begun in self.running.items()
        ]
        seconds = sum(each for each in known if each is not None) / self.slots
        if 2 * known.count(None) > len(known) or not seconds:
            return ""
        return f"{'at least ' if None in known else ''}{duration(seconds)} left"


def _kind(job: Job) -> tuple[str, ...]:
    return (job.kind, job.stage, job.data, job.optimizer)


def carry_out(
    state: Progression, workers: Workers, progress: StudyProgress, interruption: Interruption
) -> None:
    """Start what can be started and name what fails, until nothing is left or a signal comes.

    Raises:
        Interrupted: all jobs have saved and left.
    """
    while True:
        while not interruption.number and len(progress.running) < workers.slots:
            job = state.next()
            if job is None:
                break
            workers.start(job, state.plan.command(job), state.plan.log(job))
            progress.begin(job)
        if not progress.running:
            break
        for job, code in workers.ended(TICK):
            progress.end(job)
            if not interruption.number:
                note_end(state, job, code)
        progress.show()
        if interruption.number:
            workers.stop()
            while progress.running:
                for job, _ in workers.ended(TICK):
                    progress.end(job)
    if interruption.number:
        again = shlex.join(["python", *sys.argv])
        raise Interrupted(interruption.number, f"stopped, all is saved; go on with: {again}")


def note_end(state: Progression, job: Job, code: int) -> None:
    """Count a job as done or failed, and choose where that can be done now."""
    try:
        done = code == 0 and finished(state.plan, job)
        why = f"exit code {code}" if code else "its result is not there"
        if job.kind == KEPT and not code:  # it found itself finished
            why += " (has keep_epochs changed, or are epochs gone? "
            why += f"remove the folder {KEPT} to run it once more)"
    except ValueError as error:
        done, why = False, str(error)
    if not done:
        log = state.plan.log(job)
        state.failed[job] = f"{why}: {last_line(log)} ({log})"
        print(f"failed: {state.plan.label(job)}: {state.failed[job]}", flush=True)
        return
    state.done.add(job)
    if job.stage == "trials" and state.choose(job.data, job.optimizer):
        state.write_choices()


def last_line(log: Path) -> str:
    """The last line that a job printed, cut to what a line of a terminal holds."""
    try:
        lines = log.read_text("utf-8", errors="backslashreplace").split("\n")
    except OSError:
        return "nothing printed"
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "nothing printed")


# --- command line ---------------------------------------------------------------------------------
def assignment(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``, the value as in a table, or text that needs no quotes."""
    key, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", key):
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        parsed = value
    if not isinstance(parsed, bool | int | float | str):
        raise argparse.ArgumentTypeError(f"{text!r}: the value is neither a number nor text")
    return key, parsed


def pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error


def add_set_flag(parser: Parser, text: str) -> None:
    """Add ``--set``, of which ``text`` says what it is for."""
    parser.add_argument(
        "--set", type=assignment, action="append", default=[], metavar="KEY=VALUE", help=text
    )


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("table", type=Path, help="the study, such as studies/gcn.toml")
    parser.add_argument(
        "--jobs",
        type=positive_int,
        help="how many runs at once on this machine (default: one a core, one with a GPU)",
    )
    parser.add_argument("--threads", type=positive_int, default=1, help="CPU threads of each run")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="hand the runs to this Ray cluster, whose machines share the folders; without an "
        "address to one on this machine",
    )
    parser.add_argument("--stage", choices=STAGES, help="only this part of the study")
    parser.add_argument(
        "--only",
        type=pattern,
        metavar="REGEX",
        help='only runs whose name fits, such as "MUTAG, SAM, seed 1"',
    )
    parser.add_argument(
        "--print",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="print the command lines and do nothing; comments are what is done or must wait",
    )
    add_set_flag(
        parser,
        "a flag of all trainings in place of the table's; makes it another study, in another "
        "folder",
    )
    add_known_flag(parser)
    add_fewer_runs_flag(parser)
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", help="data sets")
    parser.add_argument(
        "--out_dir", type=Path, help="folder of the results (default: outputs/studies/<table>)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Carry out a study as the command line says; exit with 1 if a run failed."""
    args = parse_args(argv)
    plan = make_plan(args.table, dict(args.set), args.out_dir, args.data_dir, args.threads)
    jobs = wanted(args, plan)
    state = Progression(plan, jobs, KnownRuns(plan, args.known))
    if args.print:
        state.look()
        print("\n".join(lines(state, jobs)))
        return
    remedy = "give this one another --out_dir"
    with locked(plan.out_dir / "choice.json", remedy, doing="carrying out this study"):
        state.look()
        if state.choices:
            state.write_choices()
        carry_out_all(args, state)
    if state.failed:
        sys.exit(1)


def make_plan(
    table: Path, changes: Flags, out_dir: Path | None, data_dir: Path, threads: int = 1
) -> Plan:
    """A study's plan, checked.

    Raises:
        OSError, ValueError: see ``read_study`` and ``Plan.check``.
    """
    study = read_study(table, changes)
    plan = Plan(study, out_dir or ROOT / "outputs" / "studies" / study.name, data_dir, threads)
    plan.check()
    return plan


def wanted(args: argparse.Namespace, plan: Plan) -> list[Job]:
    """The jobs of --stage whose name fits --only.

    Raises:
        ValueError: no name fits.
    """
    jobs = [job for job in plan.jobs() if args.stage in (None, job.stage)]
    if args.only is None:
        return jobs
    chosen = [job for job in jobs if args.only.search(plan.label(job))]
    if jobs and not chosen:
        raise ValueError(
            f"--only {args.only.pattern!r}: fits no name, such as {plan.label(jobs[-1])!r}; the "
            "value that trials choose is in no run's"
        )
    return chosen


def lines(state: Progression, jobs: Sequence[Job]) -> Iterator[str]:
    """The command lines of what can be run now, then as comments what is done and what waits."""
    commands, comments = [], []
    for job in jobs:
        valued = state.valued(job)
        if valued is None:
            comments.append(f"# waits for {state.reason(job)}: {state.plan.label(job)}")
            continue
        line = state.plan.command(valued).line
        if valued in state.done:
            comments.append(f"# done: {line}")
        elif not state.ready(valued):
            comments.append(f"# waits for {state.reason(job)}: {line}")
        else:
            commands.append(line)
    yield from (*commands, *comments, *(f"# {note}" for note in state.known.notes()))


def carry_out_all(args: argparse.Namespace, state: Progression) -> None:
    """Carry out what is left, and say how that went."""
    gpu, before = torch.cuda.is_available(), len(state.done)
    print(f"{before} results are there, {len(state.waiting)} runs are to be done", flush=True)
    if args.known:
        rows, known = len(state.known.rows), len(state.from_table)
        print(f"{known} of them only {args.known} has, a table of {rows} runs and trials")
    print("".join(f"{note}\n" for note in state.known.notes()), end="")
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    with ExitStack() as stack:
        if args.ray is None:
            modules = [module_of(script) for script in SCRIPTS.values()]
            modules += [module_of(state.plan.study.script), *DATA.get(state.plan.study.task, ())]
            slots = args.jobs or (1 if gpu else os.cpu_count() or 1)
            workers: Workers = Processes(slots, modules)
        else:
            workers = stack.enter_context(on_cluster(args.ray, args.threads, gpu))
        interruption = stack.enter_context(Interruption(Ranks(torch.device("cpu"))))
        progress = StudyProgress(state, workers.slots)
        stack.enter_context(progress)
        carry_out(state, workers, progress, interruption)
    print("\n".join(summary(state)))
    write_table(state, args.fewer_runs, known=not args.known)


def write_table(state: Progression, fewer_runs: bool, known: bool) -> None:
    """Write ``runs.csv`` of the whole study, as --stage and --only ask for a part.

    Args:
        state: of the study.
        fewer_runs: replace one that has more.
        known: whether ``--known`` is still a remedy where it has more.

    Raises:
        ValueError: runs would be lost that only the table before has.
    """
    rows_known = copy(state.known)
    rows_known.whole = True
    whole = Progression(state.plan, list(state.plan.jobs()), rows_known)
    whole.look()
    path, rows = state.plan.out_dir / RUNS_FILE, collected(whole)
    if fewer_runs:
        write_runs(path, rows)
    else:
        replace_runs(path, rows, "--out_dir", known)


def summary(state: Progression) -> Iterator[str]:
    """What was chosen, what failed, what waits and how much is done, for people."""
    study, plan = state.plan.study, state.plan
    if state.choices:
        yield as_table(list(state.choices.values()), study.trials.select)
    chosen = {key: choice.value for key, choice in state.choices.items()}
    yield from (f"note: {line}" for line in other_values(plan, chosen))
    for job, why in state.failed.items():
        yield f"failed: {plan.label(job)}: {why}"
    for job in state.waiting[:10]:
        yield f"waits for {state.reason(job)}: {plan.label(job)}"
    if len(state.waiting) > 10:
        yield f"and {len(state.waiting) - 10} more wait"
    counts = {stage: sum(job.stage == stage for job in state.done) for stage in STAGES}
    planned = study.planned()
    shown = ", ".join(f"{counts[stage]} of {planned[stage]} {stage}" for stage in STAGES)
    yield f"{study.name}: {shown} are done, {len(state.failed)} failed; results in {plan.out_dir}"
