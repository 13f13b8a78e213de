"""Log probability, moments and best token of each position, against plain float64 and small arithmetic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unlearn_pl.inference.token_scores import (
    TIE,
    TokenScores,
    is_tie,
    margins,
    token_scores,
    token_scores_of_logits,
)
from unlearn_pl.models.head import Head

H, V = 6, 13
NAMES = ("logprob", "mean", "std", "argmax")
logit = st.integers(-40, 40).map(float) | st.floats(-30, 30, width=32, allow_subnormal=False)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_targets(n: int) -> Tensor:
    return torch.randint(V, (n,), generator=torch.Generator().manual_seed(n))


def naive(logits: list[float], target: int) -> tuple[float, float, float]:
    """Log probability, mean and standard deviation of one position in float64, the variance as sum p (log p - mean)^2
    over the tokens with p > 0."""
    top = max(logits)
    lse = top + math.log(math.fsum(math.exp(value - top) for value in logits))
    logp = [value - lse for value in logits]
    mean = math.fsum(math.exp(value) * value for value in logp if math.exp(value) > 0)
    variance = math.fsum(math.exp(value) * (value - mean) ** 2 for value in logp if math.exp(value) > 0)
    return logp[target], mean, math.sqrt(variance)


def assert_equals_naive(scores: TokenScores, logits: Tensor, targets: Tensor) -> None:
    assert [getattr(scores, name).shape for name in NAMES] == [targets.shape] * 4
    assert [getattr(scores, name).dtype for name in NAMES] == [torch.float32] * 3 + [torch.long]
    for place, row in enumerate(logits.tolist()):
        expected = naive(row, int(targets[place]))
        got = [scores.logprob[place].item(), scores.mean[place].item(), scores.std[place].item()]
        assert got == pytest.approx(expected, rel=2e-5, abs=2e-5)
        assert row[int(scores.argmax[place])] == max(row)


@settings(deadline=None)
@given(st.lists(st.lists(logit | st.just(-math.inf), min_size=5, max_size=5), min_size=1, max_size=4), st.data())
def test_scores_of_logits_equal_plain_float64(rows: list[list[float]], data: st.DataObject) -> None:
    """Also where tokens, the target too, are ruled out by a logit of -inf: they add nothing to the moments."""
    rows = [[0.0, *row[1:]] for row in rows]  # at least one logit is finite
    targets = torch.tensor([data.draw(st.integers(0, 4)) for _ in rows])
    logits = torch.tensor(rows)
    before = logits.clone()
    assert_equals_naive(token_scores_of_logits(logits, targets), logits, targets)
    assert torch.equal(logits, before)


@settings(deadline=None)
@given(st.lists(logit, min_size=2, max_size=8), st.floats(-50, 50, width=32, allow_subnormal=False))
def test_a_constant_on_all_logits_changes_nothing(row: list[float], constant: float) -> None:
    """And the mean is the entropy, negated: between -log V and 0."""
    logits, targets = torch.tensor([row]), torch.tensor([len(row) - 1])
    here, there = (token_scores_of_logits(value, targets) for value in (logits, logits + constant))
    for name in NAMES[:3]:
        assert getattr(there, name).item() == pytest.approx(getattr(here, name).item(), rel=1e-4, abs=2e-4)
    assert -math.log(len(row)) - 1e-6 <= here.mean.item() <= 0
    assert here.logprob.item() <= 0
    assert here.std.item() >= 0


def test_two_tokens() -> None:
    """p = (1/4, 3/4): mean = (log 1/4 + 3 log 3/4) / 4 = -.56234, variance = 1/4 3/4 (log 3)^2, std = .43301 log 3."""
    scores = token_scores_of_logits(torch.tensor([[0.0, math.log(3)]]), torch.tensor([0]))
    assert scores.logprob.item() == pytest.approx(-math.log(4), rel=1e-6)
    assert scores.mean.item() == pytest.approx((math.log(1 / 4) + 3 * math.log(3 / 4)) / 4, rel=1e-6)
    assert scores.std.item() == pytest.approx(math.sqrt(3) / 4 * math.log(3), rel=1e-6)
    assert scores.argmax.item() == 1


def test_an_even_and_a_certain_distribution_have_no_deviation() -> None:
    """Over a real vocabulary: log p is -log 49152 everywhere, resp. 0 where p = 1; nothing is left of rounding."""
    even, certain = torch.zeros(49152), torch.full((49152,), -math.inf)
    certain[7] = 5.0
    scores = token_scores_of_logits(torch.stack([even, certain, certain]), torch.tensor([3, 7, 3]))
    assert scores.logprob.tolist() == [pytest.approx(-math.log(49152), rel=1e-6), 0, -math.inf]
    assert scores.mean.tolist() == [pytest.approx(-math.log(49152), rel=1e-6), 0, 0]
    assert scores.std.tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert scores.argmax.tolist()[1:] == [7, 7]


def test_nearly_even_distributions_keep_their_deviation() -> None:
    """Logits +-.001, half each: the std is .001, where sum p (log p)^2 is 117 and float32 knows it to 1e-5 only."""
    logits = torch.tensor([[0.001, -0.001]]).repeat(1, 24576)
    assert token_scores_of_logits(logits, torch.tensor([0])).std.item() == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_position_is_nan_and_the_next_one_is_not(broken: float) -> None:
    logits = numbers(1, 2, V)
    logits[0, 4] = broken
    scores = token_scores_of_logits(logits, torch.tensor([2, 2]))
    for name in NAMES[:3]:
        assert math.isnan(getattr(scores, name)[0])
        assert math.isfinite(getattr(scores, name)[1])
    assert 0 <= scores.argmax[0] < V


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
def test_chunks_equal_all_logits_at_once(chunk: int, biased: bool) -> None:
    hidden, head = numbers(2, 7, H).requires_grad_(), Head(numbers(3, V, H), numbers(4, V) if biased else None)
    scores = token_scores(hidden, head, some_targets(7), chunk)
    assert_equals_naive(scores, head.logits(hidden).detach(), some_targets(7))
    assert not scores.logprob.requires_grad


def test_the_head_decides_the_type_of_the_product_and_the_rest_is_float32() -> None:
    """Of bf16 logits only the product is narrow: the scores are those of the same logits in float64."""
    hidden, head = numbers(5, 5, H).bfloat16(), Head(numbers(6, V, H).bfloat16())
    assert_equals_naive(token_scores(hidden, head, some_targets(5)), head.logits(hidden).double(), some_targets(5))
    wide = Head(numbers(6, V, H))
    logits = wide.logits(hidden.float())
    assert_equals_naive(token_scores(hidden, wide, some_targets(5)), logits.double(), some_targets(5))


def test_autocast_narrows_the_product_alone() -> None:
    hidden, head = numbers(5, 5, H), Head(numbers(6, V, H))
    narrow = Head(head.weight.bfloat16()).logits(hidden.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = token_scores(hidden, head, some_targets(5))
    assert_equals_naive(scores, narrow.double(), some_targets(5))


def test_moments_can_be_left_out() -> None:
    hidden, head = numbers(7, 4, H), Head(numbers(8, V, H))
    full, short = (token_scores(hidden, head, some_targets(4), 3, moments) for moments in (True, False))
    assert torch.equal(full.logprob, short.logprob)
    assert torch.equal(full.argmax, short.argmax)
    assert short.mean.shape == short.std.shape == (0,)
    assert token_scores_of_logits(head.logits(hidden), some_targets(4), moments=False).std.shape == (0,)


def test_no_position() -> None:
    scores = token_scores(torch.empty(0, H), Head(numbers(8, V, H)), torch.empty(0, dtype=torch.long))
    assert [getattr(scores, name).shape for name in NAMES] == [(0,)] * 4
    assert scores.argmax.dtype == torch.long


def test_a_target_for_each_position() -> None:
    head = Head(numbers(8, V, H))
    with pytest.raises(AssertionError):
        token_scores(numbers(7, 4, H), head, some_targets(3))
    with pytest.raises(AssertionError):
        token_scores(numbers(7, 4, H), head, some_targets(4), chunk=-1)


@settings(deadline=None)
@given(st.integers(2, 5).flatmap(lambda width: st.lists(st.lists(logit, min_size=width, max_size=width), min_size=1)))
def test_leads_are_those_of_two_sorted_logits(rows: list[list[float]]) -> None:
    """(best - second) / (2^-23 max |logit|), 0 where all are 0, whatever the rows beside it and their order."""
    expected = []
    for row in rows:
        second, best = sorted(row)[-2:]
        size = max(map(abs, row)) * 2.0**-23
        expected.append((best - second) / size if size else 0.0)
    logits = torch.tensor(rows)
    assert margins(logits).tolist() == pytest.approx(expected, rel=1e-5, abs=0.6)  # a difference is rounded too
    assert torch.equal(margins(logits.flip(-1)), margins(logits))
    assert torch.equal(margins(logits), torch.cat([margins(row[None]) for row in logits]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_leads_are_in_units_of_their_type(dtype: torch.dtype) -> None:
    """1, 1 + 4 eps and -2: the margin is 4 eps of a largest logit of 2, two units. Logits are left as they are."""
    eps = torch.finfo(dtype).eps
    logits = torch.tensor([[1.0, 1 + 4 * eps, -2.0], [0.0, 0.0, -1.0]], dtype=torch.float64).to(dtype)
    before = logits.clone()
    assert margins(logits).tolist() == [2, 0]
    assert margins(logits).dtype == torch.float32
    assert torch.equal(logits, before)


def test_broken_logits_have_no_lead() -> None:
    """NaN, wherever it is, and +inf, since a unit is infinite then; the row beside it has one."""
    nan, inf = math.nan, math.inf
    assert margins(torch.tensor([[nan, 1.0], [1.0, nan], [inf, 1.0], [inf, inf]])).isnan().all()
    margin = margins(torch.tensor([[nan, 1.0], [3.0, 1.0]]))
    assert margin[1].item() == pytest.approx(2 / 3 * 2**23)


def test_only_a_small_lead_in_full_precision_is_a_close_call() -> None:
    """Up to 256 units; NaN, the margin of broken logits, is none."""
    margin = torch.tensor([0.0, TIE, TIE + 0.1, math.inf, math.nan])
    for wide in (torch.float32, torch.float64):
        assert is_tie(margin, wide).tolist() == [True, True, False, False, False]
    for narrow in (torch.bfloat16, torch.float16):
        assert is_tie(margin, narrow).tolist() == [False] * 5


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_lead_is_that_of_the_logits(chunk: int, moments: bool) -> None:
    """Of all positions, whatever the chunks; the other scores stay the same, and without the option there is none."""
    hidden, head = numbers(7, 7, H), Head(numbers(8, V, H), numbers(9, V))
    logits = head.logits(hidden)
    before = logits.clone()
    full = token_scores(hidden, head, some_targets(7), chunk, moments, margin=True)
    torch.testing.assert_close(full.margin, margins(logits), rtol=1e-4, atol=20.0)
    short = token_scores(hidden, head, some_targets(7), chunk, moments)
    assert short.margin.shape == (0,)
    for name in NAMES:
        assert torch.equal(getattr(full, name), getattr(short, name))
    of_logits = token_scores_of_logits(logits, some_targets(7), moments, margin=True)
    assert torch.equal(of_logits.margin, margins(before))
    assert torch.equal(logits, before)
    assert token_scores(hidden[:0], head, some_targets(0), margin=True).margin.shape == (0,)
