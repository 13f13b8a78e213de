"""The whole files that are damaged: a tiny base, its adapters, a checkpoint, a finished recipe, and rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from adapter_folders import write_adapter
from command_server import CommandServer
from damage import as_lines
from lightning_runs import write_rows
from run_folders import write_run
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Files = dict[str, bytes]


@dataclass(frozen=True)
class World:
    """Whole files by name, and where they are."""

    root: Path
    base: Files
    adapters: dict[str, Files]
    checkpoint: bytes
    """Of a fit of the base on the rows, after one step."""
    run: Files
    """A finished recipe."""

    def fixed(self, name: str) -> str:
        """The path of what is not damaged."""
        return str(self.root / name)

    @property
    def fit(self) -> dict[str, Any]:
        """A configuration of one training step."""
        slots = {
            "ga": {"class_path": "NPO", "init_args": {"weight": 0.4, "beta": 0.1}},
            "gk": {"class_path": "RetainNLL"},
        }
        cache = {"folder": self.fixed("cache"), "max_gigabytes": 1.0}
        lora = {"rank": 2, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
        rates = {"learning_rate": 1e-3, "weight_decay": 0.01, "warmup": "epoch"}
        model = {"base": self.fixed("base"), "objectives": slots, "lora": lora, "reference_cache": cache, **rates}
        rows = {split: self.fixed(f"{split}.jsonl") for split in ("forget", "retain")}
        data = {**rows, "batch_size": 2, "max_length": 64, "pairing": "shuffled", "columns": {"input": "input"}}
        callbacks = [{"class_path": "WeightSnapshot", "init_args": {"steps": [1]}}]
        trainer = {"accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 1, "callbacks": callbacks}
        return {"seed_everything": 3, "model": model, "data": data, "trainer": trainer}


BOUND = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.enable_checkpointing=false"]
BOUND += [
    "--trainer.default_root_dir=out",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
"""Whatever a configuration says, one step in one process."""


def read_files(folder: Path) -> Files:
    """Every file below a folder by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def under(prefix: str, files: Files) -> Files:
    """The files in a folder."""
    return {f"{prefix}/{name}": content for name, content in files.items()}


def make_world(root: Path, server: CommandServer, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> World:
    """Write and train what the cases need."""
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    write_rows(root, forget=4, retain=4)
    for name in ("member", "nonmember"):
        (root / f"{name}.jsonl").write_bytes(as_lines([{"document": f"The {name} {i} is in Paris."} for i in range(3)]))
    (root / "mmlu/test").mkdir(parents=True)
    (root / "mmlu/test/towns_test.csv").write_text(
        "Where is Paris?,France,Spain,Italy,Peru,A\nAnd Rome?,A,B,Italy,D,C\n"
    )
    for number, name in enumerate(("over", "under")):
        write_adapter(root / name, model.from_pretrained(root / "base"), seed=number, facts={"step": 1})
    write_run(root / "run")
    world = World(root, {}, {}, b"", {})
    (root / "fit.yaml").write_text(yaml.safe_dump(world.fit, sort_keys=False))
    words = ["--trainer.max_steps=1", "--trainer.default_root_dir=trained", "--trainer.limit_val_batches=0"]
    done = server.run(root, "fit", "--config", "fit.yaml", *words)
    assert done.code == 0, done.err
    (checkpoint,) = (root / "trained").rglob("*.ckpt")
    adapters = {name: read_files(root / name) for name in ("over", "under")}
    return World(root, read_files(root / "base"), adapters, checkpoint.read_bytes(), read_files(root / "run"))
