"""Bases that bring their own Python code, and adapters that bring their own tokenizer: in each command that merges."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import transformers.dynamic_module_utils as dynamic
from adapter_folders import write_adapter
from merge_choice import merge
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_pl.balance.options import BalanceOptions
from unlearn_pl.commands.balance import balance
from unlearn_pl.commands.compare_merges import compare_merges
from unlearn_pl.commands.extract import extract
from unlearn_pl.commands.scoring import ScoringOptions
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.inputs import EvaluationData
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.inference.generation import Generation

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own-llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def adapters(tmp_path, tiny_model):
    return [write_adapter(tmp_path / name, tiny_model(), seed) for seed, name in enumerate(("over", "under"))]


@pytest.fixture
def own(base_folder, tmp_path, monkeypatch):
    """The tiny model as a folder that only opens with its own code."""
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(shutil.copytree(base_folder, tmp_path / "own"))
    (folder / "own_llama.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own-llama", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "own_llama.OwnConfig", "AutoModelForCausalLM": "own_llama.OwnForCausalLM"
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def scored(tmp_path):
    """What `balance` and `compare-merges` need besides."""
    for split in ("forget", "retain"):
        rows = [{"id": f"{split}{kind}", "input": f"{kind}:", "output": "it", "task": "T"} for kind in ("sc1", "qa0")]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for side in ("Rome", "Oslo"):
        texts = [{"document": f"{name} was born in {side}."} for name in ("Anna", "Ida", "Bo", "Cy")]
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    membership = Membership(member=str(tmp_path / "Rome.jsonl"), nonmember=str(tmp_path / "Oslo.jsonl"))
    options = ScoringOptions(membership=membership, generation=Generation(max_new_tokens=2))
    return EvaluationData(str(tmp_path / "forget.jsonl"), str(tmp_path / "retain.jsonl")), options


FEW = BalanceOptions(methods=["cat"], scales=[1.0], evaluations=1, splits=1, grid=2)


def test_own_code_runs_where_it_is_trusted_and_only_there(own, adapters, scored, tmp_path):
    def commands(trust):
        name = f"{tmp_path}/{trust}"
        given, (data, scoring) = {"trust_remote_code": trust}, scored
        options = replace(scoring, trust_remote_code=trust)
        return {
            "adapter": lambda: merge(own, adapters, name + "a", **given),
            "model": lambda: merge(own, adapters, save_model=name + "m", **given),
            "checkpoints": lambda: merge(own, None, name + "c", [own, own], **given),
            "extract": lambda: extract(own, own, name + "x", rank=2, **given),
            "balance": lambda: balance(own, adapters, data, name + "b", FEW, options=options),
            "compare": lambda: compare_merges(own, adapters, data, name + "o", ["cat"], options=options),
        }

    for command in commands(False).values():
        with pytest.raises(InputError, match=r"trust_remote_code|custom code"):
            command()
    for command in commands(True).values():
        command()
    for written in ("Truem", "Truec"):
        assert "OwnForCausalLM" in (tmp_path / written / "own_llama.py").read_text()
        AutoModelForCausalLM.from_pretrained(tmp_path / written, trust_remote_code=True)


def test_an_adapters_own_tokenizer_is_asked_for_and_kept(base_folder, adapters, scored, tokenizer, tmp_path):
    """One token more than the base's has: a merge without a word would lose it."""
    folder, (data, options) = Path(adapters[1]), scored
    other = AutoTokenizer.from_pretrained(base_folder)
    other.add_tokens(["<|q|>"])
    other.save_pretrained(folder)
    for command in (
        lambda: merge(base_folder, adapters, str(tmp_path / "m")),
        lambda: merge(base_folder, adapters, save_model=str(tmp_path / "m")),
        lambda: balance(base_folder, adapters, data, str(tmp_path / "m"), FEW, options=options),
        lambda: compare_merges(base_folder, adapters, data, str(tmp_path / "m"), ["cat"], options=options),
    ):
        with pytest.raises(InputError, match=r"^tokenizer: .*under holds another tokenizer than .*<\|q\|>"):
            command()
    assert not (tmp_path / "m").exists()
    merge(base_folder, adapters, str(tmp_path / "m"), save_model=str(tmp_path / "model"), tokenizer=str(folder))
    balance(base_folder, adapters, data, str(tmp_path / "b"), FEW, options=replace(options, tokenizer=str(folder)))
    for place in ("m", "model", "b/adapter"):
        assert "<|q|>" in AutoTokenizer.from_pretrained(tmp_path / place).get_vocab()
    merge(base_folder, adapters, str(tmp_path / "n"), tokenizer=base_folder)
    assert "<|q|>" not in AutoTokenizer.from_pretrained(tmp_path / "n").get_vocab()
    with pytest.raises(InputError, match=r"^tokenizer: is for adapters"):
        merge(base_folder, None, str(tmp_path / "x"), [base_folder, base_folder], tokenizer=base_folder)
