"""Merges checkpoint - base with a kernel and adds the result to the base, one tensor at a time, from folder to folder.

The memory needed is at most twice that of the differences of the largest tensor in float32, whatever the size of the
model.
"""

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from unlearn_pl.checkpoints.alike import read_alike
from unlearn_pl.checkpoints.folder import (
    FLOATS,
    SHARD_BYTES,
    Checkpoint,
    Stored,
    block_entries,
    byte_blocks,
    copy_companions,
    float_blocks,
    lay_out,
    write_blocks,
)
from unlearn_pl.errors import InputError
from unlearn_pl.files import check_outputs, new_folder, write_json
from unlearn_pl.merging.merge import merge_tensors
from unlearn_pl.merging.options import MergeOptions, MergeSettings
from unlearn_pl.models.load import DTYPES
from unlearn_pl.models.lora import FACTS_FILE
from unlearn_pl.provenance import provenance


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(MergeOptions):
    """How full weights are merged, and how they are read and written."""

    dtype: str | None = None
    """Number type of a merged model: float32, bfloat16 or float16. If not given, float32 for adapters and that of the
    base's tensors for checkpoints."""
    shard_gb: float | None = None
    """Largest file of a merged checkpoint, in 10^9 bytes; 5 if not given. Only with checkpoints."""
    trust_remote_code: bool = False
    """Run the Python code that a base model brings along."""

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(f"must be one of {', '.join(DTYPES)}, got {self.dtype}", "dtype")
        if self.shard_gb is not None and not 0 < self.shard_gb < math.inf:
            raise InputError(f"must be a number above 0, got {self.shard_gb}", "shard_gb")

    @classmethod
    def of(cls, options: MergeOptions, **given: Any) -> "CheckpointOptions":
        """``options``, of whatever class, with further ones or others as ``given``."""
        own = {one.name: getattr(options, one.name) for one in fields(cls) if hasattr(options, one.name)}
        return cls(**{**own, **given})

    @property
    def shard_bytes(self) -> int:
        """Largest file in bytes."""
        return SHARD_BYTES if self.shard_gb is None else int(self.shard_gb * 1e9)


@dataclass(frozen=True, kw_only=True)
class MergedCheckpoint:
    """What a merge of checkpoints gave: a folder that `from_pretrained` reads."""

    folder: Path
    base: Path
    checkpoints: tuple[Path, ...]
    settings: MergeSettings
    tensors: int
    """How many tensors it has."""


@dataclass(frozen=True)
class _Merge:
    """The work: each tensor of ``base`` and ``checkpoints`` is merged and put at its place in ``written``."""

    base: Checkpoint
    checkpoints: Sequence[Checkpoint]
    written: Checkpoint
    settings: MergeSettings


def merge_checkpoints(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    output: str | Path,
    options: MergeOptions | None = None,
    *,
    overwrite: bool = False,
    **more: Any,
) -> MergedCheckpoint:
    """Write base + scale x (the merged differences of two or more ``checkpoints`` to it) as the folder ``output``, with
    the base's tokenizer.

    The ``options`` (`MergeOptions` or `CheckpointOptions`) may be given whole, or by their names:
    ``merge_checkpoints(base, [one, other], output, method="ties", dtype="bfloat16")``. All is computed in float32.
    Tensors are written in the base's types, or all floating ones in ``dtype``, in files of at most ``shard_gb`` x 10^9
    bytes (a larger tensor has its own). Tensors of integers must be equal in all folders. Random kernels draw for each
    tensor from a generator of its own, made from the seed and the tensor's name.

    Raises InputError for options that the method cannot use, if ``output`` exists and ``overwrite`` is off or holds
    what is read, for folders that are not checkpoints of one model, and for NaN or infinite numbers in them.
    """
    given = CheckpointOptions.of(options or MergeOptions(), **more)
    settings = given.settings(len(checkpoints), checkpoints=True)
    check_outputs({"output": output}, [base, *checkpoints], overwrite)
    original, *others = read_alike(base, checkpoints, trust_remote_code=given.trust_remote_code)
    with new_folder(output, overwrite) as folder:
        copy_companions(original.folder, folder, given.dtype)
        written = lay_out(folder, _types(original, given.dtype), given.shard_bytes)
        _merge_all(_Merge(original, others, written, settings))
        facts = {**settings.facts(), "checkpoints": list(map(str, checkpoints))}
        write_json(folder / FACTS_FILE, provenance(merge=facts))
    return MergedCheckpoint(
        folder=Path(output),
        base=original.folder,
        checkpoints=tuple(other.folder for other in others),
        settings=settings,
        tensors=len(original.tensors),
    )


def _types(base: Checkpoint, dtype: str | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor as it is written: the base's, or all floating ones in ``dtype``."""
    code = next((code for code, known in FLOATS.items() if dtype and known == DTYPES[dtype]), None)
    return {
        name: (code if code and stored.floating else stored.dtype, stored.shape)
        for name, stored in base.tensors.items()
    }


def _merge_all(merge: _Merge) -> None:
    """Merge every tensor, as many at a time as torch has threads, each in one thread.

    So reading, pruning and writing, which use one thread each, go on side by side, and nothing waits at a barrier
    after each small operation. One thread begins with the large tensors, of which two at a time could take the memory
    of several; the others share the small ones, of which as many as there are threads are no larger than the largest.
    """
    sizes = {name: stored.numel for name, stored in merge.base.tensors.items()}
    threads = torch.get_num_threads()
    side_by_side = max(sizes.values(), default=0) // threads
    large = deque(name for name, size in sizes.items() if size > side_by_side)
    small = deque(name for name, size in sizes.items() if size <= side_by_side)
    stop = Event()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            jobs = [pool.submit(_merge_queues, merge, [large, small][min(i, 1) :], stop) for i in range(threads)]
            try:
                for job in as_completed(jobs):
                    job.result()
            finally:
                stop.set()  # after an interrupt here the threads end with their tensor
    finally:
        torch.set_num_threads(threads)


def _merge_queues(merge: _Merge, queues: Sequence[deque[str]], stop: Event) -> None:
    """Merge the tensors of one queue after the other, which other threads take from too, until ``stop`` is set; an
    error sets it."""
    for queue in queues:
        largest = max((merge.base.tensors[name].numel for name in tuple(queue)), default=0)
        buffers = [torch.empty(largest) for _ in merge.checkpoints]
        while queue and not stop.is_set():
            try:
                name = queue.popleft()
            except IndexError:  # another thread was quicker
                break
            try:
                _merge_one(merge, name, buffers)
            except BaseException:
                stop.set()
                raise
        del buffers


def _merge_one(merge: _Merge, name: str, buffers: Sequence[Tensor]) -> None:
    """Merge one tensor and write it; ``buffers`` hold at least its size, one for each checkpoint."""
    stored, target = merge.base.tensors[name], merge.written.tensors[name]
    if not stored.floating or not stored.numel:
        write_blocks(target, byte_blocks(stored, block_entries([stored])))
        return
    deltas = [buffer[: stored.numel].view(stored.shape or (1,)) for buffer in buffers]
    _read_deltas(merge, name, deltas)
    settings = merge.settings
    generator = None if settings.seed is None else tensor_generator(settings.seed, name)
    merged = merge_tensors(settings.method.kernel, deltas, settings.weights, settings.options, generator)
    write_blocks(target, _added(stored, merged.view(-1), settings.scale, target.dtype, name))


def _read_deltas(merge: _Merge, name: str, deltas: Sequence[Tensor]) -> None:
    """Fill ``deltas``, N of the tensor's shape, with checkpoint - base. Raises InputError unless all is finite."""
    tensors = [checkpoint.tensors[name] for checkpoint in (merge.base, *merge.checkpoints)]
    entries = block_entries(tensors)
    start = 0
    for base, *others in zip(*(float_blocks(stored, entries) for stored in tensors), strict=True):
        for delta, other in zip(deltas, others, strict=True):
            part = delta.view(-1)[start : start + len(base)]
            if not _finite(torch.sub(other, base, out=part)):
                _refuse(merge, name)
        start += len(base)


def _finite(block: Tensor) -> bool:
    """Whether all entries are finite; their sum is the quick test, but it may be infinite by itself."""
    return bool(block.sum().isfinite()) or bool(block.isfinite().all())


def _refuse(merge: _Merge, name: str) -> None:
    """Say which folder holds the numbers that are not finite."""
    for checkpoint, parameter in [(merge.base, "base"), *((one, "checkpoints") for one in merge.checkpoints)]:
        stored = checkpoint.tensors[name]
        if not all(block.isfinite().all() for block in float_blocks(stored, block_entries([stored]))):
            raise InputError(f"{name} in {checkpoint.folder} holds NaN or infinite numbers (in float32)", parameter)
    raise InputError(f"{name} is so far from the base that the difference is infinite in float32", "checkpoints")


def _added(base: Stored, delta: Tensor, scale: float, dtype: str, name: str) -> Iterator[Tensor]:
    """Blocks [n] of base + ``scale`` x ``delta`` (flat) in ``dtype``."""
    start = 0
    for block in float_blocks(base, block_entries([base])):
        block.add_(delta[start : start + len(block)], alpha=scale)
        result = block.to(FLOATS[dtype])
        if not _finite(result if dtype != "F16" else result.float()):
            raise InputError(f"the merged {name} holds numbers beyond the range of {FLOATS[dtype]}", "dtype")
        yield result
        start += len(block)


def tensor_generator(seed: int, name: str) -> torch.Generator:
    """A generator for one tensor, whatever the order in which tensors are merged."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
