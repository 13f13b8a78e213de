"""Each loss against the sum written out in the docstring, and against a second implementation."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.truth import Truth
from unlearn_pl.models.head import IGNORED, Head
from unlearn_pl.objectives.forget import NPO, GradAscent, SimNPO
from unlearn_pl.objectives.passes import Needs, Pass, Passes, ReferenceOutput
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.tasks.base import RowSet
from unlearn_pl.training.cache import ReferenceCache

REDUCTIONS = ["sequence_sum", "sequence_mean", "batch_mean"]


def over(logits: Tensor, rows: Tensor, targets: Tensor, batch_size: int, max_length: int) -> Pass:
    """A pass whose head changes nothing, so that its hidden states are its logits."""
    return Pass(logits, Head(torch.eye(logits.shape[1], dtype=logits.dtype)), rows, targets, batch_size, max_length)


def against(policy: Pass, base: Pass) -> Pass:
    """The policy, with the other pass as that of the base model."""
    return replace(policy, reference=ReferenceOutput(base.token_nll.detach(), base.hidden.detach()))


def both(answers: Pass) -> Passes:
    """The same rows for either split."""
    return {"forget": answers, "retain": answers}


def pass_with_nll(*rows: list[float]) -> Pass:
    """A pass over a vocabulary of two whose answer tokens have the given NLLs: logits log p and log(1 - p)."""
    token_nll = torch.tensor([nll for row in rows for nll in row], dtype=torch.float64)
    p = torch.exp(-token_nll)
    logits = torch.stack([torch.log(p), torch.log1p(-p)], dim=-1)
    index = torch.tensor([i for i, row in enumerate(rows) for _ in row])
    return over(logits, index, torch.zeros(len(token_nll), dtype=torch.long), batch_size=len(rows), max_length=8)


def random_pass(seed: int, lengths: tuple[int, ...] = (3, 5), ignored: int = 2, vocabulary: int = 7) -> Pass:
    """Rows of ``lengths`` answer positions, each led by ``ignored`` positions that predict no answer."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n + ignored)])
    logits = torch.randn(len(rows), vocabulary, generator=generator)
    targets = torch.randint(vocabulary, (len(rows),), generator=torch.Generator().manual_seed(0))
    start = 0
    for n in lengths:
        targets[start : start + ignored] = IGNORED
        start += n + ignored
    return over(logits, rows, targets, batch_size=len(lengths), max_length=16)


def reference_nll(answers: Pass, reduction: str) -> list[float]:
    """Loops over rows and positions with cross entropy one position at a time."""
    per_row: list[list[float]] = [[] for _ in range(answers.batch_size)]
    for logits, row, target in zip(answers.logits, answers.rows.tolist(), answers.targets.tolist(), strict=True):
        if target != IGNORED:
            per_row[row].append(F.cross_entropy(logits[None].double(), torch.tensor([target])).item())
    if reduction == "sequence_sum":
        return [sum(row) for row in per_row]
    if reduction == "sequence_mean":
        return [sum(row) / len(row) for row in per_row]
    tokens = [value for row in per_row for value in row]
    return [sum(tokens) / len(tokens)]


def test_npo_by_hand() -> None:
    """Rows with NLL (1 + 2) and (0.5); at the reference (1 + 1) and (1). beta = 1.

    sequence_sum: differences 1 and -0.5; -2 log sigmoid(1) = 2 * 0.313262 = 0.626523 and
    -2 log sigmoid(-0.5) = 2 * 0.974077 = 1.948154; mean 1.287338.
    sequence_mean: differences 0.5 and -0.5; 2 * 0.474077 = 0.948154 and 1.948154; mean 1.448154.
    batch_mean: 3.5 / 3 - 3 / 3 = 0.166667; -2 log sigmoid(0.166667) = 2 * 0.613281 = 1.226562 (one row).
    """
    passes = {"forget": against(pass_with_nll([1.0, 2.0], [0.5]), pass_with_nll([1.0, 1.0], [1.0]))}
    values = {name: NPO(beta=1.0, reduction=name)(passes).item() for name in REDUCTIONS}
    assert values["sequence_sum"] == pytest.approx(1.287338, abs=1e-5)
    assert values["sequence_mean"] == pytest.approx(1.448154, abs=1e-5)
    assert values["batch_mean"] == pytest.approx(-2 * math.log(1 / (1 + math.exp(-1 / 6))), abs=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_nll_terms_match_a_loop_over_positions(reduction: str, seed: int) -> None:
    forget, forget_base, retain = (random_pass(seed + shift) for shift in (0, 10, 20))
    passes = {"forget": against(forget, forget_base), "retain": retain}
    policy, base = reference_nll(forget, reduction), reference_nll(forget_base, reduction)
    npo = [-(2 / 0.3) * math.log(1 / (1 + math.exp(-0.3 * (p - b)))) for p, b in zip(policy, base, strict=True)]
    assert NPO(beta=0.3, reduction=reduction)(passes).item() == pytest.approx(sum(npo) / len(npo), rel=1e-5)
    assert GradAscent(reduction=reduction)(passes).item() == pytest.approx(-sum(policy) / len(policy), rel=1e-5)
    retained = reference_nll(retain, reduction)
    assert RetainNLL(reduction=reduction)(passes).item() == pytest.approx(sum(retained) / len(retained), rel=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_npo_at_the_base_model_is_two_over_beta_ln_two(reduction: str, beta: float) -> None:
    same = random_pass(3)
    value = NPO(beta=beta, reduction=reduction)({"forget": against(same, same)})
    assert value.item() == pytest.approx(2 / beta * math.log(2), rel=1e-6)


def npo_weight(delta: float, tokens: int, reduction: str) -> float:
    """Gradient of NPO over that of gradient ascent with the same reduction, when each token lost ``delta`` nats."""
    nll = torch.full((tokens,), 1.0 + delta, dtype=torch.float64, requires_grad=True)
    nothing, places = torch.empty(tokens, 2), torch.zeros(tokens, dtype=torch.long)
    policy = over(nothing, places, places, 1, 8)
    policy = replace(policy, reference=ReferenceOutput(torch.ones(tokens).double()))
    policy.__dict__["nll"] = nll.sum()[None]
    NPO(beta=0.1, reduction=reduction)({"forget": policy}).backward()
    npo, nll.grad = nll.grad.clone(), None
    GradAscent(reduction=reduction)({"forget": policy}).backward()
    return (npo / nll.grad).mean().item()


def test_npo_hardly_saturates_on_a_mean() -> None:
    """40 tokens that lost 2 nats each: 2 sigmoid(-0.1 * 2) = 0.9003 on the mean, 2 sigmoid(-0.1 * 80) = 0.00067 on the
    sum. This is why the released code, whose NPO is on a token mean, goes on like gradient ascent."""
    assert npo_weight(2.0, 40, "sequence_mean") == pytest.approx(0.9003, abs=1e-4)
    assert npo_weight(2.0, 40, "sequence_sum") == pytest.approx(0.00067, abs=1e-5)


@pytest.mark.parametrize("reduction", ["sequence_sum", "sequence_mean"])
def test_per_sequence_reductions_do_not_depend_on_the_batch_layout(reduction: str) -> None:
    rows, base = ([0.2, 1.5, 0.3], [2.0]), ([0.3, 0.3, 0.3], [0.7])
    together = NPO(reduction=reduction)({"forget": against(pass_with_nll(*rows), pass_with_nll(*base))})
    apart = [
        NPO(reduction=reduction)({"forget": against(pass_with_nll(r), pass_with_nll(b))})
        for r, b in zip(rows, base, strict=True)
    ]
    assert together.item() == pytest.approx(sum(a.item() for a in apart) / 2, rel=1e-6)


def test_batch_mean_depends_on_the_batch_layout() -> None:
    rows = ([0.2, 1.5, 0.3], [2.0])
    together = RetainNLL(reduction="batch_mean")({"retain": pass_with_nll(*rows)})
    apart = [RetainNLL(reduction="batch_mean")({"retain": pass_with_nll(r)}) for r in rows]
    assert abs(together.item() - sum(a.item() for a in apart) / 2) > 0.1


def reference_kl(policy: Tensor, base: Tensor) -> Tensor:
    """sum over v of p_ref(v) * (ln p_ref(v) - ln p(v)), in float64."""
    p, q = policy.double().softmax(-1), base.double().softmax(-1)
    return (q * (q.log() - p.log())).sum(-1)


def test_kl_by_hand() -> None:
    """p = (1/2, 1/2) against p_ref = (3/4, 1/4): .75 ln 1.5 + .25 ln .5 = .304099 - .173287 = .130812."""
    flat = over(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), 1, 4)
    steep = over(torch.tensor([[3.0, 1.0]]).log(), flat.rows, flat.targets, 1, 4)
    passes = {"retain": against(flat, steep)}
    assert RetainKL(positions="answer")(passes).item() == pytest.approx(0.130812, abs=1e-6)
    assert RetainKL(positions="padded")(passes).item() == pytest.approx(0.130812 / 4, abs=1e-6)
    padded = {"retain": replace(passes["retain"], padding_kl=torch.tensor(0.5))}  # at each of the other three
    assert RetainKL(positions="released")(padded).item() == pytest.approx((0.130812 + 3 * 0.5) / 4, abs=1e-6)


def test_kl_position_rules_match_a_second_implementation() -> None:
    policy, base = random_pass(1), random_pass(2)
    passes, kl = {"retain": against(policy, base)}, reference_kl(policy.logits, base.logits)
    answers = policy.targets != IGNORED
    assert RetainKL(positions="answer")(passes).item() == pytest.approx(kl[answers].mean().item(), rel=1e-5)
    assert RetainKL(positions="attended")(passes).item() == pytest.approx(kl.mean().item(), rel=1e-5)
    assert RetainKL(positions="padded")(passes).item() == pytest.approx(kl.sum().item() / (2 * 16), rel=1e-5)


@pytest.mark.parametrize("positions", ["answer", "attended", "padded"])
def test_kl_of_equal_models_is_zero(positions: str) -> None:
    same = random_pass(5)
    assert RetainKL(positions=positions)({"retain": against(same, same)}).item() == pytest.approx(0, abs=1e-7)


@settings(max_examples=30, deadline=None)
@given(shift=st.integers(-50, 50), seed=st.integers(0, 100))
def test_adding_a_constant_to_the_logits_changes_nothing(shift: int, seed: int) -> None:
    """A loss on raw logits, as some releases have it, fails this."""

    def terms(policy: Pass) -> list[float]:
        passes = both(against(policy, random_pass(seed + 1)))
        return [term(passes).item() for term in (NPO(), GradAscent(), RetainNLL(), RetainKL())]

    policy = random_pass(seed)
    shifted = replace(policy, hidden=policy.hidden + shift)
    assert terms(shifted) == pytest.approx(terms(policy), abs=1e-3, rel=1e-4)


@pytest.mark.parametrize("term", [NPO(), GradAscent(), RetainNLL(), RetainKL(positions="answer")])
def test_gradient_is_exactly_zero_where_no_answer_token_follows(term: object) -> None:
    policy, base = random_pass(1), random_pass(2)
    logits = policy.logits.clone().requires_grad_()
    term(both(against(replace(policy, hidden=logits), base))).backward()
    assert torch.count_nonzero(logits.grad[policy.targets == IGNORED]) == 0
    assert torch.count_nonzero(logits.grad[policy.targets != IGNORED]) > 0


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: NPO(reduction="sum"), "reduction"),
        (lambda: SimNPO(reduction="sum"), "reduction"),
        (lambda: GradAscent(reduction="sum"), "reduction"),
        (lambda: RetainNLL(reduction="mean"), "reduction"),
        (lambda: RetainKL(positions="padding"), "positions"),
        (lambda: Needs("all"), "positions"),
        (lambda: ReferenceCache(dtype="half"), "dtype"),
        (lambda: Truth(definition="tofu"), "truth.definition"),
        (lambda: RowSet("a", "forgotten"), "role"),
    ],
)
def test_a_misspelt_choice_is_refused_from_python_too(make, name) -> None:
    with pytest.raises(InputError, match=rf"^{name}: must be one of .*, got '"):
        make()


def test_beta_must_be_positive() -> None:
    with pytest.raises(InputError, match=r"^beta: must be above 0, got 0"):
        NPO(beta=0.0)


def test_what_serves_two_terms_is_the_wider_of_each_need() -> None:
    logits = Needs("attended", reference_logits=True)
    assert Needs() | logits == logits
    assert logits | Needs(reference_nll=True) == Needs("attended", reference_nll=True, reference_logits=True)
    assert (RetainKL(positions="released").needs["retain"] | Needs()).padding
    assert RetainKL(positions="answer").needs == {"retain": Needs("answer", reference_logits=True)}
    assert NPO().needs == {"forget": Needs("answer", reference_nll=True)}
    layers = Needs(None, layers=(7, 2)) | Needs(None, layers=(3, 2), reference_layers=(7,))
    assert layers == Needs(None, layers=(2, 3, 7), reference_layers=(7,))
    assert layers | Needs(token_weights=True) == replace(layers, positions="answer", token_weights=True)


def test_a_term_of_answers_sees_no_other_position() -> None:
    """What another term has computed at all tokens is cut down to the answers, and gradients go back through it."""
    policy = random_pass(1)
    logits = policy.hidden.clone().requires_grad_()
    wide = against(replace(policy, hidden=logits, token_weights=torch.arange(len(policy.rows))), random_pass(2))
    own, at = wide.answers, policy.targets != IGNORED
    assert torch.equal(own.targets, policy.targets[at])
    assert torch.equal(own.token_nll, wide.token_nll[at])
    assert torch.equal(own.kl, wide.kl[at])
    assert torch.equal(own.reference_token_nll, wide.reference_token_nll[at])
    assert torch.equal(own.token_weights, at.nonzero()[:, 0])
    assert torch.equal(own.nll, wide.nll)
    assert torch.equal(own.reference_nll, wide.reference_nll)
    own.kl.sum().backward(retain_graph=True)
    given, logits.grad = logits.grad, None
    wide.kl[at].sum().backward()
    assert torch.equal(given, logits.grad)
    assert torch.count_nonzero(given[~at]) == 0


def test_a_term_that_needs_no_reference_cannot_read_it() -> None:
    with pytest.raises(AssertionError, match="has no reference_logits"):
        _ = random_pass(0).kl
    with pytest.raises(AssertionError, match="has no reference_nll"):
        _ = random_pass(0).reference_nll
