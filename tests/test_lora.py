"""Adapters: all of a file arrives, or it is refused in one line; the first factors are a function of the seed alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_adapters import shake
from torch import Tensor, nn
from transformers import Llama4ForCausalLM, Llama4TextConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from unlearn_pl.errors import InputError
from unlearn_pl.models import lora as lora_module
from unlearn_pl.models.fast.lora import LoraLinear
from unlearn_pl.models.lora import Lora, attach_lora, initial_factors_hash, open_adapter, save_adapter

State = dict[str, Tensor]
Build = Callable[[], LlamaForCausalLM]
IDS = torch.arange(9)[None]
FILE = "adapter_model.safetensors"


@pytest.fixture
def good(tiny_model: Build, tmp_path: Path) -> Path:
    """The folder of a plain adapter on all linear layers of two layers: 28 tensors."""
    model = attach_lora(tiny_model(), Lora(rank=4, alpha=8), seed=1)
    shake(model)
    save_adapter(model, tmp_path / "good")
    return tmp_path / "good"


def variant(folder: Path, change: Callable[[State], State]) -> Path:
    """A copy of the adapter ``folder`` with other tensors in its file."""
    other = folder.parent / "variant"
    shutil.copytree(folder, other, dirs_exist_ok=True)
    save_file({name: value.contiguous() for name, value in change(load_file(folder / FILE)).items()}, other / FILE)
    return other


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {name.replace(old, new, 1): value for name, value in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {f"_orig_mod.{n}": v for n, v in s.items()}, r"28 of 28 tensors missing.*take '_orig_mod\.' off"),
        (renamed("base_model.model.", "base_model.model._orig_mod."), r"28 of 28 tensors missing.*28 tensors without"),
        (renamed(".layers.", ".language_model.layers."), "28 of 28 tensors missing.*28 tensors without a place"),
        (lambda s: {}, "28 of 28 tensors missing"),
        (
            lambda s: {n: v for n, v in s.items() if ".layers.0." in n},
            r"14 of 28 tensors missing \(first .*layers\.1\.",
        ),
        (lambda s: dict(list(s.items())[1:]), "1 of 28 tensors missing"),
        (
            lambda s: s | {n.replace(".layers.0.", ".layers.9."): v.clone() for n, v in s.items() if ".layers.0." in n},
            r"does not fit this base model: 14 tensors without a place \(first .*layers\.9\.",
        ),
        (lambda s: {n: v[:, :-1] if "lora_A" in n else v for n, v in s.items()}, r"\[4, 31\].*\[4, 32\]"),
        (lambda s: {n: v * float("nan") if ".layers.1.mlp" in n else v for n, v in s.items()}, "6 of 28 .*not finite"),
        (
            lambda s: s | {"base_model.model.lm_head.base_layer.weight": torch.ones(384, 32)},
            "lm_head.base_layer.weight, which is not that of this base model",
        ),
    ],
)
@pytest.mark.parametrize("trainable", [False, True])
def test_what_does_not_arrive_is_refused(
    good: Path, tiny_model: Build, change: Callable[[State], State], message: str, trainable: bool
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_adapter(tiny_model(), variant(good, change), trainable)
    assert "\n" not in str(caught.value)


def test_torn_and_missing_files(good: Path, tiny_model: Build) -> None:
    (good / FILE).write_bytes((good / FILE).read_bytes()[:900])
    with pytest.raises(InputError, match="header"):
        open_adapter(tiny_model(), good)
    (good / FILE).unlink()
    with pytest.raises(InputError, match=f"adapter: {good} has no adapter_model.safetensors"):
        open_adapter(tiny_model(), good)


KINDS: dict[str, tuple[type[PeftConfig], dict[str, Any]]] = {
    "plain": (LoraConfig, {"target_modules": "all-linear"}),
    "patterns": (
        LoraConfig,
        {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3}},
    ),
    "rslora": (LoraConfig, {"target_modules": ["q_proj"], "use_rslora": True}),
    "dora": (LoraConfig, {"target_modules": ["q_proj"], "use_dora": True}),
    "biased": (LoraConfig, {"target_modules": ["q_proj"], "lora_bias": True}),
    "whole modules": (LoraConfig, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tokens": (LoraConfig, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]}),
    "embedding and head": (LoraConfig, {"target_modules": ["embed_tokens", "lm_head"]}),
    "vera": (VeraConfig, {"target_modules": ["q_proj"], "r": 4}),
    "vera, seed only": (VeraConfig, {"target_modules": ["q_proj"], "r": 4, "save_projection": False}),
    "ia3": (IA3Config, {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's own
@pytest.mark.parametrize("name", KINDS)
def test_peft_options_arrive_and_none_of_their_tensors_may_lack(name: str, tiny_model: Build, tmp_path: Path) -> None:
    """The opened adapter gives PEFT's own logits; without any one of its tensors it is not opened."""
    kind, options = KINDS[name]
    theirs = get_peft_model(tiny_model(), kind(task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    theirs.save_pretrained(tmp_path / "good", save_embedding_layers="embed" in name)
    opened = open_adapter(tiny_model(), tmp_path / "good")
    with torch.no_grad():
        logits = theirs(input_ids=IDS).logits
        assert (logits - tiny_model()(input_ids=IDS).logits).abs().max() > 1e-4
        assert torch.allclose(opened(input_ids=IDS).logits, logits, atol=1e-5)
    for lacking in load_file(tmp_path / "good" / FILE):
        if "base_layer" not in lacking:  # a copy of the base's
            without = variant(
                tmp_path / "good", lambda state, lacking=lacking: {n: v for n, v in state.items() if n != lacking}
            )
            with pytest.raises(InputError, match=r"1 of .* tensors missing|it has no tensor|not present"):
                open_adapter(tiny_model(), without)


def test_an_adapter_that_does_nothing_is_one(tiny_model: Build, tmp_path: Path) -> None:
    save_adapter(attach_lora(tiny_model(), Lora(rank=2), seed=1), tmp_path / "zero")
    opened, base = open_adapter(tiny_model(), tmp_path / "zero"), tiny_model()
    # by which kernel torch multiplies depends on where the weights lie in memory
    torch.testing.assert_close(opened(input_ids=IDS).logits, base(input_ids=IDS).logits, rtol=1e-6, atol=1e-6)


def test_adapters_outside_of_the_layers_are_refused(tiny_model: Build, good: Path, tmp_path: Path) -> None:
    """Training and measuring call the model's layers, where soft prompts would never be met."""
    prompts = get_peft_model(tiny_model(), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    prompts.save_pretrained(tmp_path / "prompts")
    with pytest.raises(InputError, match="kind PROMPT_TUNING, which does not stay in the model's layers"):
        open_adapter(tiny_model(), tmp_path / "prompts")
    settings = json.loads((good / "adapter_config.json").read_text())
    (good / "adapter_config.json").write_text(json.dumps(settings | {"alora_invocation_tokens": [5]}))
    with pytest.raises(InputError, match="alora_invocation_tokens"):
        open_adapter(tiny_model(), good)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("field", "value"), [("bias", "lora_only"), ("bias", "all"), ("init_lora_weights", "pissa")])
def test_an_adapter_that_changes_the_base_is_not_trained(
    tiny_model: Build, tmp_path: Path, field: str, value: str
) -> None:
    """The reference of training is the model with its adapter off: here that is not the base model."""
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **{field: value})
    get_peft_model(tiny_model(), config).save_pretrained(tmp_path / "adapter")
    open_adapter(tiny_model(), tmp_path / "adapter")
    with pytest.raises(InputError, match=rf"{field}: {value}\), so that the base model is not what is left"):
        open_adapter(tiny_model(), tmp_path / "adapter", trainable=True)


@pytest.mark.parametrize("name", ["vera", "ia3"])
def test_other_kinds_than_lora_are_not_trained(tiny_model: Build, tmp_path: Path, name: str) -> None:
    """The first checkpoint would fail on what they do not have: a rank and an alpha."""
    kind, options = KINDS[name]
    get_peft_model(tiny_model(), kind(task_type="CAUSAL_LM", **options)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=f"is of the kind {name.upper()}; only LoRA adapters can be trained on"):
        open_adapter(tiny_model(), tmp_path / "adapter", trainable=True)


def test_initial_factors_do_not_depend_on_types(tiny_model: Build) -> None:
    """Neither on the base's nor on the default that Lightning's `*-true` precisions set; they are PEFT's own."""
    hashes, kinds = set(), set()
    for base in (torch.float32, torch.bfloat16, torch.float16):
        for default in (torch.float32, torch.bfloat16, torch.float64):
            torch.set_default_dtype(default)
            try:
                model = attach_lora(tiny_model().to(base), Lora(rank=4), seed=1)
            finally:
                torch.set_default_dtype(torch.float32)
            hashes.add(initial_factors_hash(model))
            kinds |= {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        hashes.add(initial_factors_hash(get_peft_model(tiny_model(), config)))
    assert len(hashes) == 1
    assert kinds == {torch.float32}


def mixtral() -> MixtralForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        return MixtralForCausalLM(
            MixtralConfig(vocab_size=32, num_key_value_heads=1, num_local_experts=2, **sizes)
        ).eval()


def test_experts_are_told_at_once(tmp_path: Path) -> None:
    """`all-linear` takes experts in, which cannot be merged; the attention alone can, and with dropout."""
    with pytest.raises(InputError, match=r"lora_dropout.*but not merged\. A list of attention layers"):
        attach_lora(mixtral(), Lora(rank=2), seed=1)
    with pytest.warns(UserWarning, match="adapts experts.*but not merged"):
        model = attach_lora(mixtral(), Lora(rank=2, dropout=0.0), seed=1)
    shake(model)
    save_adapter(model, tmp_path / "experts")
    settings = json.loads((tmp_path / "experts/adapter_config.json").read_text())
    assert settings["target_parameters"] == ["down_proj", "gate.weight", "gate_up_proj"]
    opened = open_adapter(mixtral(), tmp_path / "experts")
    assert torch.allclose(opened(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits, atol=1e-6)
    assert (
        not attach_lora(mixtral(), Lora(rank=2, target_modules=["q_proj", "v_proj"]), seed=1)
        .peft_config["default"]
        .target_parameters
    )


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("q_proj", r"q_proj is a regular expression for whole module names, a list such as \[q_proj\]"),
        (".*self_attn", "LlamaAttention.* is not supported"),
        (["mlp"], "LlamaMLP.* is not supported"),
        (["nowhere"], "nowhere.* not found in the base model"),
    ],
)
def test_targets_that_are_no_layers(tiny_model: Build, targets: str | list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"^lora.target_modules: .*{message}") as caught:
        attach_lora(tiny_model(), Lora(rank=2, target_modules=targets), seed=1)
    assert "\n" not in str(caught.value)


def test_a_pattern_for_whole_names_works(tiny_model: Build) -> None:
    model = attach_lora(tiny_model(), Lora(rank=2, target_modules=r".*layers\.0\..*q_proj"), seed=1)
    assert isinstance(model, PeftModel)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 1


class Wrong(torch.autograd.Function):
    """Right values, and the gradient of something else: as bitsandbytes 4 bit after an evaluation on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad @ ctx.saved_tensors[0]).roll(1, -1), None


@pytest.mark.parametrize("wrong", [False, True])
def test_quantised_layers_are_pefts_and_must_have_the_right_gradient(
    tiny_model: Build, good: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    """Told by the configuration; the layers here are plain, or plain with another gradient."""
    model, again = tiny_model(), tiny_model()
    for base in (model, again):
        base.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        layer = base.model.layers[1].self_attn.q_proj
        if wrong:
            monkeypatch.setattr(layer, "forward", lambda x, layer=layer: Wrong.apply(x, layer.weight))
    if not wrong:
        assert not any(isinstance(layer, LoraLinear) for layer in attach_lora(model, Lora(rank=2), seed=1).modules())
        open_adapter(again, good, trainable=True)
        return
    message = r"stored quantised \(bitsandbytes 4 bit\), and their gradients are wrong .*layers.1.self_attn.q_proj"
    with pytest.raises(InputError, match=message):
        attach_lora(model, Lora(rank=2), seed=1)
    with pytest.raises(InputError, match=message):
        open_adapter(again, good, trainable=True)


def test_a_router_is_no_target() -> None:
    """Llama 4's is a linear layer by its class and gives a tuple, at which PEFT fails in the first forward."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Llama4ForCausalLM(Llama4TextConfig(vocab_size=64, num_key_value_heads=1, num_local_experts=2, **sizes))
    with pytest.raises(InputError, match=r"router \(Llama4Router\) does not compute what a linear layer does"):
        attach_lora(model, Lora(rank=2, dropout=0.0), seed=1)


def test_a_linear_layer_that_takes_its_input_in_pieces_is_no_target(tiny_model: Build) -> None:
    """As DeepSeek-V4's grouped projection: it fails on what it is asked by its sizes."""

    class Grouped(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(-1, 3, self.in_features))

    model = tiny_model()
    model.model.layers[1].mlp.up_proj = Grouped(32, 64, bias=False)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj \(Grouped\) does not compute what a linear layer"):
        attach_lora(model, Lora(rank=2), seed=1)


def test_an_adapter_that_could_not_be_opened_again_is_refused_at_once(
    tiny_model: Callable[[], LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT opens another name than it saves, as it does for the shared experts of Laguna."""
    real = lora_module.set_peft_model_state_dict

    def renaming(model: PeftModel, state: dict[str, torch.Tensor]) -> object:
        return real(model, {name.replace("mlp.down_proj", "mlp..down_proj"): value for name, value in state.items()})

    monkeypatch.setattr(lora_module, "set_peft_model_state_dict", renaming)
    with pytest.raises(InputError, match=r"could not open .* again: 4 tensors .*mlp\.\.down_proj"):
        attach_lora(tiny_model(), Lora(rank=2), seed=1)
