"""The merge of adapters module by module: every method against dense formulas, and what must not change a delta."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from merge_choice import merge_settings
from torch import Tensor

from unlearn_pl.merging.adapters import Adapter
from unlearn_pl.merging.factors import Delta, Factors, norm
from unlearn_pl.merging.kernels import KERNELS
from unlearn_pl.merging.merge import merge_modules, merge_tensors
from unlearn_pl.merging.methods import METHODS
from unlearn_pl.merging.options import MergeSettings

SIZES = {"base_model.model.layers.0.q_proj": (6, 7), "base_model.model.layers.1.up_proj": (9, 6)}
"""(out, in) of the modules."""
FULL = 6
FACTORS = [name for name, method in METHODS.items() if method.space == "factors"]
DELTA = [name for name, method in METHODS.items() if method.space == "delta"]
RANDOM = [name for name, method in METHODS.items() if method.random]


def parent(seed: int, rank: int = 3, alpha: float = 6, integers: bool = True, **config: object) -> Adapter:
    """An adapter of small integers, so that its products are exact; the default scaling is 2."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        if integers:
            return torch.randint(-3, 4, shape, generator=generator).float()
        return torch.randn(shape, generator=generator)

    factors = {name: Factors(draw(rank, size[1]), draw(size[0], rank)) for name, size in SIZES.items()}
    return Adapter(Path(str(seed)), {"r": rank, "lora_alpha": alpha, **config}, factors, {})


def parents_for(name: str, **options: object) -> list[Adapter]:
    return [parent(seed, **options) for seed in range(METHODS[name].kernel.only or 3)]  # type: ignore[arg-type]


def choose(name: str, count: int, **options: object) -> MergeSettings:
    """The settings with unequal weights, where there are any, and half of the entries pruned."""
    kernel = METHODS[name].kernel
    chosen: dict = {"weights": [0.5, 1.0, 2.0][:count] if kernel.takes_weights else None, **options}
    if "density" in kernel.parameters:
        chosen.setdefault("density", 0.5)
    return merge_settings(count, name, **chosen)


def change(one: Adapter, edit: object, **config: object) -> Adapter:
    """The adapter with ``edit`` of each pair of factors."""
    return replace(one, config=one.config | config, factors={m: edit(pair) for m, pair in one.factors.items()})  # type: ignore[operator]


def dense(delta: Delta) -> Tensor:
    return delta.b.double() @ delta.a.double() if isinstance(delta, Factors) else delta.double()


def close(got: dict[str, Delta], wanted: dict[str, Delta], tolerance: float = 1e-5) -> None:
    assert got.keys() == wanted.keys()
    for name in wanted:
        size = dense(wanted[name]).abs().max().item()
        torch.testing.assert_close(dense(got[name]), dense(wanted[name]), rtol=0, atol=tolerance * max(size, 1e-30))


def same(got: dict[str, Delta], wanted: dict[str, Delta]) -> bool:
    """Bit for bit."""
    assert got.keys() == wanted.keys()
    return all(all(map(torch.equal, parts(got[name]), parts(wanted[name]))) for name in wanted)


def parts(delta: Delta) -> tuple[Tensor, ...]:
    return tuple(delta) if isinstance(delta, Factors) else (delta,)


def whole_delta(one: Adapter, module: str) -> Tensor:
    """[out, in] float64: scaling x B A."""
    a, b = one.factors[module]
    return one.scaling[module] * b.double() @ a.double()


# --- what each method computes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_form_is_the_one_of_the_table_and_the_norm_that_of_the_dense_delta(name: str) -> None:
    parents = parents_for(name)
    deltas = merge_modules(parents, choose(name, len(parents)))
    assert list(deltas) == list(SIZES)
    ranks = {"factors": 3, "stacked": 3 * len(parents), "truncated": 3}
    for module, (rows, columns) in SIZES.items():
        tensors, form = parts(deltas[module]), METHODS[name].form
        shapes = [(rows, columns)] if form == "dense" else [(ranks[form], columns), (rows, ranks[form])]
        assert [tuple(tensor.shape) for tensor in tensors] == shapes
        assert all(tensor.dtype == torch.float32 for tensor in tensors)
    total = sum(dense(delta).square().sum().item() for delta in deltas.values())
    assert total > 0
    assert norm(deltas) == pytest.approx(math.sqrt(total), rel=1e-6)


def test_norm_by_hand() -> None:
    """(3, 4) as it is and 6 x 2 as factors: the root of 9 + 16 + 144."""
    deltas = {"one": torch.tensor([[3.0, 4.0]]), "two": Factors(torch.tensor([[2.0]]), torch.tensor([[6.0]]))}
    assert norm(deltas) == 13
    assert norm({"zero": Factors(torch.zeros(1, 2), torch.ones(2, 1))}) == 0


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].truncates])
def test_at_full_rank_nothing_is_cut_off(name: str) -> None:
    kernel = METHODS[name].kernel
    (exact,) = [
        other
        for other, method in METHODS.items()
        if method.kernel is kernel and method.form in ("dense", "stacked") and other != "cat"
    ]
    parents = parents_for(name)
    got = merge_modules(parents, choose(name, len(parents), svd_rank=FULL))
    close(got, merge_modules(parents, choose(exact, len(parents))))


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].truncates])
def test_a_lower_rank_is_the_best_of_that_rank(name: str) -> None:
    """Eckart and Young: what is lost are the other singular values."""
    parents = parents_for(name)
    full = merge_modules(parents, choose(name, len(parents), svd_rank=FULL))
    for module, cut in merge_modules(parents, choose(name, len(parents), svd_rank=2)).items():
        assert cut.a.shape[0] == 2  # type: ignore[union-attr]
        lost = torch.linalg.svdvals(dense(full[module]))[2:].square().sum().sqrt().item()
        assert (dense(cut) - dense(full[module])).norm().item() == pytest.approx(lost, rel=1e-4, abs=1e-5)


def slerp_formula(x: Tensor, y: Tensor, t: float) -> Tensor:
    angle = math.acos((x * y).sum() / (x.norm() * y.norm()))
    return (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)


@pytest.mark.parametrize("name", ["cat", "task_arithmetic", "average", "slerp"])
def test_exact_methods_equal_their_formulas_in_float64(name: str) -> None:
    """Of the dense deltas, with other ranks and scalings; weights -1/2, 1, 2, for slerp 1, 3: t = 3/4."""
    parents = [parent(seed, rank, alpha, False) for seed, rank, alpha in ((1, 2, 3), (2, 3, 5), (3, 1, 0.5))]
    weights = [-0.5, 1.0, 2.0]
    if name == "slerp":
        parents, weights = parents[:2], [1.0, 3.0]
    wanted: dict[str, Delta] = {}
    for module in SIZES:
        deltas = [whole_delta(one, module) for one in parents]
        if name == "slerp":
            wanted[module] = slerp_formula(deltas[0], deltas[1], 0.75)
        else:
            total = sum(weight * delta for weight, delta in zip(weights, deltas, strict=True))
            wanted[module] = total / sum(weights) if name == "average" else total  # type: ignore[assignment]
    close(merge_modules(parents, merge_settings(len(parents), name, weights)), wanted, 2e-6)


def test_cat_and_task_arithmetic_are_two_names_of_one_method() -> None:
    parents = parents_for("cat")
    assert same(merge_modules(parents, choose("cat", 3)), merge_modules(parents, choose("task_arithmetic", 3)))


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].form == "dense"])
def test_dense_methods_are_the_kernel_on_the_deltas(name: str) -> None:
    """Module by module, all from one generator."""
    parents = parents_for(name)
    chosen = choose(name, len(parents), scale=2)
    generator = torch.Generator().manual_seed(42)
    for module, got in merge_modules(parents, chosen).items():
        deltas = [whole_delta(one, module).float() for one in parents]
        wanted = 2 * merge_tensors(chosen.method.kernel, deltas, chosen.weights, chosen.options, generator)
        assert torch.equal(got, wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FACTORS)
def test_factor_methods_are_the_kernel_on_a_and_on_b(name: str) -> None:
    """The weight of each factor is the root of weight x scaling; A is merged before B, from one generator."""
    parents = parents_for(name)
    chosen = choose(name, 3)
    generator = torch.Generator().manual_seed(42)
    roots = [math.sqrt(weight * 2) for weight in (0.5, 1.0, 2.0)]
    for module, got in merge_modules(parents, chosen).items():
        for side in (0, 1):
            tensors = [one.factors[module][side].clone() for one in parents]
            wanted = merge_tensors(chosen.method.kernel, tensors, roots, chosen.options, generator)
            assert torch.equal(got[side], wanted)


def test_every_kernel_has_a_method_in_the_space_of_deltas() -> None:
    assert {METHODS[name].kernel.name for name in DELTA} == set(KERNELS)


# --- what must not change it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DELTA)
def test_only_the_delta_of_an_adapter_counts(name: str) -> None:
    """(-A, -B), ranks in another order, A doubled and B halved, ranks of zeros: all are the same delta."""
    first, *others = parents_for(name)
    order = [2, 0, 1]
    twins = {
        "negated": change(first, lambda pair: Factors(-pair.a, -pair.b)),
        "permuted": change(first, lambda pair: Factors(pair.a[order], pair.b[:, order])),
        "shifted": change(first, lambda pair: Factors(2 * pair.a, pair.b / 2)),
        "padded": change(
            first,
            lambda pair: Factors(
                torch.nn.functional.pad(pair.a, (0, 0, 0, 1)), torch.nn.functional.pad(pair.b, (0, 1), value=5.0)
            ),
            r=4,
            lora_alpha=8,
        ),
    }
    rank = {"svd_rank": 3} if METHODS[name].truncates else {}
    chosen = choose(name, 1 + len(others), **rank)
    wanted = merge_modules([first, *others], chosen)
    for twin in twins.values():
        got = merge_modules([twin, *others], chosen)
        if METHODS[name].form == "dense":
            assert same(got, wanted)
        close(got, wanted)


@pytest.mark.parametrize("name", ["ties", "dare_linear", "negmerge", "breadcrumbs"])
def test_in_the_space_of_factors_the_sign_of_both_factors_counts(name: str) -> None:
    """The same delta merges into another one: what the methods ending in svd and dense avoid."""
    first, *others = parents_for(name)
    flipped = change(first, lambda pair: Factors(-pair.a, -pair.b))
    chosen = choose(name, 3)
    one, other = merge_modules([first, *others], chosen), merge_modules([flipped, *others], chosen)
    assert all((dense(one[m]) - dense(other[m])).norm() > 0.1 * dense(one[m]).norm() for m in SIZES)


@pytest.mark.parametrize("scale", [-1.0, 0.25, 3.0])
@pytest.mark.parametrize("name", METHODS)
def test_scale_multiplies_the_delta(name: str, scale: float) -> None:
    parents = parents_for(name)
    wanted = {m: scale * dense(delta) for m, delta in merge_modules(parents, choose(name, len(parents))).items()}
    close(merge_modules(parents, choose(name, len(parents), scale=scale)), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
def test_scalings_enter_as_alpha_over_rank_or_its_root_and_by_pattern(name: str) -> None:
    """Rank 4: alpha 8, and alpha 4 of a rank-stabilised adapter, are scalings of 2; an alpha of 16 for q_proj is 4."""
    first, *others = parents_for(name, rank=4, alpha=8)
    chosen = choose(name, 1 + len(others))
    plain = merge_modules([first, *others], chosen)
    stabilised = change(first, lambda pair: pair, lora_alpha=4, use_rslora=True)
    assert same(merge_modules([stabilised, *others], chosen), plain)
    got = merge_modules([change(first, lambda pair: pair, alpha_pattern={"q_proj": 16}), *others], chosen)
    all_changed = merge_modules([change(first, lambda pair: pair, lora_alpha=16), *others], chosen)
    q_proj, up_proj = SIZES
    assert same({q_proj: got[q_proj]}, {q_proj: all_changed[q_proj]})
    assert same({up_proj: got[up_proj]}, {up_proj: plain[up_proj]})
    if METHODS[name].kernel.name != "negmerge":  # whose consensus may be empty
        assert not same({q_proj: got[q_proj]}, {q_proj: plain[q_proj]})


@pytest.mark.parametrize("name", DELTA)
def test_a_scaling_is_as_good_as_larger_factors(name: str) -> None:
    """Alpha 12 instead of 6 is B doubled."""
    first, *others = parents_for(name)
    chosen = choose(name, 1 + len(others))
    twice = merge_modules([change(first, lambda pair: pair, lora_alpha=12), *others], chosen)
    close(twice, merge_modules([change(first, lambda pair: Factors(pair.a, 2 * pair.b)), *others], chosen))


@pytest.mark.parametrize("name", DELTA)
def test_ranks_may_differ_and_the_default_rank_is_the_largest(name: str) -> None:
    """Also a rank beyond what the first adapter has."""
    parents = [parent(seed, rank) for seed, rank in enumerate([1, 4, 2][: METHODS[name].kernel.only or 3])]
    merged = merge_modules(parents, choose(name, len(parents)))
    ranks = {"stacked": sum(one.rank for one in parents), "truncated": 4}
    for delta in merged.values():
        if isinstance(delta, Factors):
            assert delta.a.shape[0] == delta.b.shape[1] == ranks[METHODS[name].form]
        else:
            assert METHODS[name].form == "dense"


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_the_modules_counts_for_random_methods_alone(name: str) -> None:
    parents = parents_for(name)
    chosen = choose(name, len(parents))
    forwards, backwards = (merge_modules(parents, chosen, order) for order in (list(SIZES), list(SIZES)[::-1]))
    assert list(backwards) == list(SIZES)[::-1]
    assert same(forwards, merge_modules(parents, chosen))
    assert same(forwards, backwards) != METHODS[name].random


@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_are_a_function_of_the_seed(name: str) -> None:
    parents = parents_for(name)
    one = merge_modules(parents, choose(name, 3, seed=1))
    assert same(merge_modules(parents, choose(name, 3, seed=1)), one)
    assert not same(merge_modules(parents, choose(name, 3, seed=2)), one)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_adapters_are_computed_in_float32(name: str) -> None:
    """Bit for bit as if they had been float32 all along."""
    parents = [
        change(one, lambda pair: Factors(pair.a.bfloat16(), pair.b.bfloat16()))
        for one in parents_for(name, integers=False)
    ]
    widened = [change(one, lambda pair: Factors(pair.a.float(), pair.b.float())) for one in parents]
    chosen = choose(name, len(parents))
    merged = merge_modules(parents, chosen)
    assert same(merged, merge_modules(widened, chosen))
    assert all(tensor.dtype == torch.float32 for delta in merged.values() for tensor in parts(delta))


@pytest.mark.parametrize("name", METHODS)
def test_the_adapters_are_not_changed(name: str) -> None:
    """Kernels use up their tensors: these must be copies."""
    parents = parents_for(name)
    copies = [change(one, lambda pair: Factors(pair.a.clone(), pair.b.clone())) for one in parents]
    merge_modules(parents, choose(name, len(parents)))
    for one, before in zip(parents, copies, strict=True):
        assert same(dict(one.factors), dict(before.factors))


def test_modules_that_are_left_out_of_the_order_are_a_defect() -> None:
    with pytest.raises(AssertionError):
        merge_modules(parents_for("cat"), choose("cat", 3), list(SIZES)[:1])
