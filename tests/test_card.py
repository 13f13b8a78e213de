"""The model card: what the hub reads of it, and that nothing in it is a mark."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from run_folders import write_run

from unlearn_pl.report.card import model_card, told
from unlearn_pl.report.reading import read_run
from unlearn_pl.report.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_run(write_run(tmp_path / "demo"))


def with_base(run: Run, base: str) -> Run:
    """The run of another base model."""
    fits = {name: replace(fit, config={**fit.config, "model": {"base": base}}) for name, fit in run.fits.items()}
    return replace(run, fits=fits)


def test_the_hub_reads_its_head(run: Run) -> None:
    """The scores under the model's name, and the base where it is one of the hub."""
    card = ModelCard(model_card(with_base(run, "allenai/OLMo-1B-0724-hf")) or "")
    assert card.data.library_name == "peft"
    assert (card.data.base_model, card.data.base_model_relation) == ("allenai/OLMo-1B-0724-hf", "adapter")
    assert card.data.model_name == "balanced"
    read = {one.metric_type: one.metric_value for one in card.data.eval_results}
    results = run.models["balanced"].results
    assert read == {key: results[key] for key in read}
    assert "aggregate" in read
    assert ModelCard(model_card(run) or "").data.base_model is None  # a folder


def test_a_merged_model_is_one_of_transformers(run: Run) -> None:
    path = run.folder / "merged/model/config.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    card = ModelCard(model_card(with_base(run, "a/b"), "merged") or "")
    assert (card.data.library_name, card.data.base_model_relation, card.data.model_name) == (
        "transformers", "finetune", "merged"
    )  # fmt: skip


def test_a_score_that_was_not_measured_is_not_in_the_head(run: Run) -> None:
    results = {**run.models["balanced"].results, "mmlu": None}
    found = replace(run, models={"balanced": replace(run.models["balanced"], results=results)})
    types = [one.metric_type for one in ModelCard(model_card(found) or "").data.eval_results]
    assert "mmlu" not in types
    assert "task_aggregate" in types


def test_its_body_has_verdict_numbers_and_origin(run: Run) -> None:
    text = model_card(run) or ""
    for part in (
        "**Forgotten?**",
        "## What was not measured",
        "merge method: ties",
        "SHA-256 " + "3" * 64,
        "commit: 22cb6b1",
    ):
        assert part in text, part
    assert model_card(run) == text


def test_names_and_notes_are_text(run: Run) -> None:
    bad = "<script>alert(1)</script> [x](http://y)\n# head"
    results = {**run.models["over"].results, "notes": [bad]}
    found = Run(name=bad, folder=run.folder, models={bad: replace(run.models["over"], results=results)})
    text = model_card(found) or ""
    body = text.split("---\n", 2)[2]
    assert "<script" not in body.replace("\\<", "")
    assert "](" not in body.replace("\\](", "")
    assert "\n# head" not in body
    assert ModelCard(text).data.model_name == bad


def test_no_path_of_this_machine_is_in_it(run: Run, tmp_path: Path) -> None:
    path = run.folder / "balanced/adapter/unlearn_pl.json"
    facts = json.loads(path.read_text())
    facts["merge"]["adapters"][0]["folder"] = str(tmp_path / "demo/over/adapter")
    path.write_text(json.dumps(facts))
    text = model_card(with_base(read_run(run.folder), str(tmp_path / "base"))) or ""
    assert str(tmp_path) not in text
    assert "adapter over/adapter, SHA-256" in text
    assert (told(None), told("a/b/c")) == ("not known", "a/b/c")


def test_without_a_model_there_is_no_card(run: Run) -> None:
    assert model_card(replace(run, models={})) is None
