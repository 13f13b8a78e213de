"""Merging full checkpoints over the base that they were trained from, tensor by tensor, from folder to folder.

Of each tensor the differences to the base are merged by a kernel and added to the base. The memory needed is at most
twice that of the differences of the largest tensor in float32, whatever the size of the model.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

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
    read_checkpoint,
    write_blocks,
)
from unlearn_pl.checkpoints.same_model import refuse_other_model
from unlearn_pl.checkpoints.tensor_names import under_model_names
from unlearn_pl.errors import InputError
from unlearn_pl.files import new_folder, write_json
from unlearn_pl.merging.kernels import Kernel, KernelOptions, merge_tensors_
from unlearn_pl.models.load import DTYPES, load_skeleton, refuse_quantised
from unlearn_pl.models.lora import FACTS_FILE
from unlearn_pl.provenance import provenance


@dataclass(frozen=True)
class Merge:
    """How each tensor is merged."""

    base: Checkpoint
    checkpoints: Sequence[Checkpoint]
    written: Checkpoint
    kernel: Kernel
    weights: Sequence[float]
    options: KernelOptions
    seed: int | None
    scale: float


def merge_checkpoints(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    output: str | Path,
    kernel: Kernel,
    weights: Sequence[float],
    options: KernelOptions,
    seed: int | None = None,
    scale: float = 1.0,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Write base + ``scale`` x (the merged differences to the base) as a checkpoint folder, with the base's tokenizer.

    All is computed in float32. Tensors are written in the base's types, or all floating ones in ``dtype``
    (``float32``, ``bfloat16`` or ``float16``), in files of at most ``shard_bytes`` (a larger tensor has its own).
    Tensors of integers must be equal in all folders. Random kernels draw for each tensor from a generator of its own,
    made from ``seed`` and the tensor's name. ``facts`` are recorded with the versions.
    Raises InputError if ``output`` exists and ``overwrite`` is off, for folders that are not checkpoints of one model,
    and for NaN or infinite numbers in them.
    """
    assert len(checkpoints) == len(weights)
    assert not kernel.random or seed is not None
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype: must be one of {', '.join(DTYPES)}, got {dtype}")
    original, *others = read_alike(base, checkpoints, trust_remote_code=trust_remote_code)
    with new_folder(output, overwrite) as folder:
        copy_companions(original.folder, folder, dtype)
        code = next((code for code, known in FLOATS.items() if dtype and known == DTYPES[dtype]), None)
        plan = {
            name: (code if code and stored.floating else stored.dtype, stored.shape)
            for name, stored in original.tensors.items()
        }
        merge = Merge(original, others, lay_out(folder, plan, shard_bytes), kernel, weights, options, seed, scale)
        merge_all(merge)
        write_json(folder / FACTS_FILE, provenance(**(facts or {})))


# --- what may be merged --------------------------------------------------------------------------------------------


def read_alike(
    base: str | Path,
    others: Sequence[str | Path],
    argument: str = "--checkpoints",
    trust_remote_code: bool = False,
) -> list[Checkpoint]:
    """The base and the others, each weight once, with the same names and shapes in all.

    ``argument`` names the others in messages. Raises InputError for a folder that is no checkpoint or is quantised,
    lacks a tensor or has another one or another shape, holds different numbers for weights that the base's config.json
    ties, computes otherwise or has another tokenizer.
    """
    named = [(base, "--base"), *((folder, argument) for folder in others)]
    found = [read_checkpoint(folder, name) for folder, name in named]
    model = load_skeleton(str(found[0].folder), trust_remote_code)
    refuse_quantised(model, argument)
    alike = [
        _untied(under_model_names(checkpoint, model, name), model.all_tied_weights_keys, name)
        for checkpoint, (_, name) in zip(found, named, strict=True)
    ]
    for checkpoint in alike[1:]:
        _check_alike(alike[0], checkpoint, argument)
        refuse_other_model(alike[0].folder, checkpoint.folder, argument, trust_remote_code)
    return alike


def _untied(checkpoint: Checkpoint, tied: Mapping[str, str], argument: str) -> Checkpoint:
    """Without the second copy of a weight: some programs store both, or only the copy (``tied``: copy -> weight)."""
    tensors = dict(checkpoint.tensors)
    for copy, weight in tied.items():
        if copy not in tensors:
            continue
        stored = tensors.pop(copy)
        if weight in tensors and not _equal(stored, tensors[weight]):
            raise InputError(
                f"{argument}: {checkpoint.folder} holds different numbers in {copy} and {weight}, which are one weight "
                "by the base's config.json (tie_word_embeddings); save the base with a head of its own, or the others "
                "without"
            )
        tensors.setdefault(weight, stored)
    return Checkpoint(checkpoint.folder, tensors)


def _equal(one: Stored, other: Stored) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    entries = block_entries([one])
    blocks = zip(byte_blocks(one, entries), byte_blocks(other, entries), strict=True)
    return all(torch.equal(left, right) for left, right in blocks)


def _check_alike(base: Checkpoint, other: Checkpoint, argument: str) -> None:
    odd = sorted(base.tensors.keys() ^ other.tensors.keys())
    if odd:
        raise InputError(
            f"{argument}: must have the tensors of the base; {len(odd)} are in only one of {base.folder} and "
            f"{other.folder}, such as {odd[0]}"
        )
    for name, stored in base.tensors.items():
        twin = other.tensors[name]
        if stored.shape != twin.shape:
            raise InputError(
                f"{argument}: must have the shapes of the base; {name} is {list(stored.shape)} in {base.folder} and "
                f"{list(twin.shape)} in {other.folder}" + _advice(stored, twin)
            )
        if not (stored.floating and twin.floating) and not _equal(stored, twin):
            raise InputError(
                f"{argument}: {name} is {stored.dtype} in {base.folder} and {twin.dtype} in {other.folder}, and "
                "differs; tensors of integers must be equal, as they are not merged"
            )


def _advice(stored: Stored, twin: Stored) -> str:
    """What to do where only the number of rows differs, as after tokens were added."""
    if stored.shape[1:] != twin.shape[1:] or len(stored.shape) != 2:
        return ""
    return f"; if tokens were added, give the base their rows too: resize_token_embeddings({twin.shape[0]}) and save it"


# --- the work ------------------------------------------------------------------------------------------------------


def merge_all(merge: Merge) -> None:
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
            jobs = [pool.submit(merge_queues, merge, [large, small][min(i, 1) :], stop) for i in range(threads)]
            try:
                for job in as_completed(jobs):
                    job.result()
            finally:
                stop.set()  # after an interrupt here the threads end with their tensor
    finally:
        torch.set_num_threads(threads)


def merge_queues(merge: Merge, queues: Sequence[deque[str]], stop: Event) -> None:
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
                merge_one(merge, name, buffers)
            except BaseException:
                stop.set()
                raise
        del buffers


def merge_one(merge: Merge, name: str, buffers: Sequence[Tensor]) -> None:
    """Merge one tensor and write it; ``buffers`` hold at least its size, one for each checkpoint."""
    stored, target = merge.base.tensors[name], merge.written.tensors[name]
    if not stored.floating or not stored.numel:
        write_blocks(target, byte_blocks(stored, block_entries([stored])))
        return
    deltas = [buffer[: stored.numel].view(stored.shape or (1,)) for buffer in buffers]
    read_deltas(merge, name, deltas)
    generator = None if merge.seed is None else tensor_generator(merge.seed, name)
    merged = merge_tensors_(merge.kernel, deltas, merge.weights, merge.options, generator)
    write_blocks(target, _added(stored, merged.view(-1), merge.scale, target.dtype, name))


def read_deltas(merge: Merge, name: str, deltas: Sequence[Tensor]) -> None:
    """Fill ``deltas`` with checkpoint - base. Raises InputError for NaN or infinite numbers."""
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


def _refuse(merge: Merge, name: str) -> None:
    """Say which folder holds the numbers that are not finite."""
    for checkpoint, argument in [(merge.base, "--base"), *((one, "--checkpoints") for one in merge.checkpoints)]:
        stored = checkpoint.tensors[name]
        if not all(block.isfinite().all() for block in float_blocks(stored, block_entries([stored]))):
            raise InputError(f"{argument}: {name} in {checkpoint.folder} holds NaN or infinite numbers (in float32)")
    raise InputError(f"--checkpoints: {name} is so far from the base that the difference is infinite in float32")


def _added(base: Stored, delta: Tensor, scale: float, dtype: str, name: str) -> Iterator[Tensor]:
    """Blocks of base + ``scale`` x ``delta`` in ``dtype``."""
    start = 0
    for block in float_blocks(base, block_entries([base])):
        block.add_(delta[start : start + len(block)], alpha=scale)
        result = block.to(FLOATS[dtype])
        if not _finite(result if dtype != "F16" else result.float()):
            raise InputError(f"--dtype: the merged {name} holds numbers beyond the range of {FLOATS[dtype]}")
        yield result
        start += len(block)


def tensor_generator(seed: int, name: str) -> torch.Generator:
    """A generator for one tensor, whatever the order in which tensors are merged."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
