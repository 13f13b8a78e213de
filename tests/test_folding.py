"""Deltas folded into a model's weights: against PEFT's own merge, and the exact way back."""

import copy

import pytest
import torch
from adapter_folders import write_adapter
from merge_choice import merge_settings
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from unlearn_pl.balance.search import find_balance
from unlearn_pl.errors import InputError
from unlearn_pl.inference.forward import evaluating
from unlearn_pl.merging.adapters import read_adapters
from unlearn_pl.merging.factors import Factors
from unlearn_pl.merging.folding import FoldedWeights
from unlearn_pl.merging.merge import MergedAdapter
from unlearn_pl.models.adapter_folder import PREFIX

IDS = torch.arange(24).reshape(2, 12)
Q_PROJ = PREFIX + "model.layers.0.self_attn.q_proj"
LATER = PREFIX + "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / name, tiny_model(), seed) for seed, name in enumerate("ab")]


def merged(base: nn.Module, adapters: list[str], method: str = "ties", **options) -> MergedAdapter:
    settings = merge_settings(len(adapters), method, **options)
    return MergedAdapter.of(base, read_adapters(adapters, settings), settings)


def products(deltas: dict) -> dict:
    """The deltas of factors as dense ones."""
    return {name: pair.b @ pair.a for name, pair in deltas.items()}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def close(got: dict, wanted: dict, tolerance: float) -> None:
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=tolerance)


def same(got: dict, wanted: dict) -> bool:
    assert got.keys() == wanted.keys()
    return all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("form", ["factors", "dense"])
@pytest.mark.parametrize("method", ["ties", "cat", "ties_svd"])
def test_it_equals_peft_and_the_model_with_an_adapter(tiny_model, pair, method, form):
    base = tiny_model()
    result = merged(base, pair, method)
    FoldedWeights(base, result.deltas).fold(result.deltas if form == "factors" else products(result.deltas))
    opened = result.open(tiny_model())
    with torch.no_grad():
        logits = base(IDS).logits
        torch.testing.assert_close(logits, opened(IDS).logits, rtol=0, atol=1e-4)
        assert not torch.allclose(logits, tiny_model()(IDS).logits, atol=1e-2)
    close(weights(base), weights(opened.merge_and_unload()), 1e-6)


def test_a_dense_merge_is_added_to_the_weights(tiny_model, pair):
    base = tiny_model()
    result = merged(base, pair, "ties_dense")
    before = weights(base)
    FoldedWeights(base, result.deltas).fold(result.deltas)
    for name, delta in result.deltas.items():
        key = name.removeprefix(PREFIX) + ".weight"
        assert torch.equal(base.state_dict()[key], before.pop(key) + delta)
        assert delta.any()
    assert same({name: base.state_dict()[name] for name in before}, before)


def test_folds_do_not_pile_up_and_restoring_gives_the_exact_bytes_back(tiny_model, pair):
    base, fresh = tiny_model(), tiny_model()
    before = weights(base)
    first, second = (merged(base, pair, "ties", weights=weights) for weights in ([1, 2], [3, 1]))
    dense = merged(base, pair, "ties_dense").deltas
    folded, alone = FoldedWeights(base, first.deltas), FoldedWeights(fresh, second.deltas)
    folded.fold(first.deltas)
    once = weights(base)
    folded.fold(dense)
    folded.fold(second.deltas)
    alone.fold(second.deltas)
    assert same(weights(base), weights(fresh))
    assert not same(once, weights(base))
    folded.fold(dense)
    alone.restore()
    alone.fold(dense)
    assert same(weights(base), weights(fresh))
    folded.restore()
    assert same(weights(base), before)
    folded.fold(first.deltas)
    assert same(weights(base), once)


def test_a_second_interrupt_does_not_leave_half_a_merge(tiny_model, pair, monkeypatch):
    """The first ends the search, the second comes while the weights are put back; or one while the modes are set."""
    model = tiny_model()
    model.model.layers[1].train()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    real, calls = Tensor.copy_, []

    def broken_off(target, source):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(target, source)

    def interrupted_search():
        with FoldedWeights(model, [Q_PROJ, LATER]) as weights:
            weights.fold({name: torch.ones(32, 32) for name in (Q_PROJ, LATER)})
            monkeypatch.setattr(Tensor, "copy_", broken_off)

    with pytest.raises(KeyboardInterrupt):
        interrupted_search()
    assert len(calls) == 4
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())

    def interrupted_eval(training):
        for module in list(model.modules())[:3]:
            module.training = training
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "train", interrupted_eval)
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        pass
    assert [module.training for module in model.modules()] == modes


def test_the_parameters_stay_where_they_are(tiny_model, pair):
    """What holds a view of a weight (a cache, a compiled graph) sees the new numbers."""
    base = tiny_model()
    weight = base.get_submodule(Q_PROJ.removeprefix(PREFIX)).weight
    place, old = weight.data_ptr(), weight.detach().clone()
    result = merged(base, pair)
    FoldedWeights(base, result.deltas).fold(result.deltas)
    assert base.get_submodule(Q_PROJ.removeprefix(PREFIX)).weight is weight
    assert weight.data_ptr() == place
    assert not torch.equal(weight, old)
    assert weight.requires_grad
    assert weight.grad_fn is None


@pytest.mark.parametrize("form", ["factors", "dense"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_added_to_in_float32_and_rounded_once(tiny_model, pair, dtype, form):
    base = tiny_model().to(dtype)
    before = weights(base)
    result = merged(base, pair)
    deltas = products(result.deltas)
    folded = FoldedWeights(base, deltas)
    folded.fold(result.deltas if form == "factors" else deltas)
    for name, delta in deltas.items():
        key = name.removeprefix(PREFIX) + ".weight"
        got, exact = base.state_dict()[key], before[key].float() + delta
        assert got.dtype == dtype
        if form == "dense":
            assert torch.equal(got, exact.to(dtype))
        # half of the last place, relative to the number: 8 bits of bfloat16, 11 of float16
        half = torch.finfo(dtype).eps / 2
        assert ((got.float() - exact).abs() <= 1.001 * half * exact.abs() + 1e-6).all()
    folded.restore()
    assert same(weights(base), before)


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("method", ["ties", "average", "ties_dense"])
def test_the_transposed_weights_of_gpt2(tmp_path, method):
    """c_attn is [in 16, out 48]; attn.c_proj is square, so that its shape would not give a missing transposition away.
    PEFT opens the merge of deltas as they are; a dense one is compared with the same cut at full rank."""
    options = {"target_modules": ["c_attn", "attn.c_proj"], "fan_in_fan_out": True}
    pair = [write_adapter(tmp_path / name, gpt2(), seed, **options) for seed, name in enumerate("ab")]
    base = gpt2()
    before = weights(base)
    result = merged(base, pair, method)
    folded = FoldedWeights(base, result.deltas)
    folded.fold(result.deltas)
    peer = result if method != "ties_dense" else merged(gpt2(), pair, "ties_svd", svd_rank=16)
    opened = peer.open(gpt2())
    with torch.no_grad():
        torch.testing.assert_close(base(IDS).logits, opened(IDS).logits, rtol=0, atol=1e-4)
        assert not torch.allclose(base(IDS).logits, gpt2()(IDS).logits, atol=1e-3)
    close(weights(base), weights(opened.merge_and_unload()), 2e-6)
    folded.restore()
    assert same(weights(base), before)


def tied_model(tiny_model) -> LlamaForCausalLM:
    config = copy.deepcopy(tiny_model().config)
    config.tie_word_embeddings = True
    return LlamaForCausalLM(config).eval()


def zeros(rows: int, columns: int) -> Factors:
    return Factors(torch.zeros(1, columns), torch.zeros(rows, 1))


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_tied_weights_are_refused_by_both_names(tiny_model, module):
    model = tied_model(tiny_model)
    before = weights(model)
    deltas = {Q_PROJ: zeros(32, 32), PREFIX + module: zeros(model.config.vocab_size, 32)}
    with pytest.raises(InputError) as caught:
        FoldedWeights(model, deltas)
    message = str(caught.value)
    assert message.startswith(f"adapters: {module} shares its weights")
    assert "model.embed_tokens.weight" in message
    assert "lm_head.weight" in message
    assert same(weights(model), before)
    FoldedWeights(model, [Q_PROJ])  # the other modules of such a model are their own
    FoldedWeights(tiny_model(), deltas)  # and so is an untied head


@pytest.mark.parametrize(("dtype", "form"), [(torch.float32, "factors"), (torch.bfloat16, "products")])
def test_how_much_of_a_delta_is_lost_to_rounding(tiny_model, pair, dtype, form):
    """Relative to the delta, the weights' own rounding grows as the delta shrinks."""
    base = tiny_model().to(dtype)
    before = {name: value.double() for name, value in weights(base).items()}
    errors = []
    for scale in (1.0, 0.01):
        deltas = merged(tiny_model(), pair, "cat", scale=scale).deltas
        wanted = products(deltas)
        errors.append(FoldedWeights(base, deltas).rounding(deltas if form == "factors" else wanted))
        after = weights(base)
        gaps = [
            after[f"{name.removeprefix(PREFIX)}.weight"].double()
            - before[f"{name.removeprefix(PREFIX)}.weight"]
            - delta
            for name, delta in wanted.items()
        ]
        lost = sum(gap.square().sum().item() for gap in gaps) / sum(d.square().sum().item() for d in wanted.values())
        assert errors[-1] == pytest.approx(lost**0.5, rel=1e-3)
        for name, value in base.named_parameters():
            value.data.copy_(before[name])
    assert errors[0] < errors[1]
    assert errors[1] < 1e-3 if dtype == torch.float32 else errors[1] > 10 * errors[0]


@pytest.mark.parametrize("kind", ["int8", "float8", "packed"])
def test_a_delta_is_never_added_to_codes(tiny_model, kind):
    """As 8 bits, 8-bit floats and 4 bits two in a byte are stored."""
    layer = nn.Linear(32, 32, bias=False)
    weight = torch.zeros(512, 1) if kind == "packed" else layer.weight.detach()
    dtype = torch.float8_e4m3fn if kind == "float8" else torch.uint8 if kind == "packed" else torch.int8
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    model = nn.ModuleDict({"q_proj": layer})
    with pytest.raises(
        InputError, match=r"base: q_proj is stored quantised \(torch\..*8.*\), so a delta cannot be added"
    ):
        FoldedWeights(model, ["base_model.model.q_proj"])


def test_a_base_that_says_it_is_quantised_is_refused_before_it_is_scored(tiny_model, tokenizer):
    model = tiny_model()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(InputError, match=r"base: .*stored quantised \(gptq 4 bit\): scoring a merge"):
        find_balance(model, tokenizer, ["a", "b"], None)


def test_a_delta_for_each_module_and_no_other(tiny_model):
    folded = FoldedWeights(tiny_model(), [Q_PROJ])
    for deltas in ({}, {Q_PROJ: zeros(32, 32), PREFIX + "lm_head": zeros(384, 32)}):
        with pytest.raises(AssertionError):
            folded.fold(deltas)
