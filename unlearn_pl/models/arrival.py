"""Whether every weight came from the files: what did not arrive would be drawn at random, and then measured."""

import logging
import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

from torch import nn

from unlearn_pl.errors import InputError

# Stored beside the weights of published language models, and used by none: buffers that are computed anew, and parts
# that read images or sound, guess tokens further ahead, or judge a text. transformers leaves out more, by class.
UNUSED = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|position_ids|attn\.(bias|masked_bias|causal_mask)"
    r"|attention\.(bias|masked_bias))$"
    r"|(^|\.)(vision_tower|vision_model|visual|audio_tower|multi_modal_projector|mm_projector|mtp|v_head)\."
)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
REPORT = logging.getLogger("transformers.modeling_utils")


@contextmanager
def captured_report() -> Iterator[list[str]]:
    """Inside the block transformers' table of tensors that did not arrive goes into the list, not to the terminal."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(ANSI.sub("", record.getMessage()))

    handler, propagate = Handler(logging.WARNING), REPORT.propagate
    REPORT.addHandler(handler)
    REPORT.propagate = False
    try:
        yield lines
    finally:
        REPORT.removeHandler(handler)
        REPORT.propagate = propagate


def refuse_partial(name: str, model: nn.Module, info: Mapping[str, Set[Any]]) -> None:
    """Raise InputError unless the files of the model ``name`` hold what ``model`` has, in its sizes, and nothing else
    that could have been meant for it; ``info`` is what ``from_pretrained`` says of that."""
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    surplus = sorted(key for key in info["unexpected_keys"] if not UNUSED.search(key))
    faults = []
    if missing:
        faults.append(f"{len(missing)} tensors missing (first {missing[0]})")
    if mismatched:
        key, stored, needed = mismatched[0]
        sizes = f"it is {tuple(stored)} and must be {tuple(needed)}"
        faults.append(f"{len(mismatched)} tensors of another size (first {key}: {sizes})")
    if surplus:
        faults.append(f"{len(surplus)} tensors without a place (first {surplus[0]})")
    if faults:
        advice = rename(missing, surplus) or "its weights and its config.json must come from the same model"
        raise InputError(f"model: {name!r} is not a whole {type(model).__name__}: {', '.join(faults)}; {advice}")


def rename(missing: list[str], surplus: list[str]) -> str | None:
    """What to do if the missing tensors are there under another prefix, as torch.compile or DataParallel leave it."""
    for wanted in missing:
        prefixes = [key.removesuffix(wanted) for key in surplus if key.endswith(f".{wanted}")]
        if prefixes and all(key.startswith(prefixes[0]) for key in surplus):
            return f"take {prefixes[0]!r} off the beginning of its tensors' names, and save it again"
    return None
