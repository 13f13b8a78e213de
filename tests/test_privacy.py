"""Texts of rows stay on this machine, and files from elsewhere run no code."""

import ast
import importlib.util
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from command_server import CommandServer
from lightning_runs import write_rows

import unlearn_pl
from unlearn_pl.tasks.synthetic.benchmark import Synthetic, write_benchmark

PACKAGE = Path(unlearn_pl.__file__).parent
SIZE, HEADER = 32768, 7
"""Of a block of W&B's file, and of what stands before each piece of a record in it."""


def in_one_piece(path: Path) -> bytes:
    """What the records of a `.wandb` file hold. It is LevelDB's log format: in blocks, where a record that goes on in
    the next one is cut."""
    content, texts = path.read_bytes(), []
    for start in range(0, len(content), SIZE):
        block = content[start : start + SIZE]
        place = HEADER if start == 0 else 0  # the file begins with a mark of its own
        while place + HEADER <= len(block):
            (length,) = struct.unpack_from("<H", block, place + 4)
            texts.append(block[place + HEADER : place + HEADER + length])
            place += HEADER + length
    return b"".join(texts)


def sent(folder: Path) -> bytes:
    """All that a logger has written below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    return b"\0".join(in_one_piece(path) if path.suffix == ".wandb" else path.read_bytes() for path in files)


def secrets_of(folder: Path) -> set[str]:
    """The answers, and the beginnings of all longer texts, of a benchmark's files."""
    found: set[str] = set()
    for path in folder.rglob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts = [row[key] for key in ("input", "output", "document") if key in row]
            found |= {text[:30] for text in texts if len(text) >= 8 and "multiple choice" not in text}
    return found


def arguments(base: str, folder: Path) -> list[str]:
    """A fit that evaluates itself, on the synthetic benchmark, with every remote logger that is installed."""
    data, loggers = (
        folder / "data",
        [("WandbLogger", {"offline": True, "project": "p", "save_dir": str(folder / "sent")})],
    )
    if importlib.util.find_spec("tensorboard") or importlib.util.find_spec("tensorboardX"):
        loggers.append(("TensorBoardLogger", {"save_dir": str(folder / "sent/tensorboard")}))
    evaluated: dict[str, Any] = {
        "membership": {side: str(data / f"membership/{side}.jsonl") for side in ("member", "nonmember")},
        "choice": {"folder": str(data / "mmlu"), "shots": 0},
        "generation": {"max_new_tokens": 4},
    }
    settings = {
        "model.base": base,
        "model.objectives": {"ga": {"class_path": "NPO", "init_args": {"reduction": "sequence_mean"}}},
        "model.reference_cache.folder": str(folder / "cache"),
        "data.forget": str(data / "forget.jsonl"),
        "data.retain": str(data / "retain.jsonl"),
        "data.batch_size": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.default_root_dir": str(folder / "run"),
        "trainer.logger": [{"class_path": name, "init_args": options} for name, options in loggers],
        "trainer.callbacks": [{"class_path": "EvaluateDuringFit", "init_args": evaluated}],
    }
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def test_no_text_of_a_row_reaches_a_remote_logger(base_folder: str, tmp_path: Path) -> None:
    """A W&B offline run holds numbers and the configuration, and none of the benchmark's secrets; so does TensorBoard's
    file where that is installed."""
    write_benchmark(tmp_path / "data", Synthetic(documents_per_task=1, nonmembers_per_task=1, questions=2))
    command = [sys.executable, "-m", "unlearn_pl", "fit", *arguments(base_folder, tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    secrets, given = secrets_of(tmp_path / "data"), sent(tmp_path / "sent")
    assert len(secrets) > 30
    for shown in ("evaluation/task_aggregate", "sequence_mean", "max_new_tokens", "figures/spectra"):
        assert shown.encode() in given, "what is to be there is found"
    assert [text for text in secrets if text.encode() in given or text in done.stdout + done.stderr] == []
    rows = (tmp_path / "data/forget.jsonl").read_bytes()
    assert any(text.encode() in rows for text in secrets), "a secret would be found"


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """The file, the name and the syntax of every call in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(PACKAGE)), ast.unparse(node.func), node


def test_the_package_opens_no_pickle_and_trusts_no_code_of_others_by_itself() -> None:
    for path, name, call in calls():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"{path}, line {call.lineno}"
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "os.system"), where
        assert name != "torch.load" or given["weights_only"] in ("True", "weights_only"), where
        assert given.get("trust_remote_code") != "True", where
        assert given.get("shell") != "True", where


class Bomb:
    """Opened as a pickle, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_in_place_of_weights_is_refused_unopened(base_folder: str, tmp_path: Path) -> None:
    """As a base model, an adapter and a checkpoint."""
    mark, rows = tmp_path / "opened", write_rows(tmp_path)
    for folder, file in (("base", "pytorch_model.bin"), ("adapter", "adapter_model.bin")):
        (tmp_path / folder).mkdir()
        torch.save({"a": Bomb(mark)}, tmp_path / folder / file)
    torch.save({"state_dict": Bomb(mark)}, tmp_path / "some.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Bomb(mark)))
    for path in Path(base_folder).iterdir():
        if path.suffix == ".json":
            (tmp_path / "base" / path.name).write_bytes(path.read_bytes())
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    data = [f"--data.{split}={path}" for split, path in rows.items()]
    fit = ["validate", *data, "--trainer.accelerator=cpu", "--trainer.logger=false", "--model.objectives.ga=NPO"]
    scores = ["evaluate", *data, "--output=scores"]
    with CommandServer() as server:
        for words in (
            [*fit, "--model.base=base"],
            [*fit, f"--model.base={base_folder}", "--ckpt_path=some.ckpt"],
            [*fit, f"--model.base={base_folder}", "--ckpt_path=plain.ckpt"],
            [*scores, "--model=base"],
            [*scores, f"--model={base_folder}", "--adapter=adapter"],
            ["merge", f"--base={base_folder}", "--adapters", "adapter", "adapter", "--method=ties", "--output=out"],
        ):
            done = server.run(tmp_path, *words)
            assert (done.code, len(done.errors)) == (2, 1), (words, done.err)
            assert "Traceback" not in done.err
            assert not mark.exists(), words


def test_a_wandb_server_that_gets_no_key_is_one_line_before_training(base_folder: str, tmp_path: Path) -> None:
    rows = [f"--data.{split}={path}" for split, path in write_rows(tmp_path).items()]
    words = ["fit", f"--model.base={base_folder}", "--model.objectives.ga=NPO", "--trainer.accelerator=cpu", *rows]
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_MODE": "online", "WANDB_API_KEY": ""}
    with CommandServer() as server:
        done = server.run(tmp_path, *words, "--trainer.logger=WandbLogger", "--trainer.logger.save_dir=x", **nobody)
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert "W&B: No API key configured" in done.errors[0]
    assert "WANDB_MODE=offline keeps the run on the disk" in done.errors[0]
    assert "Traceback" not in done.err
    assert not list(tmp_path.rglob("adapter"))
