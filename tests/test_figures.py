"""The pictures of a run: what is drawn where, and that the same numbers give the same bytes."""

from pathlib import Path

import pytest

from unlearn_pl.analysis import figures
from unlearn_pl.analysis.figures import Curve, plot_scores, plot_terms
from unlearn_pl.callbacks.evaluate import term_curves


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The axes of every figure that is written."""
    axes, real = [], figures.panels

    def kept(*given, **options):
        context = real(*given, **options)

        class Kept:
            def __enter__(self):
                axes.append(list(context.__enter__()))
                return axes[-1]

            def __exit__(self, *error):
                return context.__exit__(*error)

        return Kept()

    monkeypatch.setattr(figures, "panels", kept)
    return axes


def test_terms_are_drawn_a_task_a_panel(drawn: list, tmp_path: Path) -> None:
    """Those to forget dashed; a task may have a slash in its name, and a step whose term says nothing leaves a gap."""
    history = [
        {"step": 0, "terms": {"forget/TOFU/forget10/regurgitation": 0.5, "retain/TOFU/forget10/knowledge": 1.0}},
        {"step": 3, "terms": {"forget/TOFU/forget10/regurgitation": None, "retain/TOFU/forget10/knowledge": 0.8}},
    ]
    curves = term_curves(history)
    assert curves == [
        Curve("TOFU/forget10", "forget regurgitation", [(0, 0.5), (3, None)], dashed=True),
        Curve("TOFU/forget10", "retain knowledge", [(0, 1.0), (3, 0.8)]),
    ]
    plot_terms([*curves, Curve("other", "one", [(0, 0.1)])], tmp_path / "terms.png")
    first, second = drawn[0]
    assert [first.get_title(), second.get_title()] == ["TOFU/forget10", "other"]
    assert [line.get_linestyle() for line in first.get_lines()] == ["--", "-"]
    assert list(first.get_lines()[1].get_xydata().flatten()) == [0, 1.0, 3, 0.8]
    assert (tmp_path / "terms.png").stat().st_size > 1000


def test_a_model_has_a_bar_a_headline_score(drawn: list, tmp_path: Path) -> None:
    """None where the data for a score was not given: a bar of height 0."""
    scores = {"task_aggregate": 0.5, "membership_auc": 0.4, "membership_score": 0.8, "mmlu": None, "aggregate": 0.65}
    for name in ("one.png", "two.png"):
        plot_scores({"base": scores}, tmp_path / name)
    assert [bar.get_height() for bar in drawn[0][0].patches] == [0.5, 0.4, 0.8, 0, 0.65]
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
