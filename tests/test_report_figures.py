"""The figures of runs: what each shows of the files that it is made from."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_folders import write, write_fit, write_model, write_run

from unlearn_pl.metrics.roc import area_under_curve
from unlearn_pl.report.figure import Bars, Figure, Histogram, Line, Panel, Points
from unlearn_pl.report.figures.angles import angles, pivots
from unlearn_pl.report.figures.attacks import roc
from unlearn_pl.report.figures.densities import densities, has_several, methods
from unlearn_pl.report.figures.gallery import figures_of
from unlearn_pl.report.figures.headlines import headlines
from unlearn_pl.report.figures.losses import losses
from unlearn_pl.report.figures.search import search
from unlearn_pl.report.figures.terms import terms
from unlearn_pl.report.interactive import spec
from unlearn_pl.report.reading import read_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("logs") / "demo")


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, Figure]:
    return {figure.key: figure for figure in figures_of([read_run(folder)])}


def named(panel: Panel) -> dict[str, Any]:
    return {series.name: series for series in panel.series}


def test_a_whole_run_has_every_figure(figures: dict[str, Figure]) -> None:
    assert list(figures) == [
        "scores", "log_probabilities", "attacks", "roc", "leakage", "terms_over", "terms_under", "training", "losses",
        "angles_over", "angles_under", "balance_balanced", "densities", "anatomy", "updates", "spectra",
    ]  # fmt: skip
    assert {tuple(figure.identity.items()) for figure in figures.values()} == {
        (
            ("run", "demo"),
            ("commit", "22cb6b1e0d4a5b2f6eb8a59a9fb3202ff9c5be1e"),
            ("seed", "42"),
            ("unlearn_pl", "0.1.0"),
        )
    }
    for figure in figures.values():
        assert figure.title
        assert figure.caption.endswith(".")
        for panel in figure.panels:
            assert panel.x.title or panel.x.categories
            assert panel.y.title
        json.dumps(spec(figure), allow_nan=False)


def test_what_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    """Each file that goes takes its own figures and no others."""
    run = write_run(tmp_path / "demo")
    whole = {figure.key for figure in figures_of([read_run(run)])}
    gone = {
        "over/evaluations.json": {"terms_over"},
        "over/angles.json": {"angles_over"},
        "balanced/balance.json": {"balance_balanced"},
        "densities/merges.json": {"densities"},
    }
    for path, keys in gone.items():
        (run / path).unlink()
        left = {figure.key for figure in figures_of([read_run(run)])}
        assert whole - left == keys
        whole = left
    for name in ("base", "over", "under", "merged", "balanced"):
        (run / "evaluation" / name / "documents.jsonl").write_text('{"side": "elsewhere"}\n', encoding="utf-8")
    assert whole - {figure.key for figure in figures_of([read_run(run)])} == {"log_probabilities", "roc"}


def test_several_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name)) for name in ("one", "two")]
    found = {figure.key: figure for figure in figures_of(runs)}
    assert list(found)[:3] == ["runs_scores", "runs_training", "one_scores"]
    assert "two_spectra" in found
    first = named(found["runs_training"].panels[0])
    assert list(first) == ["one: over", "one: under", "two: over", "two: under"]
    assert [panel.title for panel in found["runs_training"].panels][-1] == "loss, weighted sum"
    assert list(named(found["runs_scores"].panels[0])) == ["one", "two"]
    same = [read_run(tmp_path / "one"), read_run(tmp_path / "one")]
    keys = [figure.key for figure in figures_of(same)]
    assert len(set(keys)) == len(keys)


def test_log_probabilities_share_their_range(figures: dict[str, Figure]) -> None:
    """The four documents of each side have -1 to -4 nats a token under every model."""
    figure = figures["log_probabilities"]
    assert [panel.title for panel in figure.panels] == ["base", "over", "under", "merged", "balanced"]
    assert {panel.x.limits for panel in figure.panels} == {(-4.0, -1.0)}
    members = figure.panels[0].series[0]
    assert isinstance(members, Histogram)
    assert (members.name, sorted(members.values)) == ("members", [-4, -3, -2, -1])
    assert figure.caption.startswith("4 members and 4 non-members under each model.")


def test_the_area_under_a_roc_is_the_auc() -> None:
    """By the trapezium rule; equal scores of both sides make a slope, which counts half, as the AUC does."""
    members, others = [0.9, 0.5, 0.5, 0.1], [0.5, 0.4, 0.1]
    x, y = roc(members, others)
    assert x == [0, 0, 1 / 3, 2 / 3, 1]
    assert y == [0, 0.25, 0.75, 0.75, 1]
    assert roc([5, 4, 3], [2, 1]) == ([0, 0, 1], [0, 1, 1])  # corners alone
    area = sum((right - left) * (low + high) / 2 for left, right, low, high in zip(x, x[1:], y, y[1:], strict=False))
    assert area == pytest.approx(area_under_curve(members, others))


def test_an_attack_that_was_not_measured_is_a_gap(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    path = run / "evaluation/base/results.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["scores"]["membership/zlib/auc"] = {"value": None, "low": None, "high": None, "n": 0}
    write(path, found)
    panel = next(figure for figure in figures_of([read_run(run)]) if figure.key == "attacks").panels[0]
    base = named(panel)["base"]
    assert (base.categories, base.values, base.low) == (["Loss", "Zlib"], [0.5, None], [0.25, None])
    # the other models have no zlib score of any document in their files, so that no curve is drawn
    assert [panel.title for panel in figures_of([read_run(run)])[3].panels] == ["Loss"]


def test_terms_are_drawn_a_task_a_panel() -> None:
    """Those to forget dashed; a task may have a slash in its name, and a step whose term says nothing leaves a gap."""
    history = [
        {"step": 0, "terms": {"forget/TOFU/forget10/regurgitation": 0.5, "retain/other/knowledge": 1.0}},
        {"step": 3, "terms": {"forget/TOFU/forget10/regurgitation": None, "retain/other/knowledge": 0.8}},
    ]
    figure = terms(history)
    assert [panel.title for panel in figure.panels] == ["TOFU/forget10", "other"]
    first, second = (panel.series[0] for panel in figure.panels)
    assert isinstance(first, Line)
    assert isinstance(second, Line)
    assert (first.name, first.dashed, list(first.x), list(first.y)) == (
        "forget: 1 - regurgitation",  # what is drawn
        True,
        [0, 3],
        [0.5, None],
    )
    assert (second.name, second.dashed, list(second.y)) == ("retain: knowledge", False, [1.0, 0.8])


def test_twelve_curves(figures: dict[str, Figure]) -> None:
    assert [panel.title for panel in figures["terms_over"].panels] == ["Task1", "Task2", "Task3"]
    assert sum(len(panel.series) for panel in figures["terms_over"].panels) == 12


def test_losses_by_term_and_in_total(figures: dict[str, Figure]) -> None:
    curves = {"train/loss": [(1, 0.5)], "train/ga": [(1, 2.0), (2, 1.0)], "train/ga_weighted": [(1, 0.8)]}
    more = {"train/ga": [(1, 3.0)], "train/gd": [(1, 0.1)], "val/gd": [(2, 0.2)], "lr": [(1, 1e-4)]}
    figure = losses({"npo": curves, "all": more}, {"ga": "ga: NPO"})
    assert [panel.title for panel in figure.panels] == ["ga: NPO", "gd", "total (weighted sum)"]
    assert list(named(figure.panels[0])) == ["npo", "all"]
    assert {name: line.dashed for name, line in named(figure.panels[1]).items()} == {
        "all": False,
        "all, validation": True,
    }
    assert list(named(figure.panels[0])["npo"].y) == [2.0, 1.0]
    assert figures["losses"].panels[0].title == "ga: NPO"


def test_angles_by_layer_and_over_pivots() -> None:
    def report(pivot: int, angle: float) -> dict[str, Any]:
        one = {"norms": {}, "angles": {"before_after": angle, "before_total": 40.0, "after_total": None}}
        space = {"overall": one, "layers": {"0": one, "other": one}}
        return {"steps": [0, pivot, 100], "factors": space, "delta": space}

    reports = [report(60, 130.0), report(20, 70.0)]
    figure = angles(reports)
    assert [panel.title for panel in figure.panels][1] == "weight delta: 0 → 60 → 100"
    assert [panel.y.limits for panel in figure.panels] == [(0, 150), (0, 150), (0, 120), (0, 120)]
    drawn = named(figure.panels[0])
    assert list(drawn["before to after"].x) == ["0", "other"]
    assert list(drawn["before to after, all layers"].y) == [130.0, 130.0]
    assert list(drawn["after to total"].y) == [None, None]
    over = named(pivots(reports).panels[0])["before to after"]
    assert (list(over.x), list(over.y)) == ([20, 60], [70.0, 130.0])


def test_densities_of_methods_that_have_several() -> None:
    def row(method: str, density: float | None, up: float) -> dict[str, Any]:
        scores = dict.fromkeys(("task_aggregate", "membership_auc", "mmlu", "aggregate"), up) | {"norm": 1.0}
        return {"method": method, "density": density, "defined": scores, "normalised": scores | {"mmlu": None}}

    rows = [row("ties", 0.8, 0.8), row("ties", 0.5, 0.5), row("linear", None, 0.1), row("dare_ties", 0.8, 0.2)]
    assert has_several(rows)
    assert not has_several(rows[1:])
    figure = densities(rows)
    assert [panel.title for panel in figure.panels] == ["ties"]
    lines = named(figure.panels[0])
    assert (list(lines["MIA AUC"].x), list(lines["MIA AUC"].y)) == ([0.5, 0.8], [0.5, 0.8])
    assert list(lines["MMLU, common norm"].y) == [None, None]
    bars = named(methods(rows).panels[0])["as defined"]
    assert list(bars.categories) == ["ties 0.8", "ties 0.5", "linear", "dare_ties 0.8"]


def test_a_search_rings_the_chosen_and_shows_the_held_out_half(folder: Path) -> None:
    found = json.loads((folder / "balanced/balance.json").read_text(encoding="utf-8"))
    found["path"][1]["shifts"] = [["model.layers.0", 0.1]]  # is on no line
    found["path"][2]["task_aggregate"] = None  # was not scored
    found["path"].reverse()
    left, right = search(found).panels
    drawn = named(left)
    assert list(drawn["cat, scale 1"].x) == [0, 0.5, 0.75, 1]
    ring, held = drawn["chosen"], drawn["chosen, held-out half"]
    assert (ring.ringed, ring.x, ring.y) == (True, [0.5], [0.5])
    assert (held.y, held.low, held.high) == ([0.5], [0.3], [0.7])
    scored = named(right)["Task Aggregate"]
    assert isinstance(scored, Points)
    assert sorted(scored.x) == [0, 0.25, 0.75, 1]
    assert named(right)["MMLU"].y == [None] * 4


def test_headlines_have_intervals_where_there_are_any() -> None:
    scores = {"task_aggregate": 0.5, "membership_auc": 0.4, "membership_score": 0.8, "mmlu": None, "aggregate": 0.65}
    entry = {"value": 0.5, "low": 0.3, "high": 0.6, "n": 12}
    figure = headlines({"base": scores | {"scores": {"task_aggregate": entry}}, "over": scores})
    base, over = figure.panels[0].series
    assert isinstance(base, Bars)
    assert isinstance(over, Bars)
    assert list(base.values) == [0.5, 0.4, 0.8, None, 0.65]
    assert list(base.low or ()) == [0.3, None, None, None, None]
    assert next(iter(base.text or ())) == "n = 12"
    assert list(over.high or ()) == [None] * 5


def test_leakage_by_type(figures: dict[str, Figure]) -> None:
    figure = figures["leakage"]
    assert [panel.title for panel in figure.panels] == ["forget set: whole value", "forget set: longest part"]
    assert figure.panels[0].x.categories == ["SSN", "e-mail", "all"]
    assert list(named(figure.panels[0])) == ["base", "over", "under", "merged", "balanced"]


def test_merges_and_adapters_by_layer(figures: dict[str, Figure]) -> None:
    """The runs' merges trim nothing, so there is no such panel."""
    assert [panel.title for panel in figures["anatomy"].panels] == ["sign conflict", "cosine of the two deltas"]
    assert list(named(figures["anatomy"].panels[0])["merged, all layers"].y) == [0.4, 0.4]
    assert list(named(figures["updates"].panels[1])["over"].y) == [2.0, 2.0]
    assert [panel.title for panel in figures["spectra"].panels] == ["over", "under", "merged", "balanced"]
    layer = figures["spectra"].panels[0].series[1]
    assert isinstance(layer, Line)
    assert (layer.name, layer.shade, list(layer.x), list(layer.y)) == ("layer 1", 1.0, [1, 2, 3], [0.9, 0.4, 0.1])


def test_a_broken_model_leaves_gaps(tmp_path: Path) -> None:
    """Documents without a finite score are in no histogram and in no curve."""
    write_model(tmp_path / "scores", 0, {})
    path = tmp_path / "scores/documents.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row |= {"logprob": None, "attacks": {"loss": None}}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    keys = [figure.key for figure in figures_of([read_run(tmp_path / "scores")])]
    assert keys == ["scores", "attacks", "leakage"]


def test_figures_need_no_model(folder: Path) -> None:
    code = f"""
import sys
from unlearn_pl.report.figures.gallery import figures_of
from unlearn_pl.report.reading import read_runs
assert len(figures_of(read_runs([{str(folder)!r}]))) == 16
print(sorted({{"torch", "lightning", "transformers", "matplotlib", "plotly"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_sweep_is_seen_as_settings_and_shares(tmp_path: Path) -> None:
    """Shares of ga, gd, gk of (4, 4, 2) / 10 lie at x = 0.4 / 2 + 0.2 and y = 0.4 sqrt(3) / 2; (1, 1, 2) / 4 at
    x = 0.25 / 2 + 0.5 and y = 0.25 sqrt(3) / 2."""
    runs = []
    for name, weights, rate in (("one", (0.4, 0.4, 0.2), "0.006"), ("two", (0.1, 0.1, 0.2), "0.00001")):
        write_fit(tmp_path / name)
        text = (tmp_path / name / "config.yaml").read_text(encoding="utf-8").replace("0.006", rate)
        for old, new in zip(("weight: 0.4, beta", "weight: 0.4}", "weight: 0.2}"), weights, strict=True):
            text = text.replace(old, old.replace(old[8:11], str(new)))
        (tmp_path / name / "config.yaml").write_text(text, encoding="utf-8")
        runs.append(read_run(tmp_path / name))
    scores = json.loads((tmp_path / "two/evaluations.json").read_text(encoding="utf-8"))
    scores[-1]["aggregate"] = 0.25
    write(tmp_path / "two/evaluations.json", scores)
    runs[1] = read_run(tmp_path / "two")
    found = {figure.key: figure for figure in figures_of(runs)}
    panel = found["sweep"].panels[0]
    assert list(panel.x.categories or ()) == [
        "ga.weight: 0.1 to 0.4", "gd.weight: 0.1 to 0.4", "learning_rate: 1e-05 to 0.006 (log)",
        "Aggregate: 0.25 to 1",
    ]  # fmt: skip
    lines = named(panel)
    assert (list(lines["one"].y), lines["one"].shade) == ([1, 1, 1, 1], 1.0)
    assert (list(lines["two"].y), lines["two"].shade) == ([0, 0, 0, 0], 0.25)
    points = named(found["simplex"].panels[0])
    assert points["runs"].x == pytest.approx([0.4, 0.625])
    assert points["runs"].y == pytest.approx([0.4 * 3**0.5 / 2, 0.25 * 3**0.5 / 2])
    assert (points["best run"].x, points["best run"].ringed) == (points["runs"].x[:1], True)
    same = [read_run(write_fit(tmp_path / name)) for name in ("three", "four")]
    assert not {"sweep", "simplex"} & {figure.key for figure in figures_of(same)}
