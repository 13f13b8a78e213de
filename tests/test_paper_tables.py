"""The paper's tables beside those of runs, and the mean and spread over seeds."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import yaml
from run_folders import write_run

from unlearn_pl.report.all_tables import not_made, tables_of
from unlearn_pl.report.markdown import markdown
from unlearn_pl.report.paper import METHODS, OFFICIAL, PUBLISHED, SETTINGS, table_1, table_2, table_3, written
from unlearn_pl.report.reading import read_run
from unlearn_pl.report.run import Fit, Model, Run
from unlearn_pl.report.scores import AGGREGATE, AUC, CHOICE, SCORE, TASK
from unlearn_pl.report.seeds import averaged, by_recipe
from unlearn_pl.report.table import Cell, Column, Row, Table

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_run(write_run(tmp_path / "demo"))


def seeded(folder: Path, seed: int, shift: float = 0.0) -> Run:
    """A run of a recipe with this seed, whose scores are higher by ``shift``."""
    write_run(folder)
    for path in folder.glob("*/config.yaml"):
        config = yaml.safe_load(path.read_text()) | {"seed_everything": seed}
        config["trainer"]["default_root_dir"] = f"logs/demo/seed_{seed}/{path.parent.name}"
        config["model"]["base"] = f"logs/demo/seed_{seed}/base"
        path.write_text(yaml.safe_dump(config))
    summary = json.loads((folder / "summary.json").read_text()) | {"seed": seed}
    (folder / "summary.json").write_text(json.dumps(summary))
    for path in folder.glob("evaluation/*/results.json"):
        results = json.loads(path.read_text())
        path.write_text(json.dumps(results | {TASK: results[TASK] + shift}))
    return read_run(folder)


def cells(table: Table, row: str) -> dict[str, Cell]:
    """Column -> cell of the first row of that name."""
    found = next(one for one in table.rows if one.name == row)
    return {column.name: cell for column, cell in zip(table.columns, found.cells, strict=True)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_aggregates_are_the_means_of_their_parts(name: str) -> None:
    """To the third decimal, which the paper's are rounded to (or cut at: .806 only fits parts that were cut); the
    membership score is 1 - 2 |AUC - 1/2|."""
    scores = PUBLISHED[name]
    parts = [score for key in (TASK, SCORE, CHOICE) if (score := scores[key]) is not None]
    assert len(parts) == 3
    assert scores[AGGREGATE] == pytest.approx(fmean(parts), abs=1.01e-3)
    if name == OFFICIAL:
        assert scores[AUC] is None
    else:
        assert scores[SCORE] == pytest.approx(1 - 2 * abs(scores[AUC] - 0.5), abs=2e-3)


def test_the_best_published_method_is_the_merged_model() -> None:
    assert METHODS["ties"] == max(METHODS.values()) == PUBLISHED["merged (TIES)"][AGGREGATE]


def test_table_1_has_the_papers_rows_beside_the_runs(run: Run) -> None:
    table = table_1([[run]])
    assert [column.name for column in table.columns] == ["Aggregate", "Task Aggregate", "MIA score", "MIA AUC", "MMLU"]
    assert table.groups == ["ZJUKLAB (arXiv 2503.21088)", "demo"]
    assert [row.name for row in table.rows][:8] == [*PUBLISHED, "base", "over", "under", "merged"]
    results = run.models["merged"].results
    assert cells(table, "merged")["MIA AUC"].value == results[AUC]
    assert table.is_best([row.name for row in table.rows].index("merged (TIES)"), 0)
    assert "not there: not published (merged, official test: MIA AUC)" in markdown(table)
    assert "- Chosen by a balance search (balanced): half of the documents" in markdown(table)


def test_the_number_of_rows_stands_once_where_it_is_one_for_all() -> None:
    """Else beside each number; the paper's rows have none."""
    entry = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 160}

    def of(*counts: int) -> Table:
        models = {
            f"m{n}": Model(name=f"m{n}", folder=Path("x"), results={TASK: 0.5, "scores": {TASK: entry | {"n": n}}})
            for n in counts
        }
        return table_1([[Run(name="r", folder=Path("r"), models=models)]])

    assert cells(of(160), "n")["Task Aggregate"].text == "160"
    assert cells(of(160), "m160")["Task Aggregate"].n is None
    assert "n 80" in markdown(of(160, 80))
    assert "| n " not in markdown(of(160, 80))


def test_table_2_names_what_was_not_compared(run: Run) -> None:
    """One method alone, over densities, is Figure 5 and no Table 2."""
    assert table_2([[run]]) is None
    found = run.comparisons["densities"].found
    other = {**found["methods"][0], "method": "cat", "density": None, "normalised": {"norm": 1.0, AGGREGATE: None}}
    comparison = replace(
        run.comparisons["densities"], name="methods", found={**found, "methods": [*found["methods"], other]}
    )
    table = table_2([[replace(run, comparisons={"methods": comparison})]])
    assert table is not None
    assert [row.name for row in table.rows] == [
        "ties",
        "ties",
        "cat",
        "linear",
        "dare_linear",
        "dare_ties",
        "magnitude_prune",
    ]
    assert cells(table, "ties")["Aggregate, paper"].value == 0.806
    assert cells(table, "cat")["Aggregate, paper"].value is None
    assert cells(table, "cat")["Aggregate at the common norm"].value is None
    assert {cell.why for cell in list(cells(table, "linear").values())[1:]} == {
        "not among the methods that were compared"
    }


def test_table_3_is_the_configurations_as_released() -> None:
    """Our presets of the released hyper-parameters give the paper's values back; accumulation is what is computed
    together and what is not."""
    fits = {
        name: Fit(
            name=name, folder=Path(name), config=named(yaml.safe_load((CONFIGS / f"zjuklab/{name}.yaml").read_text()))
        )
        for name in ("over", "under")
    }
    table = table_3([[Run(name="r", folder=Path("r"), fits=fits)]])
    assert table is not None
    for name in SETTINGS:
        found = cells(table, name)
        assert [found["over"].text, found["under"].text] == [found[f"paper, model {i}"].text for i in (1, 2)], name
    assert cells(table, "gd term")["over"].text == "RetainKL, positions released"


def named(config: dict[str, Any]) -> dict[str, Any]:
    """YAML reads 1e-4 as text; the resolved configuration has the number."""
    return config | {"model": config["model"] | {"learning_rate": float(config["model"]["learning_rate"])}}


@pytest.mark.parametrize(
    ("value", "text"), [(1e-4, "1e-4"), (6e-3, "0.006"), (32.0, "32"), (2.5e-5, "2.5e-5"), (0.0, "0"), (True, "True")]
)
def test_numbers_are_written_as_in_the_paper(value: float, text: str) -> None:
    assert written(value) == text


def test_a_strange_configuration_is_a_dash(run: Run) -> None:
    for config in ({"model": 3, "data": {"micro_batches": "two", "batch_size": 1}}, {}):
        fit = replace(run.fits["over"], config=config)
        table = table_3([[replace(run, fits={"over": fit})]])
        assert table is not None
        assert cells(table, "LoRA rank")["over"].why == "not in the configuration"
    assert table_3([[replace(run, fits={})]]) is None


def test_runs_that_differ_by_the_seed_alone_are_one(tmp_path: Path) -> None:
    """Mean and standard deviation by hand; the table has every seed."""
    runs = [seeded(tmp_path / f"demo/seed_{seed}", seed, shift) for seed, shift in ((0, 0.0), (1, 0.1), (2, 0.3))]
    assert by_recipe(runs) == [runs]
    table = table_1([runs])
    scores = [run.models["over"].results[TASK] for run in runs]
    cell = cells(table, "over")["Task Aggregate"]
    assert (cell.value, cell.spread) == (pytest.approx(fmean(scores)), pytest.approx(stdev(scores)))
    assert table.groups[1] == "demo, mean of 3 seeds"
    assert f"{fmean(scores):.3f} ± {stdev(scores):.3f}" in markdown(table)
    terms, merges = (next(t for t in tables_of(runs) if t.key == key) for key in ("terms", "merge_methods_densities"))
    assert terms.notes == ["± is the standard deviation over 3 seeds (of a sample, divisor n - 1); n: seeds."]
    assert (cells(merges, "ties")["density"].value, cells(merges, "ties")["density"].spread) == (0.5, None)  # was given
    assert cells(merges, "ties")["norm"].spread == 0
    hyper = table_3([runs])
    assert hyper is not None
    assert cells(hyper, "seed")["over"].text == "0, 1, 2"


def test_a_seed_whose_fit_was_interrupted_is_a_seed_like_others(tmp_path: Path) -> None:
    """Its configuration names the checkpoint that it went on from; another run's is a setting."""
    runs = [seeded(tmp_path / f"demo/seed_{seed}", seed) for seed in (0, 1)]
    folder = "logs/demo/seed_1/over"

    def going_on(checkpoint: str) -> Run:
        config = {"trainer": {"default_root_dir": folder}, "ckpt_path": checkpoint, "seed_everything": 1}
        return replace(runs[1], fits={"over": replace(runs[1].fits["over"], config=config)})

    plain = {"trainer": {"default_root_dir": "logs/demo/seed_0/over"}, "ckpt_path": None, "seed_everything": 0}
    whole = replace(runs[0], fits={"over": replace(runs[0].fits["over"], config=plain)})
    mate = going_on(f"{folder}/checkpoints/interrupted.ckpt")
    assert by_recipe([whole, mate]) == [[whole, mate]]
    other = going_on("logs/demo/seed_0/over/checkpoints/last.ckpt")
    assert by_recipe([whole, other]) == [[whole], [other]]


def test_other_settings_or_the_same_seed_are_not_a_seed_more(tmp_path: Path) -> None:
    one, same = (seeded(tmp_path / name, 0) for name in ("a", "b"))
    other = seeded(tmp_path / "c", 1)
    config = {**other.fits["over"].config, "seed_everything": 1, "data": {"batch_size": 8}}
    other = replace(other, fits={**other.fits, "over": replace(other.fits["over"], config=config)})
    bare = replace(one, fits={}, summary=None)
    assert by_recipe([one, same, other, bare, bare]) == [[one], [same], [other], [bare], [bare]]


def test_a_seed_without_a_number_is_told() -> None:
    """The mean is that of those that have one; of a single one there is no spread."""

    def of(value: float | None, *names: str) -> Table:
        rows = [Row(name=name, cells=[Cell(value=value, text="" if value else "none")]) for name in names]
        return Table(key="k", title="", caption="", stub="", columns=[Column(name="x")], rows=rows)

    found = averaged([of(1.0, "a", "b", "b"), of(3.0, "a"), of(None, "a")])
    assert [(row.name, row.cells[0].value, row.cells[0].n) for row in found.rows] == [
        ("a", 2.0, 2),
        ("b", 1.0, 1),
        ("b", 1.0, 1),
    ]
    assert found.rows[0].cells[0].spread == pytest.approx(stdev([1, 3]))
    assert found.rows[1].cells[0].spread is None
    assert found.rows[0].cells[0].why == "1 of 3 seeds have no number"
    assert averaged([of(None, "a"), of(None, "a")]).rows[0].cells[0].text == "none"


def test_all_tables_of_runs(run: Run, tmp_path: Path) -> None:
    """Those of several runs say which they are of; what nothing gives is told."""
    keys = [table.key for table in tables_of([run])]
    assert keys == ["table_1", "table_3", "terms", "every_score", "balance_balanced", "merge_methods_densities"]
    both = tables_of([run, read_run(write_run(tmp_path / "second"))])
    assert [table.key for table in both][2:4] == ["terms_demo", "every_score_demo"]
    assert both[-1].title == "Merge methods, densities: second"
    assert not_made([run]) == []
    assert not_made([Run(name="r", folder=tmp_path)]) == [
        "Table 1, terms, every score: no evaluated model in what was given",
        "Table 2, merge methods: no comparison of merge methods in what was given",
        "Table 3, hyper-parameters: no fit with a resolved configuration in what was given",
        "balance search: no balance search in what was given",
    ]


def test_every_score_says_which_way_is_better(run: Run) -> None:
    table = next(table for table in tables_of([run]) if table.key == "every_score")
    scores = {name: one for model in run.models.values() for name, one in model.results["scores"].items()}
    assert {row.name: row.better for row in table.rows} == {name: one["better"] for name, one in scores.items()}
