"""Every merge kernel against a second implementation in plain Python, by hand, and by its properties."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from unlearn_pl.merging import kernels
from unlearn_pl.merging.coefficients import inner_products
from unlearn_pl.merging.kernels import KERNELS, KernelOptions
from unlearn_pl.merging.merge import merge_tensors

RANDOM = [name for name, kernel in KERNELS.items() if kernel.random]
FIXED = [name for name in KERNELS if name not in RANDOM]
Column = list[float]


def options(name: str, **values: float | str) -> KernelOptions:
    """Of what the kernel takes: the ``values``, or half of the entries."""
    given = {"density": 0.5, "majority_sign": "total", "vote": "plain", "epsilon": 0.3, "outliers": 0.1} | values
    return KernelOptions(**{key: given[key] for key in KERNELS[name].parameters})  # type: ignore[arg-type]


def whole(name: str) -> KernelOptions:
    """Options that prune nothing."""
    return options(name, density=1.0, epsilon=0.0, outliers=0.0)


def merge(
    name: str, tensors: Sequence[Tensor], weights: Sequence[float], chosen: KernelOptions, seed: int = 0
) -> Tensor:
    """The kernel on copies."""
    generator = torch.Generator().manual_seed(seed)
    return merge_tensors(KERNELS[name], [tensor.clone() for tensor in tensors], weights, chosen, generator)


def run(name: str, *rows: Sequence[float], weights: Sequence[float] | None = None, **values: float | str) -> Column:
    """The kernel on 1-D tensors, as a list."""
    tensors = [torch.tensor(row, dtype=torch.float32) for row in rows]
    return merge(name, tensors, weights or [1.0] * len(rows), options(name, **values)).tolist()


# --- the second implementation: plain Python, entry by entry -------------------------------------------------------


def falling(column: Column) -> list[int]:
    """Indices by falling magnitude; of equal ones the first first."""
    return sorted(range(len(column)), key=lambda i: -abs(column[i]))


def only(column: Column, kept: set[int]) -> Column:
    return [value if i in kept else 0.0 for i, value in enumerate(column)]


def trimmed(columns: list[Column], chosen: KernelOptions, width: int, seed: int) -> list[Column]:
    count = max(1, int(chosen.density * len(columns[0])))
    return [only(column, set(falling(column)[:count])) for column in columns]


def banded(columns: list[Column], chosen: KernelOptions, width: int, seed: int) -> list[Column]:
    first = int(chosen.outliers * len(columns[0]))
    last = first + max(1, int(chosen.density * len(columns[0])))
    return [only(column, set(falling(column)[first:last])) for column in columns]


def dropped(columns: list[Column], chosen: KernelOptions, width: int, seed: int) -> list[Column]:
    generator = torch.Generator().manual_seed(seed)
    chances = [[chosen.density] * len(column) for column in columns]
    return [masked(column, chance, generator) for column, chance in zip(columns, chances, strict=True)]


def dropped_by_rank(columns: list[Column], chosen: KernelOptions, width: int, seed: int) -> list[Column]:
    generator = torch.Generator().manual_seed(seed)
    return [masked(column, row_chances(column, chosen, width), generator) for column in columns]


def row_chances(column: Column, chosen: KernelOptions, width: int) -> Column:
    """1 - (1 - density - epsilon / 2 + epsilon (i + 1/2) / n) for the i-th largest of a row of n."""
    chances: Column = []
    for start in range(0, len(column), width):
        order = falling(column[start : start + width])
        for place in range(width):
            drop = 1 - chosen.density - chosen.epsilon / 2 + chosen.epsilon * (order.index(place) + 0.5) / width
            chances.append(1 - drop)
    return chances


def masked(column: Column, chances: Column, generator: torch.Generator) -> Column:
    """What `torch.bernoulli` itself draws."""
    mask = torch.bernoulli(torch.tensor(chances), generator=generator).tolist()
    return [value * bit / chance for value, bit, chance in zip(column, mask, chances, strict=True)]


def varied(columns: list[Column], chosen: KernelOptions) -> list[Column]:
    """The columns with 0 in all but those entries that vary most: a share of those that vary at all."""
    rows = [[Fraction(value) for value in row] for row in zip(*columns, strict=True)]
    spread = [sum((value - sum(row) / len(row)) ** 2 for value in row) for row in rows]
    count = int(chosen.density * sum(value > 0 for value in spread))
    last = sorted(spread, reverse=True)[count - 1] if count else 0
    return [only(column, {i for i, value in enumerate(spread) if value >= last}) for column in columns]


def unpruned(columns: list[Column], chosen: KernelOptions, width: int, seed: int) -> list[Column]:
    return columns


def great_circle(columns: list[Column], weights: Sequence[float]) -> list[float]:
    t = weights[1] / (weights[0] + weights[1])
    x, y = columns
    norms = math.hypot(*x) * math.hypot(*y)
    angle = math.acos(max(-1, min(1, sum(a * b for a, b in zip(x, y, strict=True)) / norms))) if norms else 0.0
    if math.sin(angle) < 1e-6:
        return [1 - t, t]
    return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def energies(columns: list[Column], weights: Sequence[float]) -> list[float]:
    squares = [sum(value**2 for value in column) for column in columns]
    return [square / sum(squares) if sum(squares) else 1 / len(columns) for square in squares]


def sum_entry(entries: Column, weights: Sequence[float], by: str | None) -> float:
    return sum(weight * entry for weight, entry in zip(weights, entries, strict=True))


def vote(entries: Column, by: str | None) -> float:
    return sum(entries) if by == "total" else sum((entry > 0) - (entry < 0) for entry in entries)


def agreeing(entries: Column, weights: Sequence[float], by: str | None) -> Column:
    sign = 1 if vote(entries, by) >= 0 else -1
    return [weight * entry for weight, entry in zip(weights, entries, strict=True) if entry * sign > 0]


def disjoint_entry(entries: Column, weights: Sequence[float], by: str | None) -> float:
    found = agreeing(entries, weights, by)
    return sum(found) / max(len(found), 1)


def erased_entry(entries: Column, weights: Sequence[float], by: str | None) -> float:
    """Every tensor is in, with the coefficient of the selected entries; those against the sign go; the rest's mean."""
    sign = 1 if sum(entries) >= 0 else -1
    left = [(weight, entry) for weight, entry in zip(weights, entries, strict=True) if entry * sign > 0 and weight > 0]
    return sum(weight * entry for weight, entry in left) / sum(weight for weight, _ in left) if left else 0.0


def weighted_entry(entries: Column, weights: Sequence[float], by: str | None) -> float:
    """What a user of mergekit calls TIES: first weight, then vote, then divide by the weights of those that agree."""
    moved = [weight * entry for weight, entry in zip(weights, entries, strict=True)]
    sign = 1 if vote(moved, by) >= 0 else -1
    left = [(weight, entry) for weight, entry in zip(weights, moved, strict=True) if entry * sign > 0]
    return sum(entry for _, entry in left) / sum(weight for weight, _ in left) if left else 0.0


def consensus_entry(entries: Column, weights: Sequence[float], by: str | None) -> float:
    alike = all(entry > 0 for entry in entries) or all(entry < 0 for entry in entries)
    return sum_entry(entries, weights, by) / len(entries) if alike else 0.0


PRUNES: dict[str, Callable[..., list[Column]]] = {
    "ties": trimmed,
    "magnitude_prune": trimmed,
    "dare_linear": dropped,
    "dare_ties": dropped,
    "della_linear": dropped_by_rank,
    "della": dropped_by_rank,
    "breadcrumbs": banded,
}
WEIGHS: dict[str, Callable[..., list[float]]] = {
    "average": lambda columns, weights: [weight / sum(weights) for weight in weights],
    "slerp": great_circle,
}
COMBINES: dict[str, Callable[..., float]] = {
    "ties": disjoint_entry,
    "dare_ties": disjoint_entry,
    "della": disjoint_entry,
    "sce": erased_entry,
    "negmerge": consensus_entry,
}


def pruned_columns(name: str, tensors: Sequence[Tensor], chosen: KernelOptions, seed: int = 0) -> list[Column]:
    columns = [tensor.double().flatten().tolist() for tensor in tensors]
    return PRUNES.get(name, unpruned)(columns, chosen, tensors[0].shape[-1], seed)


def naive(
    name: str, tensors: Sequence[Tensor], weights: Sequence[float], chosen: KernelOptions, seed: int = 0
) -> Tensor:
    columns = pruned_columns(name, tensors, chosen, seed)
    coefficients = WEIGHS[name](columns, weights) if name in WEIGHS else weights
    if name == "sce":
        coefficients = energies(varied(columns, chosen) if chosen.density < 1 else columns, weights)
    combine = weighted_entry if chosen.vote == "weighted" else COMBINES.get(name, sum_entry)
    entries = [combine(list(row), coefficients, chosen.majority_sign) for row in zip(*columns, strict=True)]
    return torch.tensor(entries).reshape(tensors[0].shape).float()


def parents(name: str, shape: tuple[int, ...], count: int, seed: int = 1) -> list[Tensor]:
    """Small integers, in which many entries and sums tie and float32 is exact."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-4, 5, shape, generator=generator).float() for _ in range(KERNELS[name].only or count)]


def some_weights(name: str, count: int) -> list[float]:
    return [1.0] * count if not KERNELS[name].takes_weights else [0.5, 1.5, 2.0, 0.25][:count]


@pytest.mark.parametrize("shape", [(30,), (1, 9), (5, 8), (2, 3, 4)])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_equals_the_second_implementation(name: str, count: int, shape: tuple[int, ...]) -> None:
    """Also the random ones: their masks are those that `torch.bernoulli` draws from a generator of the same seed."""
    signs = ("total", "frequency") if "majority_sign" in KERNELS[name].parameters else (None,)
    for sign in signs:
        for density in (0.3, 0.7):
            chosen = options(name, density=density, majority_sign=sign or "total")
            tensors = parents(name, shape, count)
            weights = some_weights(name, len(tensors))
            got = merge(name, tensors, weights, chosen, seed=3)
            torch.testing.assert_close(got, naive(name, tensors, weights, chosen, seed=3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("name", [name for name, kernel in KERNELS.items() if "vote" in kernel.parameters])
def test_a_weighted_vote_equals_the_second_implementation(name: str, sign: str) -> None:
    chosen = options(name, vote="weighted", majority_sign=sign)
    for shape, count in (((30,), 2), ((5, 8), 4)):
        tensors = parents(name, shape, count)
        weights = some_weights(name, count)
        got = merge(name, tensors, weights, chosen, seed=3)
        torch.testing.assert_close(got, naive(name, tensors, weights, chosen, seed=3), rtol=1e-5, atol=1e-6)
        alike = [merge(name, tensors, [1.0] * count, options(name, vote=vote, majority_sign=sign), 3)
                 for vote in ("plain", "weighted")]  # fmt: skip
        torch.testing.assert_close(*alike)


@pytest.mark.parametrize("name", KERNELS)
def test_three_tensors_of_real_numbers_equal_the_second_implementation(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    tensors = [torch.randn(6, 20, generator=generator) for _ in range(KERNELS[name].only or 3)]
    weights = some_weights(name, len(tensors))
    got = merge(name, tensors, weights, options(name), seed=5)
    torch.testing.assert_close(got, naive(name, tensors, weights, options(name), seed=5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_masks_are_those_of_bernoulli_bit_for_bit(name: str) -> None:
    """40,000 entries over several blocks: one number drawn out of order or twice would change them all."""
    tensors = [torch.ones(200, 200), torch.full((200, 200), 2.0)]
    got = merge(name, tensors, [1, 1], options(name), seed=8)
    generator = torch.Generator().manual_seed(8)
    chances = options(name).density
    if name == "della_linear":  # equal magnitudes rank by their place in the row
        chances = 0.5 + 0.3 / 2 - 0.3 * (torch.arange(200) + 0.5) / 200
    masks = [torch.bernoulli(torch.zeros(200, 200) + chances, generator=generator) for _ in tensors]
    assert torch.equal(got, masks[0] / chances + 2 * masks[1] / chances)


# --- by hand -------------------------------------------------------------------------------------------------------


def test_linear_by_hand() -> None:
    """2 (1, -2) - 3 (0, 1) = (2, -7)."""
    assert run("linear", [1, -2], [0, 1], weights=[2, -3]) == [2, -7]


def test_average_by_hand() -> None:
    """Weights 1 and 3 are shares of 1/4 and 3/4: 4/4 + 3 x 8/4 = 7; 2 and -1 are shares of 2 and -1: 8 - 8 = 0."""
    assert run("average", [4], [8], weights=[1, 3]) == [7]
    assert run("average", [4], [8], weights=[2, -1]) == [0]


def test_slerp_by_hand() -> None:
    """Unit vectors at 90 degrees, t = 1/3: sin 60 and sin 30. At other lengths each keeps its own: (3 sin 60, 2)."""
    assert run("slerp", [1, 0], [0, 1], weights=[2, 1]) == pytest.approx([math.sqrt(3) / 2, 0.5])
    assert run("slerp", [3, 0], [0, 4], weights=[2, 1]) == pytest.approx([3 * math.sqrt(3) / 2, 2])


def test_slerp_of_unit_vectors_stays_on_the_circle() -> None:
    """From (1, 0) to the direction at 120 degrees, a quarter of the way is the direction at 30."""
    turn = [math.cos(math.radians(120)), math.sin(math.radians(120))]
    wanted = [math.cos(math.radians(30)), math.sin(math.radians(30))]
    assert run("slerp", [1, 0], turn, weights=[3, 1]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("one", "other", "weights", "wanted"),
    [
        ([1, 0], [-1, 0], [3, 1], [0.5, 0]),
        ([1, 0], [-1, 0], [1, 1], [0, 0]),
        ([1, 0], [4, 0], [1, 1], [2.5, 0]),
        ([0, 0], [2, 4], [1, 1], [1, 2]),
        ([2, 4], [0, 0], [3, 1], [1.5, 3]),
        ([0, 0], [0, 0], [1, 1], [0, 0]),
        ([1, 2], [5, -7], [1, 0], [1, 2]),
        ([1, 2], [5, -7], [0, 2], [5, -7]),
    ],
)
def test_slerp_without_an_angle_and_at_the_ends(one: Column, other: Column, weights: Column, wanted: Column) -> None:
    """Opposite, parallel and zero tensors are mixed in proportion; a weight of 0 gives the other end."""
    assert run("slerp", one, other, weights=weights) == pytest.approx(wanted, abs=1e-6)


def test_ties_by_hand() -> None:
    """Entries 3, -1, -1 with weights 1, 2, 4: total 1 >= 0 keeps 3 (mean 3); frequency -1 keeps -2 and -4 (mean -3).
    Entries 2, -2, 0: both votes are 0, so + is elected and 2 is alone in its mean. Entries 0, 0, 0 give 0."""
    rows = [[3, 2, 0], [-1, -2, 0], [-1, 0, 0]]
    assert run("ties", *rows, weights=[1, 2, 4], density=1.0) == [3, 2, 0]
    assert run("ties", *rows, weights=[1, 2, 4], density=1.0, majority_sign="frequency") == [-3, 2, 0]


def test_a_weighted_vote_by_hand() -> None:
    """Weights 1, 2, 4. Entries 3, -1, -1: 3 - 2 - 4 elects -, and (-2 - 4) / (2 + 4) = -1. Entries 2, -2, 0:
    2 - 4 elects -, alone: -4 / 2. Entries 1, 1, 1 are 7 / 7. By frequency 5, 4, -1 elects +, and (5 + 8) / 3."""
    rows = [[3, 2, 0, 1], [-1, -2, 0, 1], [-1, 0, 0, 1]]
    assert run("ties", *rows, weights=[1, 2, 4], density=1.0, vote="weighted") == [-1, -2, 0, 1]
    frequency = {"majority_sign": "frequency", "vote": "weighted", "density": 1.0}
    assert run("ties", [5], [4], [-1], weights=[1, 2, 4], **frequency) == pytest.approx([13 / 3])


@pytest.mark.parametrize("name", ["ties", "magnitude_prune", "breadcrumbs"])
def test_of_a_tensor_of_one_entry_that_entry_is_kept(name: str) -> None:
    """A learned scalar, at half of the entries: not pruned away, and not refused."""
    assert run(name, [4], [0]) == ([2] if name == "negmerge" else [4])


def test_ties_trims_each_tensor_before_it_votes() -> None:
    """Of (1, -4, 3, 2) half is (0, -4, 3, 0), of (9, 1, -1, -8) it is (9, 0, 0, -8): nothing is in both."""
    assert run("ties", [1, -4, 3, 2], [9, 1, -1, -8]) == [9, -4, 3, -8]


def test_magnitude_prune_by_hand() -> None:
    """Half of (1, -4, 3, 2) and of (5, 1, 1, 6): (0, -4, 3, 0) + 2 (5, 0, 0, 6)."""
    assert run("magnitude_prune", [1, -4, 3, 2], [5, 1, 1, 6], weights=[1, 2]) == [10, -4, 3, 12]


def test_dare_entries_are_zero_or_divided_by_the_density() -> None:
    """Of 3 and 5 at density 1/2: 0, 6, 10 or 16."""
    found = set(
        merge("dare_linear", [torch.full((99,), 3.0), torch.full((99,), 5.0)], [1, 1], options("dare_linear")).tolist()
    )
    assert found == {0, 6, 10, 16}


def test_della_chances_by_hand() -> None:
    """Density 1/2, epsilon .4, rows of two: the larger stays with 1/2 + .2 - .4 / 4 = .6, the smaller with .4."""
    rows = torch.tensor([[1.0, -5.0]] * 99)
    chosen = options("della_linear", epsilon=0.4)
    got = merge("della_linear", [rows, torch.zeros_like(rows)], [1, 1], chosen)
    assert sorted(set(got[:, 0].tolist())) == pytest.approx([0, 1 / 0.4])
    assert sorted(set(got[:, 1].tolist())) == pytest.approx([-5 / 0.6, 0])


def test_breadcrumbs_by_hand() -> None:
    """Of 1 to 10, .2 x 10 = 2 are outliers and .5 x 10 = 5 stay below them: 4 to 8, whatever the signs."""
    row = [1, -2, 3, -4, 5, -6, 7, -8, 9, -10]
    assert run("breadcrumbs", row, [0] * 10, outliers=0.2) == [0, 0, 0, -4, 5, -6, 7, -8, 0, 0]


def test_sce_by_hand() -> None:
    """(3, 1, 2, 5) and (1, 1, -2, 5) vary in entries 0 and 2, and half of those is entry 2 (it varies most): energies
    4 and 4, coefficients 1/2 and 1/2. All entries are merged: 0 is (3/2 + 1/2) / 1; of 1 and 3 the mean is the entry
    itself; in entry 2 the sum is 0, so + is elected and 2 is alone."""
    assert run("sce", [3, 1, 2, 5], [1, 1, -2, 5]) == pytest.approx([2, 1, 2, 5])


def test_the_coefficients_of_sce_come_from_the_selected_entries() -> None:
    """(4, 0, 1, 1) and (2, 0, 0, 2): all but entry 1 vary, by 2, 1 and 1; a third of three is entry 0, with energies 16
    and 4: coefficients .8 and .2. Entry 0: 3.2 + .4; entry 2: .8 / .8; entry 3: .8 + .4. With all entries (density 1)
    the energies are 18 and 8."""
    assert run("sce", [4, 0, 1, 1], [2, 0, 0, 2], density=0.34) == pytest.approx([3.6, 0, 1, 1.2])
    assert run("sce", [4, 0, 1, 1], [2, 0, 0, 2], density=1.0)[0] == pytest.approx((18 * 4 + 8 * 2) / 26)


def test_sce_keeps_entries_that_vary_as_much_as_the_last_one_and_divides_equally_between_zeros() -> None:
    """A quarter of four is one, but all four differ by 2: energies 4 and 4, and + elected at 1 - 1, alone."""
    assert run("sce", [1, 1, -1, 1], [-1, -1, 1, -1], density=0.25) == [1, 1, 1, 1]
    assert run("sce", [0, 0], [0, 0]) == [0, 0]
    assert kernels.by_energy(torch.zeros(4, 4), [1.0] * 4) == [0.25] * 4


def test_negmerge_by_hand() -> None:
    """Both positive: (1 + 3) / 2; both negative: (-2 - 4) / 2; opposite or one zero: 0."""
    assert run("negmerge", [1, -2, 3, 0], [3, -4, -1, 5]) == [2, -3, 0, 0]
    assert run("negmerge", [2, -1], [2, -1], [2, 1], weights=[1, 2, 3]) == [4, 0]


# --- properties ----------------------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn, names: Sequence[str]) -> tuple[str, list[Tensor], list[float]]:
    """A kernel with 2 or 4 tensors of small integers (whose means are exact) and weights."""
    name = draw(st.sampled_from(list(names)))
    count = KERNELS[name].only or draw(st.sampled_from([2, 4]))
    shape = draw(st.sampled_from([(6,), (3, 4)]))
    entry = st.integers(-4, 4)
    rows = [draw(st.lists(entry, min_size=math.prod(shape), max_size=math.prod(shape))) for _ in range(count)]
    weight = st.integers(1, 8).map(lambda eighths: eighths / 8)
    weights = [draw(weight) if KERNELS[name].takes_weights else 1.0 for _ in range(count)]
    return name, [torch.tensor(row, dtype=torch.float32).reshape(shape) for row in rows], weights


@settings(deadline=None, max_examples=60)
@given(cases([name for name, kernel in KERNELS.items() if kernel.prune is not None]), st.integers(0, 99))
def test_density_one_prunes_nothing(case: tuple, seed: int) -> None:
    """Bit for bit what the kernel gives without its pruning."""
    name, tensors, weights = case
    bare = replace(KERNELS[name], prune=None)
    wanted = merge_tensors(bare, [tensor.clone() for tensor in tensors], weights, whole(name))
    assert torch.equal(merge(name, tensors, weights, whole(name), seed), wanted)


@settings(deadline=None, max_examples=100)
@given(cases(FIXED), st.randoms(use_true_random=False))
def test_the_order_of_the_adapters_does_not_count(case: tuple, random: object) -> None:
    name, tensors, weights = case
    order = list(range(len(tensors)))
    random.shuffle(order)  # type: ignore[attr-defined]
    got = merge(name, [tensors[i] for i in order], [weights[i] for i in order], options(name))
    torch.testing.assert_close(got, merge(name, tensors, weights, options(name)), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=100)
@given(cases(KERNELS))
def test_equal_tensors_become_what_the_scale_says(case: tuple) -> None:
    """With weights of 1: as many times the (pruned) tensor as there are tensors for a sum, the tensor itself for a
    mean."""
    name, (first, *rest), _ = case
    equal = [first] * (1 + len(rest))
    chosen = whole(name) if KERNELS[name].random else options(name)
    (pruned, *_) = pruned_columns(name, equal, chosen)
    factor = len(equal) if KERNELS[name].scale == "sum" else 1
    wanted = factor * torch.tensor(pruned).reshape(first.shape).float()
    torch.testing.assert_close(merge(name, equal, [1.0] * len(equal), chosen), wanted, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(cases([name for name, kernel in KERNELS.items() if not kernel.elects_sign]), st.integers(0, 99))
def test_weight_zero_leaves_the_last_tensor_out(case: tuple, seed: int) -> None:
    """The last: the masks of those before it are then the same."""
    name, tensors, weights = case
    got = merge(name, tensors, [*weights[:-1], 0.0], options(name), seed)
    if name == "slerp":
        assert torch.equal(got, tensors[0])
    else:
        assert torch.equal(got, merge(name, tensors[:-1], weights[:-1], options(name), seed))


def test_all_that_do_not_elect_a_sign_can_leave_a_tensor_out() -> None:
    found = {name for name, kernel in KERNELS.items() if not kernel.elects_sign}
    assert found == {"linear", "average", "slerp", "magnitude_prune", "dare_linear", "della_linear", "breadcrumbs"}


@settings(deadline=None, max_examples=100)
@given(cases(KERNELS), st.sampled_from([0.125, 0.5, 2.0, 1024.0]), st.integers(0, 99))
def test_scaling_all_tensors_scales_the_result(case: tuple, factor: float, seed: int) -> None:
    """By powers of two, so that nothing rounds."""
    name, tensors, weights = case
    got = merge(name, [tensor * factor for tensor in tensors], weights, options(name), seed)
    wanted = merge(name, tensors, weights, options(name), seed) * factor
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=100)
@given(cases(KERNELS), st.sampled_from(["total", "frequency"]), st.integers(0, 99))
def test_negating_all_tensors_negates_the_result(case: tuple, sign: str, seed: int) -> None:
    """Except where the vote is exactly 0: + is elected then, both times."""
    name, tensors, weights = case
    chosen = options(name, majority_sign=sign)
    got = merge(name, [-tensor for tensor in tensors], weights, chosen, seed).flatten()
    wanted = merge(name, tensors, weights, chosen, seed).flatten()
    columns = pruned_columns(name, tensors, chosen, seed)
    votes = [vote(list(row), chosen.majority_sign or "total") for row in zip(*columns, strict=True)]
    # two entries that della divides by chances of their own may cancel here and not quite in float32
    tied = torch.tensor(votes).abs() < 1e-6
    if not KERNELS[name].elects_sign or name == "negmerge":
        tied = torch.zeros_like(tied)
    torch.testing.assert_close(got[~tied], -wanted[~tied], rtol=1e-6, atol=1e-6)
    if name not in ("della", "dare_ties"):
        assert (got[tied] >= 0).all()
        assert (wanted[tied] >= 0).all()


@settings(deadline=None, max_examples=60)
@given(cases([name for name, kernel in KERNELS.items() if "majority_sign" in kernel.parameters]))
def test_total_and_frequency_differ_only_where_their_votes_do(case: tuple) -> None:
    name, tensors, weights = case
    results = [
        merge(name, tensors, weights, options(name, majority_sign=by)).flatten() for by in ("total", "frequency")
    ]
    columns = pruned_columns(name, tensors, options(name))
    rows = [list(row) for row in zip(*columns, strict=True)]
    votes = [[vote(row, by) for row in rows] for by in ("total", "frequency")]
    assume(all(value == 0 or abs(value) > 1e-6 for value in votes[0]))  # rounding alone must not decide
    alike = torch.tensor([(one >= 0) == (other >= 0) for one, other in zip(*votes, strict=True)])
    assert torch.equal(results[0][alike], results[1][alike])
    disputed = torch.tensor([any(row) for row in rows]) & ~alike
    assert (results[0][disputed] != results[1][disputed]).all()


def standard_errors(name: str, draws: int, density: float, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of a row of 8 entries, drawn ``draws`` times over 20 seeds: its mean, the share kept, and the chances."""
    row = torch.tensor([3.0, -1.0, 0.5, 8.0, -6.0, 2.0, -4.0, 1.5])
    rows = row.expand(draws // 20, 8)
    chosen = options(name, density=density, epsilon=epsilon)
    drawn = torch.cat(
        [merge(name, [rows, torch.zeros(rows.shape)], [1, 1], chosen, seed).double() for seed in range(20)]
    )
    spread = epsilon if name == "della_linear" else 0.0
    chances = torch.tensor(row_chances(row.tolist(), replace(chosen, epsilon=spread), 8), dtype=torch.float64)
    return drawn.mean(0) / row, (drawn != 0).double().mean(0), chances


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.4), (0.8, 0.1), (0.1, 0.15)])
@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_random_pruning_is_unbiased(name: str, density: float, epsilon: float) -> None:
    """An entry x that stays with chance p and is divided by it has mean x and variance x^2 (1 - p) / p; the share that
    stays has mean p and variance p (1 - p). Within 5 standard errors, and p is the density on average."""
    draws = 20_000
    mean, kept, chances = standard_errors(name, draws, density, epsilon)
    assert chances.mean().item() == pytest.approx(density)
    assert ((mean - 1).abs() < 5 * ((1 - chances) / chances / draws).sqrt()).all()
    assert ((kept - chances).abs() < 5 * (chances * (1 - chances) / draws).sqrt()).all()


# --- blocks, memory, seeds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(50,), (7, 11)])
@pytest.mark.parametrize("name", KERNELS)
def test_blocks_do_not_show(name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: blocks of 7 entries (shorter than a row, and none fits) against a single one."""
    tensors = parents(name, shape, 3)
    weights = some_weights(name, len(tensors))
    wanted = merge(name, tensors, weights, options(name), seed=4)
    for size in (1, 7, 23):
        monkeypatch.setattr(kernels, "BLOCK", size)
        assert torch.equal(merge(name, tensors, weights, options(name), seed=4), wanted)


def test_a_tensor_larger_than_a_block_equals_the_second_implementation_of_its_ends() -> None:
    """One entry more than a block holds: the sum of the first and of the last entry."""
    size = kernels.BLOCK + 1
    tensors = [torch.arange(size, dtype=torch.float32), torch.ones(size)]
    got = merge("linear", tensors, [2, 3], options("linear"))
    assert torch.equal(got, 2 * tensors[0] + 3)


@pytest.mark.parametrize("name", KERNELS)
def test_the_result_lies_in_the_memory_of_the_first_tensor(name: str) -> None:
    tensors = parents(name, (4, 5), 3)
    first = tensors[0]
    got = merge_tensors(KERNELS[name], tensors, [1.0] * len(tensors), options(name), torch.Generator().manual_seed(0))
    assert got.data_ptr() == first.data_ptr()
    assert (got.shape, got.dtype) == (first.shape, torch.float32)


@pytest.mark.parametrize("name", RANDOM)
def test_a_random_kernel_is_a_function_of_its_seed(name: str) -> None:
    tensors = parents(name, (6, 9), 3)
    first = merge(name, tensors, [1, 1, 1], options(name), seed=1)
    assert torch.equal(merge(name, tensors, [1, 1, 1], options(name), seed=1), first)
    assert not torch.equal(merge(name, tensors, [1, 1, 1], options(name), seed=2), first)


@pytest.mark.parametrize("name", KERNELS)
def test_the_global_random_state_is_left_alone(name: str) -> None:
    state = torch.get_rng_state()
    tensors = parents(name, (6, 9), 2)
    merge(name, tensors, [1, 1], options(name))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_merged_is_a_defect() -> None:
    good = torch.ones(4, 6)
    for tensors, weights in (
        ([good, good.double()], [1, 1]),
        ([good, torch.ones(6, 4).T], [1, 1]),
        ([good, good], [1]),
    ):
        with pytest.raises(AssertionError):
            merge_tensors(KERNELS["linear"], tensors, weights, KernelOptions())


def test_inner_products_are_those_of_the_flat_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over several blocks; in float64, where 2^24 + 1 is not lost."""
    monkeypatch.setattr(kernels, "BLOCK", 5)
    tensors = [torch.tensor([[4096.0, 1.0, 0.0, 2.0]] * 3), torch.tensor([[4096.0, 1.0, 7.0, -1.0]] * 3)]
    assert inner_products(tensors).tolist() == [[3 * (2**24 + 5), 3 * (2**24 - 1)], [3 * (2**24 - 1), 3 * (2**24 + 51)]]
