"""`merge` in this process: what it writes, prints, and leaves when it fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapter_folders import edit_tensors, tensors, write_adapter
from merge_choice import merge
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from unlearn_pl.errors import InputError
from unlearn_pl.merging.factors import factors_of
from unlearn_pl.merging.kernels import KERNELS
from unlearn_pl.merging.methods import METHODS

ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "unlearn_pl.json"]
MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "unlearn_pl.json",
]
SCALING = 2.0  # alpha 8 / rank 4


@pytest.fixture
def pair(tmp_path, tiny_model):
    return [write_adapter(tmp_path / name, tiny_model(), seed) for seed, name in enumerate("ab")]


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


def test_it_writes_the_adapter_and_the_model_and_says_so(base_folder, pair, tmp_path, tiny_model, capsys):
    output, model = tmp_path / "merged", tmp_path / "model"
    merge(base_folder, pair, str(output), weights=[1, 1], density=0.8, save_model=str(model))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("merged by ties (weights 1 1, density 0.8): delta norms ")
    assert "of the factor entries differ in sign" in lines[0]
    assert lines[1:] == [f"wrote the adapter {output} and the model {model}"]
    assert listing(output) == ADAPTER_FILES
    assert listing(model) == MODEL_FILES
    assert listing(tmp_path) == listing_of_parts(tmp_path, "a", "b", "merged", "model")
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == base_folder
    facts = json.loads((output / "unlearn_pl.json").read_text())
    assert facts["merge"]["method"] == "ties"
    assert facts["versions"]["peft"]
    PeftModel.from_pretrained(tiny_model(), str(output))
    AutoModelForCausalLM.from_pretrained(model)
    assert AutoTokenizer.from_pretrained(model).eos_token == "<|end|>"


def listing_of_parts(folder, *parts):
    return sorted([*parts, *(f"{part}/{name}" for part in parts for name in listing(folder / part))])


def test_the_same_merge_gives_the_same_bytes(base_folder, pair, tmp_path):
    for name in ("one", "two"):
        merge(base_folder, pair, str(tmp_path / name), method="dare_linear", seed=3)
    for name in ADAPTER_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_delta_norms_in_the_line_are_the_scales_of_the_method(base_folder, pair, tmp_path, capsys):
    """cat of an adapter with itself, weights 1 and 2, is three times its delta; alpha / rank is 2 in the parents."""
    merge(base_folder, [pair[0], pair[0]], str(tmp_path / "merged"), method="cat", weights=[1, 2])
    line = capsys.readouterr().out.splitlines()[0]
    before, after = line.split("delta norms ")[1].split(" -> ")
    assert float(after.split(";")[0]) == pytest.approx(3 * float(before.split(" and ")[0]), rel=1e-3)
    assert after.endswith("; the two deltas are 0.0 degrees apart")


def test_outputs_are_refused_before_anything_is_read(pair, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(InputError, match=r"output: .*full exists already"):
        merge("no/such/base/at/all", ["nothing", "here"], str(tmp_path / "full"))
    with pytest.raises(InputError, match=r"save_model: .*full exists already"):
        merge("no/such/base/at/all", ["nothing", "here"], str(tmp_path / "new"), save_model=str(tmp_path / "full"))
    assert listing(tmp_path / "full") == ["file"]
    assert not (tmp_path / "new").exists()


def test_overwrite_replaces_an_output_but_never_an_input(base_folder, pair, tmp_path):
    output = tmp_path / "merged"
    output.mkdir()
    (output / "old").write_text("old")
    merge(base_folder, pair, str(output), overwrite=True)
    assert listing(output) == ADAPTER_FILES
    for place in (pair[1], str(tmp_path)):
        with pytest.raises(InputError, match=r"output: .* would replace"):
            merge(base_folder, pair, place, overwrite=True)
    with pytest.raises(InputError, match=r"save_model: .* would replace"):
        merge(base_folder, pair, str(tmp_path / "x"), save_model=base_folder, overwrite=True)
    with pytest.raises(InputError, match=r"save_model: must be apart from output"):
        merge(base_folder, pair, str(tmp_path / "x"), save_model=str(tmp_path / "x" / "model"))
    assert listing(pair[1]) == ADAPTER_FILES[:2]


def test_nothing_is_left_after_an_error(base_folder, pair, tmp_path, monkeypatch):
    before = listing(tmp_path)
    outputs = {"output": str(tmp_path / "merged"), "save_model": str(tmp_path / "model")}
    for changes in ({"method": "tie"}, {"dtype": "float8"}, {"base": "./none"}, {"adapters": [pair[0]]}):
        with pytest.raises(InputError):
            merge(**({"base": base_folder, "adapters": pair} | outputs | changes))

    def full(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    with pytest.raises(OSError, match="disk full"):
        merge(base_folder, pair, **outputs)
    assert listing(tmp_path) == before


def test_a_broken_adapter_is_found_before_the_base_is_loaded(pair, tmp_path):
    def spoil(state):
        next(iter(state.values()))[0, 0] = float("nan")

    edit_tensors(pair[1], spoil)
    with pytest.raises(InputError, match="holds NaN"):
        merge("./no-such-base", pair, str(tmp_path / "merged"))


# --- a model alone -------------------------------------------------------------------------------------------------


def dense_deltas(folder):
    """Weight name in the base -> scaling x B A."""
    factors = factors_of(tensors(folder))
    return {f"{m.removeprefix('base_model.model.')}.weight": SCALING * f.b @ f.a for m, f in factors.items()}


def disjoint_mean(one, other):
    """TIES of two tensors without trimming and with weights of 1: the mean of those that have the sign of the sum."""
    sign = torch.where(one + other >= 0, 1.0, -1.0)
    agree, agrees = one * sign > 0, other * sign > 0
    return (one * agree + other * agrees) / (agree.float() + agrees.float()).clamp(min=1)


@pytest.mark.parametrize("method", ["ties_dense", "task_arithmetic", "average"])
def test_a_model_alone_is_the_base_plus_the_delta(base_folder, pair, tmp_path, tiny_model, capsys, method):
    model = tmp_path / "model"
    options = {"density": 1.0} if method == "ties_dense" else {}
    merge(base_folder, pair, method=method, save_model=str(model), scale=1.5, **options)
    assert capsys.readouterr().out.splitlines()[1:] == [f"wrote the model {model}"]
    assert listing(tmp_path) == listing_of_parts(tmp_path, "a", "b", "model")
    assert listing(model) == MODEL_FILES
    combine = {
        "ties_dense": disjoint_mean,
        "task_arithmetic": lambda one, other: one + other,
        "average": lambda one, other: (one + other) / 2,
    }[method]
    wanted, (first, second) = tiny_model(), map(dense_deltas, pair)
    state = wanted.state_dict()
    for name in first:
        state[name] += 1.5 * combine(first[name], second[name])
    opened = AutoModelForCausalLM.from_pretrained(model).eval()
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, wanted(ids).logits, rtol=0, atol=1e-4)
        assert not torch.allclose(opened(ids).logits, tiny_model()(ids).logits, atol=1e-2)
    assert AutoTokenizer.from_pretrained(model).eos_token == "<|end|>"
    facts = json.loads((model / "unlearn_pl.json").read_text())["merge"]
    assert (facts["method"], facts["scale"], facts["weights"]) == (method, 1.5, [1.0, 1.0])


def test_the_model_is_the_same_with_and_without_the_adapter_beside_it(base_folder, pair, tmp_path):
    merge(base_folder, pair, save_model=str(tmp_path / "alone"))
    merge(base_folder, pair, str(tmp_path / "adapter"), save_model=str(tmp_path / "both"))
    for name in MODEL_FILES:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_that_of_the_merged_model(base_folder, pair, tmp_path, dtype):
    merge(base_folder, pair, method="sce_dense", save_model=str(tmp_path / "model"), dtype=dtype)
    state = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in state.values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].form == "dense"])
def test_dense_methods_write_no_adapter(pair, tmp_path, method):
    before = listing(tmp_path)
    for save_model in (None, str(tmp_path / "model")):
        with pytest.raises(InputError) as caught:
            merge("./no-such-base", pair, str(tmp_path / "merged"), method=method, save_model=save_model)
        message = str(caught.value)
        assert message.startswith(f"method: {method} gives whole weights, which no adapter can hold")
        assert "save_model without output" in message
        assert message.endswith(f"use {method.removesuffix('_dense')}_svd")
    assert listing(tmp_path) == before


def test_a_tied_head_is_refused_for_a_model_but_not_for_an_adapter(tokenizer, tiny_model, tmp_path):
    config = tiny_model().config
    config.tie_word_embeddings = True
    base = tmp_path / "base"
    LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    pair = [
        write_adapter(tmp_path / name, tiny_model(), seed, target_modules=["lm_head"]) for seed, name in enumerate("ab")
    ]
    before = listing(tmp_path)
    with pytest.raises(InputError, match=r"adapters: lm_head shares its weights .*embed_tokens.weight and lm_head"):
        merge(str(base), pair, str(tmp_path / "merged"), save_model=str(tmp_path / "model"))
    assert listing(tmp_path) == before


# --- what is asked for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folders", [{}, {"adapters": ["a", "b"], "checkpoints": ["c", "d"]}])
def test_adapters_or_checkpoints_but_not_both(folders, tmp_path):
    with pytest.raises(InputError, match="adapters: either these or checkpoints must be given, and not both"):
        merge("./no-such-base", output=str(tmp_path / "merged"), **folders)
    assert listing(tmp_path) == []


def test_some_output_is_needed(pair):
    with pytest.raises(InputError, match="output: a folder for the merged adapter is needed, or save_model"):
        merge("./no-such-base", pair)


def test_the_base_is_not_loaded_for_an_adapter_alone(base_folder, pair, tmp_path, monkeypatch):
    """Its shapes are all that counts, and they do not need its weights."""
    merge(base_folder, pair, str(tmp_path / "wanted"), save_model=str(tmp_path / "model"))

    def fail(*_args, **_options):
        raise AssertionError("the base was loaded")

    monkeypatch.setattr("unlearn_pl.commands.merge.load_base", fail)
    monkeypatch.setattr("unlearn_pl.commands.merge.find_tokenizer", fail)
    merge(base_folder, pair, str(tmp_path / "merged"))
    for name in ADAPTER_FILES:
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "wanted" / name).read_bytes()
    with pytest.raises(AssertionError, match="was loaded"):
        merge(base_folder, pair, save_model=str(tmp_path / "other"))


def test_the_shapes_of_the_base_are_checked_without_its_weights(tiny_model, pair, tmp_path):
    config = tiny_model().config
    config.intermediate_size = 48
    config.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"base: does not fit the adapters: .*(gate|up|down)_proj has .out, in. "):
        merge(str(tmp_path / "base"), pair, str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoints": ["one"]}, "checkpoints: a merge needs at least 2 checkpoints, got 1"),
        ({"method": "ties_svd"}, "method: must be one of .*did you mean ties"),
        ({"output": None}, "output: full checkpoints give one model folder"),
        ({"save_model": "model"}, "output: full checkpoints give one model folder.*leave save_model out"),
        ({"svd_rank": 4}, "svd_rank: ties does not truncate"),
        ({"shard_gb": 0}, "shard_gb: must be a number above 0, got 0"),
        ({"output": "one"}, "output: one would replace one"),
    ],
)
def test_refusals_of_checkpoints_before_any_is_read(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        merge(**({"base": "./no-such-base", "checkpoints": ["one", "two"], "output": "merged"} | options))
    assert listing(tmp_path) == []


def test_scale_is_in_the_norm_that_is_printed(base_folder, pair, tmp_path, capsys):
    norms = []
    for scale in (1.0, -3.0):
        merge(base_folder, pair, str(tmp_path / str(scale)), method="della", scale=scale)
        norms.append(float(capsys.readouterr().out.splitlines()[0].split(" -> ")[1].split(";")[0]))
    assert norms[1] == pytest.approx(3 * norms[0], rel=1e-3)


def test_the_list_names_every_method():
    """Whole, in a terminal of any width: no name is cut off."""
    done = subprocess.run(
        [sys.executable, "-m", "unlearn_pl", "merge", "--list"],
        env=os.environ | {"COLUMNS": "40"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    words = set(done.stdout.split())
    assert words >= METHODS.keys() | KERNELS.keys()
    assert {"--density", "--majority-sign", "--epsilon", "--outliers", "--weights", "--scale"} <= words
    assert words >= {
        re.search(r"arXiv ([\d.]+)|doi (\S+)", kernel.paper).group(0).split()[1] for kernel in KERNELS.values()
    }


def test_checkpoints_and_what_an_adapter_can_hold_of_them(base_folder, tmp_path, tiny_model):
    """By the real command line: the mean of two models; an adapter of full rank from it gives the mean's logits."""
    states = []
    for number, name in enumerate(("one", "two")):
        model = tiny_model()
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "_proj" in key:
                    value.add_(torch.randn(value.shape, generator=draw) * 0.05)
        model.save_pretrained(tmp_path / name)
        states.append(model.state_dict())
    command = [sys.executable, "-m", "unlearn_pl"]
    folders = ["--checkpoints", str(tmp_path / "one"), str(tmp_path / "two")]
    run = [
        *command,
        "merge",
        "--base",
        base_folder,
        *folders,
        "--method",
        "average",
        "--output",
        str(tmp_path / "mean"),
    ]
    subprocess.run(run, check=True, capture_output=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "mean").eval()
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)
    assert AutoTokenizer.from_pretrained(tmp_path / "mean").eos_token == "<|end|>"
    again = subprocess.run(run, capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.startswith("unlearn-pl: error: --output: ")
    extract = [*command, "extract", "--base", base_folder, "--tuned", str(tmp_path / "mean"), "--rank", "16"]
    subprocess.run([*extract, "--output", str(tmp_path / "adapter")], check=True, capture_output=True)
    adapted = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "adapter")).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted, whole = merged(ids).logits, adapted(ids).logits
    assert not torch.allclose(tiny_model()(ids).logits, wanted, atol=1e-3)
    assert (whole - wanted).norm() < 0.7 * (tiny_model()(ids).logits - wanted).norm()  # the widest need rank 32
