"""A trial before a model is measured: do the fast ways of reading and continuing rows give what it says itself?"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from unlearn_pl.inference.forward import Forward, evaluating
from unlearn_pl.inference.kv_cache import attends_fully, generates_together, prefix_cache
from unlearn_pl.inference.lines import Lines, ReadRow, row_states
from unlearn_pl.inference.own_generate import generate_alone
from unlearn_pl.models.body import causal_model, text_config
from unlearn_pl.models.causal import refuse_reading_ahead
from unlearn_pl.models.fast.linear import frozen_linears

# Rows of the trial, and how many tokens each is continued by. The longest is the last but one: padding on both sides.
LENGTHS, NEW = (3, 9, 5), 3
# What rounding alone may change, of the largest logit; and in units of eps, for half precision.
TOLERANCE, UNITS = 1e-3, 16


@dataclass(frozen=True)
class Trial:
    """What was found about one model."""

    reads: bool
    """Rows that are read together, padded on the right, give the logits of each alone."""
    continues: bool
    """Rows continued token by token in our cache give the logits that ``generate`` has."""
    together: bool
    """So they do in one batch, padded on the left."""
    joins: bool
    """So they do from the cache that they were read into together, padded on the right."""
    prefixes: bool
    """Rows may be read on from the cache of a prefix that they share."""
    noise: float
    """Largest difference of a logit from the model's own, in units of eps x the largest logit, in the ways that hold.
    NaN counts as no difference."""


Rows = Sequence[Sequence[int]]
Way = Callable[[Forward, Rows, Rows], list[Tensor]]
"""(model, rows, the tokens after each) -> logits [tokens, V] before each of these tokens, for each row."""
TRIALS: "WeakKeyDictionary[nn.Module, tuple[object, Trial]]" = WeakKeyDictionary()


def tried(model: nn.Module) -> Trial:
    """The trial of a model, made once for each type and place of its weights. Warns if a way does not hold.

    Raises InputError if the model cannot generate at all, or reads ahead.
    """
    causal = causal_model(model)
    weight = causal.get_input_embeddings().weight
    state = (weight.dtype, weight.device)
    known = TRIALS.get(causal)
    if known is None or known[0] != state:
        with evaluating(model):
            TRIALS[causal] = known = (state, _try(Forward(model)))
    return known[1]


def _try(forward: Forward) -> Trial:
    refuse_reading_ahead(forward.model)
    rows = trial_rows(forward)
    own = [generate_alone(forward.model, row, NEW, frozenset()) for row in rows]
    tokens, wanted = [found[0] for found in own], [found[1] for found in own]
    noises = [0.0]

    def holds(way: Way) -> bool:
        try:
            found = way(forward, rows, tokens)
        except Exception:  # each architecture fails in its own way
            return False
        noise = max(map(units_apart, found, wanted))
        if exact := noise <= allowed_units(forward.causal.dtype):
            noises.append(noise)
        return exact

    reads = holds(read_together)
    together = generates_together(forward.model) and holds(continue_together)
    continues = together or holds(continue_each)
    joins = reads and attends_fully(forward.model) and holds(continue_read_rows)
    prefixes = reads and attends_fully(forward.model) and holds(read_from_prefix)
    name = type(forward.causal).__name__
    if not reads:
        warnings.warn(f"{name}: rows read together differ from each alone; they go one at a time", stacklevel=3)
    if not continues:
        warnings.warn(
            f"{name}: text by our cache would differ from the model's own; rows go one at a time through its generate",
            stacklevel=3,
        )
    return Trial(reads, continues, together, joins, prefixes, max(noises))


def trial_rows(forward: Forward) -> list[list[int]]:
    """Token ids from all over the vocabulary, none with a meaning of its own."""
    config = text_config(forward.model)
    vocabulary = int(forward.causal.get_input_embeddings().weight.shape[0])
    named = [value for name, value in config.to_dict().items() if name.endswith("token_id")]
    special = {token for value in named for token in (value if isinstance(value, list) else [value])}
    plain = [token for token in range(vocabulary) if token not in special] or [0]
    places = iter(range(sum(LENGTHS)))
    return [[plain[(len(plain) // 3 + 7 * next(places)) % len(plain)] for _ in range(size)] for size in LENGTHS]


def units_apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference of logits, in eps of ``found`` times the largest logit; infinite where only one is NaN."""
    if found.shape != wanted.shape or not torch.equal(found.isnan(), wanted.isnan()):
        return float("inf")
    apart = (found.float() - wanted.float()).nan_to_num(0, torch.inf, torch.inf).abs().max()
    largest = wanted.nan_to_num(0, 0, 0).abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float(apart / largest) / torch.finfo(found.dtype).eps


def allowed_units(dtype: torch.dtype) -> float:
    """What two ways of computing the same may differ by, in the same units."""
    return max(UNITS, TOLERANCE / torch.finfo(dtype).eps)


def read_together(forward: Forward, rows: Rows, tokens: Rows) -> list[Tensor]:
    """All rows with their tokens in one forward."""
    whole = [[*row, *new[:-1]] for row, new in zip(rows, tokens, strict=True)]
    logits = forward.logits(forward.rows_states(whole))
    return [logits[slot, len(row) - 1 : len(row) - 1 + NEW] for slot, row in enumerate(rows)]


def read_from_prefix(forward: Forward, rows: Rows, tokens: Rows) -> list[Tensor]:
    """Each row's first token as a prefix, the others with its tokens read on from there."""
    found = []
    for row, new in zip(rows, tokens, strict=True):
        cache = DynamicCache(config=forward.causal.config)
        forward.states(torch.tensor([row[:1]], device=forward.device), cache=cache)
        rest = [*row[1:], *new[:-1]]
        logits = forward.logits(forward.rows_states([rest, rest[:1]], 1, prefix_cache(cache)))
        found.append(logits[0, len(rest) - NEW : len(rest)])
    return found


def continue_together(forward: Forward, rows: Rows, tokens: Rows) -> list[Tensor]:
    """Token by token in one batch."""
    lines, steps = Lines(forward, rows), []
    for step in range(NEW):
        steps.append(lines.logits())
        lines.feed(torch.tensor([new[step] for new in tokens], device=forward.device))
    return list(torch.stack(steps, dim=1))


def continue_read_rows(forward: Forward, rows: Rows, tokens: Rows) -> list[Tensor]:
    """Token by token in one batch, from the cache that they were read into; the last row joins one token later."""
    cache = DynamicCache(config=forward.causal.config)
    forward.rows_states([[*row, *new] for row, new in zip(rows, tokens, strict=True)], cache=cache)
    read = [ReadRow(line, row[-1], row_states(cache, line, slice(len(row) - 1))) for line, row in enumerate(rows)]
    lines, steps = Lines(forward), [list[Tensor]() for _ in rows]
    joining = [read[:-1], read[-1:]]
    with frozen_linears(forward.causal):
        while len(lines.ended) < len(rows):
            if joining:
                lines.join(joining.pop(0))
            logits = lines.logits()
            for line in lines.running:
                row = lines.rows[line]
                steps[row].append(logits[line])
                if len(steps[row]) == NEW:
                    lines.ended.add(row)
            lines.feed(torch.tensor([tokens[row][len(steps[row]) - 1] for row in lines.rows], device=forward.device))
    return [torch.stack(logits) for logits in steps]


def continue_each(forward: Forward, rows: Rows, tokens: Rows) -> list[Tensor]:
    """Token by token, each row alone."""
    return [continue_together(forward, [row], [new])[0] for row, new in zip(rows, tokens, strict=True)]
