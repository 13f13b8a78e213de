"""The passes of a real (tiny) model against plain forwards one row at a time."""

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from unlearn_pl.data.datamodule import PairBatch
from unlearn_pl.data.encoding import Encoded, Rows, collate_rows
from unlearn_pl.errors import InputError
from unlearn_pl.models.forward import check_head, hidden_states, vocabulary_logits
from unlearn_pl.models.lora import Lora, attach_lora, reference
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.forget import NPO, GradAscent
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.training.passes import ModelPasses, asked_passes, asked_positions

PAD = 0
ALL = (NPO(), RetainNLL(), RetainKL(positions="attended"))


def encoded(*lengths: tuple[int, int], seed: int = 0) -> list[Encoded]:
    """Rows of (prompt, answer) lengths with random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Encoded(f"row{i}", tuple(torch.randint(1, 300, (p + a,), generator=generator).tolist()), p, False)
        for i, (p, a) in enumerate(lengths)
    ]


def batch_of(forget: list[Encoded], retain: list[Encoded]) -> PairBatch:
    return PairBatch(collate_rows(forget, PAD), collate_rows(retain, PAD))


@pytest.fixture
def model(tiny_model: Callable[[], LlamaForCausalLM]) -> PeftModel:
    """The tiny model with an adapter that does something: B is not zero."""
    model = attach_lora(tiny_model(), Lora(rank=4, alpha=8, dropout=0.0), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return model.train()


def plain_nll(model: torch.nn.Module, row: Encoded) -> float:
    """Cross entropy of the answer tokens from a whole forward over one unpadded row."""
    ids = torch.tensor([row.input_ids])
    logits = model(input_ids=ids).logits[0, row.answer_start - 1 : -1]
    return F.cross_entropy(logits, ids[0, row.answer_start :], reduction="sum").item()


def test_nll_and_kl_equal_plain_forwards_one_row_at_a_time(model: PeftModel) -> None:
    forget, retain = encoded((3, 4), (7, 2), seed=1), encoded((5, 5), (1, 1), seed=2)
    passes = ModelPasses(model, batch_of(forget, retain), asked_passes(ALL), max_length=16)
    assert passes.forget.nll.tolist() == pytest.approx([plain_nll(model, row) for row in forget], rel=1e-5)
    assert passes.retain.nll.tolist() == pytest.approx([plain_nll(model, row) for row in retain], rel=1e-5)
    assert passes.forget.tokens.tolist() == [4, 2]
    kl, count = 0.0, 0
    for row in retain:
        ids = torch.tensor([row.input_ids])
        policy = model(input_ids=ids).logits[0].log_softmax(-1)
        with model.disable_adapter():
            base = model(input_ids=ids).logits[0].log_softmax(-1)
        kl += (base.exp() * (base - policy)).sum().item()
        count += ids.numel()
    assert kl > 0.01
    assert RetainKL(positions="attended")(passes).item() == pytest.approx(kl / count, rel=1e-4)
    assert RetainKL(positions="padded")(passes).item() == pytest.approx(kl / 32, rel=1e-4)


@pytest.mark.parametrize(
    "objective",
    [
        NPO(),
        GradAscent(),
        RetainNLL(),
        RetainKL("answer"),
        RetainKL(positions="attended"),
        RetainKL(positions="padded"),
    ],
    ids=repr,
)
def test_padding_changes_no_loss(model: PeftModel, objective: Objective) -> None:
    rows = encoded((3, 4), (7, 2), seed=3)
    plain = batch_of(rows, rows)
    wide = [
        Rows(F.pad(r.input_ids, (0, 9), value=77), r.lengths, r.answer_starts, r.record_ids)
        for r in (plain.forget, plain.retain)
    ]
    values = [
        objective(ModelPasses(model, batch, asked_passes([objective]), max_length=32)).item()
        for batch in (plain, PairBatch(*wide))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_row_does_not_see_its_neighbour(model: PeftModel) -> None:
    rows, others = encoded((3, 4), (7, 2), seed=3), encoded((3, 4), (9, 5), seed=4)
    alone = ModelPasses(model, batch_of(rows, rows), asked_passes(ALL), 32).forget.nll[0]
    beside = ModelPasses(model, batch_of([rows[0], others[1]], others), asked_passes(ALL), 32).forget.nll[0]
    assert alone.item() == pytest.approx(beside.item(), rel=1e-5)


def test_at_step_zero_npo_is_two_over_beta_ln_two_and_kl_is_zero(tiny_model: Callable[[], LlamaForCausalLM]) -> None:
    """With dropout on: a fresh adapter adds B(...) = 0 whatever its input is."""
    model = attach_lora(tiny_model(), Lora(rank=4, dropout=0.5), seed=1).train()
    passes = ModelPasses(model, batch_of(encoded((3, 4)), encoded((2, 5))), asked_passes(ALL), 16)
    assert NPO(beta=0.1)(passes).item() == pytest.approx(13.862944, rel=1e-6)
    assert RetainKL(positions="attended")(passes).item() == pytest.approx(0, abs=1e-7)


def test_adapter_off_is_the_base_model(model: PeftModel, tiny_model: Callable[[], LlamaForCausalLM]) -> None:
    ids = torch.arange(12)[None]
    with reference(model):
        off = model(input_ids=ids).logits
        assert not model.training
        assert not off.requires_grad
    assert torch.equal(off, tiny_model()(input_ids=ids).logits)
    assert model.training
    assert not torch.equal(model(input_ids=ids).logits, off)


@pytest.mark.parametrize(
    ("objectives", "lengths", "forwards"),
    [
        ((GradAscent(),), (4, 4), 1),
        ((GradAscent(), RetainNLL()), (4, 4), 1),
        ((NPO(), RetainNLL(), RetainKL()), (4, 4), 2),
        ((NPO(), RetainNLL(), RetainKL()), (4, 60), 4),
    ],
    ids=["forget only", "fused", "with reference", "lengths too far apart to fuse"],
)
def test_a_term_costs_only_what_it_asks_for(
    model: PeftModel, objectives: tuple[Objective, ...], lengths: tuple[int, int], forwards: int
) -> None:
    batch = batch_of(encoded((lengths[0], 2)), encoded((lengths[1], 2)))
    passes = ModelPasses(model, batch, asked_passes(objectives), 64)
    for _ in range(2):
        for objective in objectives:
            objective(passes)
    assert passes.forwards == forwards


def test_two_forwards_give_what_one_gives(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(encoded((4, 3)), encoded((5, 3)))
    fused = ModelPasses(model, batch, asked_passes(ALL), 64)
    values = [term(fused).item() for term in ALL]
    monkeypatch.setattr("unlearn_pl.training.passes.FUSED_PADDING", 0.0)
    apart = ModelPasses(model, batch, asked_passes(ALL), 64)
    assert [term(apart).item() for term in ALL] == pytest.approx(values, rel=1e-5)
    assert (fused.forwards, apart.forwards) == (2, 4)


def test_asked_positions_by_hand() -> None:
    """Row 5 6 | 7 8 (answer from position 2): positions 1 and 2 predict 7 and 8; position 3 predicts nothing."""
    rows = collate_rows([Encoded("a", (5, 6, 7, 8), 2, False), Encoded("b", (5, 9), 1, False)], PAD)
    row, time, targets = asked_positions(rows, "answer")
    assert (row.tolist(), time.tolist(), targets.tolist()) == ([0, 0, 1], [1, 2, 0], [7, 8, 9])
    row, time, targets = asked_positions(rows, "attended")
    assert (row.tolist(), time.tolist()) == ([0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 0, 1])
    assert targets.tolist() == [-100, 7, 8, -100, 9, -100]


def test_the_wider_rule_wins_for_policy_and_reference() -> None:
    assert asked_passes((RetainNLL(), RetainKL(positions="attended"))) == {
        "retain": "attended",
        "retain_ref": "attended",
    }
    assert asked_passes((RetainKL(positions="attended"), RetainNLL())) == {
        "retain": "attended",
        "retain_ref": "attended",
    }
    assert asked_passes((NPO(),)) == {"forget": "answer", "forget_ref": "answer"}


def test_the_head_is_the_models_own(tiny_model: Callable[[], LlamaForCausalLM]) -> None:
    model, ids = tiny_model(), torch.arange(6)[None]
    assert torch.equal(vocabulary_logits(model, hidden_states(model, ids)), model(input_ids=ids).logits)


def test_a_model_that_changes_its_logits_after_the_head_is_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.01,
    )
    with pytest.raises(InputError, match="Gemma2ForCausalLM changes its logits"):
        check_head(Gemma2ForCausalLM(config).eval())
