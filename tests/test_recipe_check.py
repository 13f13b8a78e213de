"""A recipe refuses before its first stage what its later ones would refuse."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_runs import write_rows
from transformers import MixtralConfig, MixtralForCausalLM

from unlearn_pl.callbacks.evaluate import EvaluateDuringFit
from unlearn_pl.child import run_child
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.models.tiny import TinyModel
from unlearn_pl.recipe.check import Built, check_options, check_start
from unlearn_pl.recipe.fit import run_fit
from unlearn_pl.recipe.options import Balancing, Comparing, DuringFit, Merging, RecipeData, RecipeOptions
from unlearn_pl.recipe.prepare import Prepare, Subset
from unlearn_pl.recipe.recipe import Recipe
from unlearn_pl.recipe.run import each_seed, last_stage
from unlearn_pl.recipe.stage import Stage
from unlearn_pl.tasks.synthetic.benchmark import Synthetic
from unlearn_pl.training.memorise import Memorise

ROOT = str(Path(__file__).parents[1])


def fit_config(path: Path, **trainer: Any) -> str:
    content = {"model": {"objectives": {"ga": {"class_path": "NPO"}}, "lora": {"dropout": 0}}}
    path.write_text(yaml.safe_dump(content | {"trainer": {"accelerator": "cpu", **trainer}}))
    return str(path)


@pytest.fixture
def recipe(base_folder: str, tmp_path: Path) -> RecipeOptions:
    config = fit_config(tmp_path / "fit.yaml")
    data = RecipeData(**write_rows(tmp_path))
    return RecipeOptions(
        name="r", over=config, under=config, logs=str(tmp_path / "logs"), seed=1, base=base_folder, data=data
    )


def check(options: RecipeOptions) -> None:
    """As `run` checks, before its first stage."""
    check_options(options)
    check_start(Recipe(options))


def test_what_can_be_run_passes(recipe: RecipeOptions) -> None:
    check(recipe)
    assert not Recipe(recipe).folder.exists(), "looking leaves nothing"


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "x"}}}, "tensorboard"),
        ({"fit_args": "--trainer.nonsense=1"}, "nonsense"),
        ({"accelerator": "cuda"}, "accelerator"),
    ],
)
def test_a_fit_that_cannot_start_is_refused(
    recipe: RecipeOptions, trainer: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the second fit, whatever of it is wrong: in our words or in the parser's."""
    extra = trainer.pop("fit_args", None)
    under = fit_config(tmp_path / "under.yaml", **trainer)
    with pytest.raises((InputError, SystemExit)) as refused:
        check(replace(recipe, under=under, fit_args=[extra] if extra else []))
    assert message in str(refused.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("fit_args", "message"),
    [
        (["--trainer.default_root_dir=elsewhere"], "folders of their own, got elsewhere"),
        (["--trainer.fast_dev_run=true"], "leaves no adapter"),
        (["--help"], "^fit_args: must be arguments with which a fit trains, not one"),
        (["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"], "is not supported"),
        (["--trainer.precision=16-true"], "^over: .*fit.yaml cannot be run here: --trainer.precision"),
        (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt, which is no file"),
    ],
)
def test_fits_that_would_leave_no_adapter_are_refused(recipe: RecipeOptions, fit_args: list[str], message: str) -> None:
    """Before the model has memorised anything."""
    with pytest.raises(InputError, match=message):
        check(replace(recipe, fit_args=fit_args))


def test_an_argument_of_a_fit_is_named_as_it_was_given(
    recipe: RecipeOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as it would be searched for in the recipe's own command line."""
    with pytest.raises(SystemExit):
        check(replace(recipe, fit_args=["--model.lora.dora=true"]))
    told = capsys.readouterr().err
    assert re.search(
        r"error: --over: .*fit.yaml cannot be run here: --model.lora.dora: no option 'dora'; Lora takes", told
    )


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (Prepare(Synthetic(questions=0), None, TinyModel(), Memorise()), "prepare.synthetic.questions: must be"),
        (Prepare(Synthetic(), None, TinyModel(hidden=7), Memorise()), "prepare.tiny.hidden: must be"),
        (Prepare(Synthetic(), None, TinyModel(), Memorise(epochs=0)), "prepare.memorise.epochs: must be"),
        (Prepare(Synthetic(), None, TinyModel(), Memorise(weight_decay=-1)), "prepare.memorise.weight_decay: must"),
        (Prepare(Synthetic(), None, TinyModel(), Memorise(accelerator="no")), "prepare.memorise.accelerator: "),
    ],
)
def test_what_cannot_be_prepared_is_refused(recipe: RecipeOptions, prepare: Prepare, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(replace(recipe, prepare=prepare, base=None, data=RecipeData()))


def test_what_a_recipe_would_not_read_is_refused(recipe: RecipeOptions) -> None:
    tiny = Prepare(Synthetic(), None, TinyModel(), Memorise())
    with pytest.raises(InputError, match=r"^base: not used where the recipe builds a tiny model"):
        check(replace(recipe, prepare=tiny, data=RecipeData()))
    with pytest.raises(InputError, match=r"^data\.forget: not used where the recipe makes its own rows"):
        check(replace(recipe, prepare=tiny, base=None))
    subset = Prepare(None, Subset(), None, Memorise())
    with pytest.raises(InputError, match=r"^data\.documents_per_task: not used"):
        check(replace(recipe, prepare=subset, data=replace(recipe.data, documents_per_task=1)))
    with pytest.raises(InputError, match=r"^documents_per_task: must be at least 1, or null for all, got 0"):
        Subset(documents_per_task=0)


@pytest.mark.parametrize("name", ["", ".", "../elsewhere", "/tmp", "a/../b", "a\nb", "a\0", "a/" + "b" * 256])
def test_a_recipe_stays_below_its_logs(recipe: RecipeOptions, name: str) -> None:
    with pytest.raises(InputError, match=r"^name: must be the name of a folder below logs"):
        check(replace(recipe, name=name))


def test_every_part_of_a_recipe_may_run_the_code_of_its_base(recipe: RecipeOptions) -> None:
    assert "--model.trust_remote_code=true" not in Recipe(recipe).fit_arguments("over", str(recipe.over))
    trusting = Recipe(replace(recipe, trust_remote_code=True))
    assert "--model.trust_remote_code=true" in trusting.fit_arguments("over", str(recipe.over))


def test_a_recipe_is_a_graph(recipe: RecipeOptions) -> None:
    """Four fits, two merges of them and a search; each is a stage, and each is scored."""
    config = str(recipe.over)
    graph = replace(
        recipe, over=None, under=None, fits=dict.fromkeys(("a", "b", "c", "npo"), config),
        merges={"ab": Merging(of=["a", "b"]), "abc": Merging(of=["a", "b", "c"], weights=[1, 1, 1], method="linear")},
        searches={"ca": Balancing(of=["c", "a"])}, membership=Membership(nonmember=config),
    )  # fmt: skip
    check_options(graph)
    stages = list(Recipe(graph).stages())
    models = ["a", "b", "c", "npo", "ab", "abc", "ca"]
    assert [stage.name for stage in stages] == [*models, *(f"evaluate {name}" for name in ("base", *models))]
    folder = Recipe(graph).folder
    assert stages[5].reads == (*(folder / name / "adapter" for name in ("a", "b", "c")), Path(str(graph.base)))
    assert [last_stage(stages, until) for until in ("c", "fit", "merge")] == [2, 3, 5]
    assert last_stage(stages, None) is last_stage(stages, "evaluate") is None
    with pytest.raises(InputError, match=r"^until: must be a stage of this recipe, one of fit, merge, .*, got base"):
        last_stage(stages, "base")


def test_a_stage_knows_what_it_depends_on_and_no_more(recipe: RecipeOptions, tmp_path: Path) -> None:
    """What a score depends on is among the inputs of its stage; a search does not run again for what it never asks."""
    config, retrained = str(recipe.over), tmp_path / "retrained"
    retrained.mkdir()
    (retrained / "results.json").touch()
    plain = replace(recipe, balance=Balancing(), membership=Membership(nonmember=config))
    more = replace(plain, resamples=7, reference=recipe.base, retrained=str(retrained))

    def stages(options: RecipeOptions) -> dict[str, Stage]:
        return {stage.name: stage for stage in Recipe(options).stages()}

    one, other = stages(plain), stages(more)
    for name in ("over", "merged", "balanced"):
        assert (one[name].settings, one[name].reads) == (other[name].settings, other[name].reads)
    assert one["evaluate over"].settings != other["evaluate over"].settings
    added = set(other["evaluate merged"].reads) - set(one["evaluate merged"].reads)
    assert added == {Path(str(recipe.base)), retrained / "results.json"}
    for changed in (
        replace(plain, dtype="bfloat16"),
        replace(plain, membership=Membership(nonmember=config, tasks=["a"])),
    ):
        assert stages(changed)["balanced"].settings != one["balanced"].settings


def test_a_fit_depends_on_what_its_configuration_names(recipe: RecipeOptions, tmp_path: Path) -> None:
    """An adapter to go on from, the other side of a merge, documents; but not what the recipe gives in its place."""
    for name in ("start", "other", "old", "member.jsonl", "unread"):
        (tmp_path / name).mkdir()
    merge = {"with_adapter": f"{tmp_path}/other", "membership": {"member": f"{tmp_path}/member.jsonl"}}
    content = yaml.safe_load(Path(str(recipe.over)).read_text())
    content["model"] |= {"base": f"{tmp_path}/old", "reference_cache": {"folder": f"{tmp_path}/unread"}}
    content["trainer"]["callbacks"] = [{"class_path": "MergeAfterFit", "init_args": merge}]
    config = tmp_path / "more.yaml"
    config.write_text(yaml.safe_dump(content))
    options = replace(recipe, over=str(config), fit_args=[f"--model.adapter={tmp_path}/start"])
    fit = next(iter(Recipe(options).stages()))
    given = (config, Path(str(recipe.base)), recipe.data.forget, recipe.data.retain)
    named = (tmp_path / name for name in ("start", "other", "member.jsonl"))
    assert {*fit.reads} == {Path(str(path)) for path in (*given, *named)}


def test_the_short_forms_are_the_graph_of_the_paper(recipe: RecipeOptions) -> None:
    """`over`, `under`, `merging` and `balance` at the top, as recipes had them before there were others."""
    config = str(recipe.over)
    short = replace(recipe, merging=Merging(density=0.5), balance=Balancing(grid=3))
    long = replace(
        recipe, over=None, under=None, fits={"over": config, "under": config},
        merges={"merged": Merging(density=0.5)}, searches={"balanced": Balancing(grid=3)},
    )  # fmt: skip
    for one, other in zip(Recipe(short).stages(), Recipe(long).stages(), strict=True):
        assert (one.name, one.settings, one.reads, one.outputs) == (
            other.name, other.settings, other.reads, other.outputs,
        )  # fmt: skip
    assert Recipe(recipe).models == ("base", "over", "under", "merged"), "two fits are merged without being told"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"over": None, "under": None}, "fits: needed: a recipe trains at least one adapter"),
        ({"over": "nowhere.yaml"}, "over: nowhere.yaml is not a file; it must be a configuration of `unlearn-pl fit`"),
        ({"fits": {"x": "nowhere.yaml"}}, r"fits\.x: nowhere.yaml is not a file"),
        ({"fits": {"data": "y.yaml"}}, r"fits\.data: 'data' cannot name a folder beside data, base"),
        ({"fits": {"a/b": "y.yaml"}}, r"fits\.a/b: 'a/b' cannot name a folder"),
        ({"fits": {"table.md": "y.yaml"}}, r"fits\.table\.md: 'table\.md' cannot name a folder"),
        ({"fits": {1: "y.yaml"}}, r"fits\.1: 1 cannot name a folder"),
        ({"fits": {"a" * 300: "y.yaml"}}, r"fits\.a+: 'a+' cannot name a folder"),
        (
            {"merges": {"over": Merging()}},
            "over: 'over' names two of the recipe's fits, merges, searches and comparisons",
        ),
        ({"merges": {"m": Merging(of=["over"])}}, r"merges\.m\.of: must name at least 2 fits, got 1"),
        ({"merges": {"m": Merging(of=["over", "up"])}}, r"merges\.m\.of: must be among the fits over, under, got up"),
        ({"merging": Merging(of=["over", "over"])}, r"merging\.of: must name different fits, got over, over"),
        ({"balance": Balancing(of=["over", "under", "over"])}, r"balance\.of: must name 2 fits, got 3"),
        ({"comparisons": {"all": Comparing(of=["over"])}}, r"comparisons\.all\.of: must name 2 fits, got 1"),
        ({"comparisons": {"over": Comparing()}}, "over: 'over' names two of the recipe's"),
        ({"comparisons": {"tables": Comparing()}}, r"comparisons\.tables: 'tables' cannot name a folder beside"),
        ({"seeds": [1, -1]}, "seeds: must be from 0 to 4294967295, got -1"),
        ({"seeds": [1, 2, 1]}, "seeds: must be different seeds, got 1, 2, 1"),
    ],
)
def test_a_graph_that_does_not_fit_together_is_refused(
    recipe: RecipeOptions, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        check_options(replace(recipe, **change))


def test_documents_and_questions_that_are_not_there_are_refused(recipe: RecipeOptions, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"membership\.nonmember"):
        check(replace(recipe, membership=Membership(nonmember=str(tmp_path / "nowhere.jsonl"))))
    prepare = Prepare(Synthetic(), None, TinyModel(), Memorise())
    prepared = replace(recipe, prepare=prepare, base=None, data=RecipeData())
    (tmp_path / "rows.jsonl").write_text('{"text": "no document"}')
    with pytest.raises(InputError, match=r"membership\.nonmember.*document"):
        check(replace(prepared, membership=Membership(nonmember=str(tmp_path / "rows.jsonl"))))
    with pytest.raises(InputError, match="nowhere"):
        check(replace(recipe, choice=Choice(folder=str(tmp_path / "nowhere"))))
    with pytest.raises(InputError, match="needed, the attack on them scores the merges"):
        check(replace(recipe, balance=Balancing()))
    with pytest.raises(InputError, match="needed, the attack on them scores the merges"):
        check(replace(recipe, comparisons={"all": Comparing()}))


def test_fits_are_scored_while_they_train_as_the_recipe_scores_them(recipe: RecipeOptions, tmp_path: Path) -> None:
    """A callback with the recipe's own documents, questions and generation; none where it is not asked for."""
    assert not Recipe(recipe)._scored_while_training()
    (tmp_path / "other.jsonl").write_text('{"document": "one of no member"}\n')
    membership = Membership(nonmember=str(tmp_path / "other.jsonl"))
    scored = replace(recipe, membership=membership, choice=Choice(shots=2), during_fit=DuringFit(every_n_steps=7))
    built = Built(["fit", *Recipe(scored).fit_arguments("over", scored.all_fits["over"])])
    (callback,) = [one for one in built.trainer.callbacks if isinstance(one, EvaluateDuringFit)]
    assert (callback.every_n_epochs, callback.every_n_steps) == (1, 7)
    assert (callback.options.membership, callback.options.choice) == (membership, Choice(shots=2))


def test_a_recipe_for_each_seed(recipe: RecipeOptions) -> None:
    assert each_seed(recipe) == [recipe]
    several = each_seed(replace(recipe, seeds=[5, 7]))
    assert [(one.name, one.seed, one.seeds) for one in several] == [("r/seed_5", 5, []), ("r/seed_7", 7, [])]
    assert {Recipe(one).folder.parent for one in several} == {Recipe(recipe).folder}


def test_adapters_that_cannot_be_merged_are_refused_before_they_are_trained(
    recipe: RecipeOptions, tmp_path: Path
) -> None:
    """PEFT adapts the experts of a Mixtral as bare parameters."""
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "mixtral")
    with pytest.raises(InputError, match=r"^over: the adapter that .*fit.yaml describes cannot be merged: .*param"):
        check(replace(recipe, base=str(tmp_path / "mixtral")))


def test_a_fit_that_was_killed_is_told_apart_from_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, message in (
        (-9, r"ended by signal 9 \(.*memory.*\); run the same command again"),
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
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["earlier-interrupted.ckpt", "earlier-last.ckpt"], "those of other inputs are set aside, not deleted"
    assert run_child(["false"]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a child")
def test_a_child_ends_in_its_own_way_when_its_parent_is_killed(tmp_path: Path) -> None:
    """SIGKILL, or the memory running out, leaves `run` no time to hand anything on."""
    script = "trap 'echo stopped > told; exit' TERM; echo > begun; for _ in $(seq 600); do sleep 0.05; done"
    program = f"from unlearn_pl.child import run_child; run_child(['sh', '-c', {script!r}])"
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": ROOT})
    try:
        wait_for(tmp_path / "begun", 60)
    finally:
        parent.kill()
        parent.wait()
    wait_for(tmp_path / "told", 10)


def wait_for(path: Path, seconds: float) -> None:
    """Until a process has written the file."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.05)
