"""How a batch is cut into parts, units and packs; sums one by one; heads that are refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import process_time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_adapters import PAD, batch_of, rows_of
from torch import Tensor
from transformers import LlamaForCausalLM

from unlearn_pl.data.batch import collate_rows
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.records import Split
from unlearn_pl.errors import InputError
from unlearn_pl.models.body import causal_model, check_head, head_is_plain, hidden_states, vocabulary_head
from unlearn_pl.models.lora import Lora, attach_lora
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.forget import NPO, GradAscent
from unlearn_pl.objectives.passes import Needs
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.training.accumulate import sum_one_by_one
from unlearn_pl.training.packs import Part, Places, first_fit, needs_of, refuse_missing, slots_by_splits


def listed(places: Places) -> tuple[list[int], list[int], list[int]]:
    return places.place.tolist(), places.rows.tolist(), places.targets.tolist()


def test_scored_positions_by_hand() -> None:
    """Row 5 6 | 7 8 (answer from position 2): positions 1 and 2 predict 7 and 8; position 3 predicts nothing."""
    rows = collate_rows([Encoded("a", (5, 6, 7, 8), 2, False), Encoded("b", (5, 9), 1, False)], PAD)
    part = Part("forget", rows, Needs("answer"))
    assert part.input_ids.tolist() == [5, 6, 7, 8, 5, 9]
    assert part.lengths == [4, 2]
    assert listed(part.scored) == ([1, 2, 4], [0, 0, 1], [7, 8, 9])
    everywhere = ([0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 1], [-100, 7, 8, -100, 9, -100])
    assert listed(Part("forget", rows, Needs("attended")).scored) == everywhere == listed(part.attended)
    assert listed(Part("forget", rows, Needs(None)).scored) == ([], [], [])


def test_weights_are_those_of_the_tokens_that_are_predicted() -> None:
    """Row 5 6 | 7 8 with weights 3 and 4: the positions of 6 and 7 predict them."""
    weighted = Encoded("a", (5, 6, 7, 8), 2, False, token_weights=(3.0, 4.0))
    rows = collate_rows([weighted, Encoded("b", (5, 9), 1, False)], PAD)
    assert Part("forget", rows, Needs("answer")).token_weights.tolist() == [3, 4, 1]
    assert Part("forget", rows, Needs("attended")).token_weights.tolist() == [1, 3, 4, 1, 1, 1]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5), seed=st.integers(0, 99)
)
def test_scored_positions_match_a_loop(lengths: list[tuple[int, int]], seed: int) -> None:
    rows = rows_of(*lengths, seed=seed)
    answer, attended, start = [], [], 0
    for index, row in enumerate(rows):
        for time in range(len(row.input_ids)):
            predicts = row.answer_start - 1 <= time < len(row.input_ids) - 1
            target = row.input_ids[time + 1] if predicts else -100
            attended.append((start + time, index, target))
            if predicts:
                answer.append((start + time, index, target))
        start += len(row.input_ids)
    for rule, expected in (("answer", answer), ("attended", attended)):
        got = Part("retain", collate_rows(rows, PAD), Needs(rule)).scored
        assert list(zip(*listed(got), strict=True)) == expected


def test_padding_within_a_part_of_a_batch_is_dropped() -> None:
    """A micro-batch keeps the padding of the whole batch."""
    rows = rows_of((2, 3), (4, 9))
    micro = batch_of(rows, rows, 1).micro_batches()[0]
    assert micro.rows["forget"].input_ids.shape == (1, 13)
    assert tuple(Part("forget", micro.rows["forget"], Needs()).input_ids.tolist()) == rows[0].input_ids


@dataclass(frozen=True)
class BothSplits(Objective):
    """A term that reads both."""

    weight: float = 1.0

    @property
    def needs(self) -> Mapping[Split, Needs]:
        return {"retain": Needs(), "forget": Needs(reference_logits=True)}

    def __call__(self, passes: object) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Reading(BothSplits):
    """A term that reads the splits it is told."""

    splits: tuple[Split, ...] = ()

    def __init__(self, splits: tuple[Split, ...]):
        object.__setattr__(self, "splits", splits)

    @property
    def needs(self) -> Mapping[Split, Needs]:
        return dict.fromkeys(self.splits, Needs())


def test_what_the_data_do_not_have_is_refused() -> None:
    rows = {"forget": rows_of((2, 3)), "retain": rows_of((2, 3))}
    refuse_missing({"forget": Needs(), "retain": Needs()}, rows)
    with pytest.raises(InputError, match=r"^objectives: a term reads the split 'x', which the data do not have$"):
        refuse_missing({"x": Needs()}, rows)
    with pytest.raises(InputError, match=r"'retain_alternate'.*; each row of retain needs another answer in a field"):
        refuse_missing({"retain_alternate": Needs()}, rows)
    with pytest.raises(InputError, match=r"weighs the tokens of forget, and no row of it has a field 'answer_weights'"):
        refuse_missing({"forget": Needs(token_weights=True)}, rows)


def test_terms_that_read_the_same_rows_are_one_unit() -> None:
    three = {"ga": NPO(), "gd": RetainNLL(), "gk": RetainKL(positions="attended")}
    assert slots_by_splits(three) == {("forget",): ["ga"], ("retain",): ["gd", "gk"]}
    assert slots_by_splits(three | {"x": BothSplits()}) == {("forget", "retain"): ["ga", "gd", "gk", "x"]}
    assert slots_by_splits({"x": BothSplits()}) == {("forget", "retain"): ["x"]}
    pair = {"a": Reading(("other",)), "b": Reading(("retain",)), "c": Reading(("forget",))}
    assert slots_by_splits(pair | {"d": Reading(("forget", "other"))}) == {
        ("forget", "other"): ["a", "c", "d"],
        ("retain",): ["b"],
    }
    assert needs_of(three) == {"forget": Needs(reference_nll=True), "retain": Needs("attended", reference_logits=True)}
    assert needs_of(three | {"x": BothSplits()})["forget"] == Needs(reference_nll=True, reference_logits=True)
    assert needs_of({"ga": GradAscent()}) == {"forget": Needs()}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 60))
def test_first_fit_fills_bins_to_their_limit(sizes: list[int], limit: int) -> None:
    bins = first_fit(sizes, limit)
    assert sorted(index for members in bins for index in members) == list(range(len(sizes)))
    loads = [sum(sizes[index] for index in members) for members in bins]
    for load, members in zip(loads, bins, strict=True):
        assert load <= limit or len(members) == 1
    # the first item of a later bin fitted in no earlier one, so two bins together are over the limit
    assert all(a + b > limit for i, a in enumerate(loads) for b in loads[:i])


def test_without_a_limit_there_is_one_bin() -> None:
    assert first_fit([5, 900, 2], None) == [[0, 1, 2]]
    assert first_fit([5, 900, 2], 7) == [[1], [0, 2]]


def some_leaves() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def summed(one_by_one: bool, make: Callable[..., list[Callable[[], Tensor]]]) -> tuple[float, list[Tensor | None]]:
    """Three times the sum of the summands, and its gradients."""
    leaves = some_leaves()
    summands = make(*leaves)
    total = sum_one_by_one(summands, leaves) if one_by_one else sum(summand() for summand in summands)
    (3 * total).backward()
    return total.item(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b, c: [lambda: (a * b).sum(), lambda: (a @ b.T).sin().sum(), lambda: (a * b).exp().mean()],
        lambda a, b, c: [lambda: (a * b).sum()],
        lambda a, b, c: [lambda: (b * b).sum(), lambda: (a * b).sum()],
        lambda a, b, c: [lambda: (a * b).sum(), lambda: (b * b).sum()],
        lambda a, b, c: [lambda: a.sum(), lambda: a.sum()],
        lambda a, b, c: [lambda: (a + b).square().sum(), lambda: (a + b).square().sum()],
    ],
    ids=["three", "one", "a parameter used later", "one used earlier only", "expanded gradients", "shared gradients"],
)
def test_sum_one_by_one_is_a_sum(make: Callable[..., list[Callable[[], Tensor]]]) -> None:
    (value, grads), (expected, expected_grads) = summed(True, make), summed(False, make)
    assert value == pytest.approx(expected, rel=1e-6)  # the value may be float32, the gradients are not
    for ours, theirs in zip(grads, expected_grads, strict=True):
        if theirs is None:  # a parameter that no summand has used
            assert ours is None or not ours.any()
        else:
            assert torch.allclose(ours, theirs, rtol=1e-12)


def test_sum_one_by_one_holds_one_graph_at_a_time() -> None:
    """When a summand is computed, what the one before has saved is gone."""
    alive: list[int] = []
    counts: list[int] = []

    class Saved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            alive.append(1)
            ctx.held = Held()
            return a.sum()

        @staticmethod
        def backward(ctx, grad):
            return grad.expand(3, 4).clone()

    class Held:
        def __del__(self) -> None:
            alive.pop()

    def summand() -> Tensor:
        counts.append(len(alive))
        return Saved.apply(leaf)

    leaf = some_leaves()[0]
    sum_one_by_one([summand] * 3, [leaf]).backward()
    assert counts == [0, 0, 0]


def test_a_sum_is_differentiated_once() -> None:
    a, b, _ = some_leaves()
    total = sum_one_by_one([lambda: (a * b).sum()] * 2, [a, b])
    total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="differentiated twice"):
        total.backward()


def test_without_gradients_a_sum_is_only_a_sum() -> None:
    a, b, _ = some_leaves()
    with torch.no_grad():
        total = sum_one_by_one([lambda: (a * b).sum(), lambda: a.sum()], [a, b])
    assert not total.requires_grad
    assert total.item() == pytest.approx(((a * b).sum() + a.sum()).item())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 25))
def test_first_fit_is_that_of_its_definition(sizes: list[int], limit: int) -> None:
    """The larger first, each into the first bin with room."""
    bins: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fits = [one for one in bins if sum(sizes[i] for i in one) + sizes[index] <= limit]
        (fits[0] if fits else bins.append([]) or bins[-1]).append(index)
    assert first_fit(sizes, limit) == bins


def test_first_fit_of_many_rows_does_not_look_at_all_pairs() -> None:
    """Some 15,000 bins: tried one by one for each row, 40,000 rows took seconds."""
    sizes = [1 + 7 * i % 256 for i in range(40_000)]
    began = process_time()
    assert sum(map(len, first_fit(sizes, 256))) == len(sizes)
    assert process_time() - began < 2


def test_the_head_is_the_models_own(tiny_model: Callable[[], LlamaForCausalLM]) -> None:
    model, ids = tiny_model(), torch.arange(6)[None]
    assert torch.equal(vocabulary_head(model).logits(hidden_states(model, ids)), model(input_ids=ids).logits)


def test_a_head_that_is_not_the_models_own_is_refused(tiny_model: Callable[[], LlamaForCausalLM]) -> None:
    """A scale that the model does not use; a cap that its configuration does not tell, and that near zero only the
    loud comparison shows: 0.03 of ``30 tanh(z / 30)`` is 0.03 to 1e-8."""
    scaled, capped = (attach_lora(tiny_model(), Lora(rank=2), seed=1) for _ in range(2))
    causal_model(scaled).config.logit_scale = 0.5
    causal_model(capped).lm_head.register_forward_hook(lambda *calls: 30 * (calls[2] / 30).tanh())
    for model in (scaled, capped):
        assert not head_is_plain(model)
        with pytest.raises(InputError, match="model: LlamaForCausalLM changes its logits after the vocabulary head"):
            check_head(model)


def test_a_model_that_does_not_run_on_tokens_alone_is_refused(tiny_model: Callable[[], LlamaForCausalLM]) -> None:
    model = attach_lora(tiny_model(), Lora(rank=2), seed=1)

    def fails(*_: object) -> None:
        raise ValueError("token_type_ids are needed\nhere is more")

    causal_model(model).model.register_forward_pre_hook(fails)
    assert not head_is_plain(model)
    with pytest.raises(
        InputError,
        match=r"LlamaForCausalLM .* does not run on token ids alone: token_type_ids are needed here is more$",
    ):
        check_head(model)


def test_an_adapter_on_the_head_is_refused(tiny_model: Callable[[], LlamaForCausalLM]) -> None:
    check_head(attach_lora(tiny_model(), Lora(rank=2), seed=1))
    with pytest.raises(InputError, match=r"^lora.target_modules: the vocabulary head must stay frozen, got Lora"):
        check_head(attach_lora(tiny_model(), Lora(rank=2, target_modules=["lm_head"]), seed=1))
    with pytest.raises(InputError, match=r"must stay frozen, got Linear"):
        check_head(tiny_model())
