"""NLL and KL through the vocabulary head, against plain log-softmax and autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unlearn_pl.models import head as head_module
from unlearn_pl.models.head import IGNORED, Head

N, H, V = 7, 5, 11


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_targets(n: int = N, vocabulary: int = V, ignored: int = 3) -> Tensor:
    """Every ``ignored``-th target is ignored, from the first on."""
    targets = torch.randint(vocabulary, (n,), generator=torch.Generator().manual_seed(n))
    targets[::ignored] = IGNORED
    return targets


def plain_scores(head: Head, hidden: Tensor, targets: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same from all logits at once, in float64, differentiable by autograd."""
    weight, bias = head.weight.double(), 0 if head.bias is None else head.bias.double()

    def logits(states: Tensor) -> Tensor:
        z = head.scale * (states.double() @ weight.T + bias)
        return z if head.cap is None else head.cap * torch.tanh(z / head.cap)

    log_p = logits(hidden).log_softmax(-1)
    answers = targets != IGNORED
    nll = -log_p.gather(1, targets.where(answers, 0)[:, None])[:, 0] * answers
    if base is None:
        return nll, torch.zeros_like(nll)
    log_q = logits(base).log_softmax(-1)
    return nll, (log_q.exp() * (log_q - log_p)).sum(-1)


def values_and_gradient(scores: object, hidden: Tensor, *rest: object) -> list[Tensor]:
    """NLL, KL and the gradient of a sum that weighs every position of both differently."""
    hidden = hidden.clone().requires_grad_()
    nll, kl = scores(hidden, *rest)
    weights = numbers(9, 2, len(hidden)).to(nll.dtype)
    ((weights[0] * nll).sum() + (weights[1] * kl).sum()).backward()
    return [nll.detach(), kl.detach(), hidden.grad]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("referenced", [False, True], ids=["no reference", "reference"])
def test_values_and_gradients_equal_plain_autograd(dtype: torch.dtype, biased: bool, referenced: bool) -> None:
    head = Head(numbers(1, V, H).to(dtype), numbers(2, V).to(dtype) if biased else None)
    hidden, base = numbers(3, N, H).to(dtype), numbers(4, N, H).to(dtype) if referenced else None
    expected = values_and_gradient(lambda h, t, r: plain_scores(head, h, t, r), hidden, some_targets(), base)
    got = values_and_gradient(head.scores, hidden, some_targets(), base)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == dtype
        assert torch.allclose(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)
    assert got[0][some_targets() == IGNORED].count_nonzero() == 0
    assert referenced == bool(got[1].abs().max() > 0.1)


@pytest.mark.parametrize(("scale", "cap"), [(0.25, None), (1.0, 1.5), (3.0, 2.0)], ids=str)
@pytest.mark.parametrize("ignored", [3, 100, 1], ids=["some", "all but one are answers", "no answers"])
def test_scaled_and_capped_logits_too(scale: float, cap: float | None, ignored: int) -> None:
    """As Cohere, Gemma 2 and both at once have them; the cap is well within the logits."""
    head = Head(numbers(1, V, H), numbers(2, V), scale, cap)
    hidden, targets = numbers(3, N, H), some_targets(ignored=ignored)
    for base in (None, numbers(4, N, H)):
        expected = values_and_gradient(lambda h, t, r: plain_scores(head, h, t, r), hidden, targets, base)
        for ours, theirs in zip(values_and_gradient(head.scores, hidden, targets, base), expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_logits_at_once_are_scaled_and_capped_and_leave_their_input_alone() -> None:
    head, hidden = Head(numbers(1, V, H), None, 0.5, 2.0), numbers(3, N, H)
    expected = 2 * torch.tanh(0.5 * (hidden @ head.weight.T) / 2)
    before = hidden.clone()
    assert torch.allclose(head.logits(hidden), expected, rtol=1e-12)
    assert torch.equal(hidden, before)
    leaf = hidden.clone().requires_grad_()
    (got,) = torch.autograd.grad(head.logits(leaf).square().sum(), leaf)
    (wanted,) = torch.autograd.grad((2 * torch.tanh(0.5 * (leaf @ head.weight.T) / 2)).square().sum(), leaf)
    assert torch.allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize("targets", [torch.full((N,), IGNORED), torch.arange(N)], ids=["no answers", "only answers"])
def test_all_or_none_of_the_positions_may_be_answers(targets: Tensor) -> None:
    head, hidden, base = Head(numbers(1, V, H)), numbers(3, N, H), numbers(4, N, H)
    expected = values_and_gradient(lambda h, t, r: plain_scores(head, h, t, r), hidden, targets, base)
    for ours, theirs in zip(values_and_gradient(head.scores, hidden, targets, base), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("referenced", [False, True], ids=["no reference", "reference"])
def test_the_size_of_the_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch, referenced: bool) -> None:
    """1, 3 and all positions at once, and fewer logits than one position has."""
    head, hidden, base = Head(numbers(1, V, H)), numbers(3, N, H), numbers(4, N, H) if referenced else None
    expected = values_and_gradient(head.scores, hidden, some_targets(), base)
    for logits in (1, V, 3 * V, N * V):
        monkeypatch.setattr(head_module, "CHUNK_LOGITS", logits)
        for ours, theirs in zip(values_and_gradient(head.scores, hidden, some_targets(), base), expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_pass_gradcheck() -> None:
    head, base = Head(numbers(1, V, H), numbers(2, V)), numbers(4, N, H)
    hidden = numbers(3, N, H).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: head.scores(h, some_targets(), base), hidden)
    assert torch.autograd.gradcheck(lambda h: head.scores(h, some_targets())[0], hidden)


def test_there_is_no_second_derivative() -> None:
    hidden = numbers(3, N, H).requires_grad_()
    nll, _ = Head(numbers(1, V, H)).scores(hidden, some_targets())
    (first,) = torch.autograd.grad(nll.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_half_precision_is_close_and_sums_in_float32() -> None:
    head = Head(numbers(1, V, H).bfloat16(), numbers(2, V).bfloat16())
    hidden, base = numbers(3, N, H).bfloat16(), numbers(4, N, H).bfloat16()
    wide = Head(head.weight.float(), head.bias.float())
    expected = values_and_gradient(wide.scores, hidden.float(), some_targets(), base.float())
    got = values_and_gradient(head.scores, hidden, some_targets(), base)
    assert [value.dtype for value in got] == [torch.float32, torch.float32, torch.bfloat16]
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.allclose(ours.float(), theirs, rtol=0.03, atol=0.03)


def test_a_reference_in_another_precision_serves() -> None:
    head, hidden, base = Head(numbers(1, V, H)), numbers(3, N, H), numbers(4, N, H).bfloat16()
    _, kl = head.scores(hidden, some_targets(), base)
    assert torch.allclose(kl, plain_scores(head, hidden, some_targets(), base)[1], rtol=1e-12)


def test_large_logits_neither_overflow_nor_lose_the_answer() -> None:
    """Logits of 0 and 1000: the NLL of the first is 1000, of the second 0."""
    head, hidden = Head(torch.eye(2)), torch.tensor([[0.0, 1000.0]] * 2)
    nll, kl = head.scores(hidden, torch.tensor([0, 1]), hidden.flip(1))
    assert nll.tolist() == [1000, 0]
    assert kl.tolist() == [1000, 1000]


def saved_by(hidden: Tensor, **scored: object) -> list[int]:
    """Sizes of the tensors that autograd keeps for the backward pass of ``scores``."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Head(numbers(1, V, H)).scores(hidden, some_targets(), **scored)
    return kept


def test_what_is_kept_is_as_large_as_the_hidden_states() -> None:
    hidden = numbers(3, N, H).requires_grad_()
    assert saved_by(hidden) == [N * H]
    assert saved_by(hidden, reference=numbers(4, N, H)) == [N * H, N * H]


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    assert saved_by(numbers(3, N, H), reference=numbers(4, N, H)) == []
    with torch.no_grad():
        assert saved_by(numbers(3, N, H).requires_grad_(), reference=numbers(4, N, H)) == []


def test_the_hidden_states_are_left_as_they_were() -> None:
    head, hidden, base = Head(numbers(1, V, H)), numbers(3, N, H), numbers(4, N, H)
    before = [value.clone() for value in (head.weight, hidden, base)]
    values_and_gradient(head.scores, hidden, some_targets(), base)
    assert all(torch.equal(*pair) for pair in zip(before, (head.weight, hidden, base), strict=True))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 6), width=st.integers(1, 6), vocabulary=st.integers(2, 12))
def test_kl_is_never_negative_and_zero_only_for_equal_states(seed: int, n: int, width: int, vocabulary: int) -> None:
    head = Head(numbers(seed, vocabulary, width))
    hidden, base = numbers(seed + 1, n, width), numbers(seed + 2, n, width)
    targets = some_targets(n, vocabulary)
    nll, kl = head.scores(hidden, targets, base)
    assert (kl >= -1e-14).all()
    assert (nll >= 0).all()
    assert head.scores(hidden, targets, hidden)[1].abs().max() < 1e-14
    assert torch.allclose(kl, plain_scores(head, hidden, targets, base)[1], rtol=1e-10, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.integers(-30, 30))
def test_a_constant_in_the_bias_changes_nothing(seed: int, shift: int) -> None:
    weight, hidden, base = numbers(seed, V, H), numbers(seed + 1, N, H), numbers(seed + 2, N, H)
    plain = Head(weight).scores(hidden, some_targets(), base)
    shifted = Head(weight, torch.full((V,), float(shift), dtype=weight.dtype)).scores(hidden, some_targets(), base)
    for ours, theirs in zip(shifted, plain, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_under_autocast_products_are_narrow_and_sums_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden, base = (
        Head(numbers(1, V, H).float(), numbers(2, V).float()),
        numbers(3, N, H).float(),
        numbers(4, N, H),
    )
    expected = values_and_gradient(head.scores, hidden, some_targets(), base.float())
    for logits in (3 * V, N * V):
        monkeypatch.setattr(head_module, "CHUNK_LOGITS", logits)
        with torch.autocast("cpu", torch.bfloat16):
            got = values_and_gradient(head.scores, hidden, some_targets(), base)
        assert {value.dtype for value in got} == {torch.float32}
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=0.03, atol=0.05)


def mixture(logits: Tensor, targets: Tensor, reference: Tensor | None, scale: Tensor) -> Tensor:
    """Something of every argument, for each position alone."""
    chosen = logits.softmax(-1).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return scale * (chosen + logits.square().mean(-1)) - (
        0 if reference is None else (reference.softmax(-1) * logits).sum(-1)
    )


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (3.0, 2.0)], ids=str)
@pytest.mark.parametrize("referenced", [False, True], ids=["no reference", "reference"])
def test_any_function_of_a_position_is_that_of_all_logits(monkeypatch, scale, cap, referenced) -> None:
    """Values, and the gradient of a sum that weighs every position differently; whatever the size of the chunks."""
    head, hidden, beside = Head(numbers(1, V, H), numbers(2, V), scale, cap), numbers(3, N, H), numbers(5, N)
    base = numbers(4, N, H) if referenced else None

    def results(each: object) -> list[Tensor]:
        leaf = hidden.clone().requires_grad_()
        values = each(leaf)
        (numbers(9, N) * values).sum().backward()
        return [values.detach(), leaf.grad]

    def plain(leaf: Tensor) -> Tensor:
        return mixture(head.logits(leaf), some_targets(), None if base is None else head.logits(base), beside)

    expected = results(plain)
    for logits in (1, 3 * V, N * V):
        monkeypatch.setattr(head_module, "CHUNK_LOGITS", logits)
        got = results(lambda leaf: head.each(mixture, leaf, some_targets(), base, beside))
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(head.each(mixture, hidden, some_targets(), base, beside), expected[0], rtol=1e-11)


def test_any_function_keeps_as_much_as_the_hidden_states_and_sees_no_more_than_a_chunk(monkeypatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_LOGITS", 2 * V)
    kept, seen, hidden = [], [], numbers(3, N, H).requires_grad_()

    def spy(logits: Tensor, *_: object) -> Tensor:
        seen.append(tuple(logits.shape))
        return logits.square().sum(-1)

    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.append(saved.numel()) or saved, lambda saved: saved
    ):
        Head(numbers(1, V, H)).each(spy, hidden, some_targets(), None)
    assert seen == [(2, V)] * 3 + [(1, V)]
    assert max(kept) <= max(N * H, 2 * V)
    with pytest.raises(AssertionError, match=r"the function gave \(\) for 2 positions"):
        Head(numbers(1, V, H)).each(lambda logits, *_: logits.sum(), hidden, some_targets(), None)
