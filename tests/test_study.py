"""Runs as one study: what differs, which is the best, and the command that makes it again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from unlearn_pl.report.all_tables import tables_of
from unlearn_pl.report.markdown import markdown
from unlearn_pl.report.reading import read_run
from unlearn_pl.report.run import Fit, Run
from unlearn_pl.report.study import short, study_of, study_table

LAST = {"membership_auc": 0.5, "membership_score": 1.0, "mmlu": None, "task_aggregate": 0.5}


def swept(name: str, ga: float, aggregate: float | None, seed: int = 1, root: str = "logs/sweep") -> Run:
    """A fit of a sweep as `wandb agent` leaves it: the folder has the trial's name, scored in training."""
    config: dict[str, Any] = {
        "seed_everything": seed,
        "trainer": {"default_root_dir": f"{root}/{name}", "max_epochs": 2, "logger": {"save_dir": name}},
        "model": {"seed": seed, "objectives": {"ga": {"class_path": "NPO", "init_args": {"weight": ga, "beta": 0.1}},
                                               "gd": {"class_path": "RetainKL", "init_args": {"weight": 0.4}}}},
    }  # fmt: skip
    history = [{"step": 9, **LAST, "aggregate": aggregate}, {"step": 3, **LAST, "aggregate": 0.99}]
    fit = Fit(name=name, folder=Path(root) / name, config=config, evaluations=history)
    return Run(name=name, folder=fit.folder, fits={name: fit})


def test_a_sweep() -> None:
    """The last step counts, whatever order the file has; a run without a score is never the best; what is written
    where is no setting."""
    study = study_of([swept("a", 0.1, 0.6), swept("b", 0.2, 0.7), swept("c d", 0.3, None)])
    assert study is not None
    assert study.parameters == ["model.objectives.ga.weight"]
    assert [one.parameters["model.objectives.ga.weight"] for one in study.rows] == [0.1, 0.2, 0.3]
    assert study.rows[0].weights == {"ga": 0.1, "gd": 0.4}
    assert study.best is not None
    assert study.best.name == "b"
    assert (
        study.command
        == "unlearn-pl fit --config logs/sweep/b/config.yaml --trainer.default_root_dir=logs/sweep/b_again"
    )


def test_what_a_shell_would_read_is_quoted() -> None:
    study = study_of([swept("a", 0.1, 0.6), swept("x; rm y", 0.2, 0.7)])
    assert study is not None
    assert "--config 'logs/sweep/x; rm y/config.yaml'" in study.command


def test_no_path_of_this_machine_is_in_the_command(tmp_path: Path) -> None:
    study = study_of([swept("a", 0.1, 0.6, root=str(tmp_path)), swept("b", 0.2, 0.7, root=str(tmp_path))])
    assert study is not None
    assert str(tmp_path) not in study.command
    assert "/b/config.yaml" in study.command


def test_seeds_are_a_study_of_their_seed() -> None:
    study = study_of([swept("a", 0.1, 0.6, seed=0), swept("b", 0.1, 0.7, seed=1)])
    assert study is not None
    assert study.parameters == ["seed_everything"]
    assert (study.best, study.command) == (None, "")  # of seeds none is better, only luckier
    table = study_table(study)
    assert [row.name for row in table.rows] == ["a", "b"]
    assert not any(table.is_best(row, column) for row in range(2) for column in range(len(table.columns)))


def test_what_is_no_study() -> None:
    one = swept("a", 0.1, 0.6)
    assert study_of([]) is None
    assert study_of([one]) is None
    assert study_of([one, replace(swept("b", 0.1, 0.5), fits={})]) is None
    assert study_of([one, swept("b", 0.1, 0.5)]) is None  # nothing differs


def test_nothing_is_the_best_where_nothing_was_scored() -> None:
    unscored = [replace(run, fits={n: replace(f, evaluations=()) for n, f in run.fits.items()})
                for run in (swept("a", 0.1, 0.6), swept("b", 0.2, 0.7))]  # fmt: skip
    study = study_of(unscored)
    assert study is not None
    assert (study.best, study.command, study.judge) == (None, "", "")
    assert "the run was not scored" in markdown(study_table(study))


def test_recipes_are_compared_by_the_fit_that_differs(tmp_path: Path) -> None:
    """And by the scores of the model that each is about."""
    runs = [read_run(write_run(tmp_path / name)) for name in ("first", "second")]
    under = runs[1].fits["under"]
    runs[1] = replace(runs[1], fits={**runs[1].fits, "under": replace(under, config={**under.config, "data": {}})})
    study = study_of(runs)
    assert study is not None
    assert study.fit == "under"
    assert {"data.batch_size", "data.forget"} <= set(study.parameters)
    assert study.rows[0].scores["aggregate"] == runs[0].models["balanced"].results["aggregate"]


def test_the_table_has_the_best_first() -> None:
    study = study_of([swept("a", 0.1, 0.6), swept("b", 0.2, 0.7)])
    assert study is not None
    table = study_table(study)
    assert [row.name for row in table.rows] == ["b", "a"]
    assert table.columns[0].name == "ga.weight"
    assert table.is_best(0, 5)
    assert "looks better here than on new data" in markdown(table)
    assert "study" in [one.key for one in tables_of([swept("a", 0.1, 0.6), swept("b", 0.2, 0.7)])]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["model.objectives.ga.weight", "model.objectives.gd.weight"], ["ga.weight", "gd.weight"]),
        (["model.seed", "seed"], ["model.seed", "seed"]),
        (["a.x.weight", "b.x.weight"], ["a.x.weight", "b.x.weight"]),
    ],
)
def test_flags_are_shortened_so_far_as_they_differ(names: list[str], shown: list[str]) -> None:
    assert list(short(names).values()) == shown
