"""Figures as files and as what a browser takes."""

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unlearn_pl.report.axes import draw_panel, places
from unlearn_pl.report.draw import _drawn, draw, image
from unlearn_pl.report.figure import (
    Axis,
    Bars,
    Figure,
    Guide,
    Heat,
    Histogram,
    Label,
    Line,
    Panel,
    Points,
)
from unlearn_pl.report.interactive import spec
from unlearn_pl.report.style import LOOKS, binned, looks_of, scale_of, shown
from unlearn_pl.report.traces import CIVIDIS, shade

SCORE = Axis(title="score", limits=(0, 1.03))
STEP = Axis(title="optimizer step")
EVIL = "<script>alert(1)</script> $\\frac{1}{2}$ & \x00 \ud800 %{x} 中文"


def lines(name: str = "one") -> Panel:
    curve = Line(name=name, x=[0, 10, 20, 30], y=[0.1, None, 0.5, 0.6], low=[0, None, 0.4, 0.5], high=[0.2, None, 1, 1])
    other = Line(name=f"{name} {name}", x=[0, 10], y=[0.5, math.nan], dashed=True, text=[name, name])
    return Panel(title=name, x=STEP, y=SCORE, series=[curve, other], guides=[Guide(at=15, vertical=True, name="pivot")])


def bars(name: str = "one") -> Panel:
    kinds = ["a score with a long name", "another one", name]
    one = Bars(name="base", categories=kinds, values=[0.5, None, 0.2], low=[0.4, None, 0.1], high=[0.6, None, 0.9])
    two = Bars(name=name, categories=kinds, values=[0.1, 0.2, 0.3])
    return Panel(title="bars", x=Axis(title="", categories=kinds), y=SCORE, series=[one, two])


def histograms() -> Panel:
    both = [Histogram(name="members", values=[-1, -2, -1.5]), Histogram(name="non-members", values=[-3, math.inf])]
    return Panel(title="", x=Axis(title="log-probability (nats per token)"), y=Axis(title="share"), series=both)


def shaded(name: str = "one") -> list[Panel]:
    names = ["0", "1", name]
    axis = Axis(title="layer", categories=names)
    heat = Heat(name=name, columns=names, rows=names, values=[[1, 2, None], [3, 4, 5], [6, 7, 8]])
    spots = Points(name=name, x=[0.1, 0.9], y=[0.2, 0.1], shade=[0.5, None], shade_title=name, text=[name, name])
    edge = Line(name="", x=[0, 1, 0.5, 0], y=[0, 0, 0.87, 0])
    corner = Label(x=0.5, y=0.9, text=name, above=True)
    parallel = [Line(name=f"run {n}", x=names, y=[0, n, 0.5], shade=n, shade_title="score") for n in (0, 0.4, 1)]
    return [
        Panel(title="heat", x=axis, y=axis, series=[heat]),
        Panel(title="simplex", x=SCORE, y=SCORE, series=[edge, spots], labels=[corner], bare=True),
        Panel(title="parallel", x=axis, y=SCORE, series=parallel),
    ]


def figure(*panels: Panel, columns: int = 3) -> Figure:
    identity = {"run": "logs/demo", "commit": "22cb6b1"}
    return Figure(key="all", title="All", caption="Every kind.", panels=panels, columns=columns, identity=identity)


ALL = figure(lines(), bars(), histograms(), *shaded())
HOSTILE = figure(lines(EVIL), bars(EVIL), *shaded(EVIL))


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    """Also when a format is written after another one."""
    paths = [tmp_path / "sub" / f"all.{kind}" for kind in ("png", "svg", "pdf")]
    draw(ALL, *paths)
    for path in paths[1:]:
        assert image(ALL, path.suffix[1:]) == path.read_bytes()
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["all.pdf", "all.png", "all.svg"]


def test_two_may_draw_the_same_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two reports on one run do: the second comes when the first has written its temporary file."""
    path, one, real, begun = tmp_path / "all.svg", figure(lines()), Path.write_bytes, []

    def with_another(target: Path, content: bytes) -> int:
        written = real(target, content)
        if not begun:
            begun.append(target)
            draw(one, path)
        return written

    monkeypatch.setattr(Path, "write_bytes", with_another)
    draw(one, path)
    assert begun
    assert path.read_bytes() == image(one, "svg")
    assert list(tmp_path.iterdir()) == [path]


def test_files_say_what_they_show() -> None:
    one = figure(bars())
    png, pdf = image(one, "png"), image(one, "pdf")
    assert all(part in png for part in (b"logs/demo", b"22cb6b1", b"Every kind."))
    assert b"Software" not in png
    assert b"logs/demo" in pdf
    assert b"CreationDate" not in pdf
    root = ElementTree.fromstring(image(one, "svg"))
    told = " ".join(root.itertext())
    assert "run: logs/demo; commit: 22cb6b1" in told
    assert "Every kind." in told


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_names_of_any_origin_break_no_file(kind: str) -> None:
    content = image(replace(HOSTILE, title=EVIL, caption=EVIL, identity={EVIL: EVIL}), kind)
    if kind == "svg":
        root = ElementTree.fromstring(content)
        assert not [element for element in root.iter() if element.tag.endswith("script")]


def test_a_gap_is_no_zero() -> None:
    with _drawn(figure(lines(), bars())) as canvas:
        curve = canvas.axes[0].get_lines()[0]
        heights = [bar.get_height() for bar in canvas.axes[1].containers[0]]
        words = [text.get_text() for text in canvas.axes[1].texts]
    assert [value for value in curve.get_ydata() if not math.isnan(value)] == [0.1, 0.5, 0.6]
    assert [value for value in heights if not math.isnan(value)] == [0.5, 0.2]
    assert words == ["–"]
    data = spec(figure(lines(), bars()))["data"]
    assert data[1]["y"] == [0.1, None, 0.5, 0.6]
    assert data[1]["hovertext"][1].endswith("score: not measured")
    # two stretches with an interval, each a closed ring: there and back
    assert data[0]["x"] == [0, 0, None, 20, 30, 30, 20, None]
    assert data[0]["y"] == [0, 0.2, None, 0.4, 0.5, 1, 1, None]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("columns", [1, 3])
def test_nothing_covers_anything(number: int, columns: int) -> None:
    """Legend, panels and their words have places of their own, inside the file."""
    many = Panel(title="", x=STEP, y=SCORE, series=[Line(name=f"run {n}", x=[0, 1], y=[0, 1]) for n in range(15)])
    one = figure(*[[*ALL.panels, many][(number + step) % 7] for step in range(2)], columns=columns)
    with _drawn(one) as canvas:
        renderer = canvas.canvas.get_renderer()
        boxes = [axes.get_tightbbox(renderer) for axes in canvas.axes if axes.get_visible()]
        boxes += [legend.get_window_extent(renderer) for legend in canvas.legends]
        edges = canvas.bbox
        for place, box in enumerate(boxes):
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= edges.x1 + 1 and box.y1 <= edges.y1 + 1  # noqa: PT018
            for other in boxes[:place]:
                assert not box.padded(-1).overlaps(other.padded(-1))


def test_looks_tell_many_apart_and_known_ones_stay() -> None:
    names = [f"run {number}" for number in range(30)]
    curves = [Line(name=name, x=[0], y=[0]) for name in (*names, "merged", "base")]
    looks = looks_of(figure(Panel(title="", x=STEP, y=SCORE, series=curves)))
    assert len({(look.colour, look.marker) for look in looks.values()}) == 32
    assert len({(look.colour, look.symbol) for look in looks.values()}) == 32
    alone = looks_of(figure(Panel(title="", x=STEP, y=SCORE, series=curves[-2:])))
    assert (looks["merged"], looks["base"]) == (alone["merged"], alone["base"])
    assert len({look.colour for look in LOOKS}) == 7


def test_histograms_of_a_panel_share_bins() -> None:
    """24 bins from -3 to -1 are 1/12 wide: -3 is in the first, -2 in the 13th, -1.5 in the 19th, -1 in the last."""
    found = binned(histograms())
    assert found.edges[0] == -3
    assert found.edges[-1] == -1
    members, others = found.shares
    assert {place: share for place, share in enumerate(members) if share} == pytest.approx(
        {12: 1 / 3, 18: 1 / 3, 23: 1 / 3}
    )
    assert {place: share for place, share in enumerate(others) if share} == {0: 1}  # infinity has no place
    empty = Panel(title="", x=STEP, y=SCORE, series=[Histogram(name="members", values=[])])
    assert sum(binned(empty).shares[0]) == 0
    image(figure(empty))


def test_a_scale_is_shared_and_has_the_colours_of_matplotlib() -> None:
    import matplotlib
    from matplotlib.colors import to_hex

    parallel = shaded()[2]
    scale = scale_of(parallel)
    assert scale is not None
    assert (scale.title, scale.low, scale.high) == ("score", 0, 1)
    exact = matplotlib.colormaps["cividis"]
    assert [to_hex(exact(step / 9)) for step in range(10)] == list(CIVIDIS)
    assert shade(1, scale) == CIVIDIS[-1]
    assert scale_of(lines()) is None
    drawn = spec(figure(parallel))
    assert [trace["line"]["color"] for trace in drawn["data"][:3:2]] == [CIVIDIS[0], CIVIDIS[-1]]
    assert drawn["data"][3]["marker"]["coloraxis"] == "coloraxis"  # lines alone would show no scale


def test_places_of_categories() -> None:
    axis = Axis(title="", categories=["a", "b"])
    assert places(axis, ["b", "a"]) == [1, 0]
    assert math.isnan(places(STEP, [None])[0])


def test_a_browser_gets_json_and_no_markup() -> None:
    told = json.dumps(spec(HOSTILE), allow_nan=False)
    assert "<script" not in told
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in told
    told.encode("utf-8")
    assert "\\ud800" not in told
    assert "\\u0000" not in told
    allowed = ("<b>", "</b>", "<br>")
    for tag in allowed:
        told = told.replace(tag, "")
    assert "<" not in told


def test_a_bar_that_was_not_measured_is_a_dash_in_its_place() -> None:
    """Of two bars in 0.8 of a category the first is in the middle at -0.2."""
    words = [one for one in spec(figure(bars()))["layout"]["annotations"] if one["text"] == "–"]
    assert [(one["x"], one["y"]) for one in words] == [(pytest.approx(1 - 0.2), 0)]
    assert words[0]["hovertext"] == "<b>base</b><br>another one: not measured"


def test_steps_have_no_halves() -> None:
    def along(x: list[Any]) -> tuple[list[float], Any]:
        panel = Panel(title="", x=STEP, y=SCORE, series=[Line(name="one", x=x, y=[0.5] * len(x))])
        with _drawn(figure(panel)) as canvas:
            return list(canvas.axes[0].get_xticks()), spec(figure(panel))["layout"]["xaxis"].get("dtick")

    ticks, step = along([0, 1, 2])
    assert step == 1
    assert all(tick == int(tick) for tick in ticks)
    ticks, step = along([0, 0.5, 2])
    assert step is None
    assert 0.25 in ticks or 0.5 in ticks


def test_a_point_without_its_third_number_is_hollow() -> None:
    spots = spec(figure(shaded()[1]))["data"][1]
    assert spots["marker"]["color"] == [0.5, None]
    assert spots["marker"]["symbol"] == ["circle", "circle-open"]
    assert spots["hovertext"][1] == "<b>one</b><br>one: not measured<br>one"


def test_hover_says_name_value_and_interval() -> None:
    data = spec(figure(bars()))["data"]
    assert data[0]["hovertext"][0] == (
        "<b>base</b><br>a score with a long name<br>score: 0.5 (95 % interval 0.4 to 0.6)"
    )
    assert data[0]["error_y"]["array"] == pytest.approx([0.1, None, 0.7])
    assert data[0]["error_y"]["arrayminus"] == pytest.approx([0.1, None, 0.1])
    assert "error_y" not in data[1]


def test_both_layouts_place_every_panel_once() -> None:
    built: dict[str, Any] = spec(ALL)
    assert [trace["showlegend"] for trace in built["data"] if trace["name"] == "one"].count(True) == 1
    for layout, columns in ((built["layout"], 3), (built["narrow"], 1)):
        places = [
            (*layout[f"xaxis{end}"]["domain"], *layout[f"yaxis{end}"]["domain"])
            for end in ("", "2", "3", "4", "5", "6")
        ]
        assert len({place[0] for place in places}) == columns
        for number, (left, right, bottom, top) in enumerate(places):
            assert 0 <= left < right <= 1
            assert 0 <= bottom < top <= 1
            for others in places[:number]:
                assert right <= others[0] or left >= others[1] or top <= others[2] or bottom >= others[3]
    assert set(built["light"]) == set(built["dark"])
    assert built["layout"]["font"]["color"] == built["light"]["font.color"]
    assert built["layout"]["xaxis3"]["gridcolor"] == built["light"]["xaxis3.gridcolor"]


def test_control_characters_and_long_names() -> None:
    assert shown("a\nb\tc") == "a b c"
    assert shown("a\x00b\ud800") == "a�b�"
    long = shown("x" * 20 + "y" * 40 + "z" * 20)
    assert len(long) == 48
    assert "…" in long
    assert long.startswith("xxx")
    assert long.endswith("zzz")


def test_drawing_needs_no_model() -> None:
    code = "import sys, unlearn_pl.report.draw, unlearn_pl.report.interactive as i; "
    code += "print(sorted({'torch', 'lightning', 'transformers', 'matplotlib', 'plotly'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_panel_draws_on_given_axes() -> None:
    from matplotlib.figure import Figure as Canvas

    axes = Canvas().subplots()
    draw_panel(axes, lines(), looks_of(figure(lines())))
    assert axes.get_xlabel() == "optimizer step"
    assert axes.get_legend() is None


def test_a_dashed_line_of_one_point_is_told_from_the_line_beside_it() -> None:
    """A validation loss that was measured once has no dashes to be seen: its marker is open."""
    from matplotlib.figure import Figure as Canvas

    curves = [
        Line(name="over", x=[0, 1], y=[0.0, 1.0], markers=True),
        Line(name="over, validation", x=[1], y=[0.5], dashed=True, markers=True, colour="over"),
    ]
    panel = Panel(title="", x=Axis(title="step"), y=Axis(title="loss"), series=curves)
    axes = Canvas().subplots()
    draw_panel(axes, panel, looks_of(figure(panel)))
    assert [line.get_markerfacecolor() == "none" for line in axes.lines[:2]] == [False, True]
    data = spec(figure(panel))["data"]
    assert [trace["marker"]["symbol"].endswith("-open") for trace in data[:2]] == [False, True]
