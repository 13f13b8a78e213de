"""The table of merge methods and the checks of the arguments, without any model."""

import math

import pytest
from merge_choice import merge_settings

from unlearn_pl.errors import InputError
from unlearn_pl.merging.kernels import KERNELS, PARAMETERS, KernelOptions
from unlearn_pl.merging.methods import CHECKPOINT_METHODS, METHODS, find_method

PEFT_FACTORS = {"linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"}
PEFT_DELTA = {"cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"}
FACTORS = PEFT_FACTORS | {"della_linear", "della", "breadcrumbs", "negmerge"}
PRUNING = ["ties", "magnitude_prune", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs", "sce"]
SVD_AND_DENSE = [*PRUNING, "negmerge"]
STACKED = {"cat", "task_arithmetic", "average", "slerp"}


def names(methods=METHODS, **facts):
    return {m.name for m in methods.values() if all(getattr(m, key) == value for key, value in facts.items())}


def test_the_table_has_every_kernel_in_its_spaces_and_forms():
    assert names(space="factors") == names(form="factors") == names(equal_ranks=True) == FACTORS
    assert names(form="stacked") == STACKED
    truncated = {f"{name}_svd" for name in SVD_AND_DENSE} | {"svd", "average_svd", "slerp_svd"}
    assert names(form="truncated") == names(truncates=True) == truncated
    assert names(form="dense") == {f"{name}_dense" for name in SVD_AND_DENSE}
    assert names(space="delta") == STACKED | names(form="truncated") | names(form="dense")
    assert names(space="checkpoint") == set()
    assert all(name == method.name for name, method in METHODS.items())
    assert len(METHODS) == 9 + 4 + 12 + 9


def test_the_properties_of_pefts_eleven_types():
    assert set(METHODS) > PEFT_FACTORS | PEFT_DELTA
    assert {METHODS[name].space for name in PEFT_FACTORS} == {"factors"}
    assert {METHODS[name].form for name in PEFT_FACTORS} == {"factors"}
    assert {METHODS[name].space for name in PEFT_DELTA} == {"delta"}
    assert {name for name in PEFT_DELTA if METHODS[name].truncates} == PEFT_DELTA - {"cat"}
    peft = {name: METHODS[name] for name in PEFT_FACTORS | PEFT_DELTA}
    assert names(peft, random=True) == {"dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"}
    assert names(peft, why_unsigned="") == {"cat", "svd", "dare_linear_svd", "magnitude_prune_svd"}
    assert names(peft, scale="disjoint mean") == {"ties", "dare_ties", "ties_svd", "dare_ties_svd"}
    assert names(peft, scale="sum of A and of B: 4 x the delta") == {"linear", "dare_linear", "magnitude_prune"}
    assert names(peft, scale="sum: 2 x the delta") == {"cat", "svd", "dare_linear_svd", "magnitude_prune_svd"}
    assert {name for name in peft if "density" not in peft[name].kernel.parameters} == {"linear", "cat", "svd"}


def test_the_properties_of_the_others():
    bases = ("dare_linear", "dare_ties", "della_linear", "della")
    assert names(random=True) == {base + end for base in bases for end in ("", "_svd", "_dense")}
    assert names(scale="mean") == {"average", "slerp", "average_svd", "slerp_svd"} | {
        f"negmerge{end}" for end in ("", "_svd", "_dense")
    }
    assert names(scale="energy mean") == {"sce_svd", "sce_dense"}
    signed = {f"{name}{end}" for name in ("magnitude_prune", "dare_linear", "della_linear", "breadcrumbs")
              for end in ("_svd", "_dense")}  # fmt: skip
    assert names(why_unsigned="") == signed | {"cat", "task_arithmetic", "svd", "average", "average_svd"}
    assert all("arXiv" in kernel.paper or "doi" in kernel.paper for kernel in KERNELS.values())


def test_the_properties_of_the_kernels():
    assert all(name == kernel.name for name, kernel in KERNELS.items())
    assert {name for name, kernel in KERNELS.items() if kernel.elects_sign} == {
        "ties", "dare_ties", "della", "sce", "negmerge"
    }  # fmt: skip
    assert {name for name, kernel in KERNELS.items() if kernel.linear} == {"linear", "average", "slerp"}
    assert {name for name, kernel in KERNELS.items() if kernel.random} == {
        "dare_linear", "dare_ties", "della_linear", "della"
    }  # fmt: skip
    assert [name for name, kernel in KERNELS.items() if "density" in kernel.parameters] == PRUNING
    assert {name for name, kernel in KERNELS.items() if not kernel.in_factors} == {"average", "slerp", "sce"}
    assert {name: kernel.only for name, kernel in KERNELS.items() if kernel.only} == {"slerp": 2}
    assert {name for name, kernel in KERNELS.items() if not kernel.takes_weights} == {"sce"}
    assert {key for kernel in KERNELS.values() for key in kernel.parameters} == PARAMETERS.keys()


def test_checkpoints_are_merged_by_every_kernel_under_its_own_name():
    assert set(CHECKPOINT_METHODS) == {*KERNELS, "task_arithmetic"}
    assert CHECKPOINT_METHODS["task_arithmetic"].kernel is KERNELS["linear"]
    for name, method in CHECKPOINT_METHODS.items():
        assert method.kernel is KERNELS.get(name, KERNELS["linear"])
        assert (method.space, method.form) == ("checkpoint", "weights")
        assert not method.truncates
        assert not method.equal_ranks
        assert method.why_unsigned == method.kernel.why_unsigned
        assert "4 x" not in method.scale


def test_defaults_are_filled_in_only_where_they_are_used():
    ties = merge_settings(2)
    assert (ties.method.name, ties.weights) == ("ties", (1.0, 1.0))
    assert ties.options == KernelOptions(density=0.8, majority_sign="total", vote="plain")
    assert (ties.seed, ties.svd_rank, ties.scale) == (None, None, 1.0)
    svd = merge_settings(3, "svd", [1, -1, 0.5], svd_rank=7, scale=-2)
    assert (svd.weights, svd.options, svd.svd_rank, svd.scale) == ((1.0, -1.0, 0.5), KernelOptions(), 7, -2.0)
    dare = merge_settings(2, "dare_linear", seed=7, density=1)
    assert (dare.seed, dare.options) == (7, KernelOptions(density=1))
    della = merge_settings(2, "della")
    assert della.seed == 42
    assert della.options == KernelOptions(density=0.8, majority_sign="total", vote="plain", epsilon=0.1)
    assert merge_settings(2, "breadcrumbs_dense").options == KernelOptions(density=0.8, outliers=0.01)
    sce = merge_settings(4, "sce_svd")
    assert (sce.weights, sce.options) == ((1.0,) * 4, KernelOptions(density=0.8))
    full = merge_settings(2, "linear", [2, -1], checkpoints=True)
    assert (full.method, full.weights) == (CHECKPOINT_METHODS["linear"], (2.0, -1.0))


def test_the_ends_of_the_ranges_are_allowed():
    assert merge_settings(2, "ties", density=1).options.density == 1
    assert merge_settings(2, "della", density=1, epsilon=0).options.epsilon == 0
    assert merge_settings(2, "della", density=0.5, epsilon=0.99).options.epsilon == 0.99
    assert merge_settings(2, "della", density=0.9, epsilon=0.2).options.epsilon == 0.2
    assert merge_settings(2, "breadcrumbs", density=1, outliers=0).options.outliers == 0
    assert merge_settings(2, "breadcrumbs", density=0.7, outliers=0.3).options.outliers == 0.3
    assert merge_settings(2, "slerp", [1, 0]).weights == (1.0, 0.0)
    assert merge_settings(2, "average", [2, -1]).weights == (2.0, -1.0)
    assert merge_settings(2, "magnitude_prune", [1, 0]).weights == (1.0, 0.0)


def test_a_weighted_vote_is_for_deltas_and_checkpoints():
    assert merge_settings(2, "ties_svd", vote="weighted").options.vote == "weighted"
    assert merge_settings(2, "ties", vote="weighted", checkpoints=True).options.vote == "weighted"
    assert merge_settings(2, "ties", vote="plain").options.vote == "plain"


def test_all_that_outliers_leave_may_be_kept():
    """density + outliers = 1 in hundredths, whatever their binary rounding; and epsilon up to twice what is left."""
    for percent in range(1, 100):
        density = percent / 100
        assert merge_settings(2, "breadcrumbs", density=density, outliers=(100 - percent) / 100)
        if percent > 50:
            assert merge_settings(2, "della", density=density, epsilon=2 * (100 - percent) / 100)


EARLIER = [
    ("tie", {}, "method: .*did you mean ties?"),
    ("foo_svd", {}, "method: must be one of linear, .*ties, .* got foo_svd"),
    ("ties", {"count": 1}, "adapters: .* at least 2 adapters, got 1"),
    ("ties", {"weights": [1]}, "weights: 2 adapters need 2 weights, got 1"),
    ("ties", {"weights": [1, 1, 1]}, "weights: 2 adapters need 2 weights, got 3"),
    ("svd", {"weights": [1, math.nan]}, "weights: must be finite"),
    ("svd", {"weights": [math.inf, 1]}, "weights: must be finite"),
    ("svd", {"weights": [0, 0]}, "weights: .*at least one not 0, got 0 0"),
    ("linear", {"weights": [1, -1]}, "weights: linear adds A and B apart.*use svd or cat.*got 1 -1"),
    ("magnitude_prune", {"weights": [1, -1]}, "weights: magnitude_prune adds A and B apart"),
    ("ties", {"weights": [1, -1]}, "weights: ties elects signs before it weighs"),
    ("ties_svd", {"weights": [1, -1]}, "weights: ties_svd elects signs before it weighs"),
    ("ties", {"weights": [1, 0]}, "weights: under ties one of weight 0 would still vote"),
    ("ties", {"density": 0}, r"density: must be in \(0, 1\], got 0"),
    ("ties", {"density": 1.2}, r"density: must be in \(0, 1\], got 1.2"),
    ("ties", {"density": math.nan}, r"density: must be in \(0, 1\], got nan"),
    ("linear", {"density": 0.8}, "density: linear has no use for it .*ties.*got 0.8"),
    ("cat", {"density": 0.8}, "density: cat has no use for it .*ties.*got 0.8"),
    ("ties", {"majority_sign": "sum"}, r"majority_sign: must be in \(total, frequency\), got sum"),
    ("magnitude_prune", {"majority_sign": "total"}, "majority_sign: magnitude_prune has no use for it"),
    ("ties", {"svd_rank": 4}, "svd_rank: ties does not truncate"),
    ("cat", {"svd_rank": 4}, "svd_rank: cat does not truncate"),
    ("svd", {"svd_rank": 0}, "svd_rank: must be at least 1, got 0"),
]
NEW = [
    ("della", {"epsilon": -0.1}, r"epsilon: must be in \[0, 1\), got -0.1"),
    ("della", {"epsilon": 1}, r"epsilon: must be in \[0, 1\), got 1"),
    ("della", {"epsilon": math.nan}, r"epsilon: must be in \[0, 1\), got nan"),
    ("breadcrumbs", {"outliers": -0.1}, r"outliers: must be in \[0, 1\), got -0.1"),
    ("breadcrumbs", {"outliers": 1}, r"outliers: must be in \[0, 1\), got 1"),
    ("breadcrumbs", {"outliers": math.nan}, r"outliers: must be in \[0, 1\), got nan"),
    ("della", {"density": 0.9, "epsilon": 0.3}, r"epsilon: rows keep .*got density 0.9 and epsilon 0.3"),
    ("della_svd", {"density": 0.1, "epsilon": 0.2}, r"epsilon: rows keep .*must lie in \(0, 1\]"),
    ("della", {"density": 1}, "epsilon: rows keep .*got density 1 and epsilon 0.1"),
    ("breadcrumbs", {"density": 0.9, "outliers": 0.2}, "outliers: density . outliers .* at most 1, got 0.9 and 0.2"),
    ("breadcrumbs", {"density": 1}, "outliers: density . outliers .* at most 1, got 1 and 0.01"),
    ("ties", {"epsilon": 0.1}, r"epsilon: ties has no use for it \(the kernels della_linear, della have\), got 0.1"),
    ("ties", {"outliers": 0.1}, r"outliers: ties has no use for it \(the kernels breadcrumbs have\), got 0.1"),
    ("breadcrumbs", {"epsilon": 0.1}, "epsilon: breadcrumbs has no use for it"),
    ("della", {"outliers": 0.1}, "outliers: della has no use for it"),
    ("della_linear", {"majority_sign": "total"}, "majority_sign: della_linear has no use for it"),
    ("sce_svd", {"majority_sign": "total"}, "majority_sign: sce_svd has no use for it"),
    ("negmerge", {"density": 0.5}, "density: negmerge has no use for it"),
    ("slerp", {"density": 0.5}, "density: slerp has no use for it"),
    ("ties", {"scale": 0}, "scale: must be a finite number other than 0, got 0"),
    ("ties", {"scale": math.nan}, "scale: must be a finite number other than 0, got nan"),
    ("ties", {"scale": -math.inf}, "scale: must be a finite number other than 0, got -inf"),
    ("slerp", {"count": 3}, "adapters: slerp merges exactly 2, got 3"),
    ("slerp_svd", {"count": 3}, "adapters: slerp_svd merges exactly 2, got 3"),
    ("slerp", {"weights": [1, -1]}, "weights: slerp goes from one to the other.*got 1 -1"),
    ("sce_svd", {"weights": [1, 1]}, "weights: sce_svd finds its own from the adapters"),
    ("average", {"weights": [1, -1]}, "weights: average divides by their sum, which must not be 0, got 1 -1"),
    ("della", {"weights": [1, -1]}, "weights: della elects signs before it weighs"),
    ("negmerge", {"weights": [1, -1]}, "weights: negmerge elects signs before it weighs"),
    ("negmerge_dense", {"weights": [0, 1]}, "weights: under negmerge_dense one of weight 0"),
    ("breadcrumbs", {"weights": [1, -1]}, "weights: breadcrumbs adds A and B apart"),
    ("sce", {}, "method: must be one of .*did you mean sce_svd"),
    ("ties_dense", {"svd_rank": 4}, "svd_rank: ties_dense does not truncate"),
    ("average", {"svd_rank": 4}, "svd_rank: average does not truncate"),
    ("ties", {"count": 1, "checkpoints": True}, "checkpoints: a merge needs at least 2 checkpoints, got 1"),
    ("slerp", {"count": 3, "checkpoints": True}, "checkpoints: slerp merges exactly 2, got 3"),
    ("ties_svd", {"checkpoints": True}, "method: must be one of linear, .*got ties_svd; did you mean ties"),
    ("cat", {"checkpoints": True}, "method: must be one of linear, .*got cat"),
    ("ties", {"svd_rank": 4, "checkpoints": True}, "svd_rank: ties does not truncate"),
    ("ties", {"weights": [1], "checkpoints": True}, "weights: 2 checkpoints need 2 weights, got 1"),
    ("ties_svd", {"vote": "both"}, r"vote: must be in \(plain, weighted\), got both"),
    ("linear", {"vote": "weighted"}, "vote: linear has no use for it"),
    (
        "ties",
        {"vote": "weighted"},
        "vote: weighted is for weight deltas and checkpoints, not .* use the method's _svd form",
    ),
    ("sce", {"weights": [1, 1], "checkpoints": True}, "weights: sce finds its own from the checkpoints"),
]


@pytest.mark.parametrize(("method", "arguments", "message"), EARLIER + NEW)
def test_refusals_name_the_argument(method, arguments, message):
    with pytest.raises(InputError, match=message):
        merge_settings(**({"count": 2, "method": method} | arguments))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_given_is_ignored(method):
    """A value for every parameter of every kernel: refused, or in the options."""
    values = {"density": 0.6, "majority_sign": "frequency", "epsilon": 0.2, "outliers": 0.05}
    for name, value in values.items():
        if name in METHODS[method].kernel.parameters:
            assert getattr(merge_settings(2, method, **{name: value}).options, name) == value
        else:
            with pytest.raises(InputError, match=f"{name}: {method} has no use for it"):
                merge_settings(2, method, **{name: value})


def test_a_name_unlike_all_others_gets_no_hint():
    with pytest.raises(InputError) as caught:
        find_method("xyz")
    assert "did you mean" not in str(caught.value)
