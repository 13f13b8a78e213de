"""Merged adapters against a second implementation, against PEFT itself, by identities, and every refusal."""

import copy
import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from adapter_folders import edit_config, edit_tensors, tensors, write_adapter
from merge_choice import merge_settings
from peft import PeftModel
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from unlearn_pl.errors import InputError
from unlearn_pl.merging.adapters import read_adapter, read_adapters
from unlearn_pl.merging.factors import delta_angle, delta_norm, factors_of, inner, shared_start, sign_conflict
from unlearn_pl.merging.merge import MergedAdapter, merge_adapters
from unlearn_pl.merging.methods import METHODS
from unlearn_pl.merging.options import MergeOptions
from unlearn_pl.models.lora import Lora, attach_lora
from unlearn_pl.models.mergeable import why_unmergeable

SCALING = 2.0  # alpha 8 / rank 4
TIES = merge_settings(2, "ties")
PEFT = ["linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"]
PEFT += ["magnitude_prune", "magnitude_prune_svd"]
MODULE = "base_model.model.model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / name, tiny_model(), seed) for seed, name in enumerate("abc")][:2]


@pytest.fixture(scope="module")
def trio(pair):
    return [*pair, str(Path(pair[0]).parent / "c")]


@pytest.fixture
def copies(pair, tmp_path):
    return [shutil.copytree(folder, tmp_path / Path(folder).name) for folder in pair]


def deltas(model, name="default"):
    """Dense scaled delta of every module, as PEFT itself computes it."""
    return {key: m.get_delta_weight(name) for key, m in model.named_modules() if hasattr(m, "get_delta_weight")}


def parent_deltas(folder):
    factors = factors_of(tensors(folder))
    return {module.removeprefix("base_model.model."): SCALING * pair.b @ pair.a for module, pair in factors.items()}


def applied(base, adapters, **options):
    """The base with the merged adapter in it."""
    return merge_adapters(base, adapters, **options).open(base)


def merged_deltas(base, adapters, **options):
    merged = deltas(applied(base, adapters, **options))
    return {name.removeprefix("base_model.model."): value for name, value in merged.items()}


def close(got, wanted, rtol=1e-5, atol=1e-6):
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=rtol, atol=atol)


# --- a second implementation, entry by entry -----------------------------------------------------------------------


def trimmed(values, density):
    """A list with only its int(density n) largest magnitudes; the others are 0."""
    kept = set(sorted(range(len(values)), key=lambda i: -abs(values[i]))[: int(density * len(values))])
    return [value if i in kept else 0.0 for i, value in enumerate(values)]


def ties_entry(entries, weights, by):
    """Elect +1 or -1 (a tie is +1), then average the weighted entries that have the sign."""
    votes = entries if by == "total" else [(e > 0) - (e < 0) for e in entries]
    sign = 1 if sum(votes) >= 0 else -1
    kept = [weight * entry for weight, entry in zip(weights, entries, strict=True) if entry * sign > 0]
    return sum(kept) / max(len(kept), 1)


def merge_entries(matrices, weights, kernel, density=None, by="total"):
    columns = [m.double().flatten().tolist() for m in matrices]
    if density is not None:
        columns = [trimmed(column, density) for column in columns]
    rows = zip(*columns, strict=True)
    if kernel == "ties":
        out = [ties_entry(row, weights, by) for row in rows]
    else:
        out = [sum(w * entry for w, entry in zip(weights, row, strict=True)) for row in rows]
    return torch.tensor(out).reshape(matrices[0].shape).float()


def test_one_entry_of_ties_by_hand():
    """Entries 3, -1, -1 with weights 1, 2, 4: total 1 >= 0 keeps 3 (mean 3); frequency -1 keeps -2 and -4 (mean -3)."""
    assert ties_entry([3, -1, -1], [1, 2, 4], "total") == 3
    assert ties_entry([3, -1, -1], [1, 2, 4], "frequency") == -3


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("linear", {}),
        ("magnitude_prune", {"density": 0.3}),
        ("ties", {"density": 0.8}),
        ("ties", {"density": 0.5, "majority_sign": "frequency"}),
        ("ties", {"density": 1.0}),
    ],
)
def test_factor_methods_equal_the_second_implementation(tiny_model, trio, method, options):
    """A and B are merged apart, each adapter weighing sqrt(weight x scaling): sqrt(.5 x 2) = 1, sqrt(2), sqrt(3)."""
    weights = [0.5, 1.0, 1.5]
    model = applied(tiny_model(), trio, method=method, weights=weights, **options)
    got = {name: value for name, value in model.state_dict().items() if ".lora_" in name}
    states = [tensors(folder) for folder in trio]
    roots = [math.sqrt(weight * SCALING) for weight in weights]
    for name in states[0]:
        wanted = merge_entries(
            [state[name] for state in states],
            roots,
            "ties" if method == "ties" else "linear",
            options.get("density"),
            options.get("majority_sign", "total"),
        )
        torch.testing.assert_close(got[name.replace(".weight", ".default.weight")], wanted)
    assert len(got) == len(states[0])
    assert {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")} == {1.0}


@pytest.mark.parametrize("kernel", ["ties", "magnitude_prune"])
def test_delta_methods_equal_the_second_implementation(tiny_model, pair, kernel):
    """At full rank (16 is the smallest side, so of the 16-row matrices) nothing is cut off."""
    merged = merged_deltas(tiny_model(), pair, method=f"{kernel}_svd", weights=[0.5, 1.5], density=0.4, svd_rank=16)
    parents = [parent_deltas(folder) for folder in pair]
    small = [name for name, value in merged.items() if min(value.shape) == 16]
    assert len(small) == 4
    for name in small:
        wanted = merge_entries([p[name] for p in parents], [0.5, 1.5], kernel, 0.4)
        torch.testing.assert_close(merged[name], wanted, rtol=1e-4, atol=1e-6)


# --- PEFT itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cat", "ties", "ties_svd"])
def test_a_base_in_half_precision_does_not_round_the_adapter(tiny_model, pair, method):
    wanted = applied(tiny_model(), pair, method=method).state_dict()
    got = applied(tiny_model().bfloat16(), pair, method=method).state_dict()
    for name, value in wanted.items():
        if ".lora_" in name:
            assert got[name].dtype == torch.float32
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", PEFT)
def test_every_method_of_peft_equals_it_and_opens_again(tiny_model, pair, tmp_path, method, monkeypatch):
    """The random ones draw from a generator of their own; PEFT's mask is made to come from one with the same seed."""
    draw, generator = torch.bernoulli, torch.Generator().manual_seed(42)
    row = METHODS[method]
    density = 0.6 if "density" in row.kernel.parameters else None
    options = {"method": method, "weights": [0.7, 1.2], "density": density}
    reference = PeftModel.from_pretrained(tiny_model(), pair[0], adapter_name="a")
    reference.load_adapter(pair[1], adapter_name="b")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "bernoulli", lambda chances: draw(chances, generator=generator))
        reference.base_model.add_weighted_adapter(
            ["a", "b"], [0.7, 1.2], "m", combination_type=method, density=density, majority_sign_method="total"
        )
    model = applied(tiny_model(), pair, **options)
    close(deltas(model), deltas(reference, "m"), rtol=1e-5, atol=1e-6)

    settings = merge_settings(2, **options)
    MergedAdapter.of(tiny_model(), read_adapters(pair, settings), settings).save(tmp_path / "merged")
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        wanted = model(ids).logits
        opened = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "merged"))
        torch.testing.assert_close(opened(ids).logits, wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(tiny_model()(ids).logits, wanted)
    assert opened.peft_config["default"].inference_mode


def test_only_the_merged_adapter_is_left_active_and_frozen(tiny_model, pair):
    model = applied(tiny_model(), pair)
    assert list(model.peft_config) == model.active_adapters == ["default"]
    config = model.peft_config["default"]
    assert config.inference_mode
    assert config.target_modules == sorted(config.target_modules)  # a list: the order of a set changes
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


# --- identities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
def test_cat_is_the_exact_weighted_sum_even_with_other_ranks_and_scalings(tiny_model, tmp_path, rslora):
    """Rank 4, alpha 8 (scaling 2, or 8 / sqrt 4 = 4) minus rank 2, alpha 3 with an own alpha of 5 for q_proj."""
    a = write_adapter(tmp_path / "a", tiny_model(), 0, use_rslora=rslora)
    b = write_adapter(tmp_path / "b", tiny_model(), 1, r=2, lora_alpha=3, alpha_pattern={"q_proj": 5})
    merged = merged_deltas(tiny_model(), [a, b], method="cat", weights=[0.5, -2.0])
    one, other = factors_of(tensors(a)), factors_of(tensors(b))
    wanted = {}
    for module in one:
        alpha = 5 if module.endswith("q_proj") else 3
        first = 0.5 * (4 if rslora else 2) * one[module].b @ one[module].a
        wanted[module.removeprefix("base_model.model.")] = first - alpha * other[module].b @ other[module].a
    close(merged, wanted)
    assert read_adapter(a).scaling == dict.fromkeys(one, 4 if rslora else 2)
    assert read_adapter(b).scaling == {m: 2.5 if m.endswith("q_proj") else 1.5 for m in one}


def test_another_spelling_of_the_targets_and_an_odd_rank_after_orthogonal_factors(tiny_model, tmp_path):
    """PEFT alone refuses a pattern beside a list, and an orthogonal start at an odd rank."""
    options = {"target_modules": r".*\.q_proj", "init_lora_weights": "orthogonal"}
    pattern = write_adapter(tmp_path / "pattern", tiny_model(), 0, **options)
    listed = write_adapter(tmp_path / "listed", tiny_model(), 1, target_modules=["q_proj"])
    for order in ([pattern, listed], [listed, pattern]):
        merged = merged_deltas(tiny_model(), order, method="svd", svd_rank=8)
        close(merged, merged_deltas(tiny_model(), order, method="cat"), rtol=1e-4)
        assert all(
            m.r["default"] == 3
            for m in applied(tiny_model(), order, method="svd", svd_rank=3).modules()
            if hasattr(m, "lora_A")
        )


def test_svd_at_the_sum_of_the_ranks_is_cat_and_at_a_lower_rank_the_best_of_it(tiny_model, pair):
    total = merged_deltas(tiny_model(), pair, method="cat")
    close(merged_deltas(tiny_model(), pair, method="svd", svd_rank=8), total, rtol=1e-4, atol=1e-6)
    cut = merged_deltas(tiny_model(), pair, method="svd", svd_rank=3)
    for name, value in total.items():
        lost = torch.linalg.svdvals(value.double())[3:].square().sum().sqrt()
        assert (cut[name] - value).double().norm() == pytest.approx(lost.item(), rel=1e-4)


def test_linear_with_a_shared_a_is_the_sum_and_doubles_the_scale_once_more(tiny_model, pair, tmp_path):
    """(A + A)(B1 + B2) = 2 (B1 + B2) A: twice the exact sum, the reason why sums and means are not comparable."""
    twin = shutil.copytree(pair[1], tmp_path / "twin")
    a_factors = {name: value for name, value in tensors(pair[0]).items() if ".lora_A." in name}
    edit_tensors(twin, lambda state: state.update(a_factors))
    linear = merged_deltas(tiny_model(), [pair[0], twin], method="linear")
    exact = merged_deltas(tiny_model(), [pair[0], twin], method="cat")
    close(linear, {name: 2 * value for name, value in exact.items()})


@pytest.mark.parametrize(("method", "factor"), [("linear", 4), ("cat", 2), ("ties", 1), ("ties_svd", 1)])
def test_an_adapter_with_itself_shows_the_scale_of_the_method(tiny_model, pair, method, factor):
    options = {"density": 1.0} if "density" in METHODS[method].kernel.parameters else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The density")  # 1 is a choice, not a mistake
        merged = merged_deltas(tiny_model(), [pair[0], pair[0]], method=method, **options)
    close(merged, {name: factor * value for name, value in parent_deltas(pair[0]).items()}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["dare_linear", "magnitude_prune", "dare_linear_svd", "magnitude_prune_svd"])
def test_density_one_prunes_nothing(tiny_model, pair, method):
    whole = "svd" if method.endswith("svd") else "linear"
    got = merged_deltas(tiny_model(), pair, method=method, density=1.0)
    close(got, merged_deltas(tiny_model(), pair, method=whole), rtol=1e-4, atol=1e-6)


def test_weight_zero_leaves_an_adapter_out(tiny_model, pair):
    close(merged_deltas(tiny_model(), pair, method="linear", weights=[1, 0]), parent_deltas(pair[0]))
    close(merged_deltas(tiny_model(), pair, method="cat", weights=[0, 1]), parent_deltas(pair[1]))


def test_flipping_both_factors_changes_ties_in_factor_space_but_not_in_delta_space(tiny_model, pair, tmp_path):
    """(-A, -B) is the same delta."""
    flipped = shutil.copytree(pair[1], tmp_path / "flipped")
    edit_tensors(flipped, lambda state: state.update({name: -value for name, value in state.items()}))
    same = merged_deltas(tiny_model(), pair, method="ties_svd")
    close(merged_deltas(tiny_model(), [pair[0], flipped], method="ties_svd"), same, rtol=1e-4, atol=1e-6)
    with pytest.warns(UserWarning, match="mean cosine of -0.99"):
        other = merged_deltas(tiny_model(), [pair[0], flipped], method="ties")
    factors = merged_deltas(tiny_model(), pair, method="ties")
    assert max((other[name] - factors[name]).norm() / factors[name].norm() for name in factors) > 0.5


def test_dare_is_a_function_of_its_seed_and_leaves_the_random_state_alone(tiny_model, pair):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = merged_deltas(tiny_model(), pair, method="dare_ties", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    close(merged_deltas(tiny_model(), pair, method="dare_ties", seed=1), first, rtol=0, atol=0)
    other = merged_deltas(tiny_model(), pair, method="dare_ties", seed=2)
    assert any(not torch.equal(other[name], first[name]) for name in first)


def test_unload_gives_the_base_back_for_another_merge(tiny_model, pair):
    base = tiny_model()
    first = merged_deltas(base, pair, method="ties")
    with pytest.raises(InputError, match=r"^base: has an adapter already"):
        applied(base, pair)
    again = applied(applied(tiny_model(), pair).unload(), pair)
    close({n.removeprefix("base_model.model."): v for n, v in deltas(again).items()}, first, rtol=0, atol=0)


def test_options_are_given_whole_or_by_their_names_and_a_base_as_model_or_folder(tiny_model, base_folder, pair):
    options = MergeOptions(method="ties_svd", density=0.5, svd_rank=3)
    base = tiny_model()
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    whole = merge_adapters(base, pair, options)
    assert base.state_dict().keys() == weights.keys()  # no layer was added
    assert all(torch.equal(value, weights[name]) for name, value in base.state_dict().items())
    for other in (
        merge_adapters(base_folder, pair, method="ties_svd", density=0.5, svd_rank=3),
        merge_adapters(Path(base_folder), pair, MergeOptions(density=0.5), method="ties_svd", svd_rank=3),
    ):
        assert other.settings == whole.settings
        assert other.base == base_folder
        assert all(torch.equal(value, whole.state[name]) for name, value in other.state.items())
    assert whole.settings.weights == (1.0, 1.0)
    with pytest.raises(TypeError, match="densty"):
        merge_adapters(base, pair, densty=0.5)


def test_dense_deltas_are_saved_as_a_model_alone(tiny_model, pair, tmp_path):
    dense = merge_adapters(tiny_model(), pair, method="ties_dense")
    for write in (lambda: dense.open(tiny_model()), lambda: dense.save(tmp_path / "adapter")):
        with pytest.raises(InputError, match=r"^method: ties_dense gives whole weights, which no adapter can hold"):
            write()
    with pytest.raises(InputError, match=r"^base: the base model is needed"):
        dense.save(save_model=tmp_path / "model")
    dense.save(save_model=tmp_path / "model", base=tiny_model())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# --- saving --------------------------------------------------------------------------------------------------------


def test_the_merged_model_has_the_adapters_logits_and_the_folders_these_files(tiny_model, tokenizer, pair, tmp_path):
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        wanted = applied(tiny_model(), pair)(ids).logits
    merged = MergedAdapter.of(tiny_model(), read_adapters(pair, TIES), TIES)
    merged.save(tmp_path / "adapter", save_model=tmp_path / "model", base=tiny_model(), tokenizer=tokenizer)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, wanted, rtol=1e-4, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "model"]
    files = {"adapter_config.json", "adapter_model.safetensors", "unlearn_pl.json"}
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == files
    assert {"config.json", "model.safetensors", "tokenizer.json", "unlearn_pl.json"} <= {
        p.name for p in (tmp_path / "model").iterdir()
    }


def test_nothing_is_left_if_the_model_cannot_be_written(tiny_model, pair, tmp_path, monkeypatch):
    merged, base = MergedAdapter.of(tiny_model(), read_adapters(pair, TIES), TIES), tiny_model()

    def fail(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr(type(base), "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        merged.save(tmp_path / "adapter", save_model=tmp_path / "model", base=base)
    assert list(tmp_path.iterdir()) == []


def test_facts_hold_the_settings_and_the_hashes(pair, tiny_model):
    settings = merge_settings(2, "dare_ties", [1, 2], density=0.5, majority_sign="frequency", seed=7)
    facts = MergedAdapter.of(tiny_model(), read_adapters(pair, settings), settings).facts["merge"]
    hashes = [parent.pop("sha256") for parent in facts["adapters"]]
    assert len({*hashes}) == 2
    assert all(len(value) == 64 for value in hashes)
    assert facts == {
        "method": "dare_ties",
        "weights": [1.0, 2.0],
        "density": 0.5,
        "majority_sign": "frequency",
        "vote": "plain",
        "epsilon": None,
        "outliers": None,
        "scale": 1.0,
        "seed": 7,
        "svd_rank": None,
        "adapters": [{"folder": folder} for folder in pair],
    }


# --- refusals ------------------------------------------------------------------------------------------------------


def refuses(adapters, message, **options):
    """Before any base is there: reading alone must refuse."""
    with pytest.raises(InputError, match=message):
        read_adapters(adapters, merge_settings(len(adapters), **options))


def spoil(value):
    def change(state):
        state[f"{MODULE}.lora_B.weight"][0, 0] = value

    return change


def test_folders_that_hold_no_adapter(copies, tmp_path):
    refuses([copies[0], tmp_path / "none"], "adapters: .*none has no adapter_config.json")
    (copies[1] / "adapter_model.safetensors").rename(copies[1] / "adapter_model.bin")
    refuses(copies, "has no adapter_model.safetensors")
    (copies[1] / "adapter_model.safetensors").write_bytes(b"no")
    refuses(copies, "adapter_model.safetensors cannot be read")
    (copies[0] / "adapter_config.json").write_text("{")
    refuses(copies, "adapter_config.json is not JSON")
    (copies[0] / "adapter_config.json").write_text("[]")
    refuses(copies, "adapter_config.json must hold a JSON object, got a list")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("peft_type", "IA3", "must be a LoRA adapter, its peft_type is IA3"),
        ("r", None, "r in adapter_config.json must be a number above 0"),
        ("r", 3, "says rank 3 of .*, it has 4"),
        ("use_dora", True, "DoRA magnitudes"),
        ("modules_to_save", ["lm_head"], "whole modules were trained"),
        ("rank_pattern", {"q_proj": 8}, "says rank 8 of .*q_proj, it has 4"),
        (
            "target_modules",
            [0.5, "q_proj"],
            r"target_modules in adapter_config.json must be names of layers, got \[0.5",
        ),
        ("trainable_token_indices", [1], "token embeddings"),
        ("target_parameters", ["w"], "bare parameters .experts., not linear layers; list linear layers"),
        ("layer_replication", [[0, 1]], "replicates layers"),
        ("lora_bias", True, "biases"),
        ("bias", "lora_only", "biases were trained"),
        ("init_lora_weights", "pissa", "initialisation pissa changes the base weights"),
    ],
)
def test_adapters_that_are_more_than_a_and_b(copies, field, value, message):
    edit_config(copies[1], **{field: value})
    refuses(copies, f"adapters: .*{message}")


@pytest.mark.parametrize("init", ["eva", "mica"])
def test_initialisations_that_leave_the_base_as_it_is(copies, init):
    edit_config(copies[1], init_lora_weights=init)
    assert len(read_adapters(copies, merge_settings(2, "cat"))) == 2


def test_all_linear_on_a_mixture_of_experts_is_known_before_the_fit(tiny_model):
    """PEFT adapts the experts, which are bare parameters, and writes so into the configuration as it attaches."""
    small = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = MixtralForCausalLM(MixtralConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=4, **small))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of its own patterns
        adapted = attach_lora(experts, Lora(rank=2, alpha=4, dropout=0.0), seed=0)
    reason = why_unmergeable(adapted.peft_config["default"])
    assert reason is not None
    assert reason.startswith("it adapts bare parameters (experts)")
    plain = attach_lora(tiny_model(), Lora(rank=2, alpha=4), seed=0)
    assert why_unmergeable(plain.peft_config["default"]) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite(copies, value):
    edit_tensors(copies[1], spoil(value))
    refuses(copies, "up_proj.lora_B.weight holds NaN or infinite numbers")


def test_tensors_that_are_not_pairs_of_factors(copies):
    edit_tensors(copies[1], lambda state: state.update(bias=torch.ones(3)))
    refuses(copies, "tensor bias \\(3,\\) is not a LoRA factor")
    edit_tensors(copies[1], lambda state: [state.pop("bias"), state.pop(f"{MODULE}.lora_B.weight")])
    refuses(copies, "up_proj has lora_A but not its partner")
    edit_tensors(copies[1], lambda state: state.update({f"{MODULE}.lora_B.weight": torch.ones(64, 5)}))
    refuses(copies, "up_proj has factors of ranks 4 \\(A\\) and 5 \\(B\\)")
    edit_tensors(copies[1], lambda state: state.clear())
    refuses(copies, "holds no LoRA factors")


def test_adapters_that_do_not_belong_together(copies, tiny_model, tmp_path):
    edit_tensors(copies[1], lambda state: [state.pop(f"{MODULE}.lora_{side}.weight") for side in "AB"])
    refuses(copies, "must adapt the same modules; 1 are in only one of .*up_proj", method="cat")
    edit_tensors(
        copies[1],
        lambda s: s.update({f"{MODULE}.lora_A.weight": torch.ones(4, 9), f"{MODULE}.lora_B.weight": torch.ones(64, 4)}),
    )
    refuses(copies, r"must fit the same base; .*up_proj has \(in, out\) \(32, 64\) in .* and \(9, 64\)", method="cat")
    other = write_adapter(tmp_path / "rank2", tiny_model(), 3, r=2)
    for method in ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"):
        refuses([copies[0], other], rf"{method} needs equal ranks, got \[4, 2\]", method=method)


def test_other_names_of_the_base_warn(copies):
    edit_config(copies[1], base_model_name_or_path="another/base")
    with pytest.warns(UserWarning, match="name different base models.*another/base"):
        read_adapters(copies, merge_settings(2))


def test_ranks_and_densities_that_the_sizes_do_not_allow(pair, tiny_model, tmp_path):
    refuses(pair, "svd_rank: must be at most 16, .*got 17", method="svd", svd_rank=17)
    wide = write_adapter(tmp_path / "wide", tiny_model(), 3, r=20)
    refuses(
        [pair[0], wide], "must be at most 16, .*by default it is the largest rank of the adapters, 20", method="svd"
    )
    refuses(pair, "density: 0.01 keeps nothing of the smallest tensor \\(64 entries\\)", density=0.01)
    assert read_adapters(pair, merge_settings(2, density=1 / 64))
    assert read_adapters(pair, merge_settings(2, "ties_svd", density=0.01))


def test_another_initial_a_is_refused_where_it_is_recorded(tiny_model, tmp_path):
    def adapter(name, recorded):
        facts = None if recorded is None else {"lora_init_sha256": recorded}
        return write_adapter(tmp_path / name, tiny_model(), 1, facts=facts)

    one, same, other, unknown = adapter("1", "x"), adapter("2", "x"), adapter("3", "y"), adapter("4", None)
    for method in METHODS:
        if METHODS[method].space == "factors":
            refuses([one, other], "started from different A factors.*same seed.*ties_svd", method=method)
        else:
            assert read_adapters([one, other], merge_settings(2, method))
    refuses([one, same, other], "started from different A factors")
    assert read_adapters([one, same], merge_settings(2))
    assert read_adapters([one, unknown], merge_settings(2))  # alike by their cosine


def test_an_unrecorded_start_is_judged_by_the_cosine_of_the_a_factors(tiny_model, pair, tmp_path):
    stranger = write_adapter(tmp_path / "stranger", tiny_model(), 1, start=9)
    a, b = (tensors(folder) for folder in (pair[0], stranger))
    cosines = [torch.corrcoef(torch.stack([a[n].flatten(), b[n].flatten()]))[0, 1] for n in a if ".lora_A." in n]
    cosine = shared_start(factors_of(a), factors_of(b))
    assert cosine == pytest.approx(sum(cosines).item() / len(cosines), abs=0.02)  # the means are near 0
    assert shared_start(factors_of(a), factors_of(tensors(pair[1]))) > 0.99
    with pytest.warns(UserWarning, match=f"mean cosine of {cosine:.3f}.*ties_svd"):
        read_adapters([pair[0], stranger], merge_settings(2, "linear"))
    assert read_adapters([pair[0], stranger], merge_settings(2, "ties_svd"))


def test_a_base_that_the_adapters_are_not_for(tiny_model, pair, tmp_path):
    def resized(**changes):
        config = copy.deepcopy(tiny_model().config)
        for name, value in changes.items():
            setattr(config, name, value)
        return type(tiny_model())(config)

    with pytest.raises(InputError, match=r"base: does not fit the adapters: .* has .out, in. "):
        applied(resized(intermediate_size=48), pair)
    with pytest.raises(InputError, match=r"base: does not fit the adapters: it has no linear layer model.layers.1"):
        applied(resized(num_hidden_layers=1), pair)
    suffix = write_adapter(tmp_path / "suffix", tiny_model(), 1, target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"base: does not fit the adapters: only one of the two has .*layers.2"):
        applied(resized(num_hidden_layers=3), [suffix, suffix])


def test_a_merge_that_cancels_out_warns(tiny_model, pair):
    with pytest.warns(UserWarning, match="the merged adapter is zero"):
        applied(tiny_model(), [pair[0], pair[0]], method="svd", weights=[1, -1])


# --- the algebra of factors ----------------------------------------------------------------------------------------


def test_inner_products_and_norms_are_those_of_the_dense_deltas(pair):
    one, other = (factors_of(tensors(folder)) for folder in pair)
    dense = [{m: (f.b.double() @ f.a.double()) for m, f in factors.items()} for factors in (one, other)]
    for module in one:
        wanted = (dense[0][module] * dense[1][module]).sum()
        torch.testing.assert_close(inner(one[module], other[module]), wanted)
    total = math.sqrt(sum((SCALING * value).square().sum().item() for value in dense[0].values()))
    assert delta_norm(one, dict.fromkeys(one, SCALING)) == pytest.approx(total, rel=1e-12)


def test_the_angle_of_two_adapters_is_that_of_their_dense_deltas(pair):
    one, other = (factors_of(tensors(folder)) for folder in pair)
    scaled = {module: 3.0 if "mlp" in module else 0.5 for module in one}
    vectors = []
    for factors, scaling in ((one, dict.fromkeys(one, SCALING)), (other, scaled)):
        deltas = [scaling[m] * factors[m].b.double() @ factors[m].a.double() for m in factors]
        vectors.append(torch.cat([delta.flatten() for delta in deltas]))
    cosine = (vectors[0] @ vectors[1] / vectors[0].norm() / vectors[1].norm()).item()
    got = delta_angle(one, dict.fromkeys(one, SCALING), other, scaled)
    assert got == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-6)
    assert delta_angle(one, scaled, one, scaled) == pytest.approx(0, abs=1e-5)
    assert delta_angle(one, dict.fromkeys(one, 0.0), other, scaled) is None


def test_sign_conflict_counts_entries_that_are_not_zero():
    """A: signs + - 0 against + + +: one conflict in two. B: - against +: one in one. Together 2 / 3."""
    one = factors_of({"m.lora_A.weight": torch.tensor([[1.0, -2.0, 0.0]]), "m.lora_B.weight": torch.tensor([[-1.0]])})
    other = factors_of({"m.lora_A.weight": torch.ones(1, 3), "m.lora_B.weight": torch.ones(1, 1)})
    assert sign_conflict(one, other) == pytest.approx(2 / 3)
    zero = factors_of({"m.lora_A.weight": torch.zeros(1, 3), "m.lora_B.weight": torch.zeros(1, 1)})
    assert sign_conflict(one, zero) == 0


def test_what_is_no_base_and_no_list_of_adapters_is_refused(tiny_model, pair):
    with pytest.raises(InputError, match=r"^base: has an adapter already"):
        merge_adapters(applied(tiny_model(), pair), pair)
    with pytest.raises(InputError, match=r"^base: must be a path, a hub name or a transformers model, got int"):
        merge_adapters(3, pair)
    for adapters in (pair[0], [tiny_model()] * 2):
        with pytest.raises(InputError, match=r"^adapters: must be a list of adapter folders, got"):
            merge_adapters(tiny_model(), adapters)
