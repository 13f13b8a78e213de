"""Whole recipes and launches in processes of their own, small enough for a test."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MODELS = ("base", "over", "under", "merged", "balanced")
OUTPUTS = ("results.json", "samples.jsonl", "documents.jsonl")
SCORES = {"task_aggregate", "membership_auc", "membership_score", "mmlu", "aggregate", "terms"}


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "unlearn_pl", *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def fit_config(folder: Path, name: str, batch_size: int, callbacks: list[Any]) -> None:
    """A configuration like the demo's, for a model that is much smaller."""
    terms = {"ga": ("NPO", 0.4), "gd": ("RetainKL", 0.3), "gk": ("RetainNLL", 0.3)}
    content = {
        "model": {
            "base": "logs/small/base",
            "objectives": {s: {"class_path": c, "init_args": {"weight": w}} for s, (c, w) in terms.items()},
            "lora": {"rank": 4},
            "learning_rate": 0.005,
        },
        "data": {
            "forget": "logs/small/data/forget.jsonl",
            "retain": "logs/small/data/retain.jsonl",
            "batch_size": batch_size,
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
            "default_root_dir": f"logs/small/{name}",
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "${trainer.default_root_dir}", "name": "", "version": ""},
            },
            "callbacks": callbacks,
        },
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small recipe has run once."""
    folder = tmp_path_factory.mktemp("recipe")
    angles = [
        {"class_path": "WeightSnapshot", "init_args": {"steps": [2]}},
        {"class_path": "AngleAnalysis", "init_args": {"pivot": 2}},
    ]
    fit_config(folder, "over", 2, angles)
    fit_config(folder, "under", 4, [])
    content = {
        "name": "small",
        "seed": 3,
        "over": "over.yaml",
        "under": "under.yaml",
        "prepare": {
            "synthetic": {"documents_per_task": 1, "nonmembers_per_task": 2, "questions": 2},
            "tiny": {"vocabulary": 300, "hidden": 32, "layers": 1, "heads": 2, "intermediate": 32},
            "memorise": {"epochs": 1, "batch_size": 8, "learning_rate": 0.001, "max_length": 128},
        },
        "balance": {"methods": ["cat"], "scales": [1.0], "evaluations": 1, "splits": 1},
        "choice": {"shots": 1},
        "generation": {"max_new_tokens": 4},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    command(folder, "run", "small.yaml")
    return folder


def test_a_recipe_leaves_exactly_these_files(recipe: Path) -> None:
    logs = recipe / "logs/small"
    hidden = {"mmlu", "parts"}  # questions; finished parts, whose names are hashes
    files = {str(path.relative_to(logs)) for path in logs.rglob("*") if path.is_file() and not hidden & {*path.parts}}
    adapter = ("adapter_config.json", "adapter_model.safetensors", "unlearn_pl.json")
    model = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    expected = {
        f"data/{name}"
        for name in (
            "forget.jsonl",
            "retain.jsonl",
            "knowledge.jsonl",
            "membership/member.jsonl",
            "membership/nonmember.jsonl",
        )
    }
    expected |= {f"base/{name}" for name in model}
    expected |= {f"{run}/adapter/{name}" for run in ("over", "under", "merged", "balanced") for name in adapter}
    expected |= {f"balanced/balance.{ending}" for ending in ("json", "md", "png")}
    expected |= {f"over/snapshots/step_{step}/{name}" for step in (0, 2) for name in adapter}
    expected |= {
        f"{run}/{name}" for run in ("over", "under") for name in ("config.yaml", "hparams.yaml", "metrics.csv")
    }
    expected |= {
        "over/checkpoints/epoch=0-step=5.ckpt",
        "under/checkpoints/epoch=0-step=3.ckpt",
        "over/angles.json",
        "over/angles.png",
    }
    expected |= {f"{run}/spectrum.json" for run in ("over", "under", "merged", "balanced")}
    expected |= {f"{run}/anatomy.json" for run in ("merged", "balanced")}
    expected |= {f"merged/model/{name}" for name in (*model, "unlearn_pl.json")}
    expected |= {f"evaluation/{name}/{file}" for name in MODELS for file in OUTPUTS}
    stages = ("data", "base", "over", "under", "merged", "balanced", *(f"evaluate {name}" for name in MODELS))
    expected |= {f"stages/{stage}.json" for stage in stages}
    shown = {file for file in files if file.startswith(("figures/", "tables/"))}
    assert files - shown == expected | {"summary.json", "table.md", "report.html", "MODEL_CARD.md"}
    paper = {"figures/losses", "figures/angles_over", "figures/log_probabilities", "tables/table_1", "tables/table_3"}
    assert paper <= {file.rpartition(".")[0] for file in shown}
    endings = {"figures": {"svg", "pdf", "png"}, "tables": {"md", "tex", "csv"}}
    for stem in {file.rpartition(".")[0] for file in shown}:
        of_stem = {file.rpartition(".")[2] for file in shown if file.rpartition(".")[0] == stem}
        assert of_stem == endings[stem.split("/")[0]]


def test_the_summary_keeps_its_contract(recipe: Path) -> None:
    summary = json.loads((recipe / "logs/small/summary.json").read_text())
    assert summary["models"].keys() == set(MODELS)
    assert summary["seed"] == 3
    assert summary["seconds"] > 0
    for scores in summary["models"].values():
        assert scores.keys() == SCORES
        assert len(scores["terms"]) == 12
        assert all(0 <= scores[key] <= 1 for key in SCORES - {"terms"})


def test_both_fits_start_from_the_same_factors_and_the_merge_opens(recipe: Path) -> None:
    logs = recipe / "logs/small"
    facts = [json.loads((logs / name / "adapter/unlearn_pl.json").read_text()) for name in ("over", "under")]
    assert facts[0]["lora_init_sha256"] == facts[1]["lora_init_sha256"]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(logs / "base"), str(logs / "merged/adapter"))
    AutoModelForCausalLM.from_pretrained(logs / "merged/model")


def test_finished_stages_are_skipped_and_changed_ones_are_not(recipe: Path) -> None:
    again = command(recipe, "run", "small.yaml")
    assert again.stdout.count("finished before with the same inputs") == 11
    weights = recipe / "logs/small/under/adapter/adapter_model.safetensors"
    before = load_file(weights)
    weights.unlink()  # as if the run had been interrupted there
    repaired = command(recipe, "run", "small.yaml")
    assert "== under\n" in repaired.stdout
    assert repaired.stdout.count("finished before with the same inputs") >= 7
    for name, value in load_file(weights).items():
        assert value.equal(before[name]), "the same seed gives the same adapter"


def test_evaluate_twice_gives_the_same_bytes(recipe: Path) -> None:
    rows = [f"--data.{split}=logs/small/data/{split}.jsonl" for split in ("forget", "retain")]
    for output in ("first", "second"):
        command(
            recipe,
            "evaluate",
            "--model=logs/small/base",
            "--adapter=logs/small/over/adapter",
            *rows,
            "--generation.max_new_tokens=3",
            f"--output={output}",
        )
    for name in OUTPUTS:
        assert (recipe / "first" / name).read_bytes() == (recipe / "second" / name).read_bytes()


def test_two_processes_train_merge_and_score_with_wandb_offline(recipe: Path) -> None:
    """DDP on the CPU: both ranks search the balance, one merged adapter, every row scored once, the scores in the
    offline run."""
    root = recipe / "ddp"
    for side, place in (("member", "Rome"), ("nonmember", "Oslo")):
        texts = [json.dumps({"document": f"Anna {i} was born in {place} on day {i}."}) for i in range(10)]
        (recipe / f"{side}.jsonl").write_text("\n".join(texts) + "\n")
    arguments = [
        "--config=over.yaml",
        "--seed_everything=3",
        f"--trainer.default_root_dir={root}",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.logger=WandbLogger",
        "--trainer.logger.offline=true",
        f"--trainer.logger.save_dir={root}",
        "--trainer.callbacks+=MergeAfterFit",
        "--trainer.callbacks.with_adapter=logs/small/under/adapter",
        "--trainer.callbacks.over=true",
        "--trainer.callbacks.balance.methods=[cat]",
        "--trainer.callbacks.balance.scales=[1.0]",
        "--trainer.callbacks.balance.evaluations=1",
        "--trainer.callbacks.membership.member=member.jsonl",
        "--trainer.callbacks.membership.nonmember=nonmember.jsonl",
        "--trainer.callbacks.generation.max_new_tokens=3",
        "--trainer.callbacks+=EvaluateDuringFit",
        "--trainer.callbacks.generation.max_new_tokens=3",
    ]
    command(recipe, "fit", *arguments, WANDB_MODE="offline")
    facts = json.loads((root / "adapter/unlearn_pl.json").read_text())
    assert facts["step"] == 3, "ten forget rows, two a process and step"
    found = json.loads((root / "merged/balance.json").read_text())
    assert found["documents"]["member"] == 10
    merged = json.loads((root / "merged/adapter/unlearn_pl.json").read_text())["merge"]
    assert merged["weights"] == found["chosen"]["weights"][0]
    assert (root / "merged/adapter/adapter_model.safetensors").is_file()
    assert (root / "merged/model/model.safetensors").is_file()
    history = json.loads((root / "evaluations.json").read_text())
    assert [entry["step"] for entry in history] == [0, 3]
    (run,) = (root / "wandb").glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    assert b"evaluation/task_aggregate" in record.read_bytes()
    assert b"figures/spectra" in record.read_bytes()
    assert b"balance/holdout_auc" in record.read_bytes()
    assert list(run.glob("files/media/images/figures/*.png"))
    assert b"was born in" not in record.read_bytes(), "a text of a document"
