"""Where a run stands in its order of pairs, and what such a place depends on."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.pairing import Pair
from unlearn_pl.data.records import Split
from unlearn_pl.data.splits import SIDES
from unlearn_pl.errors import InputError

START = {"epoch": 0, "pairs": 0, "batches": 0}


def position(start: Mapping[str, Any] | None, batches: int, batches_an_epoch: float, pairs_a_batch: int) -> Pair:
    """(epoch, pairs of it that this process has consumed) of a run that has trained on ``batches`` in all.

    ``start`` is the place in the checkpoint that the run goes on from: its ``epoch`` and ``pairs``, and the ``batches``
    trained on until there. Not told from Lightning's epochs: it counts an epoch that ``max_steps`` ended early as a
    whole one and runs what is left of it under the next number; and after a checkpoint at the edge of an epoch it
    announces the old one again.
    """
    epoch, pairs, before = ((start or START)[name] for name in START)
    # below zero while the loop's own counters are not restored yet: workers read ahead before that
    trained = max(0, batches - before)
    if trained == 0:
        return epoch, pairs
    more_epochs, rest = divmod(pairs // pairs_a_batch + trained, int(batches_an_epoch))
    return epoch + more_epochs, rest * pairs_a_batch


def check_layout(state: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
    """Raise InputError if a checkpoint's place within an epoch is not one of this layout; between epochs, warn."""
    old = state["layout"]
    changed = [f"{name} was {old[name]} and is {layout[name]}" for name in layout if old[name] != layout[name]]
    if state["pairs"] and changed:
        raise InputError(f"stands within an epoch, which must go on as it began; {'; '.join(changed)}", "ckpt_path")
    for change in changed:
        rank_zero_warn(f"ckpt_path: {change} from here on; what follows is not the run that was interrupted")


def rows_hash(splits: Mapping[Split, Sequence[Encoded]]) -> str:
    """Hash of encoded rows, in order."""
    digest = hashlib.sha256()
    for split in sorted(splits, key=lambda name: (name not in SIDES, name)):
        rows = splits[split]
        digest.update(f"{len(rows)} rows".encode())
        for row in rows:
            weights = () if row.token_weights is None else (row.token_weights,)
            digest.update(repr((row.record_id, list(row.input_ids), row.answer_start, *weights)).encode())
    return digest.hexdigest()[:16]
