"""Checkpoint folders: read like safetensors reads them, written so that safetensors and transformers read them."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_pl.checkpoints.folder import (
    FLOATS,
    Stored,
    block_entries,
    byte_blocks,
    copy_companions,
    float_blocks,
    lay_out,
    read_checkpoint,
    read_header,
    write_blocks,
    write_header,
)
from unlearn_pl.errors import InputError

STATE = {
    "a": torch.arange(10, dtype=torch.float32).view(5, 2),
    "b": torch.tensor([1.5, -2.5, 3.25], dtype=torch.bfloat16),
    "c": torch.tensor(7.0, dtype=torch.float16),
    "d": torch.tensor([True, False, True]),
    "e": torch.tensor([1 << 40, -1]),
    "f": torch.zeros(0, 4),
    "g": torch.tensor([[0.1, 0.2]], dtype=torch.float64),
}
CODES = {dtype: code for code, dtype in FLOATS.items()} | {torch.bool: "BOOL", torch.int64: "I64"}


def plan(state: dict[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (CODES[value.dtype], tuple(value.shape)) for name, value in state.items()}


def write(folder: Path, state: dict[str, Tensor], shard_bytes: int) -> None:
    """Each tensor in blocks of three entries."""
    placed = lay_out(folder, plan(state), shard_bytes)
    for name, value in state.items():
        write_blocks(placed.tensors[name], value.reshape(-1).split(3) if value.numel() else [])


def saved(folder: Path) -> dict[str, Tensor]:
    """What safetensors' own reader finds in all files."""
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in one.items()
    )


# --- reading -------------------------------------------------------------------------------------------------------


@given(entries=st.integers(1, 12))
def test_blocks_are_the_tensor(entries: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("read")
    save_file(STATE, folder / "model.safetensors")
    found = read_checkpoint(folder, "base").tensors
    assert found.keys() == STATE.keys()
    for name, value in STATE.items():
        stored = found[name]
        assert (stored.dtype, stored.shape) == plan(STATE)[name]
        assert (stored.numel, stored.nbytes) == (value.numel(), value.numel() * value.element_size())
        blocks = [block.clone() for block in byte_blocks(stored, entries)]
        assert [block.numel() // stored.itemsize for block in blocks[:-1]] == [entries] * (len(blocks) - 1)
        expected = value.reshape(-1).view(torch.uint8)
        assert torch.equal(torch.cat([*blocks, torch.empty(0, dtype=torch.uint8)]), expected)
        if stored.floating:
            floats = [block.clone() for block in float_blocks(stored, entries)]
            assert torch.equal(torch.cat([*floats, torch.empty(0)]), value.reshape(-1).float())


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    starts = [stored.start for stored in read_header(tmp_path / "model.safetensors", "x").values()]
    assert starts == sorted(starts)


def test_shards_are_read_like_one_file(tmp_path: Path) -> None:
    write(tmp_path, STATE, shard_bytes=20)
    found = read_checkpoint(tmp_path, "base").tensors
    assert {name: (stored.dtype, stored.shape) for name, stored in found.items()} == plan(STATE)


def test_block_entries_bounds_the_widest_type() -> None:
    """2^20 bytes are 2^18 entries of 4 bytes and 2^17 of 8; narrow ones are widened to 4 bytes."""

    def stored(dtype: str) -> Stored:
        return Stored(Path("x"), dtype, (1,), 0)

    assert block_entries([stored("BF16")]) == block_entries([stored("F32"), stored("BF16")]) == 1 << 18
    assert block_entries([stored("F32"), stored("F64")]) == 1 << 17


def test_no_weights_and_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"base: .* has neither$"):
        read_checkpoint(tmp_path, "base")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pickle, which is not opened"):
        read_checkpoint(tmp_path, "base")


@pytest.mark.parametrize("content", [b"", b"12345678", (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        read_checkpoint(tmp_path, "base")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        read_checkpoint(tmp_path, "base")


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    save_file({"a": torch.ones(8)}, tmp_path / "model.safetensors")
    stored = read_checkpoint(tmp_path, "base").tensors["a"]
    blocks = byte_blocks(stored, 4)
    next(blocks)
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        stream.truncate(stored.start + 20)
    with pytest.raises(InputError, match="ended early"):
        next(blocks)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, STATE, shard_bytes=20)
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(InputError, match=f"names the file {gone.name}, which is not in the folder"):
        read_checkpoint(tmp_path, "base")


def test_a_name_without_a_tensor_is_refused(tmp_path: Path) -> None:
    write(tmp_path, STATE, shard_bytes=20)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["ghost"] = index["weight_map"]["a"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="does not hold ghost, though"):
        read_checkpoint(tmp_path, "base")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../a.safetensors"}}'])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json"):
        read_checkpoint(tmp_path, "base")


def test_unknown_types_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="a is of type F8_E4M3; merged are F64, F32, F16, BF16"):
        read_checkpoint(tmp_path, "base")


# --- writing -------------------------------------------------------------------------------------------------------


@given(shard_bytes=st.integers(1, 120))
def test_what_is_written_is_read_by_safetensors(shard_bytes: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("written")
    write(folder, STATE, shard_bytes)
    assert equal(saved(folder), STATE)
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        tensors = load_file(path)
        sizes = [value.numel() * value.element_size() for value in tensors.values()]
        # empty tensors fit in anywhere
        assert sum(sizes) <= shard_bytes or len([size for size in sizes if size]) == 1
    total = sum(value.numel() * value.element_size() for value in STATE.values())
    if total <= shard_bytes:
        assert [path.name for path in files] == ["model.safetensors"]
        assert not (folder / "model.safetensors.index.json").exists()
        return
    assert [path.name for path in files] == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    assert index["metadata"]["total_parameters"] == sum(value.numel() for value in STATE.values())
    assert index["weight_map"] == {name: path.name for path in files for name in load_file(path)}


def test_header_is_aligned_and_says_pt(tmp_path: Path) -> None:
    """The numbers begin at a multiple of 8; eight-byte types come first, so that each is at a multiple of its size."""
    placed = write_header(tmp_path / "x.safetensors", plan(STATE))
    assert all(stored.start % stored.itemsize == 0 for stored in placed.values())
    assert min(stored.start for stored in placed.values()) % 8 == 0
    content = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert json.loads(content[8 : 8 + length])["__metadata__"] == {"format": "pt"}
    assert all(not value.any() for value in load_file(tmp_path / "x.safetensors").values())


def test_too_few_numbers_are_a_defect(tmp_path: Path) -> None:
    placed = write_header(tmp_path / "x.safetensors", plan(STATE))
    with pytest.raises(AssertionError):
        write_blocks(placed["a"], [torch.ones(3)])


def test_copied_files_open_with_transformers(base_folder: str, tmp_path: Path) -> None:
    state = load_file(Path(base_folder) / "model.safetensors")
    write(tmp_path, {name: value.bfloat16() for name, value in state.items()}, 1 << 16)
    copy_companions(Path(base_folder), tmp_path, "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(value, state[name].bfloat16()) for name, value in model.state_dict().items())
    texts = [AutoTokenizer.from_pretrained(folder)("Anna Quill")["input_ids"] for folder in (base_folder, tmp_path)]
    assert texts[0] == texts[1]


def test_only_what_belongs_to_the_model_is_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "chat_templates").mkdir(parents=True)
    target.mkdir()
    kept = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja"]
    for name in (*kept, "unlearn_pl.json", "optimizer.pt", "model.safetensors"):
        (source / name).write_text("{}")
    (source / "chat_templates" / "tool.jinja").write_text("x")
    (source / "config.json").write_text('{"torch_dtype": "float32", "a": 1}')
    copy_companions(source, target, None)
    assert {path.name for path in target.iterdir()} == {*kept, "chat_templates"}
    assert (target / "chat_templates" / "tool.jinja").read_text() == "x"
    assert json.loads((target / "config.json").read_text()) == {"torch_dtype": "float32", "a": 1}


def test_the_old_name_of_the_type_does_not_contradict(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "config.json").write_text('{"torch_dtype": "float32", "a": 1}')
    copy_companions(source, target, "float16")
    assert json.loads((target / "config.json").read_text()) == {"a": 1, "dtype": "float16"}
