"""The loss of a training batch: micro-batches packed into few forwards, each term as if it had run alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor

from unlearn_pl.data.batch import PairBatch
from unlearn_pl.data.records import Split
from unlearn_pl.models.body import vocabulary_head
from unlearn_pl.models.layers import States
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import Needs, Pass, ReferenceOutput
from unlearn_pl.training.accumulate import sum_one_by_one
from unlearn_pl.training.cache_files import CachedReference
from unlearn_pl.training.packs import Part, first_fit, in_more_parts, needs_of, slots_by_splits
from unlearn_pl.training.reference import Reference, padding_kl, states_of_parts


@dataclass(frozen=True)
class Unit:
    """The least that is computed in one piece: the terms of one micro-batch that read the same rows."""

    slots: list[str]
    parts: list[Part]

    @property
    def tokens(self) -> int:
        return sum(len(part.input_ids) for part in self.parts)


class PackedLoss:
    """``mean over micro-batches of sum over slots of weight * term``.

    The units of a batch go through the transformer in packs of at most ``tokens_per_forward`` tokens (None: all in
    one pack). With several packs each is differentiated before the next begins, so memory is that of one pack.
    ``max_length`` is that of ``Pass``, ``pad_token_id`` the token of padding, for terms that read padding.
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        max_length: int,
        tokens_per_forward: int | None,
        pad_token_id: int | None = None,
    ):
        self.objectives, self.max_length, self.tokens_per_forward = objectives, max_length, tokens_per_forward
        self.pad_token_id = pad_token_id
        self.needs, self.groups = needs_of(objectives), slots_by_splits(objectives)
        self._most: Callable[[int], int] | None = None
        self.largest_pack = 0
        """Tokens of the largest pack of the last batch."""

    def keep_step(self, most: Callable[[int], int]) -> None:
        """Let all processes run the same forwards, as a model in shards must be run: as many packs as the one that
        needs ``most`` (its largest argument on any of them), and in each of them whole micro-batches, so that all
        packs are alike in what is computed of them."""
        self.groups = {tuple(self.needs): list(self.objectives)}
        self._most = most

    def __call__(self, model: PeftModel, batch: PairBatch, reference: Reference) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and by slot the unweighted terms without gradient, in nats; each a mean over micro-batches."""
        micro_batches = batch.micro_batches()
        units = [unit for micro_batch in micro_batches for unit in self._units(micro_batch)]
        packs = [
            [units[i] for i in indices] for indices in first_fit([u.tokens for u in units], self.tokens_per_forward)
        ]
        if self._most is not None:
            packs = in_more_parts(packs, self._most(len(packs)))
        self.largest_pack = max(sum(unit.tokens for unit in pack) for pack in packs)
        terms = {
            slot: torch.zeros((), device=next(iter(batch.rows.values())).input_ids.device) for slot in self.objectives
        }

        losses = [partial(self._pack_loss, model, pack, reference, terms, len(micro_batches)) for pack in packs]
        if len(losses) == 1:
            return losses[0](), terms
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return sum_one_by_one(losses, trained), terms

    @property
    def over_step(self) -> bool:
        """Whether a term needs ``PairBatch.step``."""
        return any(objective.over_step for objective in self.objectives.values())

    @property
    def reads_padding(self) -> bool:
        """Whether a term needs ``pad_token_id``."""
        return any(needs.padding for needs in self.needs.values())

    @property
    def layers(self) -> list[int]:
        """Every decoder layer that a term reads."""
        return sorted({layer for needs in self.needs.values() for layer in (*needs.layers, *needs.reference_layers)})

    def _units(self, micro_batch: PairBatch) -> list[Unit]:
        step = micro_batch.step or {}
        return [
            Unit(slots, [Part(split, micro_batch.rows[split], self.needs[split], step.get(split)) for split in splits])
            for splits, slots in self.groups.items()
        ]

    def _pack_loss(
        self, model: PeftModel, pack: Sequence[Unit], reference: Reference, terms: dict[str, Tensor], divisor: int
    ) -> Tensor:
        """The share of a pack in the loss; adds its terms to ``terms``."""
        passes = self._passes(model, [part for unit in pack for part in unit.parts], reference)
        weighted = []
        for unit in pack:
            own = dict(passes.pop(0) for _ in unit.parts)
            for slot in unit.slots:
                needs = self.objectives[slot].needs
                term = self.objectives[slot]({split: self._seen(own[split], split, needs[split]) for split in needs})
                term = term / divisor
                terms[slot] = terms[slot] + term.detach()
                weighted.append(self.objectives[slot].weight * term)
        return torch.stack(weighted).sum()

    def _seen(self, computed: Pass, split: Split, needs: Needs) -> Pass:
        """What a term gets of a pass that may have been computed at more positions than it reads."""
        return computed.answers if needs.positions == "answer" != self.needs[split].positions else computed

    def _passes(self, model: PeftModel, parts: Sequence[Part], reference: Reference) -> list[tuple[Split, Pass]]:
        """One pass for each part, from one forward."""
        # what is on a disk is read after the forward, as a GPU computes meanwhile
        outputs = [] if isinstance(reference, CachedReference) else reference(model, parts)
        layers = sorted({layer for part in parts for layer in part.needs.layers})
        states = states_of_parts(model, parts, layers, any(part.needs.positions for part in parts))
        outputs = outputs or reference(model, parts)
        padding = padding_kl(model, self.pad_token_id) if any(part.needs.padding for part in parts) else None
        return [
            (part.split, self._pass(model, part, own, base, padding if part.needs.padding else None))
            for part, own, base in zip(parts, states, outputs, strict=True)
        ]

    def _pass(
        self, model: PeftModel, part: Part, states: States, base: ReferenceOutput, padding: Tensor | None
    ) -> Pass:
        head, scored, attended = vocabulary_head(model), part.scored, part.attended
        return Pass(
            hidden=head.weight.new_empty(0, head.weight.shape[1])
            if states.final is None
            else states.final[scored.place],
            head=head,
            rows=scored.rows,
            targets=scored.targets,
            predicts_answer=scored.predicts_answer,
            batch_size=len(part.lengths),
            max_length=self.max_length,
            reference=base,
            token_weights=part.token_weights if part.needs.token_weights else None,
            layers={layer: states.layers[layer] for layer in part.needs.layers},
            layer_rows=attended.rows,
            layer_targets=attended.targets,
            padding_kl=padding,
            step=part.step,
        )
