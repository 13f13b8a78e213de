"""A checkpoint file ends with the hash of its bytes: no bit of it changes unnoticed."""

import collections
import hashlib
import zipfile
from pathlib import Path

import pytest
import torch

from unlearn_pl.errors import InputError
from unlearn_pl.training.checkpoint_file import MARK, WholeCheckpoints, read_checkpoint, seal_of
from unlearn_pl.training.resume import FACTS, FACTS_NEEDED

CHECKPOINT = {"state_dict": {"a": torch.arange(6.0)}, FACTS: dict.fromkeys(FACTS_NEEDED, 1)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.ckpt"
    WholeCheckpoints().save_checkpoint(CHECKPOINT, path)
    return path


def refusal(path: Path, sealed: bool = True) -> str:
    with pytest.raises(InputError) as caught:
        read_checkpoint(path, sealed=sealed)
    reason = caught.value.reason
    assert reason.startswith(str(path)), "it names the file"
    assert caught.value.name == "ckpt_path"
    return reason


def test_a_sealed_checkpoint_is_an_archive_that_torch_reads(file: Path) -> None:
    """The hash is that of the archive as `torch.save` wrote it, which is the file with an empty comment."""
    for read in (torch.load(file, weights_only=True), read_checkpoint(file, sealed=True)):
        assert torch.equal(read["state_dict"]["a"], torch.arange(6.0))
    with zipfile.ZipFile(file) as archive:
        comment = archive.comment
        assert archive.testzip() is None
    plain = file.read_bytes()[: -len(comment) - 2] + bytes(2)
    assert comment == MARK + hashlib.sha256(plain).hexdigest().encode()
    assert [path.name for path in file.parent.iterdir()] == ["some.ckpt"]


def test_no_bit_flips_unnoticed(file: Path) -> None:
    """Of each byte one, of those of the seal too; torch.load alone takes most of them."""
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        assert "torn" in (reason := refusal(file)) or "has changed" in reason or "no checkpoint of" in reason
    file.write_bytes(content)
    read_checkpoint(file, sealed=True)


def test_no_part_passes_for_the_whole(file: Path) -> None:
    content = file.read_bytes()
    for size in range(0, len(content), 7):
        file.write_bytes(content[:size])
        assert "torn" in refusal(file)
    file.write_bytes(content + b"x")
    assert "torn" in refusal(file)


def test_what_was_saved_without_a_seal_is_read_from_python_alone(file: Path) -> None:
    """A Trainer of one's own has Lightning's writer."""
    torch.save(CHECKPOINT, file)
    assert seal_of(file) is None
    read_checkpoint(file)
    assert refusal(file).endswith("give another checkpoint of that run, or start anew without ckpt_path")
    with pytest.raises(InputError, match="ends without the hash"):
        WholeCheckpoints().load_checkpoint(file)


def test_objects_of_a_callback_are_told(file: Path) -> None:
    WholeCheckpoints().save_checkpoint(CHECKPOINT | {"callbacks": collections.Counter()}, file)
    read_checkpoint(file, sealed=True)
    WholeCheckpoints().save_checkpoint(CHECKPOINT | {"callbacks": Path("x")}, file)
    assert "weights_only=false" in refusal(file)
    assert read_checkpoint(file, weights_only=False, sealed=True)["callbacks"] == Path("x")
