"""Fits whose base is in shards, by the real command line: two processes that compute what one does and leave the same.

Adam makes much of small differences, so that whole runs are as near as two runs of ddp are, and gradients nearer.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_server import CommandServer
from layouts import EXACT, ONE_BATCH, Layout, apart, check_rows, record, write_setting
from lightning_runs import write_rows
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from unlearn_pl.training.packs import in_more_parts

# the gradient of a batch does not depend on how its rows are dealt out
OBJECTIVES = {
    "ga": {"class_path": "NPO", "init_args": {"weight": 0.5, "reduction": "sequence_mean"}},
    "gk": {"class_path": "RetainNLL", "init_args": {"weight": 0.3, "reduction": "sequence_mean"}},
}
WATCHED = [
    {"class_path": "WeightSnapshot", "init_args": {"steps": [2]}},
    {"class_path": "AngleAnalysis", "init_args": {"pivot": 2}},
    {"class_path": "EvaluateDuringFit", "init_args": {"generation": {"max_new_tokens": 5}}},
    {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"save_top_k": -1, "every_n_train_steps": 1, "filename": "{step}"},
    },
]


class Fits:
    """Fits of four rows a step; each leaves its run in ``folder / name``."""

    def __init__(self, server: CommandServer, folder: Path, base: str):
        write_rows(folder)
        self.server, self.folder, self.base = server, folder, base

    def __call__(self, name: str, *options: str, callbacks: list[Any] | None = None, code: int = 0) -> str:
        """What it said."""
        arguments = {
            "model.base": self.base,
            "model.objectives": json.dumps(OBJECTIVES),
            "model.lora": '{"rank": 2, "dropout": 0}',
            "model.reference_cache.folder": self.folder / "cache",
            "data.forget": self.folder / "forget.jsonl",
            "data.retain": self.folder / "retain.jsonl",
            "data.batch_size": 4,
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "trainer.max_epochs": 2,
            "trainer.gradient_clip_val": 0.5,
            "trainer.default_root_dir": self.folder / name,
            "trainer.callbacks": json.dumps(callbacks or []),
        }
        done = self.server.run(self.folder, "fit", *(f"--{key}={value}" for key, value in arguments.items()), *options)
        assert done.code == code, done.err
        return done.err

    def sharded(self, name: str, *options: str, **more: Any) -> str:
        """In two processes, each with half of the rows."""
        return self(name, "--trainer.devices=2", "--trainer.strategy=fsdp2", "--data.batch_size=2", *options, **more)

    def apart(self, one: str, other: str) -> float:
        """Relative distance of two adapters."""
        first, second = (load_file(self.folder / name / "adapter/adapter_model.safetensors") for name in (one, other))
        assert first.keys() == second.keys()
        distance = torch.cat([(first[name] - second[name]).flatten() for name in first]).norm()
        return float(distance / torch.cat([value.flatten() for value in first.values()]).norm())

    def json(self, name: str, file: str) -> Any:
        return json.loads((self.folder / name / file).read_text())


@pytest.fixture(scope="module")
def fits(base_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fits]:
    with CommandServer() as server:
        yield Fits(server, tmp_path_factory.mktemp("fsdp2"), base_folder)


@pytest.fixture(scope="module")
def run(fits: Fits) -> str:
    """A run in shards with all that watches a fit: its name."""
    fits.sharded("sharded", callbacks=WATCHED)
    return "sharded"


def test_it_is_the_run_of_one_process(fits: Fits, run: str) -> None:
    fits("one", callbacks=WATCHED)
    assert fits.apart("one", run) < 2e-3
    for mine, other in zip(fits.json(run, "evaluations.json"), fits.json("one", "evaluations.json"), strict=True):
        assert mine.pop("terms") == pytest.approx(other.pop("terms"), abs=1e-3)
        assert mine == pytest.approx(other, abs=1e-3)
    norms = [fits.json(name, "angles.json")["delta"]["overall"]["norms"] for name in (run, "one")]
    assert norms[0] == pytest.approx(norms[1], rel=2e-3)
    assert len({tuple(sorted(path.name for path in (fits.folder / name).iterdir())) for name in (run, "one")}) == 1


def test_its_checkpoints_hold_the_adapter_alone_and_it_goes_on_from_them(fits: Fits, run: str) -> None:
    path = next((fits.folder / run).rglob("step=2.ckpt"))
    names = torch.load(path, weights_only=True)["state_dict"].keys()
    assert names == {name for name in names if "lora_" in name} != set()
    fits.sharded("on", f"--ckpt_path={path}", callbacks=WATCHED)
    assert fits.apart(run, "on") == 0
    assert fits.json("on", "angles.json") == fits.json(run, "angles.json")


def test_its_gradients_are_those_of_one_process(
    fits: Fits, base_folder: str, tiny_model: Callable[[], LlamaForCausalLM], tmp_path: Path
) -> None:
    """Of rows of unlike lengths, which make more packs on one process than on the other, with activations and the
    base's output computed anew."""
    config = write_setting(tmp_path, tiny_model(), base_folder, EXACT)
    options = ["--model.tokens_per_forward=40", "--model.gradient_checkpointing=true"]
    options += ["--model.reference_cache.folder=null", "--trainer.strategy=fsdp2"]
    parts = record(partial(fits.server.run, tmp_path), config, Layout(2, 2, 1, 4), *options)
    whole = record(partial(fits.server.run, tmp_path), config, ONE_BATCH)
    check_rows(whole, parts)
    assert all(apart(*pair) < 1e-5 for pair in zip(whole.gradients, parts.gradients, strict=True))


def test_packs_are_split_until_there_are_enough() -> None:
    assert in_more_parts([[0, 1, 2, 3], [4]], 4) == [[0], [1], [2, 3], [4]]
    assert in_more_parts([[0], [1]], 2) == [[0], [1]]
