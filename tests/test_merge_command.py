"""`merge` in this process: what it writes, prints, and leaves when it fails."""

import json
from pathlib import Path

import pytest
from adapter_folders import edit_tensors, write_adapter
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_pl.commands.merge import merge
from unlearn_pl.errors import InputError

ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "unlearn_pl.json"]


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
    assert listing(model) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "unlearn_pl.json",
    ]
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
    assert float(after) == pytest.approx(3 * float(before.split(" and ")[0]), rel=1e-3)


def test_outputs_are_refused_before_anything_is_read(pair, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(InputError, match=r"--output: .*full exists already"):
        merge("no/such/base/at/all", ["nothing", "here"], str(tmp_path / "full"))
    with pytest.raises(InputError, match=r"--save-model: .*full exists already"):
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
        with pytest.raises(InputError, match=r"--output: .* would replace"):
            merge(base_folder, pair, place, overwrite=True)
    with pytest.raises(InputError, match=r"--save-model: .* would replace"):
        merge(base_folder, pair, str(tmp_path / "x"), save_model=base_folder, overwrite=True)
    with pytest.raises(InputError, match=r"--save-model: must be apart from --output"):
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
