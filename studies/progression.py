"""How far a study is: what is done, what failed, what was chosen, and what comes next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from studies.choice import Choice, Results, choose, write_choices
from studies.finished import finished, result
from studies.known_runs import KnownRuns
from studies.plan import TRAINING, Job, Plan
from studies.runs_file import TrainedRun


class Progression:
    """How far a study is.

    Attributes:
        waiting: jobs that have not been started, in the study's order, without chosen values.
        done: jobs whose results are there, with their values.
        from_table: trainings among them that only the table of known runs has.
        failed: of jobs that failed, why.
        choices: by data and optimizer.
    """

    def __init__(self, plan: Plan, jobs: Sequence[Job], known: KnownRuns | None = None) -> None:
        self.plan, self.waiting = plan, list(jobs)
        self.known = known or KnownRuns(plan, None)
        self.done: set[Job] = set()
        self.from_table: dict[Job, TrainedRun] = {}
        self.failed: dict[Job, str] = {}
        self.choices: dict[tuple[str, str], Choice] = {}
        self.results: dict[tuple[str, str], Results] = {}
        self.trials: dict[tuple[str, str], list[Job]] = defaultdict(list)
        for job in plan.trials():
            self.trials[job.data, job.optimizer].append(job)
        for optimizer in plan.study.optimizers:
            if optimizer.chosen_for == optimizer.name and not optimizer.has_trials:
                for data in (each.name for each in plan.study.data):
                    self.choices[data, optimizer.name] = choose(data, optimizer, {})
                    self.results[data, optimizer.name] = {}

    def look(self) -> None:
        """Find what is done already.

        Raises:
            ValueError: a finished result has other settings than the study's.
        """
        keys = list(self.trials)
        # What waits for another's choice can be looked at when that is known.
        while ready := [key for key in keys if None not in map(self.valued, self.trials[key])]:
            for key in ready:
                trials = filter(None, map(self.valued, self.trials[key]))
                self.done |= {job for job in trials if self._is_there(job)}
                self.choose(*key)
                keys.remove(key)
        left = []
        for job in self.waiting:
            valued = self.valued(job)
            if valued is not None and valued not in self.done and self.ready(valued):
                self.done |= {valued} if self._is_there(valued) else set()
            if valued not in self.done:
                left.append(job)
        self.waiting = left

    def _is_there(self, job: Job) -> bool:
        """Whether a job's result is there, or is known from the table."""
        if job.kind != TRAINING:
            training = self.from_table.get(self.plan.training_of(job))
            known = training is not None and self.known.measured(training, job.kind)
            return known or finished(self.plan, job)
        if finished(self.plan, job):
            return True
        row = self.known.row(job)
        self.from_table |= {} if row is None else {job: row}
        return row is not None

    def ready(self, job: Job) -> bool:
        """Whether nothing has to be done before the job, whose value is known."""
        training = self.plan.needs(job)
        if training is None:
            return True
        if training not in self.done and self._is_there(training):
            self.done.add(training)
        return training in self.done

    def valued(self, job: Job) -> Job | None:
        """The job with the values that are chosen for it, if they are known."""
        values = dict[str, float]()
        for flag, optimizer in self._chosen_for(job).items():
            choice = self.choices.get((job.data, optimizer))
            if choice is None:
                return None
            values[flag] = choice.value
        own = self.plan.study.optimizer(job.optimizer).tuned
        value = values.pop(own) if job.value is None else job.value
        return replace(job, value=value, taken=tuple(values.items()))

    def _chosen_for(self, job: Job) -> dict[str, str]:
        """By flag, the optimizers whose trials choose the values that a job has."""
        study = self.plan.study
        others = study.taken(job.data, job.optimizer, job.stage == "trials")
        if job.value is None:
            others = {study.optimizer(job.optimizer).tuned: job.optimizer, **others}
        return {flag: study.optimizer(other).chosen_for for flag, other in others.items()}

    def choose(self, data: str, optimizer: str) -> bool:
        """Choose an optimizer's value if all its trials are done; whether that was so."""
        trials = [job for job in map(self.valued, self.trials[data, optimizer]) if job]
        there = len(trials) == len(self.trials[data, optimizer]) and set(trials) <= self.done
        if (data, optimizer) in self.choices or not there:
            return False
        study, results = self.plan.study, defaultdict[float, list[float]](list)
        for job in trials:
            assert job.value is not None, job
            results[job.value].append(self._of_trial(job))
        self.choices[data, optimizer] = choose(data, study.optimizer(optimizer), results)
        self.results[data, optimizer] = results
        return True

    def _of_trial(self, job: Job) -> float:
        """A trial's result on validation."""
        select = self.plan.study.trials.select
        if job in self.from_table:
            return self.from_table[job].numbers[select]
        content = result(self.plan.args(job))
        assert content is not None, job
        return content["metrics"][select]

    def next(self) -> Job | None:
        """Take the first job that can be started, with its value; None if there is none now."""
        for index, job in enumerate(self.waiting):
            valued = self.valued(job)
            if valued is None or not self.ready(valued):
                continue
            del self.waiting[index]
            return valued
        return None

    def reason(self, job: Job) -> str:
        """What a job waits for."""
        valued = self.valued(job)
        training = valued and self.plan.needs(valued)
        if training is not None:
            return f"its training: {self.plan.label(training)}"
        needed = self._chosen_for(job).items()
        flag, chosen_for = next(each for each in needed if (job.data, each[1]) not in self.choices)
        return f"the choice of {flag} by {chosen_for}'s trials"

    def write_choices(self) -> None:
        path = self.plan.out_dir / "choice.json"
        choices, results = list(self.choices.values()), list(self.results.values())
        write_choices(path, self.plan.study, choices, results)
