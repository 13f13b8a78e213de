"""The reference cache: the base model's output on every row, computed once and kept on disk.

Its name is the hash of everything its content depends on, so that a second fit, and every run of a sweep, finds it, and
nothing else does.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from peft import PeftModel

from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.records import Split
from unlearn_pl.errors import InputError, check_choices
from unlearn_pl.models.body import causal_model
from unlearn_pl.models.identity import base_weights_hash
from unlearn_pl.objectives.passes import Needs
from unlearn_pl.training.cache_files import CachedReference, build, compute_only, facts_hash, predicted_bytes

LAYOUT = 3
# How often a folder that others build and replace at the same time is asked for, and the seconds in between.
ATTEMPTS, PAUSE = 3, 0.2


@dataclass(frozen=True)
class ReferenceCache:
    """Where the base model's output is kept between epochs and runs."""

    folder: str | None = "logs/reference_cache"
    """Folder of all caches; null computes the base model's output anew in every step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the kept hidden states. bfloat16 halves the size and rounds what the KL compares with."""
    max_gigabytes: float = 8.0
    """A cache that would be larger is not written, and the base model's output is computed in every step; above 0."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.max_gigabytes <= 0:
            raise InputError(f"must be above 0, got {self.max_gigabytes}", "max_gigabytes")


@dataclass(frozen=True)
class Company:
    """How a process stands to those that open or build the same cache in step with it; by default it is alone."""

    any_of: Callable[[bool], bool] = bool
    """Whether something is so on one of them, asked of all at once."""
    writes: bool = True
    """Whether this one writes the cache that all compute together."""


def cache_key(
    model: PeftModel,
    rows: Mapping[Split, Sequence[Encoded]],
    needs: Mapping[Split, Needs],
    dtype: str,
    precision: str,
    weights: str | None = None,
) -> str:
    """Hash of all that a cache depends on: base weights and configuration, the encoded rows (which are all that
    tokenizer and encoding options change), what is needed of them, and the precision of the forwards. ``weights`` is
    the hash of the base's, if it was taken before: on a GPU they would have to come back."""
    config = causal_model(model).config.to_dict()
    facts = {
        "layout": LAYOUT,
        "config": {name: value for name, value in config.items() if not name.startswith("_")},
        "rows": {split: [facts_of(row) for row in rows[split]] for split in sorted(needs)},
        "needs": {split: asdict(needs[split]) for split in sorted(needs)},
        "dtype": dtype,
        "precision": precision,
        "weights": weights or base_weights_hash(model),
    }
    return facts_hash(facts)


def facts_of(row: Encoded) -> tuple[str, tuple[int, ...], int]:
    """What the base model's output on a row depends on, and its name. Its weights are the objective's."""
    return row.record_id, row.input_ids, row.answer_start


def kept_needs(needs: Mapping[Split, Needs]) -> dict[Split, Needs]:
    """The splits whose reference is needed at all, and of their needs what a cache depends on."""
    return {
        split: replace(own, layers=(), token_weights=False, padding=False)
        for split, own in needs.items()
        if own.reference_output
    }


def open_or_build(
    model: PeftModel,
    rows: Mapping[Split, Sequence[Encoded]],
    needs: Mapping[Split, Needs],
    options: ReferenceCache,
    precision: str,
    report: Callable[[str], None],
    company: Company | None = None,
    weights: str | None = None,
) -> CachedReference | None:
    """The cache of these rows under this model, from disk or computed now; None if it would be too large.

    ``report`` is told the predicted size before anything is written. Whatever is on disk under the right name but is
    not whole is replaced. A model in shards needs ``company``; ``weights`` is that of ``cache_key``.
    """
    company = company or Company()
    needs = kept_needs(needs)
    if not needs or options.folder is None:
        return None
    folder = Path(options.folder) / cache_key(model, rows, needs, options.dtype, precision, weights)[:32]
    size = predicted_bytes(model, rows, needs, options.dtype)
    for _ in range(ATTEMPTS):
        found = if_whole(folder, report)
        if not company.any_of(found is None):
            return found
        refusal = too_large(size, options)
        if company.any_of(refusal is not None):
            told = refusal or "another process cannot keep it"
            report(f"reference cache: {told}; the base model's output is computed in every step")
            return None
        if company.writes:
            count = sum(len(rows[split]) for split in needs)
            report(f"reference cache: {size / 1e9:.3f} GB for {count} rows go to {folder}")
            build(model, rows, needs, folder, options.dtype)
        else:
            compute_only(model, rows, needs)
        company.any_of(False)  # all wait until it is there
    return open_whole(folder)


def if_whole(folder: Path, report: Callable[[str], None]) -> CachedReference | None:
    """The cache in ``folder``; None if there is none, or a torn one, which ``report`` is told."""
    if not folder.is_dir():
        return None
    try:
        return open_whole(folder)
    except InputError as error:
        report(f"{error}; it is built anew")
        return None


def open_whole(folder: Path) -> CachedReference:
    """The cache in ``folder``, asked for twice: another process may just be putting it there."""
    try:
        return CachedReference(folder)
    except InputError:
        time.sleep(PAUSE)
        return CachedReference(folder)


def too_large(size: int, options: ReferenceCache) -> str | None:
    """Why a cache of ``size`` bytes is not written, if so."""
    if size > options.max_gigabytes * 1e9:
        return f"{size / 1e9:.3f} GB are more than max_gigabytes {options.max_gigabytes}"
    place = Path(str(options.folder))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return f"{size / 1e9:.3f} GB do not fit on the disk ({free / 1e9:.3f} GB free)" if size > free else None
