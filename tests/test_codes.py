"""Bases in codes of 4 and 8 bits: what they compute, train, hash and save, and where they are refused.

The second implementation is a plain base that holds, in bfloat16, the numbers that the codes stand for.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_runs import module, trainer, write_rows
from peft import PeftModel
from samples import lume_inputs
from torch import Tensor, nn
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from unlearn_pl.balance.search import find_balance
from unlearn_pl.callbacks.adapter import SaveAdapter
from unlearn_pl.callbacks.merge import MergeAfterFit
from unlearn_pl.commands.evaluate import EvaluateOptions, evaluate
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.inputs import EvaluationData
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.models.fast.lora import LoraLinear
from unlearn_pl.models.identity import base_weights_hash, model_hash
from unlearn_pl.models.load import load_base, quantisation
from unlearn_pl.models.lora import Lora, attach_lora, open_adapter, save_adapter
from unlearn_pl.training.cache import ReferenceCache

bitsandbytes = pytest.importorskip("bitsandbytes", reason="pip install -e '.[quantised]' for codes of 4 and 8 bits")
codes = pytest.importorskip("unlearn_pl.models.codes")
KINDS = codes.CODES
IDS = torch.arange(24)[None]
# The 16 values of NormalFloat 4, to four digits (Dettmers et al. 2023, appendix E).
NF4 = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
NF4 += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]


def coded_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if codes.is_coded(layer)}


def plain_twin(model: nn.Module, folder: str) -> LlamaForCausalLM:
    """A bfloat16 base with the numbers of the coded one in plain layers."""
    twin = load_base(folder, "bfloat16")
    layers = dict(twin.named_modules())
    with torch.no_grad():
        for name, layer in coded_layers(model).items():
            layers[name].weight.copy_(codes.dequantised(layer, torch.float32))
    return twin  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_but_the_head_are_codes(base_folder: str, kind: str) -> None:
    model = load_base(base_folder, kind)
    assert quantisation(model) == ("bitsandbytes 8 bit" if kind == "int8" else "bitsandbytes 4 bit")
    assert len(coded_layers(model)) == 14
    assert model.dtype == torch.bfloat16
    assert type(model.lm_head) is nn.Linear
    width = {"nf4": torch.uint8, "fp4": torch.uint8, "int8": torch.int8}[kind]
    assert {layer.weight.dtype for layer in coded_layers(model).values()} == {width}
    assert model.model.embed_tokens.weight.dtype == model.model.norm.weight.dtype == torch.bfloat16


def test_nf4_is_the_nearest_of_sixteen_values_of_each_block(base_folder: str) -> None:
    """In blocks of 64 of the weight row by row, also where a block goes over the end of a row: rows have 32 here."""
    model, plain = load_base(base_folder, "nf4"), load_base(base_folder, "bfloat16")
    for name, layer in coded_layers(model).items():
        weight = plain.get_submodule(name).weight.float().reshape(-1, 64)
        scale = weight.abs().amax(1, keepdim=True)
        nearest = torch.tensor(NF4)[(weight / scale).unsqueeze(-1).sub(torch.tensor(NF4)).abs().argmin(-1)] * scale
        found = codes.dequantised(layer, torch.float32).reshape(-1, 64)
        # the scales are codes of 8 bits themselves, and so two values may be as near
        assert ((found - weight).abs() <= (nearest - weight).abs() + 0.02 * scale).all(), name


def test_int8_is_the_nearest_of_255_values_of_each_row(base_folder: str) -> None:
    model, plain = load_base(base_folder, "int8"), load_base(base_folder, "bfloat16")
    for name, layer in coded_layers(model).items():
        weight = plain.get_submodule(name).weight.float()
        step = weight.abs().amax(1, keepdim=True) / 127
        found = codes.dequantised(layer, torch.float32)
        assert ((found - weight).abs() <= 0.51 * step).all(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fast", [True, False])
def test_values_and_gradients_are_those_of_the_numbers(base_folder: str, kind: str, fast: bool) -> None:
    """To the bit by the layers of this project; also after an evaluation, and in training mode as without."""
    model = load_base(base_folder, kind)
    twin = plain_twin(model, base_folder)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, twin(IDS).logits)
    gradients = []
    for one in (model, twin):
        adapted = attach_lora(one, Lora(rank=4, dropout=0.1), seed=0, fast=fast)
        assert any(isinstance(layer, LoraLinear) for layer in adapted.modules()) == fast
        with torch.no_grad():
            for name, factor in adapted.named_parameters():
                if "lora_B" in name:
                    factor.copy_(torch.linspace(-0.05, 0.05, factor.numel()).view(factor.shape))
            adapted.eval()(IDS)
        torch.manual_seed(0)
        adapted.train()(IDS).logits.float().logsumexp(-1).sum().backward()
        gradients.append({n: one.grad for n, one in adapted.named_parameters() if one.grad is not None})
    found, expected = (torch.cat([one.flatten() for one in each.values()]) for each in gradients)
    assert (found - expected).norm() <= (0 if fast else 0.05) * expected.norm()


def test_no_numbers_of_the_weight_are_kept_for_the_backward_pass(base_folder: str) -> None:
    """A layer keeps its input [24, 32] in bfloat16, its factors, and the low-rank product [24, 4] in float32."""
    model = attach_lora(load_base(base_folder, "nf4"), Lora(rank=4, dropout=0.1), seed=0)
    layer, kept = model.get_submodule("base_model.model.model.layers.0.mlp.gate_proj"), list[Tensor]()
    x = torch.randn(24, 32, dtype=torch.bfloat16, requires_grad=True)
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        layer(x)
    assert sorted(tuple(one.shape) for one in kept) == [(4, 32), (24, 4), (24, 32), (64, 4)]
    assert sum(one.numel() for one in kept if one.dtype == torch.bfloat16) == x.numel()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_reference_is_the_policy_before_the_first_step(
    base_folder: str, rows: dict[str, str], tmp_path: Path, kind: str
) -> None:
    """B is zero: NPO is (2 / .1) log 2 = 13.863 and the KL is 0, to the last bit, or the two computed otherwise."""
    policy = module(base_folder, dtype=kind, lora=Lora(rank=4, dropout=0))
    found = trainer(tmp_path).validate(policy, ForgetRetainData(**rows, tokenizer=base_folder), verbose=False)[0]
    assert found["val/ga"] == pytest.approx(20 * torch.tensor(2.0).log().item(), rel=1e-6)
    assert found["val/gk"] == 0


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_rows(tmp_path_factory.mktemp("rows"))


def keeping(folder: Path) -> Trainer:
    """A trainer that keeps every third step."""
    keep = ModelCheckpoint(folder.parent / "kept", every_n_train_steps=3, save_top_k=-1)
    return trainer(folder, [keep], enable_checkpointing=True)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
def test_a_fit_is_that_of_the_numbers_and_goes_on_from_a_checkpoint(
    base_folder: str, rows: dict[str, str], tmp_path: Path
) -> None:
    """Bit for bit, through the packed loss, the reference cache and a checkpoint; the file holds no base."""
    data = ForgetRetainData(**rows, tokenizer=base_folder, batch_size=2)
    plain = module(plain_twin(load_base(base_folder, "nf4"), base_folder), tokenizer=base_folder)
    trainer(tmp_path / "plain").fit(plain, data)

    cache = ReferenceCache(folder=str(tmp_path / "cache"))
    whole = module(base_folder, dtype="nf4", reference_cache=cache)
    keeping(tmp_path / "whole").fit(whole, data)
    for name, factor in plain.trained().items():
        assert torch.equal(factor, whole.trained()[name]), name

    first = tmp_path / "kept" / "epoch=0-step=3.ckpt"
    again = module(base_folder, dtype="nf4", reference_cache=cache)
    keeping(tmp_path / "again").fit(again, data, ckpt_path=str(first))
    for name, factor in whole.trained().items():
        assert torch.equal(factor, again.trained()[name]), name
    other = module(base_folder, dtype="int8", reference_cache=cache)
    with pytest.warns(UserWarning, match="dtype was nf4 and is int8"):
        keeping(tmp_path / "other").fit(other, data, ckpt_path=str(first))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_an_adapter_opens_on_any_form_of_the_base(base_folder: str, tmp_path: Path) -> None:
    """Saved on codes and opened on codes it computes the same; its file is that of a plain base."""
    trained = attach_lora(load_base(base_folder, "nf4"), Lora(rank=4), seed=3)
    with torch.no_grad():
        for name, factor in trained.named_parameters():
            if "lora_B" in name:
                factor.add_(0.01)
    save_adapter(trained, tmp_path / "adapter")
    again = open_adapter(load_base(base_folder, "nf4"), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(trained.eval()(IDS).logits, again(IDS).logits)
    assert isinstance(open_adapter(load_base(base_folder), tmp_path / "adapter"), PeftModel)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_is_of_the_hash(base_folder: str, kind: str) -> None:
    """Two bases with the same codes and other scales are two bases; an evaluation changes no hash."""
    first, second = (attach_lora(load_base(base_folder, kind), Lora(rank=2), seed=0) for _ in range(2))
    before = base_weights_hash(first), model_hash(first)
    with torch.no_grad():
        first.eval()(IDS)
    assert before == (base_weights_hash(first), model_hash(first)) == (base_weights_hash(second), model_hash(second))
    weight: Any = next(iter(coded_layers(second).values())).weight
    scale = weight.SCB if kind == "int8" else weight.quant_state.state2.absmax
    scale[0] += 0.5
    assert base_weights_hash(first) != base_weights_hash(second)
    assert model_hash(first) != model_hash(second)


def test_rows_are_generated_together_as_alone(
    base_folder: str, tokenizer: PreTrainedTokenizerFast, recwarn: pytest.WarningsRecorder
) -> None:
    """Codes of 8 bits by bitsandbytes' own layers would look at a whole batch for what it rounds."""
    for kind in ("nf4", "int8"):
        model = LanguageModel(load_base(base_folder, kind), tokenizer)
        prompts = ["Where did Anna live", "Who", "What is the name of the painter"]
        few = Generation(max_new_tokens=8)
        assert model.generate(prompts, few) == [model.generate([prompt], few)[0] for prompt in prompts]
    assert not recwarn.list


def stored_in_codes(base_folder: str, tmp_path: Path) -> str:
    load_base(base_folder, "nf4").save_pretrained(tmp_path / "stored")
    return str(tmp_path / "stored")


def test_a_base_that_is_stored_in_codes_is_computed_alike(base_folder: str, tmp_path: Path) -> None:
    stored, made = load_base(stored_in_codes(base_folder, tmp_path), "bfloat16"), load_base(base_folder, "nf4")
    with torch.no_grad():
        assert torch.equal(stored(IDS).logits, made(IDS).logits)
    with pytest.raises(
        InputError, match=r"dtype: .* is stored quantised already \(bitsandbytes 4 bit\); leave int8 out"
    ):
        load_base(stored_in_codes(base_folder, tmp_path), "int8")


def test_experts_that_stay_plain_are_told(base_folder: str) -> None:
    model = load_base(base_folder, "nf4")
    model.model.experts = nn.Linear(32, 200, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match=r"dtype nf4: 27% of the weights .* in no linear layer .* stay in bfloat16"):
        codes.warn_of_plain(model, "nf4")


def test_a_fit_on_codes_ends_in_a_merge_and_its_scores(
    base_folder: str, rows: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of adapters; the merged weights themselves would be rounded away, which is said before the first step."""
    data = ForgetRetainData(**rows, tokenizer=base_folder)
    trainer(tmp_path / "one", [SaveAdapter()], max_epochs=1).fit(module(base_folder, dtype="nf4"), data)
    other = str(tmp_path / "one" / "adapter")
    with pytest.raises(InputError, match=r"\(bitsandbytes 4 bit\): MergeAfterFit with save_model needs plain weights"):
        trainer(tmp_path / "two", [MergeAfterFit(other)]).fit(module(base_folder, dtype="nf4"), data)
    merge = MergeAfterFit(other, save_model=False, score=True, generation=Generation(max_new_tokens=4))
    trainer(tmp_path / "two", [SaveAdapter(), merge], max_epochs=1).fit(module(base_folder, dtype="nf4"), data)
    assert (tmp_path / "two" / "merged" / "adapter" / "adapter_config.json").is_file()
    assert not (tmp_path / "two" / "merged" / "model").exists()


def mixture(folder: Path) -> str:
    """A tiny mixture of experts, which are bare parameters, behind a router that gives a tuple."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 96}
    MixtralForCausalLM(MixtralConfig(**sizes)).save_pretrained(folder)
    return str(folder)


def test_what_is_no_linear_layer_is_adapted_as_on_a_plain_base(tmp_path: Path) -> None:
    """Experts stay bfloat16, with PEFT's adapter on them."""
    with pytest.warns(UserWarning, match="of the weights beside embedding and head are in no linear layer"):
        base = load_base(mixture(tmp_path / "base"), "nf4")
    with pytest.warns(UserWarning, match="adapts experts"):
        model = attach_lora(base, Lora(rank=2, dropout=0), seed=0)
    model(IDS).logits.float().logsumexp(-1).sum().backward()
    names = [name for name, factor in model.named_parameters() if factor.grad is not None]
    assert {"self_attn", "experts"} <= {part for name in names for part in name.split(".")}


def test_a_model_without_a_layer_for_codes_is_refused(tmp_path: Path) -> None:
    """Falcon's linear layers are of a class of its own."""
    config = FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=96)
    FalconForCausalLM(config).save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"^dtype: bitsandbytes takes no layer of FalconForCausalLM, got nf4"):
        load_base(str(tmp_path / "base"), "nf4")


def test_a_merge_in_codes_is_refused(base_folder: str, tokenizer: PreTrainedTokenizerFast) -> None:
    base = load_base(base_folder, "nf4")
    with pytest.raises(InputError, match=r"base: .*\(bitsandbytes 4 bit\): scoring a merge"):
        find_balance(base, tokenizer, ["a", "b"], lume_inputs())
    with pytest.raises(InputError, match="base: a weight delta would be rounded away in codes"):
        attach_lora(base, Lora(rank=2), seed=0).merge_and_unload()


def test_a_base_in_shards_is_refused_before_it_is_loaded(
    base_folder: str, rows: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlearn_pl.models.load.load_base", None)
    with pytest.raises(InputError, match=r"^dtype: a base in shards needs plain weights .*, got nf4$"):
        trainer(tmp_path, strategy="fsdp2").fit(module(base_folder, dtype="nf4"), ForgetRetainData(**rows))


def test_evaluate_in_codes(base_folder: str, tmp_path: Path) -> None:
    """The type is among what `results.json` was made from, and another type is another evaluation."""
    data = EvaluationData(**write_rows(tmp_path, forget=2, retain=2))
    for kind in ("int8", "nf4"):
        options = EvaluateOptions(dtype=kind, generation=Generation(max_new_tokens=2), overwrite=True)
        evaluate(base_folder, data, str(tmp_path / "out"), options=options)
        assert json.loads((tmp_path / "out" / "results.json").read_text())["provenance"]["config"]["dtype"] == kind
