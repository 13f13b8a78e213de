"""Full checkpoints as folders of safetensors files: what they hold, read and written block by block.

The format is plain (https://github.com/huggingface/safetensors#format): the length of a JSON header in eight bytes, the
header with each tensor's type, shape and place, then the bytes. Blocks are read and written at their place with one
reused buffer; a mapped file would count as resident memory page by page.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unlearn_pl.errors import InputError
from unlearn_pl.files import write_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
# What makes a folder of weights a model that can be opened and prompted.
COMPANIONS = (
    CONFIG_FILE, "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "*.model", "*.tiktoken", "chat_template*", "*.py",
)  # fmt: skip
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of an entry of what cannot be merged, only copied."""
BLOCK_BYTES = 1 << 20
"""Bytes that are read or written at once: they stay in a core's cache."""
SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: Path
    dtype: str
    """As safetensors calls it, such as F32."""
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def floating(self) -> bool:
        return self.dtype in FLOATS

    @property
    def itemsize(self) -> int:
        return FLOATS[self.dtype].itemsize if self.floating else INTEGERS[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model."""

    folder: Path
    tensors: dict[str, Stored]


# --- reading -------------------------------------------------------------------------------------------------------


def read_checkpoint(folder: str | Path, name: str) -> Checkpoint:
    """The tensors of one ``model.safetensors``, or, without it, of the files that ``model.safetensors.index.json``
    names: the order of `from_pretrained`, to which an index beside a single file is what an earlier save left behind.

    Raises InputError, about the parameter ``name``, if there is no such file, one is missing, broken or lacks a tensor
    that the index puts there, or a tensor has a type that is neither of ``FLOATS`` nor of ``INTEGERS``.
    """
    folder = Path(folder).expanduser()
    if (folder / SINGLE_FILE).is_file():
        return Checkpoint(folder, read_header(folder / SINGLE_FILE, name))
    if not (folder / INDEX_FILE).is_file():
        pickled = "; pytorch_model.bin is a pickle, which is not opened" if any(folder.glob("*.bin")) else ""
        raise InputError(
            f"{folder} must be a folder with {SINGLE_FILE} or {INDEX_FILE}, and has neither{pickled}", name
        )
    return Checkpoint(folder, _read_shards(folder, name))


def _read_shards(folder: Path, name: str) -> dict[str, Stored]:
    try:
        places = dict(json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: {INDEX_FILE} cannot be read, or has no weight_map: {error}", name) from error
    tensors: dict[str, Stored] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise InputError(f"{folder}: {INDEX_FILE} names the file {file}, which is not in the folder", name)
        tensors |= read_header(folder / file, name)
    absent = sorted(tensor for tensor in places if tensor not in tensors)
    if absent:
        raise InputError(f"{folder}: {places[absent[0]]} does not hold {absent[0]}, though {INDEX_FILE} says so", name)
    return tensors


def read_header(path: Path, name: str) -> dict[str, Stored]:
    """The tensors of one safetensors file, in the order of their bytes; ``name`` is the parameter that it is about."""
    try:
        with safe_open(path, framework="pt"):  # checks the header, and that the places fill the file without a gap
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path.parent}: {path.name} cannot be read: {error}", name) from error
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for tensor, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in FLOATS | INTEGERS:
            raise InputError(
                f"{path.parent}: {tensor} is of type {entry['dtype']}; merged are {', '.join(FLOATS)}", name
            )
        start = 8 + length + entry["data_offsets"][0]
        tensors[tensor] = Stored(path, entry["dtype"], tuple(entry["shape"]), start)
    return tensors


def byte_blocks(stored: Stored, entries: int) -> Iterator[Tensor]:
    """The tensor's bytes, ``entries`` of the tensor at a time (fewer at the end), each time in the same buffer."""
    left = stored.nbytes
    buffer = torch.empty(min(left, entries * stored.itemsize), dtype=torch.uint8)
    with stored.path.open("rb", buffering=0) as stream:
        stream.seek(stored.start)
        while left:
            block = buffer[:left]
            target, filled = _bytes(block), 0
            while filled < len(target):
                got = stream.readinto(target[filled:])
                if not got:
                    raise InputError(f"{stored.path} ended early: it was changed while it was read")
                filled += got
            left -= filled
            yield block


def _bytes(block: Tensor) -> memoryview:
    """The memory of a flat tensor itself."""
    view: Any = block.view(torch.uint8).numpy()
    return memoryview(view)


def float_blocks(stored: Stored, entries: int) -> Iterator[Tensor]:
    """The tensor in float32, flat, ``entries`` at a time (fewer at the end). A block may be changed, and is gone when
    the next one comes."""
    for block in byte_blocks(stored, entries):
        yield block.view(FLOATS[stored.dtype]).float()


def block_entries(tensors: Iterable[Stored]) -> int:
    """How many entries of each of the tensors fill no more than ``BLOCK_BYTES``, in their own type or in float32."""
    return BLOCK_BYTES // max(4, *(stored.itemsize for stored in tensors))


# --- writing -------------------------------------------------------------------------------------------------------


def lay_out(folder: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], shard_bytes: int) -> Checkpoint:
    """Make the files for tensors of name -> (type, shape): headers and index as transformers writes them, the numbers
    still to come.

    A file holds at most ``shard_bytes`` bytes of tensors, or one larger tensor alone.
    """
    shards: list[list[str]] = [[]]
    sizes = {name: Stored(folder, *entry, start=0).nbytes for name, entry in tensors.items()}
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    placed: dict[str, Stored] = {}
    for number, names in enumerate(shards, start=1):
        path = folder / (SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors")
        placed |= write_header(path, {name: tensors[name] for name in names})
    if len(shards) > 1:
        totals = {
            "total_parameters": sum(stored.numel for stored in placed.values()),
            "total_size": sum(sizes.values()),
        }
        places = {name: stored.path.name for name, stored in sorted(placed.items())}
        write_json(folder / INDEX_FILE, {"metadata": totals, "weight_map": places})
    return Checkpoint(folder, placed)


def write_header(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Stored]:
    """A file of full size with a header and zeros. The largest types come first, so that all are aligned."""
    stored = {name: Stored(path, *entry, start=0) for name, entry in tensors.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(stored.items(), key=lambda item: -item[1].itemsize):
        places = [end, end + tensor.nbytes]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": places}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return {
        name: replace(tensor, start=8 + len(text) + header[name]["data_offsets"][0]) for name, tensor in stored.items()
    }


def write_blocks(stored: Stored, blocks: Iterable[Tensor]) -> None:
    """Write all of a tensor at its place; the blocks follow each other and have its type."""
    written = 0
    with stored.path.open("r+b", buffering=0) as stream:
        stream.seek(stored.start)
        for block in blocks:
            written += _write_all(stream, _bytes(block))
    assert written == stored.nbytes


def _write_all(stream: BinaryIO, data: memoryview) -> int:
    done = 0
    while done < len(data):
        done += stream.write(data[done:])
    return done


def copy_companions(source: Path, target: Path, dtype: str | None) -> None:
    """Copy the configuration, the tokenizer and the chat template; ``dtype`` is the weights' type if it changed."""
    for path in sorted({path for pattern in COMPANIONS for path in source.glob(pattern)}):
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)
    if dtype is not None:
        config = json.loads((target / CONFIG_FILE).read_text(encoding="utf-8"))
        config.pop("torch_dtype", None)  # its name before transformers 5
        write_json(target / CONFIG_FILE, config | {"dtype": dtype})
