"""A recipe refuses before its first stage what its later ones would refuse."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_runs import write_rows
from transformers import MixtralConfig, MixtralForCausalLM

from unlearn_pl.balance.search import BalanceOptions
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.generation import Generation
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.recipe.check import check_start
from unlearn_pl.recipe.fit import run_child, run_fit
from unlearn_pl.recipe.recipe import Merging, Recipe, RecipeData


def fit_config(path: Path, **trainer: Any) -> str:
    content = {"model": {"objectives": {"ga": {"class_path": "NPO"}}, "lora": {"dropout": 0}}}
    path.write_text(yaml.safe_dump(content | {"trainer": {"accelerator": "cpu", **trainer}}))
    return str(path)


@pytest.fixture
def recipe(base_folder: str, tmp_path: Path) -> Recipe:
    config = fit_config(tmp_path / "fit.yaml")
    data = RecipeData(**write_rows(tmp_path))
    return Recipe(
        "r", config, config, tmp_path / "logs", 1, base_folder, data, None, Merging(), None, Membership(), Choice(),
        Generation(), (),
    )  # fmt: skip


def test_what_can_be_run_passes(recipe: Recipe) -> None:
    check_start(recipe)
    assert not recipe.folder.exists(), "looking leaves nothing"


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "x"}}}, "tensorboard"),
        ({"fit_args": "--trainer.nonsense=1"}, "nonsense"),
        ({"accelerator": "cuda"}, "accelerator"),
    ],
)
def test_a_fit_that_cannot_start_is_refused(
    recipe: Recipe, trainer: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the second fit, whatever of it is wrong: in our words or in the parser's."""
    extra = trainer.pop("fit_args", None)
    under = fit_config(tmp_path / "under.yaml", **trainer)
    with pytest.raises((InputError, SystemExit)) as refused:
        check_start(replace(recipe, under=under, fit_args=(extra,) if extra else ()))
    assert message in str(refused.value) + capsys.readouterr().err


def test_documents_and_questions_that_are_not_there_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--membership\.nonmember"):
        check_start(replace(recipe, membership=Membership(nonmember=str(tmp_path / "nowhere.jsonl"))))
    with pytest.raises(InputError, match="nowhere"):
        check_start(replace(recipe, choice=Choice(folder=str(tmp_path / "nowhere"))))
    with pytest.raises(InputError, match="needed, the attack on them steers the balance search"):
        replace(recipe, balance=BalanceOptions())


def test_adapters_that_cannot_be_merged_are_refused_before_they_are_trained(recipe: Recipe, tmp_path: Path) -> None:
    """PEFT adapts the experts of a Mixtral as bare parameters."""
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "mixtral")
    with pytest.raises(InputError, match=r"--over: the adapter that .*fit.yaml describes cannot be merged: .*param"):
        check_start(replace(recipe, base=str(tmp_path / "mixtral")))


def test_a_fit_that_was_killed_is_told_apart_from_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, message in (
        (-9, "ended by signal 9; run the same command again"),
        (143, "signal 15"),
        (2, "code 2; fix"),
    ):
        monkeypatch.setattr("unlearn_pl.recipe.fit.run_child", lambda command, code=code: code)
        with pytest.raises(InputError, match=f"stage over: the fit above .*{message}"):
            run_fit("over", ["fit"], tmp_path, interrupted=False)
    monkeypatch.setattr("unlearn_pl.recipe.fit.run_child", lambda command: 0)
    with pytest.raises(InputError, match=r"stage over: .*adapter has no adapter_config.json"):
        run_fit("over", ["fit"], tmp_path, interrupted=False)


def test_a_fit_goes_on_from_its_newest_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("unlearn_pl.recipe.fit.run_child", lambda command: commands.append(command) or 1)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for age, name in enumerate(("interrupted.ckpt", "last.ckpt")):
        (folder / name).touch()
        os.utime(folder / name, (age, age))
    for interrupted in (True, False):
        with pytest.raises(InputError, match="ended with exit code 1"):
            run_fit("over", ["fit"], tmp_path, interrupted)
    assert commands[0][-1] == f"--ckpt_path={folder / 'last.ckpt'}"
    assert commands[1][-1] == "fit"
    assert list(folder.iterdir()) == [], "those of other inputs are gone"
    assert run_child(["false"]) == 1
