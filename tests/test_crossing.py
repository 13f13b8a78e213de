"""Where a costly curve is at a level: curves whose crossings are known, and guesses that are right, blind or wrong."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_pl.balance.crossing import find_crossings

PLACES = 1000
ENDS = (0, PLACES)


class Curve:
    """A curve over [0, 1] that counts where it is asked, and refuses to be asked twice at one place; its guess goes
    straight from one measured place to the next."""

    def __init__(self, curve, known=ENDS):
        self.curve = curve
        self.known = {place: curve(place / PLACES) for place in known}
        self.values = dict(self.known)

    def __call__(self, place):
        assert place not in self.values
        self.values[place] = self.curve(place / PLACES)
        return self.values[place]

    def guess(self):
        finite = {place: value for place, value in sorted(self.values.items()) if math.isfinite(value)}
        found = [next(iter(finite.values()))] * (PLACES + 1)
        for (low, low_value), (high, high_value) in pairwise(finite.items()):
            for place in range(low, PLACES + 1):
                found[place] = low_value + (high_value - low_value) * min(place - low, high - low) / (high - low)
        return found

    def crossings(self, tolerance=0.01, evaluations=8, guess=None):
        known = dict(self.values)
        return find_crossings(self, guess or self.guess, known, tolerance=tolerance, evaluations=evaluations)

    @property
    def asked(self):
        return len(self.values) - len(self.known)


def test_a_right_guess_needs_one_value():
    """From 0.2 at 0 to 1 at 1: 0.5 is at 0.375, which a straight line hits at once."""
    curve = Curve(lambda place: 0.2 + 0.8 * place)
    assert curve.crossings(1e-9) == [375]
    assert curve.asked == 1


def test_every_crossing_that_the_guess_shows():
    """0.5 + 0.4 cos(2 pi x): above at 0, below in the middle, above again; one half at 1/4 and 3/4."""
    curve = Curve(lambda place: 0.5 + 0.4 * math.cos(2 * math.pi * (place + 0.07)), (0, 500, 1000))
    assert curve.crossings(2e-3) == pytest.approx([180, 680], abs=2)


def test_a_crossing_that_is_measured_already_is_not_measured_again():
    curve = Curve(lambda place: place, (0, 495, 1000))
    assert curve.crossings() == [495]
    assert curve.asked == 0


def test_neighbours_near_the_level_are_one_crossing():
    """Of 0.494, 0.502 and 0.508, between which nothing leaves the tolerance, the nearest; 0.5 beyond 0.9 is another."""
    curve = Curve(lambda place: place if place < 0.6 else 1.4 - place, (0, 494, 502, 508, 600, 900, 1000))
    assert curve.crossings() == [502, 900]


def test_without_a_crossing_the_ends_are_measured_and_no_more():
    curve = Curve(lambda place: 0.9 - 0.2 * place, (500,))
    assert curve.crossings() == []
    assert curve.values.keys() == {0, 500, 1000}
    dip = Curve(lambda place: 0.2 if 0.3 < place < 0.4 else 0.9)
    assert dip.crossings() == []  # nothing says that it is there
    assert dip.asked == 0


def test_an_end_can_show_the_crossing():
    """A blind guess, which says what was measured last, sees 0.8 everywhere; the end at 0 says that it is wrong."""
    curve = Curve(lambda place: 0.1 + 1.4 * place, (500,))
    assert [abs(curve.curve(place / PLACES) - 0.5) <= 0.01 for place in curve.crossings()] == [True]


def test_a_jump_is_no_crossing_and_keeps_to_its_budget():
    """From 0.1 to 0.7 at 0.6, between two places: after the last value there is nothing left between them."""
    curve = Curve(lambda place: 0.1 if place < 0.6 else 0.7)
    assert curve.crossings(evaluations=5) == []
    assert curve.asked == 5
    assert curve.crossings(evaluations=60) == []
    assert curve.values.keys() >= {599, 600}
    assert curve.asked < 40
    inside = Curve(lambda place: 0.1 if place < 0.6 else 0.7, (599, 600))
    assert inside.crossings() == []
    assert inside.asked == 0  # the ends could tell nothing more


def test_a_wrong_guess_only_costs():
    """It says 0.5 at 0.9 whatever was measured: the gap between the sides shrinks all the same, to 0.2."""
    curve = Curve(lambda place: 0.4 + 0.5 * place)
    wrong = [0.4 + 0.1 * place / 900 for place in range(PLACES + 1)]
    found = curve.crossings(0.005, 60, guess=lambda: wrong)
    assert found
    assert found == pytest.approx([200] * len(found), abs=10)


@given(st.floats(0.01, 0.99), st.integers(3, 40), st.booleans())
def test_steps_as_small_as_the_tolerance_are_found_within_the_budget(root, steps, falls):
    """An AUC of few documents: a rising or falling line through one half at ``root``, rounded down to steps."""

    def curve(place):
        value = math.floor((0.5 + (place - root) * 0.9) * steps) / steps
        return 1 - value if falls else value

    asked = Curve(curve)
    found = asked.crossings(1 / steps, 20)
    assert all(abs(curve(place / PLACES) - 0.5) <= 1 / steps for place in found)
    assert found or len({value > 0.5 for value in asked.values.values()}) == 1


@given(st.floats(-1, 1, allow_subnormal=False), st.floats(0.05, 0.95))
def test_crooked_curves(power, root):
    """|x - root| to a power from 0.37 to 2.7: flat or steep where it crosses."""

    def curve(place):
        return 0.5 + math.copysign(abs(place - root) ** math.exp(power), place - root) / 2

    asked = Curve(curve)
    tolerance = max(0.02, 1.1 * abs(curve(root + 1 / PLACES) - 0.5))
    (found,) = asked.crossings(tolerance, 60)
    assert abs(curve(found / PLACES) - 0.5) <= tolerance


@pytest.mark.parametrize(("root", "steps"), [(0.3, 27), (0.62, 27), (0.9, 7), (0.41, 24)])
def test_the_nearest_step_is_a_crossing_and_ends_the_search(root, steps):
    """A staircase whose values miss one half by half a step (with 24 they meet it): half a step is near enough."""
    curve = Curve(lambda place: (math.floor((0.5 + (root - place) * 0.9) * steps) + 0.5 * (steps % 2 == 0)) / steps)
    (found,) = curve.crossings(0.5 / steps * (1 + 1e-9), 30)
    assert abs(curve.values[found] - 0.5) <= 0.5 / steps * (1 + 1e-9)
    assert curve.asked < 12


def test_a_value_that_is_not_finite_is_on_no_side():
    """NaN from .2 to .8: .1 and .9 on its sides are no crossing, nor is NaN itself, and it is not asked again."""
    curve = Curve(lambda place: math.nan if 0.2 < place < 0.8 else 0.1 + 0.8 * place)
    assert curve.crossings() == []
    assert curve.asked == 1
    assert Curve(lambda place: math.nan, ENDS).crossings(guess=lambda: [0.5] * (PLACES + 1)) == []
