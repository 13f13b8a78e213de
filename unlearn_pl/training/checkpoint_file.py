"""Checkpoint files: written whole or not at all, sealed, and looked at before a model is loaded.

The seal is the hash of all bytes of the file, in the comment that a zip archive may end with: `torch.load` reads the
file as ever, but by itself it does not notice two of three bits that flip in a small checkpoint.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO

from unlearn_pl.errors import InputError
from unlearn_pl.training.resume import facts_of

MARK = b"unlearn-pl sha256 "
SEAL = len(MARK) + hashlib.sha256().digest_size * 2
"""Bytes of the comment."""
NO_COMMENT = bytes(2)
"""What a zip archive without a comment ends with: the comment's length."""
BLOCK = 1 << 20
ADVICE = "give another checkpoint of that run, or start anew without ckpt_path"


def check_checkpoint_file(path: str, verb: str, weights_only: bool = True, sealed: bool = True) -> None:
    """Raise InputError unless ``path`` is a whole checkpoint of a fit, with its seal if it is to have one, or is `last`
    in a fit."""
    if path == "last" and verb == "fit":
        return
    read_checkpoint(path, weights_only, sealed=sealed)


def read_checkpoint(
    path: str | Path, weights_only: bool = True, name: str = "ckpt_path", sealed: bool = False
) -> dict[str, Any]:
    """A whole checkpoint of a fit, its tensors on the CPU. Raises InputError, naming ``name``, if it is none, if it has
    another seal than its bytes, or if it has none but is to be ``sealed``."""
    file = Path(path)
    if file.is_dir():
        raise InputError(
            f"{path} is a folder; a checkpoint is a file such as checkpoints/last.ckpt, and an adapter folder goes to "
            "the model's adapter",
            name,
        )
    if not file.is_file():
        raise InputError(f"must be a checkpoint file of `unlearn-pl fit`, got {path}, which is no file", name)
    kept = check_seal(file, name, needed=False)
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=weights_only)  # nosec B614
    except Exception as error:  # whatever the bytes are that it reads
        if kept:
            raise InputError(
                f"{path} holds objects beside its tensors, of a callback perhaps; weights_only=false reads them, which "
                "runs code of the file",
                name,
            ) from error
        raise InputError(f"{path} is torn, or no checkpoint of `unlearn-pl fit`; {ADVICE}", name) from error
    checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
    facts_of(checkpoint, path, name)
    if sealed and not kept:
        check_seal(file, name)
    return checkpoint


def check_seal(file: Path, name: str = "ckpt_path", needed: bool = True) -> bool:
    """Whether a file has a seal. Raises InputError if its bytes have another one, or if it has none and that is
    ``needed``."""
    kept = seal_of(file)
    if kept is not None and kept[0] != kept[1]:
        raise InputError(f"{file} has changed since it was written (its hash is another); {ADVICE}", name)
    if needed and kept is None:
        raise InputError(
            f"{file} was not written by `unlearn-pl fit`, or is torn: it ends without the hash that is put there; "
            f"{ADVICE}",
            name,
        )
    return kept is not None


def seal_of(file: Path) -> tuple[str, str] | None:
    """The hash that a checkpoint ends with, and the one that its other bytes have; None if it ends otherwise."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END) - SEAL - len(NO_COMMENT)
        if size < 0:
            return None
        stream.seek(size)
        length, comment = stream.read(len(NO_COMMENT)), stream.read()
        if length != SEAL.to_bytes(2, "little") or not comment.startswith(MARK):
            return None
        return comment[len(MARK) :].decode("ascii", "replace"), hash_of(stream, size)


def hash_of(stream: BinaryIO, size: int) -> str:
    """Hash of the first ``size`` bytes and of the end of an archive without a comment."""
    digest = hashlib.sha256()
    stream.seek(0)
    for block in blocks(stream, size):
        digest.update(block)
    digest.update(NO_COMMENT)
    return digest.hexdigest()


def blocks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """The next ``size`` bytes."""
    while size > 0 and (block := stream.read(min(size, BLOCK))):
        size -= len(block)
        yield block


def put_seal(stream: BinaryIO) -> None:
    """End an archive without a comment with its hash."""
    size = stream.seek(0, os.SEEK_END) - len(NO_COMMENT)
    comment = MARK + hash_of(stream, size).encode("ascii")
    stream.seek(size)
    stream.write(len(comment).to_bytes(2, "little") + comment)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, seals it, then renames it.

    Lightning writes it into the system's folder for temporary files; where that is another disk, the move copies onto
    the earlier checkpoint, of which a kill or a full disk in the middle leaves nothing.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):  # of a store, which Lightning writes in one go
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")  # what a kill leaves of it, the next one replaces
        try:
            with part.open("wb+") as stream:
                torch.save(checkpoint, stream)
                put_seal(stream)
            os.replace(part, place)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Lightning's, of a file that was written here: also where only Lightning knows which `last` is."""
        if Path(path).is_file():
            check_seal(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


def seals(writer: CheckpointIO) -> bool:
    """Whether checkpoints of a run whose files ``writer`` writes have a seal."""
    return isinstance(writer, WholeCheckpoints)
