"""Whether every weight came from the files: what did not arrive would be drawn at random, and then measured."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unlearn_pl.errors import InputError
from unlearn_pl.models.adapter_folder import PREFIX

# Stored beside the weights of published language models, and used by none: buffers that are computed anew, and parts
# that read images or sound, guess tokens further ahead, or judge a text. transformers leaves out more, by class.
UNUSED = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|position_ids|attn\.(bias|masked_bias|causal_mask)"
    r"|attention\.(bias|masked_bias))$"
    r"|(^|\.)(vision_tower|vision_model|visual|audio_tower|multi_modal_projector|mm_projector|mtp|v_head)\."
)
PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
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


def refuse_broken(model: nn.Module, what: str) -> None:
    """Raise InputError if a weight of the base ``model`` is NaN or infinite: ``what`` (such as ``save_model``) would
    only hand it on. The measures of `evaluate` tell such a model by themselves."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.dtype in PLAIN}
    broken = [name for name, weight in weights.items() if not (weight.sum().isfinite() or weight.isfinite().all())]
    if broken:
        raise InputError(
            f"base: {len(broken)} of its {len(weights)} tensors hold NaN or infinite numbers (first {broken[0]}), "
            f"from which {what} cannot start"
        )


def check_values(
    where: str, weights: Mapping[str, Tensor], base: Mapping[str, Tensor], trained: Sequence[str] | None
) -> None:
    """Raise InputError if a tensor of an adapter file is not finite, or is a weight of another ``base``: PEFT would put
    it in the place of this one's. ``trained`` are the modules that the adapter holds whole."""
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(f"{where}: {len(broken)} of {len(weights)} tensors are not finite (first {broken[0]})")
    for name, value in weights.items():
        own = name.removeprefix(PREFIX).replace(".base_layer.", ".")
        kept = own.endswith(".weight") and not any(own.endswith(f"{module}.weight") for module in trained or ())
        if own not in base or not kept or base[own].shape != value.shape:
            continue
        here = base[own].float()
        if not torch.allclose(value.to(here.device).float(), here, rtol=2**-7, atol=float(here.abs().max()) * 2**-12):
            raise InputError(f"{where} holds {name}, which is not that of this base model; it was made on another one")


def refuse_partial_adapter(where: str, expected: Iterable[str], missing: Sequence[str], surplus: Sequence[str]) -> None:
    """Raise InputError unless an adapter file gave all that the opened adapter has, and nothing else. ``missing`` are
    names of the model, the base's among them, where PEFT puts the adapter's own name, ``default``, in."""
    names = set(expected)
    plain = [name.replace(".default", "") for name in missing]
    lacking = sorted(name for name in plain if name in names or name.removesuffix(".weight") in names)
    faults = [f"{len(lacking)} of {len(names)} tensors missing (first {lacking[0]})"] if lacking else []
    if surplus:
        faults.append(f"{len(surplus)} tensors without a place (first {min(surplus)})")
    if faults:
        stored = sorted(name.replace(".default", "") for name in surplus)
        advice = rename(lacking, stored) or "it was made on another base model, or not saved whole"
        raise InputError(f"{where} does not fit this base model: {', '.join(faults)}; {advice}")
