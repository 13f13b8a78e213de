"""Where a costly curve crosses a level: by curves whose crossings are known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_pl.balance.crossing import find_crossings, refine

GRID = [0, 0.25, 0.5, 0.75, 1]


class Counted:
    """A curve that counts how often it is asked, and refuses to be asked twice at one place."""

    def __init__(self, curve):
        self.curve, self.places = curve, []

    def __call__(self, place):
        assert place not in self.places
        self.places.append(place)
        return self.curve(place)


def test_a_straight_line_needs_one_value_more():
    """From 0.2 at 0 to 1 at 1: 0.5 is at 0.375, which a straight line between 0.25 and 0.5 hits at once."""
    curve = Counted(lambda place: 0.2 + 0.8 * place)
    (found,) = find_crossings(curve, GRID, tolerance=1e-9)
    assert found.at == pytest.approx(0.375)
    assert found.reached
    assert len(curve.places) == 6


def test_every_crossing_of_a_curve_that_comes_back():
    """0.5 + 0.4 cos(2 pi x): above at 0, below in the middle, above again; one half at 1/4 and 3/4, on the grid."""
    curve = Counted(lambda place: 0.5 + 0.4 * math.cos(2 * math.pi * place))
    assert [round(one.at, 12) for one in find_crossings(curve, GRID)] == [0.25, 0.75]
    off = Counted(lambda place: 0.5 + 0.4 * math.cos(2 * math.pi * (place + 0.07)))
    assert [one.at for one in find_crossings(off, GRID, tolerance=1e-3)] == pytest.approx([0.18, 0.68], abs=1e-3)


def test_no_crossing_and_one_seen_only_by_a_finer_grid():
    assert find_crossings(lambda place: 0.9 - 0.2 * place, GRID) == []
    dip = Counted(lambda place: 0.2 if 0.3 < place < 0.4 else 0.9)
    assert find_crossings(dip, GRID) == []
    fine = [i / 20 for i in range(21)]
    found = find_crossings(lambda place: 0.2 if 0.3 < place < 0.4 else 0.9, fine, tolerance=0.01)
    assert len(found) == 2
    assert not any(one.reached for one in found)  # it jumps past one half


def test_a_jump_is_told_from_a_crossing_and_keeps_to_its_budget():
    curve = Counted(lambda place: 0.1 if place < 0.6 else 0.7)
    (found,) = find_crossings(curve, GRID, evaluations=5)
    assert len(curve.places) == len(GRID) + 5
    assert (found.value, found.reached) == (0.7, False)
    assert 0.5 < found.at < 0.75


def test_an_end_of_the_grid_can_be_the_crossing():
    found = find_crossings(lambda place: 0.5 + 0.3 * place, GRID, tolerance=0.01)
    assert [(one.at, one.reached) for one in found] == [(0, True)]


@given(st.floats(0.01, 0.99), st.integers(3, 40), st.booleans())
def test_steps_as_small_as_the_tolerance_are_found_within_the_budget(root, steps, falls):
    """An AUC of few documents: a rising or falling line through one half at ``root``, rounded down to steps."""

    def curve(place):
        value = math.floor((0.5 + (place - root) * 0.9) * steps) / steps
        return 1 - value if falls else value

    for found in find_crossings(curve, GRID, tolerance=1 / steps, evaluations=30):
        assert found.reached
        assert abs(curve(found.at) - 0.5) <= 1 / steps


@given(st.floats(-2, 1, allow_subnormal=False), st.floats(0.05, 0.95))
def test_refining_stays_inside_of_its_bracket(power, root):
    def curve(place):
        return 0.5 + math.copysign(abs(place - root) ** math.exp(power), place - root) / 2

    found = refine(curve, ((0, curve(0)), (1, curve(1))), 0.5, tolerance=1e-3, evaluations=60)
    assert 0 <= found.at <= 1
    assert found.value == curve(found.at)
    assert found.reached


@pytest.mark.parametrize(("root", "steps"), [(0.3, 27), (0.62, 27), (0.9, 7), (0.41, 24)])
def test_neighbouring_steps_are_a_crossing_and_end_the_search(root, steps):
    """A staircase whose values miss one half by half a step (or, with 24 steps, meet it): no tolerance is needed."""
    curve = Counted(lambda place: (math.floor((0.5 + (root - place) * 0.9) * steps) + 0.5 * (steps % 2 == 0)) / steps)
    (found,) = find_crossings(curve, GRID, tolerance=1e-9, evaluations=30, step=1 / steps)
    assert found.reached
    assert abs(found.value - 0.5) <= 0.5 / steps + 1e-12
    assert len(curve.places) < 5 + 12
    wide = find_crossings(lambda place: 0.1 if place < root else 0.9, GRID, evaluations=6, step=1 / steps)
    assert [one.reached for one in wide] == [False]


def test_a_value_that_is_not_finite_is_on_no_side():
    """NaN from .2 to .8: .1 and .9 on its sides are no crossing, nor is NaN itself."""
    curve = Counted(lambda place: math.nan if 0.2 < place < 0.8 else 0.1 + 0.8 * place)
    assert find_crossings(curve, GRID) == []
    hole = Counted(lambda place: math.nan if 0.3 < place < 0.4 else 0.9 * (place > 0.3))
    found = find_crossings(hole, GRID)
    assert not any(one.reached or math.isnan(one.value) for one in found)
