"""Checkpoint folders as hubs hold them: read as `from_pretrained` reads them, whatever their names and leftovers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from unlearn_pl.checkpoints.alike import read_alike
from unlearn_pl.checkpoints.extract import extract_adapter
from unlearn_pl.checkpoints.merge import merge_checkpoints
from unlearn_pl.errors import InputError

FILE = "model.safetensors"


def change(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    state = {name: value.clone().contiguous() for name, value in edit(load_file(folder / FILE)).items()}
    save_file(state, folder / FILE, metadata={"format": "pt"})
    return folder


def settings_of(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def family(tmp_path: Path, tiny_model: Any, tokenizer: Any) -> Callable[[str], list[Path]]:
    """A function that writes a base and two models trained from it: ``llama`` or ``gpt2``."""

    def write(kind: str) -> list[Path]:
        folders = []
        for seed in range(3):
            config = GPT2Config(vocab_size=384, n_embd=16, n_layer=2, n_head=2, n_positions=64)
            torch.manual_seed(0)
            model: Any = tiny_model() if kind == "llama" else GPT2LMHeadModel(config)
            torch.manual_seed(seed)
            with torch.no_grad():
                for value in model.parameters():
                    value.add_(torch.randn_like(value), alpha=0.01 if seed else 0)
            folders.append(tmp_path / f"{kind}{seed}")
            model.save_pretrained(folders[-1])
            tokenizer.save_pretrained(folders[-1])
        return folders

    return write


def merged(folders: list[Path], output: Path) -> dict[str, Tensor]:
    merge_checkpoints(folders[0], folders[1:], output, method="average")
    return load_file(output / FILE)


def opened(folder: Path) -> nn.Module:
    """As transformers reads it, complaining of nothing that matters."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return model


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("transformer."): value for name, value in state.items()}


AS_PUBLISHED = {
    "rotary tables": ("llama", lambda s: s | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4)
                                              for i in range(2)}),
    "no prefix": ("gpt2", without_prefix),
    "no prefix, and masks": ("gpt2", lambda s: without_prefix(s) | {
        "h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.1.attn.masked_bias": torch.tensor(-1e4)}),
    "a prefix too many": ("llama", lambda s: {("model." + n if "lm_head" in n else n): v for n, v in s.items()}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* tensors differ that an adapter cannot hold")
@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize("case", AS_PUBLISHED)
def test_what_is_published_merges_as_what_transformers_saves(
    case: str, which: int, family: Any, tmp_path: Path
) -> None:
    """The base or one of the others in the older form: the merged folder and the extracted adapter are the same."""
    kind, edit = AS_PUBLISHED[case]
    folders = family(kind)
    wanted = merged(folders, tmp_path / "wanted")
    extract_adapter(folders[0], folders[2], 4, tmp_path / "plain")
    change(folders[which], edit)
    got = merged(folders, tmp_path / "got")
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    opened(tmp_path / "got")
    extract_adapter(folders[0], folders[2], 4, tmp_path / "adapter")
    adapters = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "adapter")]
    assert all(torch.equal(adapters[1][name], value) for name, value in adapters[0].items())


def test_the_single_file_counts_and_not_shards_of_an_earlier_save(family: Any, tmp_path: Path) -> None:
    """Shards and index beside a newer `model.safetensors`; then the index alone, as transformers leaves it."""
    folders = family("llama")
    wanted = merged(folders, tmp_path / "wanted")
    old = opened(folders[0])
    with torch.no_grad():
        for value in old.parameters():
            value.zero_()
    old.save_pretrained(tmp_path / "old", max_shard_size="20KB")
    for path in (tmp_path / "old").glob("model*"):
        shutil.copy(path, folders[1] / path.name)
    assert len(list(folders[1].glob("model*"))) > 3
    got = merged(folders, tmp_path / "got")
    for path in folders[1].glob("model-0*"):
        path.unlink()
    again = merged(folders, tmp_path / "again")
    for name, value in wanted.items():
        assert torch.equal(got[name], value)
        assert torch.equal(again[name], value)
    own = dict(opened(folders[1]).named_parameters())  # what transformers reads of such a folder
    assert own["model.norm.weight"].abs().sum() > 0


def test_a_tensor_of_a_shard_that_the_index_does_not_name_is_read(family: Any, tmp_path: Path) -> None:
    """transformers loads all of each file that the index names."""
    folders = family("llama")
    wanted = merged(folders, tmp_path / "wanted")
    opened(folders[1]).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    index = tmp_path / "shards" / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    del places["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(places))
    got = merged([folders[0], tmp_path / "shards", folders[2]], tmp_path / "got")
    assert all(torch.equal(got[name], value) for name, value in wanted.items())


def test_what_is_not_there_is_not_merged(family: Any) -> None:
    folders = family("llama")
    norm = "model.norm.weight"
    change(folders[0], lambda state: {name: value for name, value in state.items() if name != norm})
    with pytest.raises(InputError, match=r"base: .*llama0 lacks 1 of the model's weights, such as model.norm"):
        read_alike(folders[0], folders[1:])
    change(folders[0], lambda state: state | {norm: torch.ones(32), "norm.weight": torch.ones(32)})
    with pytest.raises(InputError, match=r"base: .*llama0 holds model.norm.weight twice, once as (model\.)?norm"):
        read_alike(folders[0], folders[1:])


def test_a_head_of_its_own_and_added_tokens_say_what_to_do(family: Any) -> None:
    folders = family("gpt2")
    change(folders[1], lambda state: state | {"lm_head.weight": state["transformer.wte.weight"] + 0.01})
    settings_of(folders[1], tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"different numbers in lm_head.weight .*save the base with a head of its own"):
        read_alike(folders[0], folders[1:])
    longer = opened(folders[2])
    longer.resize_token_embeddings(386)
    longer.save_pretrained(folders[2])
    with pytest.raises(InputError, match=r"wte.weight is \[384, 16\] .*give the base their rows too: .*\(386\)"):
        read_alike(folders[0], [folders[2]])


# --- one model -----------------------------------------------------------------------------------------------------


def test_two_ids_swapped_are_another_tokenizer(family: Any) -> None:
    folders = family("llama")
    path = folders[2] / "tokenizer.json"
    tokens = json.loads(path.read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(tokens))
    with pytest.raises(InputError, match=r"tuned: .*llama2 has another tokenizer than .*llama0 \(the token 'B' has"):
        read_alike(folders[0], [folders[2]], "tuned")
    path.unlink()  # what a folder does not have cannot contradict
    (folders[2] / "tokenizer_config.json").unlink()
    assert len(read_alike(folders[0], folders[1:])) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_theta": 5e5, "rope_parameters": None}, r"rope_theta is 500000"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu in .*llama2 and silu in .*llama0"),
        ({"rms_norm_eps": 0.5}, "rms_norm_eps is 0.5"),
    ],
)
def test_other_settings_are_another_model(values: dict, message: str, family: Any) -> None:
    folders = family("llama")
    settings_of(folders[2], **values)
    with pytest.raises(InputError, match=f"checkpoints: must compute as the base does; by config.json .*{message}"):
        read_alike(folders[0], folders[1:])


def test_settings_that_change_no_number_do_not_count(family: Any) -> None:
    """Training, types, versions and the ends of texts; the longest text is told."""
    folders = family("llama")
    free = {"dtype": "bfloat16", "attention_dropout": 0.5, "eos_token_id": 7, "use_cache": False, "_name_or_path": "x"}
    settings_of(folders[2], **free, transformers_version="4.0", architectures=["Other"])
    read_alike(folders[0], folders[1:])
    settings_of(folders[2], max_position_embeddings=4096)
    with pytest.warns(UserWarning, match="max_position_embeddings is 4096 in .*; the merged model has the base's"):
        read_alike(folders[0], folders[1:])


def test_quantised_checkpoints_are_refused(family: Any) -> None:
    folders = family("llama")
    for folder in folders:
        settings_of(folder, quantization_config={"quant_method": "fp8"})
    with pytest.raises(InputError, match=r"stored quantised \(fp8\): checkpoints needs plain weights"):
        read_alike(folders[0], folders[1:])


def test_the_models_own_code_goes_with_the_merged_model(family: Any, tmp_path: Path) -> None:
    folders = family("llama")
    (folders[0] / "modeling_own.py").write_text("NUMBER = 1\n")
    merged(folders, tmp_path / "merged")
    assert (tmp_path / "merged" / "modeling_own.py").read_text() == "NUMBER = 1\n"
