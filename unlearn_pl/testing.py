"""The value of a loss term on numbers made by hand: no model, no tokenizer. For tests of one's own terms."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unlearn_pl.errors import InputError, within
from unlearn_pl.models.head import IGNORED, Head
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import Needs, Pass, ReferenceOutput

KEYS = ("logits", "targets", "rows", "reference_logits", "token_weights", "layers", "reference_layers",
        "layer_rows", "layer_targets", "max_length", "padding_kl")  # fmt: skip


def term_value(term: Objective, **splits: Mapping[str, Any] | None) -> Tensor:
    """The unweighted term of one micro-batch: a scalar in nats, differentiable with respect to the tensors given.

    ``term_value(NPO(beta=1), forget={"logits": ..., "targets": ..., "rows": ..., "reference_logits": ...})``: each
    split that the term reads (``forget``, ``retain``, ``alternate``, ``retain_alternate``) is a mapping with

    * ``logits`` [N, V], ``targets`` [N] (-100 where no answer token follows) and ``rows`` [N], the row of each
      position, counted from 0;
    * ``reference_logits`` [N, V], the base model's, if the term needs them or the base model's NLL;
    * ``token_weights`` [N], the weight of each target, by default 1;
    * ``layers`` and ``reference_layers``, decoder layer -> its output [M, H] at all M attended tokens, with
      ``layer_rows`` [M] and ``layer_targets`` [M], by default ``rows`` and ``targets`` where M = N;
    * ``max_length`` (by default N) and ``padding_kl`` (by default 0), for terms on padding.

    Numbers in lists become float64. A term that reads layers alone needs no logits, targets or rows, but ``layer_rows``
    and ``layer_targets`` if it looks at them. Raises InputError if the term needs what is not given.
    """
    passes = {}
    for split, needs in term.needs.items():
        if splits.get(split) is None:
            raise InputError(f"{type(term).__name__} reads this split; give it", split)
        with within(split):
            own = pass_of(splits[split] or {}, needs)
        passes[split] = own.answers if needs.positions == "answer" else own
    return term(passes)


def pass_of(given: Mapping[str, Any], needs: Needs) -> Pass:
    """A pass whose head changes nothing, so that its hidden states are its logits."""
    check_given(given, needs)
    layers, reference_layers = (
        {int(layer): numbers(states) for layer, states in given.get(name, {}).items()}
        for name in ("layers", "reference_layers")
    )
    rows, targets = (whole_numbers(given.get(name, [])) for name in ("rows", "targets"))
    logits = numbers(given.get("logits", torch.empty(len(rows), 1)))
    head = Head(torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device))
    attended = len(next(iter([*layers.values(), *reference_layers.values()]), rows))
    layer_rows, layer_targets = (
        whole_numbers(given[key]) if key in given else own if len(own) == attended else None
        for key, own in (("layer_rows", rows), ("layer_targets", targets))
    )
    every_row = rows if layer_rows is None else torch.cat([rows, layer_rows])
    weights = numbers(given.get("token_weights", torch.ones(len(rows), dtype=logits.dtype)))
    return Pass(
        hidden=logits,
        head=head,
        rows=rows,
        targets=targets,
        batch_size=int(every_row.max()) + 1 if len(every_row) else 1,
        max_length=int(given.get("max_length", len(rows))),
        reference=reference_of(given, head, targets, reference_layers),
        token_weights=weights,
        layers=layers,
        layer_rows=layer_rows,
        layer_targets=layer_targets,
        padding_kl=numbers(given.get("padding_kl", 0.0)),
    )


def reference_of(
    given: Mapping[str, Any], head: Head, targets: Tensor, layers: Mapping[int, Tensor]
) -> ReferenceOutput:
    """What the base model gives, without gradient."""
    with torch.no_grad():
        if "reference_logits" not in given:
            return ReferenceOutput(layers=layers)
        logits = numbers(given["reference_logits"])
        return ReferenceOutput(head.scores(logits, targets)[0], logits, layers)


def check_given(given: Mapping[str, Any], needs: Needs) -> None:
    """Raise InputError unless everything that a term needs is there, and nothing that has no meaning."""
    for key in given:
        if key not in KEYS:
            raise InputError(f"must be one of {', '.join(KEYS)}", key)
    wanted = ["logits", "targets", "rows"] if needs.positions else []
    wanted += ["reference_logits"] if needs.reference_nll or needs.reference_logits else []
    for key in wanted:
        if key not in given:
            raise InputError("the term needs it; give it", key)
    for key, layers in (("layers", needs.layers), ("reference_layers", needs.reference_layers)):
        for layer in layers:
            if layer not in given.get(key, {}):
                raise InputError(f"the term needs layer {layer}; give it", key)
    answers = [target for target in whole_numbers(given.get("targets", [])).tolist() if target != IGNORED]
    if needs.positions == "answer" and not answers:
        raise InputError("must hold an answer token", "targets")


def numbers(values: Any) -> Tensor:
    """A tensor as it is, anything else in float64."""
    return values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64)


def whole_numbers(values: Any) -> Tensor:
    """Token ids or rows."""
    return torch.as_tensor(values).long()
