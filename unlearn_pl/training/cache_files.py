"""The files of a reference cache: a folder of plain .npy arrays and a ``cache.json`` that names their hashes."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from unlearn_pl.data.batch import collate_rows
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.records import Split
from unlearn_pl.errors import InputError
from unlearn_pl.files import new_folder, sha256_of, write_json
from unlearn_pl.models.body import causal_model, text_config, vocabulary_head
from unlearn_pl.models.device import sent
from unlearn_pl.objectives.passes import Needs, ReferenceOutput
from unlearn_pl.provenance import provenance
from unlearn_pl.training.packs import Part, first_fit
from unlearn_pl.training.reference import live_reference

INDEX = "cache.json"
TOKENS_PER_FORWARD, GPU_TOKENS_PER_FORWARD = 1024, 8192


@dataclass(frozen=True)
class Column:
    """One kind of numbers that is kept of the rows of a split: those of all rows, one row after the other."""

    name: str
    """``nll``, ``hidden`` or ``layer3``."""
    ends: str
    """The array of where each row ends in it: ``ends`` (scored positions) or ``token_ends`` (attended tokens)."""
    width: int | None
    """Numbers a position; None for one, which is always float32."""

    def of(self, output: ReferenceOutput) -> Tensor | None:
        """[N] or [N, width] of a base model's output."""
        if self.name.startswith("layer"):
            return output.layers.get(int(self.name.removeprefix("layer")))
        return output.token_nll if self.name == "nll" else output.hidden

    def counts(self, rows: Sequence[Encoded], needs: Needs) -> list[int]:
        """Positions of each row."""
        return [len(row.input_ids) if self.ends == "token_ends" else scored_positions(row, needs) for row in rows]

    def dtype(self, states: str) -> type[np.generic]:
        """Of the array, with states kept as ``states``: numpy has no bfloat16, so its bits are kept as int16."""
        return np.float32 if self.width is None or states == "float32" else np.int16


def columns_of(model: PeftModel, needs: Needs) -> list[Column]:
    """What is kept of a split."""
    # the head's width is that of the final states, which the configuration's hidden size may not be
    final, inner = vocabulary_head(model).weight.shape[1], text_config(model).hidden_size
    columns = [Column("nll", "ends", None)] if needs.reference_nll else []
    columns += [Column("hidden", "ends", final)] if needs.reference_logits else []
    return columns + [Column(f"layer{layer}", "token_ends", inner) for layer in needs.reference_layers]


def scored_positions(row: Encoded, needs: Needs) -> int:
    """Scored positions of a row."""
    return len(row.input_ids) - (row.answer_start if needs.positions == "answer" else 0)


def predicted_bytes(
    model: PeftModel, rows: Mapping[Split, Sequence[Encoded]], needs: Mapping[Split, Needs], dtype: str
) -> int:
    """Size of the arrays of a cache: of each column its numbers, and 8 bytes a row for where the rows end."""
    total = 0
    for split, own in needs.items():
        columns = columns_of(model, own)
        total += 8 * len(rows[split]) * len({column.ends for column in columns})
        for column in columns:
            size = np.dtype(column.dtype(dtype)).itemsize * (column.width or 1)
            total += size * sum(column.counts(rows[split], own))
    return total


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

    def __call__(self, model: PeftModel, parts: Sequence[Part]) -> list[ReferenceOutput]:
        """What was kept of the rows of each part, on the device of its ids."""
        return [self._output(model, part) for part in parts]

    def _output(self, model: PeftModel, part: Part) -> ReferenceOutput:
        kept = {column.name: self._values(part, column) for column in columns_of(model, part.needs)}
        layers = {layer: kept[f"layer{layer}"] for layer in part.needs.reference_layers}
        return ReferenceOutput(kept.get("nll"), kept.get("hidden"), layers)

    def _values(self, part: Part, column: Column) -> Tensor:
        """[N] or [N, width] of the part's rows, in their order."""
        ends, values = self.arrays[f"{part.split}.{column.ends}.npy"], self.arrays[f"{part.split}.{column.name}.npy"]
        places = [self.places[part.split][name] for name in part.rows.record_ids]
        rows = [values[0 if place == 0 else ends[place - 1] : ends[place]] for place in places]
        return sent(from_numpy(np.concatenate(rows)), part.rows.input_ids.device)


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


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` holds a cache as it was written."""
    try:
        read_index(folder)
    except InputError:
        return False
    return True


def compute_only(model: PeftModel, rows: Mapping[Split, Sequence[Encoded]], needs: Mapping[Split, Needs]) -> None:
    """The forwards of ``build``, for a process that another one needs for them and that writes nothing."""
    for split, own in needs.items():
        for _ in reference_outputs(model, split, rows[split], own):
            pass


def build(
    model: PeftModel, rows: Mapping[Split, Sequence[Encoded]], needs: Mapping[Split, Needs], folder: Path, dtype: str
) -> None:
    """Compute every row in forwards of about ``TOKENS_PER_FORWARD`` tokens and write the cache; ``folder`` appears
    whole or not at all. Of processes that build the same at once the first to end is kept, and the others use its."""
    with new_folder(folder, True, "reference_cache.folder", keep=is_whole) as temporary:
        for split, own in needs.items():
            fill(model, split, rows[split], own, temporary, dtype)
        files = {path.name: sha256_of(path) for path in sorted(temporary.glob("*.npy"))}
        ids = {split: [row.record_id for row in rows[split]] for split in needs}
        write_json(temporary / INDEX, provenance(ids=ids, files=files, sha256=facts_hash(ids, files)))


def fill(model: PeftModel, split: Split, rows: Sequence[Encoded], needs: Needs, folder: Path, dtype: str) -> None:
    """Write the arrays of a split."""
    columns = columns_of(model, needs)
    ends = {column.ends: np.cumsum(column.counts(rows, needs)) for column in columns}
    for name, own in ends.items():
        np.save(folder / f"{split}.{name}.npy", own)
    arrays = {}
    for column in columns:
        count = int(ends[column.ends][-1])
        shape = (count,) if column.width is None else (count, column.width)
        path = folder / f"{split}.{column.name}.npy"
        arrays[column] = np.lib.format.open_memmap(path, mode="w+", dtype=column.dtype(dtype), shape=shape)
        reserve(path)
    for pack, output in reference_outputs(model, split, rows, needs):
        for column, array in arrays.items():
            values, counts = column.of(output), column.counts([rows[index] for index in pack], needs)
            assert values is not None
            numbers = to_numpy(values.to(torch.float32 if column.width is None else getattr(torch, dtype)).cpu())
            for index, own in zip(pack, np.split(numbers, np.cumsum(counts)[:-1]), strict=True):
                array[ends[column.ends][index] - len(own) : ends[column.ends][index]] = own
    for array in arrays.values():
        array.flush()


def reserve(path: Path) -> None:
    """Take the room of a sparse file on the disk now: where there is none, writing into its memory map would end the
    process by a signal."""
    if hasattr(os, "posix_fallocate"):  # not on a Mac
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


def reference_outputs(
    model: PeftModel, split: Split, rows: Sequence[Encoded], needs: Needs
) -> Iterator[tuple[list[int], ReferenceOutput]]:
    """The base model's output on some rows after the other, each time with the indices of the rows."""
    device = causal_model(model).get_input_embeddings().weight.device
    tokens = TOKENS_PER_FORWARD if device.type == "cpu" else GPU_TOKENS_PER_FORWARD
    for pack in first_fit([len(row.input_ids) for row in rows], tokens):
        part = Part(split, collate_rows([rows[index] for index in pack], 0).to(device), needs)
        yield pack, live_reference(model, [part])[0]


def to_numpy(values: Tensor) -> np.ndarray:
    """Half-precision numbers as the 16 bits that they are, since numpy has no bfloat16."""
    return (values.view(torch.int16) if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()


def from_numpy(values: np.ndarray) -> Tensor:
    """The inverse of ``to_numpy`` for the two types of the cache."""
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if values.dtype == np.int16 else tensor
