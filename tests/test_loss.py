"""The packed loss of a real (tiny) model against the same terms one row at a time."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from peft import PeftModel
from tiny_adapters import PAD, adapted, batch_of, gradients, plain_kl, plain_nll, rows_of, trained
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from unlearn_pl.data.batch import PairBatch
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.records import Split
from unlearn_pl.models.body import causal_model
from unlearn_pl.models.fast.packing import enable_packing
from unlearn_pl.models.lora import Lora, attach_lora, reference
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.forget import NPO, GradAscent
from unlearn_pl.objectives.passes import Needs, Passes, ReferenceOutput
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.training.loss import PackedLoss
from unlearn_pl.training.packs import Part
from unlearn_pl.training.reference import live_reference

MAX_LENGTH = 32
FORGET = rows_of((3, 4), (7, 2), (1, 1), (5, 9), (2, 3), seed=1, name="f")
RETAIN = rows_of((5, 5), (1, 1), (12, 3), (2, 6), (4, 1), seed=2, name="r")
REDUCTIONS = ("sequence_sum", "sequence_mean", "batch_mean")
POSITIONS = ("answer", "attended", "padded")


def three(reduction: str = "sequence_mean", positions: str = "answer") -> dict[str, Objective]:
    return {
        "ga": NPO(0.5, beta=0.3, reduction=reduction),
        "gd": RetainNLL(0.3, reduction=reduction),
        "gk": RetainKL(0.2, positions=positions),
    }


@pytest.fixture
def model(tiny_model: Callable[[], LlamaForCausalLM]) -> PeftModel:
    """In float64, as far as Llama goes along, with packing on."""
    model = adapted(tiny_model(), dtype=torch.float64)
    assert enable_packing(model)
    return model


def plain_reduced(nlls: Sequence[Tensor], rows: Sequence[Encoded], reduction: str) -> list[Tensor]:
    tokens = [len(row.input_ids) - row.answer_start for row in rows]
    if reduction == "sequence_sum":
        return list(nlls)
    if reduction == "sequence_mean":
        return [nll / count for nll, count in zip(nlls, tokens, strict=True)]
    return [sum(nlls) / sum(tokens)]


def plain_term(model: PeftModel, term: Objective, forget: Sequence[Encoded], retain: Sequence[Encoded]) -> Tensor:
    """One term of one micro-batch from whole forwards, one row at a time."""
    if isinstance(term, RetainKL):
        kls = [plain_kl(model, row) for row in retain]
        if term.positions == "padded":
            return sum(kl.sum() for kl in kls) / (len(retain) * MAX_LENGTH)
        if term.positions == "answer":
            kls = [kl[row.answer_start - 1 : -1] for kl, row in zip(kls, retain, strict=True)]
        return torch.cat(kls).mean()
    rows = retain if isinstance(term, RetainNLL) else forget
    policy = plain_reduced([plain_nll(model, row) for row in rows], rows, term.reduction)
    if isinstance(term, RetainNLL):
        return sum(policy) / len(policy)
    if isinstance(term, GradAscent):
        return -sum(policy) / len(policy)
    with torch.no_grad(), model.disable_adapter():
        base = plain_reduced([plain_nll(model, row) for row in rows], rows, term.reduction)
    terms = [(2 / term.beta) * F.softplus(-term.beta * (p - b)) for p, b in zip(policy, base, strict=True)]
    return sum(terms) / len(terms)


def plain_loss(model: PeftModel, objectives: Mapping[str, Objective], batch_size: int) -> Tensor:
    """The mean over micro-batches of ``FORGET`` and ``RETAIN``."""
    starts = range(0, len(FORGET), batch_size)
    losses = [
        term.weight * plain_term(model, term, FORGET[i : i + batch_size], RETAIN[i : i + batch_size])
        for i in starts
        for term in objectives.values()
    ]
    return sum(losses) / len(starts)


def packed(
    model: PeftModel,
    objectives: Mapping[str, Objective],
    batch: PairBatch,
    tokens: int | None = None,
    said: Callable[..., list[ReferenceOutput]] = live_reference,
) -> tuple[float, dict[str, Tensor]]:
    return gradients(model, lambda: PackedLoss(objectives, MAX_LENGTH, tokens)(model, batch, said)[0])


def policy_forwards(model: PeftModel) -> list[bool]:
    """A list that grows by one with each forward of the body that records a gradient."""
    seen: list[bool] = []
    body = causal_model(model).base_model
    body.register_forward_hook(lambda *_: seen.append(True) if torch.is_grad_enabled() else None)
    return seen


def assert_same(ours: tuple[float, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]]) -> None:
    """Up to the rounding of float32, in which Llama computes its norms and angles whatever the model's type."""
    assert ours[0] == pytest.approx(theirs[0], rel=2e-7, abs=1e-9)
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in theirs[1].items():
        assert grad.norm() > 0, name
        assert (ours[1][name] - grad).norm() < 1e-5 * grad.norm(), name


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_and_gradient_equal_rows_one_at_a_time(model: PeftModel, reduction: str, positions: str) -> None:
    """5 pairs in twos: the last micro-batch is smaller."""
    objectives = three(reduction, positions)
    expected = gradients(model, lambda: plain_loss(model, objectives, 2))
    assert_same(packed(model, objectives, batch_of(FORGET, RETAIN, 2)), expected)
    assert_same(packed(model, objectives, batch_of(FORGET, RETAIN, 2), 20), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("tokens", "forwards"), [(None, 1), (1, 6), (1000, 1), (40, None), (20, None)])
def test_the_size_of_the_packs_changes_nothing(
    model: PeftModel, reduction: str, tokens: int | None, forwards: int | None
) -> None:
    objectives, batch = three(reduction, "attended"), batch_of(FORGET, RETAIN, 2)
    expected = packed(model, objectives, batch)
    loss, ran = PackedLoss(objectives, MAX_LENGTH, tokens), policy_forwards(model)
    assert_same(gradients(model, lambda: loss(model, batch, live_reference)[0]), expected)
    assert len(ran) == forwards if forwards else 1 < len(ran) <= 6


def test_terms_are_shown_unweighted_and_add_up(model: PeftModel) -> None:
    objectives = three()
    for tokens in (None, 1):
        loss, terms = PackedLoss(objectives, MAX_LENGTH, tokens)(model, batch_of(FORGET, RETAIN, 5), live_reference)
        assert list(terms) == ["ga", "gd", "gk"]
        for slot, term in terms.items():
            assert not term.requires_grad
            assert term.item() == pytest.approx(plain_term(model, objectives[slot], FORGET, RETAIN).item(), rel=1e-6)
        whole = sum(objectives[slot].weight * term.item() for slot, term in terms.items())
        assert loss.item() == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("tokens", [None, 1, 30])
def test_micro_batches_equal_accumulation_over_batches(model: PeftModel, reduction: str, tokens: int | None) -> None:
    """4 micro-batches of one pair against 4 batches, each with a quarter of its gradient."""
    objectives = three(reduction)
    parts = [packed(model, objectives, batch_of([f], [r])) for f, r in zip(FORGET[:4], RETAIN[:4], strict=True)]
    grads = {name: sum(part[1][name] for part in parts) / 4 for name in parts[0][1]}
    together = packed(model, objectives, batch_of(FORGET[:4], RETAIN[:4], 1), tokens)
    assert_same(together, (sum(part[0] for part in parts) / 4, grads))


@dataclass(frozen=True)
class Contrast(Objective):
    """Reads both splits at once and so cannot be taken apart."""

    weight: float = 1.0

    @property
    def needs(self) -> Mapping[Split, Needs]:
        return {"forget": Needs(), "retain": Needs()}

    def __call__(self, passes: Passes) -> Tensor:
        assert sorted(passes) == ["forget", "retain"]
        return (passes["retain"].nll - passes["forget"].nll).square().mean()


@pytest.mark.parametrize("tokens", [None, 1])
def test_a_term_that_reads_both_splits_gets_both(model: PeftModel, tokens: int | None) -> None:
    objectives = {"contrast": Contrast(0.1), **three()}

    def plain() -> Tensor:
        pairs = zip(FORGET, RETAIN, strict=True)
        squares = [(plain_nll(model, r) - plain_nll(model, f)).square() for f, r in pairs]
        return 0.1 * sum(squares) / len(squares) + plain_loss(model, three(), 1)

    loss = PackedLoss(objectives, MAX_LENGTH, tokens)
    batch = batch_of(FORGET, RETAIN, 1)
    expected, ran = gradients(model, plain), policy_forwards(model)
    assert_same(gradients(model, lambda: loss(model, batch, live_reference)[0]), expected)
    assert len(ran) == (1 if tokens is None else 5)


@pytest.mark.parametrize("tokens", [None, 1])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_nothing(tiny_model, dropout: float, tokens: int | None) -> None:
    """With dropout too: the layers that run again draw the same masks."""
    model = adapted(tiny_model(), dropout=dropout, dtype=torch.float64)
    assert enable_packing(model)
    batch = batch_of(FORGET, RETAIN, 2)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(packed(model, three(), batch, tokens))
        causal_model(model).activation_checkpointing_enable({"use_reentrant": False})
        model.train()
    assert_same(results[1], results[0])


class Counted:
    """A reference that counts what it is asked."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def __call__(self, model: PeftModel, parts: Sequence[Part]) -> list[ReferenceOutput]:
        self.parts += parts
        return live_reference(model, parts)


@pytest.mark.parametrize(
    ("objectives", "asked", "forwards"),
    [
        ({"gd": RetainNLL()}, [("retain", False, False)], 1),
        ({"ga": GradAscent(), "gd": RetainNLL()}, [("forget", False, False), ("retain", False, False)], 1),
        (three(), [("forget", True, False), ("retain", False, True)], 2),
    ],
    ids=["retain only", "no reference", "all three"],
)
def test_the_base_model_runs_only_where_a_term_asks_for_it(model, objectives, asked, forwards) -> None:
    counted, bodies = Counted(), []
    causal_model(model).base_model.register_forward_hook(lambda *_: bodies.append(1))
    packed(model, objectives, batch_of(FORGET, RETAIN), None, counted)
    assert [(part.split, part.needs.reference_nll, part.needs.reference_logits) for part in counted.parts] == asked
    assert len(bodies) == forwards


def test_no_gradient_is_computed_where_none_is_wanted(model: PeftModel) -> None:
    expected, _ = packed(model, three(), batch_of(FORGET, RETAIN, 2))
    for tokens in (None, 1):
        with torch.no_grad():
            loss, _ = PackedLoss(three(), MAX_LENGTH, tokens)(model, batch_of(FORGET, RETAIN, 2), live_reference)
        assert not loss.requires_grad
        assert loss.item() == pytest.approx(expected, rel=2e-7)


@pytest.mark.parametrize("term", [NPO(), GradAscent(), RetainNLL(), *map(RetainKL, [1.0] * 3, POSITIONS)], ids=repr)
def test_padding_changes_no_loss(model: PeftModel, term: Objective) -> None:
    batch = batch_of(FORGET, RETAIN)
    wide = {
        split: replace(rows, input_ids=F.pad(rows.input_ids, (0, 9), value=77)) for split, rows in batch.rows.items()
    }
    assert_same(packed(model, {"only": term}, PairBatch(wide, 5)), packed(model, {"only": term}, batch))


def test_padded_forwards_give_what_packed_ones_give(tiny_model, model: PeftModel) -> None:
    padded = adapted(tiny_model(), dtype=torch.float64)
    batch = batch_of(FORGET, RETAIN, 2)
    assert_same(packed(padded, three(), batch, 30), packed(model, three(), batch))


@pytest.mark.parametrize("tokens", [None, 1])
def test_autocast_stays_close(tiny_model, tokens: int | None) -> None:
    model, batch = adapted(tiny_model()), batch_of(FORGET, RETAIN, 2)
    assert enable_packing(model)
    expected = packed(model, three(), batch)
    with torch.autocast("cpu", torch.bfloat16):
        value, grads = packed(model, three(), batch, tokens)
    assert value == pytest.approx(expected[0], rel=0.02)
    for name, grad in expected[1].items():
        assert grads[name].dtype == torch.float32
        assert (grads[name] - grad).norm() < 0.1 * grad.norm(), name


def test_at_step_zero_npo_is_two_over_beta_ln_two_and_kl_is_zero(tiny_model) -> None:
    """With dropout on: a fresh adapter adds B(...) = 0 whatever its input is."""
    model = attach_lora(tiny_model(), Lora(rank=4, dropout=0.5), seed=1).train()
    assert enable_packing(model)
    objectives = {"ga": NPO(beta=0.1), "gk": RetainKL(positions="attended")}
    _, terms = PackedLoss(objectives, MAX_LENGTH, None)(model, batch_of(FORGET, RETAIN), live_reference)
    assert terms["ga"].item() == pytest.approx(2 / 0.1 * math.log(2), rel=1e-5)
    assert terms["gk"].item() == pytest.approx(0, abs=1e-6)


def test_adapter_off_is_the_base_model(tiny_model) -> None:
    model, ids = adapted(tiny_model()), torch.arange(PAD, 12)[None]
    with reference(model):
        off = model(input_ids=ids).logits
        assert not model.training
        assert not off.requires_grad
    assert torch.equal(off, tiny_model()(input_ids=ids).logits)
    assert model.training
    assert not torch.equal(model(input_ids=ids).logits, off)


def test_only_the_adapter_is_trained(model: PeftModel) -> None:
    _, grads = packed(model, three(), batch_of(FORGET, RETAIN), 1)
    assert grads.keys() == trained(model).keys()
    assert all("lora_" in name for name in grads)
