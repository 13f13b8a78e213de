"""Base models: all of the weights arrive, or the model is refused in one line; what is stored quantised is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning_runs import module
from merge_choice import merge
from safetensors.torch import load_file, save_file
from samples import lume_inputs
from tiny_adapters import shake
from torch import Tensor
from transformers import BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.balance.search import find_balance
from unlearn_pl.commands.scoring import ScoringOptions
from unlearn_pl.errors import InputError
from unlearn_pl.models.load import BaseModel, load_base, load_skeleton, load_tokenizer, quantisation, refuse_quantised
from unlearn_pl.models.lora import Lora, attach_lora, save_adapter

State = dict[str, Tensor]


def changed(base: str, folder: Path, change: Callable[[State], State], **config: object) -> str:
    """A copy of the model folder ``base`` with other tensors in its file and other entries in its configuration."""
    shutil.copytree(base, folder)
    state = change(load_file(folder / "model.safetensors"))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def test_a_whole_model_arrives(base_folder: str, tiny_model: Callable[[], LlamaForCausalLM]) -> None:
    wanted = tiny_model().state_dict()
    found = load_base(base_folder).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_names_under_another_prefix_are_refused(base_folder: str, tmp_path: Path, prefix: str) -> None:
    folder = changed(base_folder, tmp_path / "base", prefixed(prefix))
    with pytest.raises(InputError, match=rf"21 tensors missing.*take '{prefix}' off the beginning"):
        load_base(folder)


def test_a_missing_layer_is_refused(base_folder: str, tmp_path: Path) -> None:
    folder = changed(
        base_folder, tmp_path / "base", lambda state: {n: v for n, v in state.items() if ".layers.1." not in n}
    )
    message = r"is not a whole LlamaForCausalLM: 9 tensors missing \(first model.layers.1.input_layernorm.weight\)"
    with pytest.raises(InputError, match=message):
        load_base(folder)


def test_a_surplus_layer_or_bias_is_refused(base_folder: str, tmp_path: Path) -> None:
    """A file of more layers than the configuration names; biases of a Qwen2 called a Llama."""
    folder = changed(base_folder, tmp_path / "deep", lambda state: state, num_hidden_layers=1)
    with pytest.raises(InputError, match=r"9 tensors without a place \(first model.layers.1.input_layernorm.weight\)"):
        load_base(folder)
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}
    with pytest.raises(InputError, match=r"1 tensors without a place \(first model.layers.0.self_attn.q_proj.bias\)"):
        load_base(changed(base_folder, tmp_path / "bias", lambda state: state | bias))


def test_other_sizes_are_refused_with_both(base_folder: str, tmp_path: Path) -> None:
    folder = changed(base_folder, tmp_path / "base", lambda state: state, intermediate_size=96)
    with pytest.raises(InputError, match=r"6 tensors of another size .*it is \(32, 64\) and must be \(32, 96\)"):
        load_base(folder)


def test_what_published_models_store_besides_is_no_fault(
    base_folder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rotary frequencies of older Llamas, another modality, a head stored beside the embedding it is tied to."""
    others = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "vision_tower.embeddings.weight": torch.ones(2, 2),
        "v_head.summary.weight": torch.ones(1, 32),
    }
    folder = changed(base_folder, tmp_path / "base", lambda state: state | others)
    assert torch.equal(load_base(folder).lm_head.weight, load_base(base_folder).lm_head.weight)
    assert "REPORT" not in capfd.readouterr().err
    tied = changed(
        base_folder,
        tmp_path / "tied",
        lambda state: state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()},
        tie_word_embeddings=True,
    )
    model = load_base(tied)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    alone = changed(tied, tmp_path / "alone", lambda state: {n: v for n, v in state.items() if n != "lm_head.weight"})
    assert load_base(alone).lm_head.weight.equal(model.lm_head.weight)


def test_gpt2_as_published(tmp_path: Path) -> None:
    """Names without the outer prefix, and the causal masks of old versions among the tensors."""
    GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(
        tmp_path / "new"
    )

    def published(state: State) -> State:
        masks = {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.tensor(-1e4)}
        return {name.removeprefix("transformer."): value for name, value in state.items()} | masks

    old = changed(str(tmp_path / "new"), tmp_path / "old", published)
    wanted, found = load_base(str(tmp_path / "new")).state_dict(), load_base(old).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_torn_files_are_told_in_one_line(base_folder: str, tmp_path: Path) -> None:
    torn = changed(base_folder, tmp_path / "torn", lambda state: state)
    data = (tmp_path / "torn/model.safetensors").read_bytes()
    (tmp_path / "torn/model.safetensors").write_bytes(data[:5000])
    with pytest.raises(InputError, match=r"^model: cannot load .*incomplete metadata.*$"):
        load_base(torn)
    (tmp_path / "torn/model.safetensors").unlink()
    (tmp_path / "torn/pytorch_model.bin").write_bytes(b"abc")
    with pytest.raises(InputError, match=r"^model: cannot load '"):
        load_base(torn)
    (tmp_path / "torn/tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"^model: cannot load '"):
        load_tokenizer(torn)


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    """transformers would fetch the base that it names, and put the adapter on that."""
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(InputError, match=f"model: {tmp_path} is an adapter; name the base model .* with adapter$"):
        load_base(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4 bit"),
        (BitsAndBytesConfig(load_in_8bit=True), "bitsandbytes 8 bit"),
        ({"quant_method": "gptq", "bits": 4}, "gptq 4 bit"),
        ({"quant_method": "fp8"}, "fp8"),
    ],
)
def test_quantised_weights_are_told(tiny_model: Callable[[], LlamaForCausalLM], settings: object, name: str) -> None:
    model = tiny_model()
    assert quantisation(model) is None
    refuse_quantised(model, "save_model")
    model.config.quantization_config = settings
    assert quantisation(model) == name
    with pytest.raises(InputError, match=rf"stored quantised \({name}\): save_model needs plain weights"):
        refuse_quantised(model, "save_model")


def test_a_skeleton_tells_it_too(base_folder: str, tmp_path: Path) -> None:
    settings = {"quant_method": "gptq", "bits": 4}
    folder = changed(base_folder, tmp_path / "base", lambda state: state, quantization_config=settings)
    assert quantisation(load_skeleton(folder)) == "gptq 4 bit"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_starts_from_a_broken_base(
    tiny_model: Callable[[], LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
    base_folder: str,
    tmp_path: Path,
    value: float,
) -> None:
    """A fit, a merged model or a search; an evaluation measures what such a model is worth."""
    model, adapters = tiny_model(), [str(tmp_path / name) for name in "ab"]
    for folder in adapters:
        adapted = attach_lora(tiny_model(), Lora(rank=2), seed=1)
        shake(adapted)
        save_adapter(adapted, folder)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[0, 0] = value
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    broken = str(tmp_path / "broken")
    message = (
        r"^base: 1 of its 21 tensors hold NaN or infinite numbers \(first model.layers.1.self_attn.q_proj.weight\)"
    )
    with pytest.raises(InputError, match=message):
        module(broken).configure_model()
    with pytest.raises(InputError, match=message):
        merge(broken, adapters, method="cat", save_model=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=message):
        find_balance(load_base(broken), tokenizer, adapters, lume_inputs())


def test_a_base_model_by_name_loads_itself(base_folder: str) -> None:
    """Nothing is loaded, nor looked at, before it is asked for; a wrong type is refused at once."""
    BaseModel("./nowhere")
    named = BaseModel(base_folder, dtype="bfloat16")
    assert named.load().dtype == torch.bfloat16
    assert named.tokenizer().eos_token_id is not None
    with pytest.raises(
        InputError, match=r"^dtype: must be one of float32, bfloat16, float16, nf4, fp4, int8, got float8$"
    ):
        BaseModel(base_folder, dtype="float8")


def test_codes_without_their_package_are_refused_in_one_line(base_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearn_pl.models.codes.find_spec", {"other": object()}.get)
    with pytest.raises(InputError, match=r"^dtype: nf4 needs the package bitsandbytes: pip install 'unlearn-pl\[quant"):
        load_base(base_folder, "nf4")


@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_codes_are_refused_where_weights_are_added_to(dtype: str) -> None:
    with pytest.raises(InputError, match=rf"^dtype: scoring a merge .* needs plain weights .*, got {dtype}$"):
        ScoringOptions(dtype=dtype)


def test_a_gguf_file_is_not_made_into_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearn_pl.models.load.resolve", lambda name: (str(tmp_path), "model.gguf"))
    with pytest.raises(InputError, match=r"^dtype: smollm2-135m-instruct is a GGUF file, .* got nf4$"):
        load_base("smollm2-135m-instruct", "nf4")
