"""A GPU is never waited for within a step: tried on torch's `meta` device, which has no numbers to give at all.

What asks a GPU for a number (`item`, `tolist`, `nonzero`, indexing by a mask, a copy to the CPU) raises there, and so
does what mixes tensors of two devices.
"""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.tiny_adapters import PAD, adapted, batch_of, rows_of
from unlearn_pl.models.fast import dropout
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.forget import NPO, GradAscent, SimNPO
from unlearn_pl.objectives.known import known_objectives
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.training.cache import ReferenceCache, kept_needs, open_or_build
from unlearn_pl.training.loss import PackedLoss
from unlearn_pl.training.prepare import prepare_policy
from unlearn_pl.training.reference import Reference, live_reference

ROWS = {"forget": rows_of((3, 4), (5, 6), (2, 9)), "retain": rows_of((4, 4), (2, 6), (7, 3), seed=1)}
TERMS = [
    *(NPO(reduction=name) for name in ("batch_mean", "sequence_mean")),
    *(kind(reduction=name) for kind in (GradAscent, RetainNLL) for name in ("sequence_sum", "batch_mean")),
    SimNPO(),
    *(RetainKL(positions=name) for name in ("answer", "attended", "padded")),
]


class NoGenerator:
    def manual_seed(self, seed: int) -> None:
        return None


@pytest.fixture(autouse=True)
def meta_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch knows no autocast there, and no generator of random numbers."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cuda": False)
    monkeypatch.setattr(dropout, "generator_on", lambda device: NoGenerator())


def test_all_objectives_are_tried() -> None:
    own = {kind for kind in known_objectives() if kind.__module__.startswith("unlearn_pl.objectives.")}
    assert {type(term) for term in TERMS} == own


def test_the_device_raises_where_a_gpu_would_be_waited_for() -> None:
    values = torch.ones(3, device="meta")
    for ask in (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.nonzero, torch.Tensor.cpu, lambda x: x[x > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            ask(values)


def step(
    model: PreTrainedModel, term: Objective, tokens: int | None, reference: Reference, checkpointing: bool
) -> None:
    """Loss and backward pass of a batch on the device without numbers."""
    policy = adapted(model, dropout=0.1)
    prepare_policy(policy, checkpointing)
    policy.to("meta")
    batch = batch_of(ROWS["forget"], ROWS["retain"], batch_size=2).to("meta")
    loss, terms = PackedLoss({"ga": term}, 64, tokens, PAD)(policy, batch, reference)
    loss.backward()
    assert terms["ga"].device.type == "meta"
    assert all(parameter.grad is not None for parameter in policy.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("tokens", [None, 20])
@pytest.mark.parametrize("term", TERMS, ids=repr)
def test_a_step_asks_the_device_for_nothing(model: PreTrainedModel, term: Objective, tokens: int | None) -> None:
    step(model, term, tokens, live_reference, checkpointing=False)


def test_padding_itself_is_waited_for_by_the_mask_of_transformers(model: PreTrainedModel) -> None:
    """Which asks whether there is any padding: known, and a price of this one option."""
    with pytest.raises(RuntimeError, match="item"):
        step(model, RetainKL(positions="released"), None, live_reference, checkpointing=False)


def test_nor_does_one_with_checkpointing(model: PreTrainedModel) -> None:
    step(model, NPO(), None, live_reference, checkpointing=True)


@pytest.mark.parametrize("term", [NPO(), RetainKL(positions="attended")], ids=repr)
def test_nor_does_one_with_the_reference_cache(model: PreTrainedModel, term: Objective, tmp_path: Path) -> None:
    policy = adapted(model)
    prepare_policy(policy)
    needs = PackedLoss({"ga": term}, 64, None).needs
    cache = open_or_build(policy, ROWS, needs, ReferenceCache(folder=str(tmp_path)), "32-true", print)
    assert cache is not None
    assert kept_needs(needs)
    step(policy.unload(), term, 20, cache, checkpointing=False)
