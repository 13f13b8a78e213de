"""What ends a command from outside, a full disk or memory, or a gradient of infinity: one line, and nothing torn."""

import csv
import errno
import os
import re
from pathlib import Path

import pytest
import torch
from command_server import CommandServer, Done, Limits
from fuzz_world import World
from fuzzing import TEMPORARY, contents
from safetensors.torch import load_file

from unlearn_pl.errors import disk_fault, memory_fault
from unlearn_pl.training.cache_files import reserve
from unlearn_pl.training.checkpoint_file import read_checkpoint
from unlearn_pl.training.metrics_file import append


def fit(world: World, *options: str) -> list[str]:
    """Four steps, with a checkpoint of each."""
    saver = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=1"]
    fixed = ["--trainer.default_root_dir=out", "--model.reference_cache.folder=cache", "--trainer.max_epochs=2"]
    quiet = ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
    return ["fit", "--config", world.fixed("fit.yaml"), *fixed, *quiet, *saver, *options]


def told(done: Done) -> str:
    """The one line of a command that could not go on."""
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    (line,) = done.errors
    assert done.err.splitlines()[-1] == line
    return line


# Bytes of a file from which on no more can be written: in the cache, a snapshot, a checkpoint, the merged model.
@pytest.mark.parametrize("room", [700, 1500, 6000, 12000])
def test_a_full_disk_tears_nothing_of_a_fit(world: World, server: CommandServer, tmp_path: Path, room: int) -> None:
    line = told(server.run_within(Limits(file_size=room), tmp_path, *fit(world)))
    assert "make room and run the command again" in line
    left = contents(tmp_path)
    assert not [name for name in left if TEMPORARY.search(name)]
    for name in left:
        if name.endswith(".safetensors"):
            load_file(tmp_path / name)
        elif name.endswith(".ckpt"):
            read_checkpoint(tmp_path / name, sealed=True)
        elif name.endswith(".csv"):
            assert len({len(row) for row in csv.reader((tmp_path / name).open())}) == 1
    assert not (tmp_path / "out/adapter").exists()


@pytest.mark.parametrize("verb", ["evaluate", "merge", "report"])
def test_a_full_disk_ends_other_commands_in_one_line(
    world: World, server: CommandServer, tmp_path: Path, verb: str
) -> None:
    rows = [f"--data.{split}={world.fixed(f'{split}.jsonl')}" for split in ("forget", "retain")]
    pair = ["--adapters", world.fixed("over"), world.fixed("under")]
    words = {
        "evaluate": ["--model", world.fixed("base"), *rows, "--generation.max_new_tokens=2", "--resamples=5"],
        "merge": ["--base", world.fixed("base"), *pair, "--save_model=model"],
        "report": [world.fixed("run")],
    }[verb]
    line = told(server.run_within(Limits(file_size=1000), tmp_path, verb, *words, "--output=out"))
    assert "make room" in line
    left = contents(tmp_path)
    assert not [name for name in left if TEMPORARY.search(name)]
    assert not [name for name in left if name.startswith(("out/results", "out/adapter_model", "model"))]


def test_a_full_memory_names_what_helps(world: World, server: CommandServer, tmp_path: Path) -> None:
    """Two billion rows of factors in 12 GiB; attaching the adapter would call it a mistake in its target modules."""
    words = fit(world, "--model.lora.rank=2000000000")
    line = told(server.run_within(Limits(memory=12 * 2**30), tmp_path, *words))
    assert line.startswith(
        "unlearn-pl: error: out of memory (you tried to allocate 256000000000 bytes); less is needed"
    )
    assert {"--model.lora.rank", "--model.tokens_per_forward"} <= {*re.findall(r"--[\w.]+", line)}


def test_whose_memory_is_full() -> None:
    """torch says it by a class on a GPU and by a RuntimeError on a CPU; whatever is raised from it counts too."""
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ... ")
    cpu = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes. Error code 12")
    outer = ValueError("the model")
    outer.__cause__ = gpu
    assert memory_fault(gpu) == memory_fault(outer) == "out of memory (tried to allocate 2.50 GiB)"
    assert memory_fault(cpu) == "out of memory (you tried to allocate 64 bytes)"
    assert memory_fault(MemoryError()) == "out of memory"
    assert memory_fault(RuntimeError("shapes differ")) is memory_fault(None) is None


def test_which_disk_is_full() -> None:
    assert str(disk_fault(OSError(errno.ENOSPC, "", "a.csv"))).startswith("No space left on device: a.csv; make room")
    assert "make room" not in str(disk_fault(OSError(errno.EROFS, "", "a.csv")))


def test_a_row_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write puts 3 bytes, the second none."""
    path = tmp_path / "metrics.csv"
    path.write_text("a,b\n1,2\n")
    append(path, "3,4\n")
    assert path.read_text() == "a,b\n1,2\n3,4\n"
    real = Path.open

    class Filling:
        def __init__(self, *arguments: object, **options: object):
            self.stream = real(*arguments, **options)  # type: ignore[arg-type]
            self.times = 0

        def __enter__(self) -> "Filling":
            return self

        def __exit__(self, *error: object) -> None:
            self.stream.close()

        def __getattr__(self, name: str) -> object:
            return getattr(self.stream, name)

        def write(self, content: bytes) -> int:
            self.times += 1
            if self.times > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.stream.write(content[:3]))  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", lambda *arguments, **options: Filling(*arguments, **options))
    with pytest.raises(OSError, match="No space"):
        append(path, "5,6\n")
    monkeypatch.undo()
    assert path.read_text() == "a,b\n1,2\n3,4\n"


def test_a_sparse_file_gets_its_room(tmp_path: Path) -> None:
    """A memory map over a full disk would end the process by SIGBUS."""
    path = tmp_path / "array.npy"
    with path.open("wb") as stream:
        stream.truncate(1 << 20)
    before = path.stat().st_blocks
    reserve(path)
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_blocks * 512 >= 1 << 20 > before * 512


@pytest.mark.parametrize("processes", [1, 2])
def test_an_infinite_gradient_in_one_process_stops_all(
    world: World, server: CommandServer, tmp_path: Path, processes: int
) -> None:
    """The weights after the second step are kept; one process of two tells."""
    rank = f"--trainer.callbacks.rank={processes - 1}"
    more = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=1"] if processes > 1 else []
    words = fit(world, "--trainer.callbacks+=spoiling.SpoilGradient", rank, *more)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    line = told(server.run(tmp_path, *words, PYTHONPATH=path))
    assert "training diverged at optimizer step 3" in line
    assert "last_good there holds the last finite weights" in line
    assert all(
        value.isfinite().all() for value in load_file(tmp_path / "out/last_good/adapter_model.safetensors").values()
    )
    assert not (tmp_path / "out/adapter").exists()
