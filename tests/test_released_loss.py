"""KL positions `released` against the loss of the released ZJUKLAB code, written a second time from its description.

A second copy of the model, rows padded on the left to ``max_length``, the model's own mean losses, and
``F.kl_div(..., reduction="batchmean")`` over all rows x max_length positions, whatever stands there.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_adapters import adapted, batch_of, gradients, rows_of
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from benchmarks.variants import KeepFloat64
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.errors import InputError
from unlearn_pl.models.padding import STANDING_FOR_ALL, check_padding, padding_states
from unlearn_pl.objectives.forget import NPO
from unlearn_pl.objectives.passes import Needs
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.training.cache import ReferenceCache, open_or_build
from unlearn_pl.training.loss import PackedLoss
from unlearn_pl.training.prepare import prepare_policy
from unlearn_pl.training.reference import live_reference

MAX_LENGTH, BETA = 40, 0.1
PAD = 7  # a token with an embedding: that of a fresh model's own pad token is zero, and so is its KL
FORGET = rows_of((3, 4), (7, 2), (1, 1), (5, 9), (2, 3), (20, 15), (6, 6), (9, 4), seed=1, name="f")
RETAIN = rows_of((5, 5), (1, 1), (12, 3), (2, 6), (4, 1), (25, 15), (3, 3), (8, 2), seed=2, name="r")
Tiny = Callable[[], LlamaForCausalLM]


def objectives(positions: str = "released") -> dict[str, Any]:
    """The weights of the over-forgetting run."""
    return {
        "ga": NPO(0.4, beta=BETA, reduction="batch_mean"),
        "gd": RetainKL(0.4, positions=positions),
        "gk": RetainNLL(0.2, reduction="batch_mean"),
    }


def left_padded(rows: Sequence[Encoded]) -> dict[str, Tensor]:
    ids, mask, labels = [], [], []
    for row in rows:
        gap, answer = MAX_LENGTH - len(row.input_ids), len(row.input_ids) - row.answer_start
        ids.append([PAD] * gap + list(row.input_ids))
        mask.append([0] * gap + [1] * len(row.input_ids))
        labels.append([-100] * (MAX_LENGTH - answer) + list(row.input_ids[row.answer_start :]))
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}


def released_loss(policy: Any, original: Any, forget: Sequence[Encoded], retain: Sequence[Encoded]) -> Tensor:
    """``ga_ratio * NPO + gd_ratio * KL + gk_ratio * CE`` of one micro-batch."""
    forget_rows, retain_rows = left_padded(forget), left_padded(retain)
    forget_out, retain_out = policy(**forget_rows), policy(**retain_rows)
    with torch.no_grad():
        forget_ref, retain_ref = original(**forget_rows), original(**retain_rows)
    npo = -F.logsigmoid(BETA * (forget_out.loss - forget_ref.loss)) * 2 / BETA
    flat = [out.logits.reshape(MAX_LENGTH * len(retain), -1).log_softmax(-1) for out in (retain_out, retain_ref)]
    kl = F.kl_div(*flat, log_target=True, reduction="batchmean")
    return 0.4 * npo + 0.4 * kl + 0.2 * retain_out.loss


@pytest.fixture
def model(tiny_model: Tiny) -> PeftModel:
    return adapted(tiny_model(), dtype=torch.float64)


def released(model: PeftModel, original: Any, batch: int, count: int) -> tuple[float, dict[str, Tensor]]:
    def loss() -> Tensor:
        starts = range(0, count, batch)
        parts = [released_loss(model, original, FORGET[i : i + batch], RETAIN[i : i + batch]) for i in starts]
        return torch.stack(parts).mean()

    with KeepFloat64():
        return gradients(model, loss)


def ours(model: PeftModel, batch: int, count: int, tokens: int | None, reference: Any = live_reference) -> Any:
    loss = PackedLoss(objectives(), MAX_LENGTH, tokens, PAD)
    rows = batch_of(FORGET[:count], RETAIN[:count], batch)
    with KeepFloat64():
        return gradients(model, lambda: loss(model, rows, reference)[0])


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    a, b = (torch.cat([side[name].flatten() for name in sorted(side)]) for side in (one, other))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("batch", "count"), [(1, 1), (1, 4), (2, 8)], ids=str)
def test_loss_and_gradient_are_the_released_ones(tiny_model: Tiny, model: PeftModel, batch: int, count: int) -> None:
    """Batch x micro-batches as in the table of what was found: 1 x 1, 1 x 4, 2 x 4; padding is a part of it."""
    original = copy.deepcopy(tiny_model()).double()
    value, gradient = released(model, original, batch, count)
    assert prepare_policy(model)
    for tokens in (None, 30):
        own_value, own_gradient = ours(model, batch, count, tokens)
        assert own_value == pytest.approx(value, rel=1e-10)
        assert gap(own_gradient, gradient) < 1e-9
    without = PackedLoss(objectives("padded"), MAX_LENGTH, None)
    rows = batch_of(FORGET[:count], RETAIN[:count], batch)
    assert gap(gradients(model, lambda: without(model, rows, live_reference)[0])[1], gradient) > 1e-3


def test_the_cache_serves_it_and_is_that_of_padded(model: PeftModel, tmp_path: Path) -> None:
    assert prepare_policy(model)
    expected = ours(model, 2, 8, None)
    rows = {"forget": FORGET, "retain": RETAIN}
    for positions in ("padded", "released"):
        needs = PackedLoss(objectives(positions), MAX_LENGTH, None).needs
        cache = open_or_build(model, rows, needs, ReferenceCache(str(tmp_path)), "32-true", lambda _: None)
    assert len(list(tmp_path.iterdir())) == 1
    value, gradient = ours(model, 2, 8, None, cache)
    assert value == pytest.approx(expected[0], rel=1e-6)
    assert gap(gradient, expected[1]) < 1e-5


def test_without_padding_it_is_the_mean_over_all_tokens(model: PeftModel) -> None:
    assert prepare_policy(model)
    rows, length = batch_of(FORGET[:1], RETAIN[:1]), len(RETAIN[0].input_ids)
    values = [
        PackedLoss({"gk": RetainKL(1.0, positions)}, length, None, PAD)(model, rows, live_reference)[0].item()
        for positions in ("released", "attended")
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    with pytest.raises(InputError, match=r"^max_length: rows of a micro-batch are longer than 9 tokens"):
        PackedLoss({"gk": RetainKL(1.0, "released")}, length - 1, None, PAD)(model, rows, live_reference)


def test_dropout_is_drawn_for_each_of_several_positions(tiny_model: Tiny) -> None:
    model = adapted(tiny_model(), dropout=0.5)
    states = padding_states(model, PAD)
    assert len({tuple(row.tolist()) for row in states}) == STANDING_FOR_ALL
    assert len({tuple(row.tolist()) for row in padding_states(model.eval(), PAD)}) == 1


def test_padding_that_tells_on_the_rows_is_refused(tiny_model: Tiny) -> None:
    """By absolute positions the row moves; eager attention spreads over the row where it may look at nothing."""
    check_padding(tiny_model(), PAD)
    check_padding(tiny_model().bfloat16(), PAD)
    eager = tiny_model()
    eager.set_attn_implementation("eager")
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=64)).eval()
    for model in (eager, gpt2):
        with pytest.raises(
            InputError, match=r"`released` computes padding, which \w+ mixes with the rows; take `padded`"
        ):
            check_padding(model, PAD)


def test_what_is_needed() -> None:
    needed = PackedLoss(objectives(), MAX_LENGTH, None).needs
    assert needed == {
        "forget": Needs(reference_nll=True),
        "retain": Needs("attended", reference_logits=True, padding=True),
    }
    assert not PackedLoss(objectives("padded"), MAX_LENGTH, None).reads_padding
