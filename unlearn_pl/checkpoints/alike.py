"""Whether checkpoint folders can be merged, or told apart: the same tensors, of one model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from unlearn_pl.checkpoints.folder import Checkpoint, Stored, block_entries, byte_blocks, read_checkpoint
from unlearn_pl.checkpoints.same_model import refuse_other_model
from unlearn_pl.checkpoints.tensor_names import under_model_names
from unlearn_pl.errors import InputError
from unlearn_pl.models.load import load_skeleton, refuse_quantised


def read_alike(
    base: str | Path,
    others: Sequence[str | Path],
    name: str = "checkpoints",
    trust_remote_code: bool = False,
) -> list[Checkpoint]:
    """The base and the others, each weight once, with the same names and shapes in all.

    Raises InputError, about the parameter ``name`` where it is one of the others, for a folder that is no checkpoint or
    is quantised, lacks a tensor or has another one or another shape, holds different numbers for weights that the
    base's config.json ties, computes otherwise or has another tokenizer.
    """
    named = [(base, "base"), *((folder, name) for folder in others)]
    found = [read_checkpoint(folder, parameter) for folder, parameter in named]
    model = load_skeleton(str(found[0].folder), trust_remote_code)
    refuse_quantised(model, name)
    alike = [
        _untied(under_model_names(checkpoint, model, parameter), model.all_tied_weights_keys, parameter)
        for checkpoint, (_, parameter) in zip(found, named, strict=True)
    ]
    for checkpoint in alike[1:]:
        _check_alike(alike[0], checkpoint, name)
        refuse_other_model(alike[0].folder, checkpoint.folder, name, trust_remote_code)
    return alike


def _untied(checkpoint: Checkpoint, tied: Mapping[str, str], name: str) -> Checkpoint:
    """Without the second copy of a weight: some programs store both, or only the copy (``tied``: copy -> weight)."""
    tensors = dict(checkpoint.tensors)
    for copy, weight in tied.items():
        if copy not in tensors:
            continue
        stored = tensors.pop(copy)
        if weight in tensors and not _equal(stored, tensors[weight]):
            raise InputError(
                f"{checkpoint.folder} holds different numbers in {copy} and {weight}, which are one weight by the "
                "base's config.json (tie_word_embeddings); save the base with a head of its own, or the others without",
                name,
            )
        tensors.setdefault(weight, stored)
    return Checkpoint(checkpoint.folder, tensors)


def _equal(one: Stored, other: Stored) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    entries = block_entries([one])
    blocks = zip(byte_blocks(one, entries), byte_blocks(other, entries), strict=True)
    return all(torch.equal(left, right) for left, right in blocks)


def _check_alike(base: Checkpoint, other: Checkpoint, name: str) -> None:
    odd = sorted(base.tensors.keys() ^ other.tensors.keys())
    if odd:
        raise InputError(
            f"must have the tensors of the base; {len(odd)} are in only one of {base.folder} and {other.folder}, such "
            f"as {odd[0]}",
            name,
        )
    for tensor, stored in base.tensors.items():
        twin = other.tensors[tensor]
        if stored.shape != twin.shape:
            raise InputError(
                f"must have the shapes of the base; {tensor} is {list(stored.shape)} in {base.folder} and "
                f"{list(twin.shape)} in {other.folder}" + _advice(stored, twin),
                name,
            )
        if not (stored.floating and twin.floating) and not _equal(stored, twin):
            raise InputError(
                f"{tensor} is {stored.dtype} in {base.folder} and {twin.dtype} in {other.folder}, and differs; tensors "
                "of integers must be equal, as they are not merged",
                name,
            )


def _advice(stored: Stored, twin: Stored) -> str:
    """What to do where only the number of rows differs, as after tokens were added."""
    if stored.shape[1:] != twin.shape[1:] or len(stored.shape) != 2:
        return ""
    return f"; if tokens were added, give the base their rows too: resize_token_embeddings({twin.shape[0]}) and save it"
