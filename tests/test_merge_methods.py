"""The table of merge methods and the checks of the arguments, without any model."""

import math

import pytest

from unlearn_pl.errors import InputError
from unlearn_pl.merging.methods import METHODS, find_method, merge_settings

FACTORS = {"linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"}
DELTA = {"cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"}


def names(**facts):
    return {m.name for m in METHODS.values() if all(getattr(m, key) == value for key, value in facts.items())}


def test_the_table_has_pefts_eleven_types_and_their_properties():
    assert set(METHODS) == FACTORS | DELTA
    assert names(space="factors") == names(equal_ranks=True) == FACTORS
    assert names(truncates=True) == DELTA - {"cat"}
    assert names(uses_density=False) == {"linear", "cat", "svd"}
    assert names(random=True) == {"dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"}
    assert names(scale="disjoint mean") == {"ties", "dare_ties", "ties_svd", "dare_ties_svd"}
    assert names(signed_weights=True) == {"cat", "svd", "dare_linear_svd", "magnitude_prune_svd"}
    assert all(m.kernel.paper for m in METHODS.values())


def test_defaults_are_filled_in_only_where_they_are_used():
    ties = merge_settings(2)
    assert (ties.method.name, ties.weights, ties.density, ties.majority_sign) == ("ties", (1.0, 1.0), 0.8, "total")
    assert (ties.seed, ties.svd_rank) == (None, None)
    svd = merge_settings(3, "svd", [1, -1, 0.5], svd_rank=7)
    assert (svd.weights, svd.density, svd.majority_sign, svd.svd_rank) == ((1.0, -1.0, 0.5), None, None, 7)
    dare = merge_settings(2, "dare_linear", seed=7, density=1)
    assert (dare.seed, dare.density, dare.majority_sign) == (7, 1.0, None)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("tie", {}, "--method: .*did you mean ties?"),
        ("foo_svd", {}, "--method: must be one of linear, ties, .* got foo_svd"),
        ("ties", {"adapters": 1}, "--adapters: .* at least 2 adapters, got 1"),
        ("ties", {"weights": [1]}, "--weights: 2 adapters need 2 weights, got 1"),
        ("ties", {"weights": [1, 1, 1]}, "--weights: 2 adapters need 2 weights, got 3"),
        ("svd", {"weights": [1, math.nan]}, "--weights: must be finite"),
        ("svd", {"weights": [math.inf, 1]}, "--weights: must be finite"),
        ("svd", {"weights": [0, 0]}, "--weights: .*at least one not 0, got 0 0"),
        ("linear", {"weights": [1, -1]}, "--weights: linear adds A and B apart.*use svd or cat.*got 1 -1"),
        ("magnitude_prune", {"weights": [1, -1]}, "--weights: magnitude_prune adds A and B apart"),
        ("ties", {"weights": [1, -1]}, "--weights: ties elects signs before it weighs"),
        ("ties_svd", {"weights": [1, -1]}, "--weights: ties_svd elects signs before it weighs"),
        ("ties", {"weights": [1, 0]}, "--weights: under ties an adapter of weight 0 would still vote"),
        ("ties", {"density": 0}, r"--density: must be in \(0, 1\], got 0"),
        ("ties", {"density": 1.2}, r"--density: must be in \(0, 1\], got 1.2"),
        ("ties", {"density": math.nan}, r"--density: must be in \(0, 1\], got nan"),
        ("linear", {"density": 0.8}, "--density: linear does not prune"),
        ("cat", {"density": 0.8}, "--density: cat does not prune"),
        ("ties", {"majority_sign": "sum"}, "--majority-sign: must be one of total, frequency, got sum"),
        ("magnitude_prune", {"majority_sign": "total"}, "--majority-sign: magnitude_prune elects no sign"),
        ("ties", {"svd_rank": 4}, "--svd-rank: ties does not truncate"),
        ("cat", {"svd_rank": 4}, "--svd-rank: cat does not truncate"),
        ("svd", {"svd_rank": 0}, "--svd-rank: must be at least 1, got 0"),
    ],
)
def test_refusals_name_the_argument(method, arguments, message):
    with pytest.raises(InputError, match=message):
        merge_settings(**({"adapters": 2, "method": method} | arguments))


def test_a_name_unlike_all_others_gets_no_hint():
    with pytest.raises(InputError) as caught:
        find_method("xyz")
    assert "did you mean" not in str(caught.value)
