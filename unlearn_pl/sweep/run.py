"""`unlearn-pl sweep`: the trials of a W&B sweep file, without a server."""

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from unlearn_pl.callbacks.monitor import PREFIX
from unlearn_pl.commands.report import report
from unlearn_pl.errors import InputError
from unlearn_pl.files import sole_writer, write_text
from unlearn_pl.report.reading import is_run
from unlearn_pl.report.study import short
from unlearn_pl.stopping import Stopped
from unlearn_pl.sweep.attempt import SECONDS, Attempt, clear, environment_of, newest_checkpoint, wait_for
from unlearn_pl.sweep.bayes import check_bayes
from unlearn_pl.sweep.command import check_trial, fit_arguments
from unlearn_pl.sweep.draw import count, drawn
from unlearn_pl.sweep.file import SweepFile, read_sweep
from unlearn_pl.sweep.identity import claim
from unlearn_pl.sweep.table import texts
from unlearn_pl.sweep.trial import DONE, Trial, name_of, read_trials

POSITIONAL = "file"
"""The argument that stands without its flag."""
HOPELESS = 3
"""So many trials that failed, and none that did not, end a sweep."""


def sweep(
    file: str,
    runs: int | None = None,
    jobs: int = 1,
    name: str | None = None,
    logs: str = "logs",
    seed: int = 42,
    logger: Literal["csv", "config"] = "csv",
) -> None:
    """Run a W&B sweep file without a server: a fit a trial, in LOGS/NAME/trial_0001 and so on, then a ranked table, the
    command of the best trial and a report on all.

    The same command goes on after an interruption: finished trials stay as they are, an interrupted one goes on from
    its last checkpoint, and one that failed runs again. A larger number of runs adds trials.

    Args:
        file: The sweep (YAML): `method` grid, random or bayes (with Optuna), `parameters`, `command`, `metric`,
            `early_terminate`.
        runs: Number of trials; not needed for a grid, or where the file has `run_cap`.
        jobs: How many trials run at a time.
        name: Folder below ``logs``; the file's own name if not given.
        logs: Folder of all runs.
        seed: What `random` and `bayes` draw by.
        logger: `csv` writes `metrics.csv` alone; `config` takes the logger of the fit's configuration, W&B offline
            unless WANDB_MODE is set.
    """
    plan = read_sweep(file)
    for argument, value in (("runs", runs), ("jobs", jobs)):
        if value is not None and value < 1:
            raise InputError(f"must be at least 1, got {value}", argument)
    if logger == "config" and plan.metric is not None and not plan.metric.name.startswith(PREFIX):
        raise InputError(f"{plan.metric.name} is read from metrics.csv, which only csv writes", "logger")
    if plan.method == "bayes":
        check_bayes(plan)
    total, folder = count(plan, runs), Path(logs) / checked_name(plan.name if name is None else name)
    running = Sweep(plan, folder, seed, jobs, logger == "csv")
    running.check()
    with sole_writer(folder, "name"):
        running.begin()
        try:
            running.run(total)
        except Stopped as stop:
            stop.where, stop.advice = "", "run the same command again: it goes on from there"
            raise
        running.show()


def checked_name(name: str) -> str:
    """A name of a folder below another."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or not name.isprintable():
        raise InputError(f"must be the name of a folder below logs, got {name!r}", "name")
    return name


class Sweep:
    """The trials of a file in a folder."""

    def __init__(self, plan: SweepFile, folder: Path, seed: int, jobs: int, csv: bool):
        self.plan, self.folder, self.seed, self.jobs, self.csv = plan, folder, seed, jobs, csv
        self.trials: dict[int, Trial] = {}
        self.attempts: list[Attempt] = []
        self.failures: dict[str, str] = {}
        """Why trials failed in this call."""
        self.cut: dict[str, str] = {}
        """What ended trials of this call that something else told to stop."""

    def check(self) -> None:
        """Raise InputError for command lines that no trial can have; nothing is written."""
        first = drawn(self.plan, self.seed, 1, [])
        # numbers are left to the trials: a seed more takes a second more here
        others = [{**first, one.name: text} for one in self.plan.parameters for text in one.texts]
        for parameters in [first, *(one for one in others if one != first)]:
            check_trial(self.plan, self.arguments(1, parameters))

    def begin(self) -> None:
        """Take the folder over. Raises InputError if it holds another sweep."""
        self.trials = read_trials(self.folder)
        kept = [one.name for one in self.trials.values() if one.state != "failed"]
        self.identity = claim(self.plan, self.folder, self.seed, kept)

    def arguments(self, number: int, parameters: dict[str, Any]) -> list[str]:
        """The command line of a trial, behind the program's name."""
        return fit_arguments(self.plan, parameters, self.folder / name_of(number), self.csv)

    def run(self, total: int) -> None:
        """Run what is not done yet of the first ``total`` trials."""
        waiting = [number for number in range(1, total + 1) if not self.done(number)]
        if skipped := total - len(waiting):
            print(f"{skipped} of {total} trials were done before", flush=True)
        try:
            self.work(iter(waiting))
        except BaseException as error:
            for attempt in self.attempts:
                attempt.stop(error.signum if isinstance(error, Stopped) else signal.SIGTERM)
            while not all(attempt.ended for attempt in self.attempts):  # a second signal ends the waiting
                time.sleep(SECONDS)
            raise
        finally:
            for attempt in self.attempts:
                self.take(attempt)

    def done(self, number: int) -> bool:
        """Whether a trial is not to be run again."""
        return number in self.trials and self.trials[number].state in DONE

    def work(self, waiting: Iterator[int]) -> None:
        """Run trials, so many at a time, until none is left or the target is reached."""
        while True:
            while len(self.attempts) < self.jobs and not self.over and (number := next(waiting, None)) is not None:
                self.start(number)
            if not self.attempts:
                return
            time.sleep(SECONDS)
            self.judge()
            for attempt in [one for one in self.attempts if one.ended]:
                self.attempts.remove(attempt)
                self.take(attempt)
            self.refuse_hopeless()

    @property
    def over(self) -> bool:
        """Whether a trial has reached the target."""
        metric = self.plan.metric
        return metric is not None and any(
            metric.reached(one.score) for one in self.trials.values() if one.state == "finished"
        )

    def start(self, number: int) -> None:
        """Begin a trial, or go on with it."""
        earlier = self.trials.get(number)
        parameters = dict(earlier.parameters) if earlier else self.draw(number)
        place = self.folder / name_of(number)
        place.mkdir(exist_ok=True)
        wait_for(place)
        checkpoint = newest_checkpoint(place) if earlier and earlier.state != "failed" else None
        arguments = self.arguments(number, parameters)
        trial = Trial(number=number, parameters=parameters, command=["unlearn-pl", *arguments])
        if earlier and checkpoint:
            trial.seconds = None if earlier.state == "running" else earlier.seconds
            arguments = [*arguments, f"--ckpt_path={checkpoint}"]
        else:
            clear(place)
        trial.write(self.folder)
        self.trials[number] = trial
        self.tell(trial, f"goes on from {checkpoint.name}" if checkpoint else "starts")
        environment = environment_of(trial.name, self.identity, self.jobs)
        self.attempts.append(Attempt(trial, place, arguments, environment))

    def draw(self, number: int) -> dict[str, Any]:
        """The parameters of a trial that was never begun."""
        return drawn(self.plan, self.seed, number, list(self.trials.values()))

    def tell(self, trial: Trial, what: str) -> None:
        """One line on a trial."""
        names = short([one.name for one in self.plan.parameters])
        values = " ".join(f"{names[name]}={value}" for name, value in trial.parameters.items())
        print(f"{trial.name} {what}: {values}", flush=True)

    def judge(self) -> None:
        """End the trials that early termination ends."""
        hyperband, metric = self.plan.hyperband, self.plan.metric
        if hyperband is None or metric is None:
            return
        for attempt in self.attempts:
            attempt.trial.measure(self.folder, metric)
        costs = {one.number: [metric.cost(score) for score in one.history] for one in self.trials.values()}
        histories = [one for one in costs.values() if one]
        for attempt in self.attempts:
            if not attempt.ended_early and not attempt.ended and hyperband.ends(costs[attempt.trial.number], histories):
                attempt.end_early()

    def take(self, attempt: Attempt) -> None:
        """What a trial left when it ended."""
        trial = attempt.trial
        attempt.close()
        trial.measure(self.folder, self.plan.metric)
        trial.write(self.folder)
        if trial.state == "failed":
            self.failures[trial.name] = attempt.last_line
            print(f"{trial.name} failed: {attempt.last_line}", flush=True)
            return
        if trial.state == "interrupted":
            self.cut[trial.name] = attempt.last_line
        metric = self.plan.metric
        score = ""
        if metric is not None:
            score = f", no {metric.name}" if trial.score is None else f", {metric.name} {trial.score:.4g}"
        seconds = f" after {trial.seconds:.0f} s" if trial.seconds is not None else ""
        state = "ended early" if trial.state == "stopped" else trial.state
        print(f"{trial.name} {state}{seconds}{score}", flush=True)

    def refuse_hopeless(self) -> None:
        """Raise InputError if trials fail and none does not."""
        if len(self.failures) >= HOPELESS and not any(one.state in DONE for one in self.trials.values()):
            name, reason = next(iter(self.failures.items()))
            raise InputError(f"{len(self.failures)} trials failed and none finished; {name}: {reason}")

    def show(self) -> None:
        """Write and print the table, and the report. Raises InputError if trials failed."""
        trials: Sequence[Trial] = list(self.trials.values())
        long, top = texts(self.plan, trials, self.folder)
        write_text(self.folder / "table.md", long)
        runs = [str(self.folder / one.name) for one in trials if one.state in DONE and is_run(self.folder / one.name)]
        if runs:
            report(runs, str(self.folder / "report.html"), overwrite=True)
        print(f"\n{top}")
        self.refuse_unfinished()

    def refuse_unfinished(self) -> None:
        """Raise InputError for trials that this call began and that did not come to their end."""
        ended = {"failed": self.failures, "did not come to their end": self.cut}
        told = [
            f"{len(ones)} of {len(self.trials)} trials {what} ({next(iter(ones))}: {next(iter(ones.values()))})"
            for what, ones in ended.items()
            if ones
        ]
        if told:
            raise InputError(f"{' and '.join(told)}; the same command runs them again")
