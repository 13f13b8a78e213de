"""The passes of one micro-batch through a model with an adapter: lazy, fused, with the head only where asked."""

from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from peft import PeftModel
from torch import Tensor

from unlearn_pl.data.datamodule import PairBatch
from unlearn_pl.data.encoding import Rows
from unlearn_pl.models.forward import hidden_states, vocabulary_logits
from unlearn_pl.models.lora import reference
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import IGNORED, Pass, PassName, Positions

# Forget and retain rows share one forward unless that pads more than this over two forwards.
FUSED_PADDING = 1.1
SPLITS: tuple[tuple[PassName, PassName], ...] = (("forget", "forget_ref"), ("retain", "retain_ref"))


def asked_passes(objectives: Iterable[Objective]) -> dict[PassName, Positions]:
    """The union of what the objectives ask. Policy and reference of a split are compared position by position, so
    both get the wider of the two rules."""
    asked: dict[PassName, Positions] = {}
    for objective in objectives:
        asked |= {name: rule for name, rule in objective.asks.items() if asked.get(name) != "attended"}
    for split in SPLITS:
        if "attended" in (asked.get(name) for name in split):
            asked |= {name: "attended" for name in split if name in asked}
    return asked


class ModelPasses:
    """The ``Passes`` of a micro-batch; a pass that no objective asks for is never run.

    Attributes:
        forwards: how many times the transformer ran so far.
    """

    def __init__(self, model: PeftModel, batch: PairBatch, asked: Mapping[PassName, Positions], max_length: int):
        self.model, self.batch, self.asked, self.max_length = model, batch, asked, max_length
        self.forwards = 0

    @property
    def forget(self) -> Pass:
        return self._policy["forget"]

    @property
    def retain(self) -> Pass:
        return self._policy["retain"]

    @property
    def forget_ref(self) -> Pass:
        return self._reference["forget_ref"]

    @property
    def retain_ref(self) -> Pass:
        return self._reference["retain_ref"]

    @cached_property
    def _policy(self) -> dict[PassName, Pass]:
        return self._run({"forget": self.batch.forget, "retain": self.batch.retain})

    @cached_property
    def _reference(self) -> dict[PassName, Pass]:
        with reference(self.model):
            return self._run({"forget_ref": self.batch.forget, "retain_ref": self.batch.retain})

    def _run(self, splits: Mapping[PassName, Rows]) -> dict[PassName, Pass]:
        splits = {name: rows for name, rows in splits.items() if name in self.asked}
        joined = join_rows(list(splits.values()))
        separate = sum(rows.input_ids.numel() for rows in splits.values())
        if joined.input_ids.numel() > FUSED_PADDING * separate:
            hidden = [self._hidden(rows) for rows in splits.values()]
        else:
            hidden = list(self._hidden(joined).split([len(rows.lengths) for rows in splits.values()]))
        return {
            name: self._pass(rows, states, self.asked[name])
            for (name, rows), states in zip(splits.items(), hidden, strict=True)
        }

    def _hidden(self, rows: Rows) -> Tensor:
        self.forwards += 1
        return hidden_states(self.model, rows.input_ids, rows.attention_mask)

    def _pass(self, rows: Rows, hidden: Tensor, rule: Positions) -> Pass:
        row, time, targets = asked_positions(rows, rule)
        logits = vocabulary_logits(self.model, hidden[row, time])
        return Pass(logits, row, targets, batch_size=len(rows.lengths), max_length=self.max_length)


def join_rows(parts: list[Rows]) -> Rows:
    """The rows of several batches as one, padded to the longest of all."""
    width = max(part.input_ids.shape[1] for part in parts)
    padded = [torch.nn.functional.pad(part.input_ids, (0, width - part.input_ids.shape[1])) for part in parts]
    return Rows(
        input_ids=torch.cat(padded),
        lengths=torch.cat([part.lengths for part in parts]),
        answer_starts=torch.cat([part.answer_starts for part in parts]),
        record_ids=tuple(name for part in parts for name in part.record_ids),
    )


def asked_positions(rows: Rows, rule: Positions) -> tuple[Tensor, Tensor, Tensor]:
    """Row, time and target of each asked position, [N] each; the target is IGNORED where no answer token follows."""
    time = torch.arange(rows.input_ids.shape[1], device=rows.input_ids.device)
    predicts_answer = (time + 1 >= rows.answer_starts[:, None]) & (time + 1 < rows.lengths[:, None])
    asked = predicts_answer if rule == "answer" else time < rows.lengths[:, None]
    following = rows.input_ids.roll(-1, dims=1).masked_fill(~predicts_answer, IGNORED)
    row_index, time_index = asked.nonzero(as_tuple=True)
    return row_index, time_index, following[asked]
