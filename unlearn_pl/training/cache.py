"""The reference cache: what the base model says of every row, computed once and kept on disk.

A cache is a folder of plain .npy files and a ``cache.json`` that names their hashes. Its name is the hash of everything
its content depends on, so that a second fit, and every run of a sweep, finds it, and nothing else does.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from unlearn_pl.data.batch import collate_rows
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.records import Split
from unlearn_pl.errors import InputError
from unlearn_pl.files import new_folder, sha256_of, write_json
from unlearn_pl.models.body import causal_model, vocabulary_head
from unlearn_pl.models.identity import add_base
from unlearn_pl.objectives.passes import Ask
from unlearn_pl.provenance import provenance
from unlearn_pl.training.packs import Part, first_fit
from unlearn_pl.training.reference import Said, live_reference

LAYOUT = 1
INDEX = "cache.json"
TOKENS_PER_FORWARD = 1024
# How often a folder that others build and replace at the same time is asked for, and the seconds in between.
ATTEMPTS, PAUSE = 3, 0.2


@dataclass(frozen=True)
class ReferenceCache:
    """Where the base model's part of NPO and KL is kept between epochs and runs."""

    folder: str | None = "logs/reference_cache"
    """Folder of all caches; null computes the base model's part anew in every step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the kept hidden states. bfloat16 halves the size and rounds what the KL compares with."""
    max_gigabytes: float = 8.0
    """A cache that would be larger is not written, and the base model's part is computed in every step; above 0."""

    def __post_init__(self) -> None:
        if self.max_gigabytes <= 0:
            raise InputError(f"--model.reference_cache.max_gigabytes: must be above 0, got {self.max_gigabytes}")


class CachedReference:
    """A ``Reference`` that looks rows up by their ids. Raises InputError from ``__init__`` if the folder is torn."""

    def __init__(self, folder: Path):
        self.folder = folder
        ids, files = read_index(folder)
        self.places: dict[Split, dict[str, int]] = {
            split: {name: place for place, name in enumerate(names)} for split, names in ids.items()
        }
        try:
            self.arrays = {name: np.load(folder / name, mmap_mode="r") for name in files}
        except (OSError, ValueError) as error:
            raise InputError(f"reference cache: {folder} cannot be read: {error}") from error

    def __call__(self, model: PeftModel, parts: Sequence[Part]) -> list[Said]:
        """What was kept of the rows of each part, on the device of its ids."""
        return [self._said(part) for part in parts]

    def _said(self, part: Part) -> Said:
        device, nll, hidden = part.rows.lengths.device, None, None
        if part.ask.reference_nll or part.ask.kl:
            places = [self.places[part.split][name] for name in part.rows.record_ids]
        if part.ask.reference_nll:
            nll = torch.from_numpy(self.arrays[f"{part.split}.nll.npy"][places]).to(device)
        if part.ask.kl:
            ends, states = self.arrays[f"{part.split}.ends.npy"], self.arrays[f"{part.split}.hidden.npy"]
            rows = [states[0 if place == 0 else ends[place - 1] : ends[place]] for place in places]
            hidden = from_numpy(np.concatenate(rows)).to(device)
        return Said(nll, hidden)


def read_index(folder: Path) -> tuple[dict[Split, list[str]], dict[str, str]]:
    """Row ids by split, and hashes by file name, of a whole cache. Raises InputError if a file is missing, torn or
    changed, the index itself included."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        ids, files = index["ids"], index["files"]
        if index["sha256"] != facts_hash(ids, files):
            raise InputError(f"reference cache: {folder / INDEX} is not what was written")
        for name, digest in files.items():
            if sha256_of(folder / name) != digest:
                raise InputError(f"reference cache: {folder / name} is not what was written")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"reference cache: {folder} cannot be read: {error}") from error
    return ids, files


def facts_hash(*facts: Any) -> str:
    """Hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def cache_key(
    model: PeftModel, rows: Mapping[Split, Sequence[Encoded]], asks: Mapping[Split, Ask], dtype: str, precision: str
) -> str:
    """Hash of all that a cache depends on: base weights and configuration, the encoded rows (which are all that
    tokenizer and encoding options change), what is asked of them, and the precision of the forwards."""
    digest = hashlib.sha256()
    config = causal_model(model).config.to_dict()
    facts = {
        "layout": LAYOUT,
        "config": {name: value for name, value in config.items() if not name.startswith("_")},
        "rows": {split: [asdict(row) for row in rows[split]] for split in sorted(asks)},
        "asks": {split: asdict(asks[split]) for split in sorted(asks)},
        "dtype": dtype,
        "precision": precision,
    }
    digest.update(facts_hash(facts).encode())
    add_base(digest, model)
    return digest.hexdigest()


def kept_asks(asks: Mapping[Split, Ask]) -> dict[Split, Ask]:
    """The splits whose reference is needed at all, and what is kept of them: padding is not."""
    return {split: replace(ask, padding=False) for split, ask in asks.items() if ask.reference_nll or ask.kl}


def positions_of(row: Encoded, ask: Ask) -> int:
    """Asked positions of a row."""
    return len(row.input_ids) - (row.answer_start if ask.positions == "answer" else 0)


def predicted_bytes(rows: Mapping[Split, Sequence[Encoded]], asks: Mapping[Split, Ask], width: int, dtype: str) -> int:
    """Size of the cache's arrays: 4 bytes a row for the NLL, ``width`` numbers a position for the hidden states."""
    size = {"float32": 4, "bfloat16": 2}[dtype]
    total = 0
    for split, ask in asks.items():
        total += 4 * len(rows[split]) * ask.reference_nll
        total += sum(8 + positions_of(row, ask) * width * size for row in rows[split]) * ask.kl
    return total


def open_or_build(
    model: PeftModel,
    rows: Mapping[Split, Sequence[Encoded]],
    asks: Mapping[Split, Ask],
    options: ReferenceCache,
    precision: str,
    report: Callable[[str], None],
) -> CachedReference | None:
    """The cache of these rows under this model, from disk or computed now; None if it would be too large.

    ``report`` is told the predicted size before anything is written. Whatever is on disk under the right name but is
    not whole is replaced.
    """
    asks = kept_asks(asks)
    if not asks or options.folder is None:
        return None
    folder = Path(options.folder) / cache_key(model, rows, asks, options.dtype, precision)[:32]
    size = predicted_bytes(rows, asks, width_of(model), options.dtype)
    for _ in range(ATTEMPTS):
        if folder.is_dir():
            try:
                return open_whole(folder)
            except InputError as error:
                report(f"{error}; it is built anew")
        if refusal := too_large(size, options):
            report(f"reference cache: {refusal}; the base model's part is computed in every step")
            return None
        count = sum(len(rows[split]) for split in asks)
        report(f"reference cache: {size / 1e9:.3f} GB for {count} rows go to {folder}")
        build(model, rows, asks, folder, options.dtype)
    return open_whole(folder)


def open_whole(folder: Path) -> CachedReference:
    """The cache in ``folder``, asked for twice: another process may just be putting it there."""
    try:
        return CachedReference(folder)
    except InputError:
        time.sleep(PAUSE)
        return CachedReference(folder)


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` holds a cache as it was written."""
    try:
        read_index(folder)
    except InputError:
        return False
    return True


def width_of(model: PeftModel) -> int:
    """Width of the final hidden states: what the head takes, which the configuration's hidden size may not be."""
    return vocabulary_head(model).weight.shape[1]


def too_large(size: int, options: ReferenceCache) -> str | None:
    """Why a cache of ``size`` bytes is not written, if so."""
    if size > options.max_gigabytes * 1e9:
        return f"{size / 1e9:.3f} GB are more than --model.reference_cache.max_gigabytes {options.max_gigabytes}"
    place = Path(str(options.folder))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return f"{size / 1e9:.3f} GB do not fit on the disk ({free / 1e9:.3f} GB free)" if size > free else None


def build(
    model: PeftModel, rows: Mapping[Split, Sequence[Encoded]], asks: Mapping[Split, Ask], folder: Path, dtype: str
) -> None:
    """Compute every row in forwards of about ``TOKENS_PER_FORWARD`` tokens and write the cache; ``folder`` appears
    whole or not at all. Of processes that build the same at once the first to end is kept, and the others use its."""
    width = width_of(model)
    with new_folder(folder, True, "--model.reference_cache.folder", keep=is_whole) as temporary:
        for split, ask in asks.items():
            fill(model, split, rows[split], ask, temporary, width, dtype)
        files = {path.name: sha256_of(path) for path in sorted(temporary.glob("*.npy"))}
        ids = {split: [row.record_id for row in rows[split]] for split in asks}
        write_json(temporary / INDEX, provenance(ids=ids, files=files, sha256=facts_hash(ids, files)))


def fill(
    model: PeftModel, split: Split, rows: Sequence[Encoded], ask: Ask, folder: Path, width: int, dtype: str
) -> None:
    """Write the arrays of a split: NLLs, and the hidden states of all rows one after the other with their ends."""
    counts = [positions_of(row, ask) for row in rows]
    ends = np.cumsum(counts)
    nll = np.zeros(len(rows), dtype=np.float32)
    kind = np.float32 if dtype == "float32" else np.int16
    hidden = None
    if ask.kl:
        shape = (int(ends[-1]), width)
        hidden = np.lib.format.open_memmap(folder / f"{split}.hidden.npy", mode="w+", dtype=kind, shape=shape)
        np.save(folder / f"{split}.ends.npy", ends)
    device = causal_model(model).get_input_embeddings().weight.device
    for pack in first_fit([len(row.input_ids) for row in rows], TOKENS_PER_FORWARD):
        said = live_reference(model, [Part(split, collate_rows([rows[i] for i in pack], 0).to(device), ask)])[0]
        if said.nll is not None:
            nll[pack] = said.nll.cpu().numpy()
        if hidden is not None and said.hidden is not None:
            states = to_numpy(said.hidden.to(getattr(torch, dtype)).cpu())
            for index, own in zip(pack, np.split(states, np.cumsum([counts[i] for i in pack])[:-1]), strict=True):
                hidden[ends[index] - counts[index] : ends[index]] = own
    if ask.reference_nll:
        np.save(folder / f"{split}.nll.npy", nll)
    if hidden is not None:
        hidden.flush()


def to_numpy(values: Tensor) -> np.ndarray:
    """Half-precision numbers as the 16 bits that they are, since numpy has no bfloat16."""
    return (values.view(torch.int16) if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()


def from_numpy(values: np.ndarray) -> Tensor:
    """The inverse of ``to_numpy`` for the two types of the cache."""
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if values.dtype == np.int16 else tensor
