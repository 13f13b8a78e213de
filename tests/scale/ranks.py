"""Fits on several processes and nodes, beside one process that has the same rows in each step."""

import csv
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from tests.layouts import EXACT, ONE_BATCH, PAIRS, TIED, Layout, Recorded, apart, check_rows, record, write_setting
from tests.lightning_runs import write_rows
from tests.scale.programs import ROOT, unlearn_pl
from tests.scale.table import Case
from tests.tiny_base import write_base

GRADIENT = "gradient within 1e-5 of one batch, every row once"
SCORES = "losses within 1e-3 and scores of one process"
DDP = ("--trainer.devices=2", "--trainer.strategy=ddp")


@dataclass(frozen=True)
class Nodes:
    """What the processes of a launch on several nodes told."""

    code: int
    out: str
    err: str


def torchrun(*words: str, **environment: str) -> Nodes:
    """Two nodes of one process, which torchrun starts on each, on this machine."""
    launch = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    port = free_port()
    commands = [
        [sys.executable, "-m", *launch, f"--master-port={port}", f"--node-rank={node}", "-m", "unlearn_pl", *words]
        for node in range(2)
    ]
    return started(commands, [environment] * 2)


def slurm(*words: str, **environment: str) -> Nodes:
    """Two tasks on two nodes, with the variables that `srun` sets."""
    common = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "fit", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2", "SLURM_NODELIST": "localhost", "SLURM_LOCALID": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    command = [sys.executable, "-m", "unlearn_pl", *words]
    tasks = [environment | common | {"SLURM_PROCID": str(task), "SLURM_NODEID": str(task)} for task in range(2)]
    return started([command] * 2, tasks)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]]) -> Nodes:
    """The commands at the same time; the first exit code that is not 0, what all told."""
    processes = [
        subprocess.Popen(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]  # fmt: skip
    told = [process.communicate(timeout=300)[0] for process in processes]
    code = next((process.returncode for process in processes if process.returncode), 0)
    return Nodes(code, "", "\n".join(told))


def gradient(folder: Path, whole: Callable[[], Recorded], config: Path, layout: Layout, run: Any, *options: str) -> str:
    """Compare a layout with one batch."""
    own = folder / config.name
    own.write_text(config.read_text())
    parts = record(run, own, layout, *options)
    check_rows(whole(), parts)
    if "which rows share one" in parts.told:
        return "a layout that is said to matter"
    distance = apart(whole().gradients[0], parts.gradients[0])
    return GRADIENT if distance < 1e-5 else f"a gradient that is {distance:.1e} apart"


def tied(folder: Path, base: Path) -> str:
    """Terms of the micro-batch, in two layouts."""
    config = write_setting(folder, AutoModelForCausalLM.from_pretrained(base), str(base), TIED)
    one, two = (record(unlearn_pl, config, layout) for layout in (ONE_BATCH, Layout(2, 1, PAIRS // 2)))
    distance, told = apart(one.gradients[0], two.gradients[0]), two.told.count("which rows share one")
    return "another gradient, told once" if distance > 1e-3 and told == 1 else f"{distance:.1e}, told {told} times"


def layouts() -> Iterator[Layout]:
    """Sixteen pairs over 1, 2, 4 processes and 1, 2, 4 accumulated batches."""
    for processes in (1, 2, 4):
        for accumulate in (1, 2, 4):
            yield Layout(processes, accumulate, PAIRS // (processes * accumulate))


def fit(folder: Path, shared: Path, *options: str, program: Sequence[str] = ()) -> Path:
    """The demo's over-forgetting fit as it is shipped, without dropout, scored at its end. Raises RuntimeError."""
    words = [
        "fit", "--config=configs/demo/over.yaml", f"--model.base={shared / 'base'}", "--model.lora.dropout=0",
        *(f"--data.{side}={shared / side}.jsonl" for side in ("forget", "retain")),
        f"--model.reference_cache.folder={folder / 'cache'}", f"--trainer.default_root_dir={folder / 'run'}",
        "--trainer.callbacks=null", "--trainer.callbacks+=EvaluateDuringFit",
        "--trainer.callbacks.generation.max_new_tokens=8", "--trainer.log_every_n_steps=1", *options,
    ]  # fmt: skip
    if program:
        done = subprocess.run([*program, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(done.stderr[-1500:])
    else:
        unlearn_pl(*words).well()
    return folder / "run"


def alike(folder: Path, shared: Path, alone: Callable[[], Path], *options: str, program: Sequence[str] = ()) -> str:
    """The same fit otherwise, beside that of one process."""
    ours, theirs = fit(folder, shared, *options, program=program), alone()
    apart_by = max(abs(a - b) / abs(b) for a, b in zip(losses(ours), losses(theirs), strict=True))
    one, two = (json.loads((run / "evaluations.json").read_text()) for run in (ours, theirs))
    different = sorted({key for a, b in zip(one, two, strict=True) for key in a if not same(a[key], b[key])})
    return SCORES if apart_by < 1e-3 and not different else f"losses {apart_by:.1e} apart, {different} differ"


def same(one: Any, two: Any) -> bool:
    """Scores that texts and choices decide are equal, or one of few rows tipped over."""
    if isinstance(one, dict):
        return all(same(one[key], two[key]) for key in one)
    return one == two or (None not in (one, two) and math.isclose(one, two, abs_tol=1e-3))


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [float(row[name]) for name in ("train/loss", "val/loss") for row in rows if row.get(name)]


def cases(seed: int, shared: Path) -> Iterator[Case]:
    """Layouts, launches, and the shipped fit by two processes and by either name of the program."""
    base = write_base(shared / "base")
    config = write_setting(shared, AutoModelForCausalLM.from_pretrained(base), str(base), EXACT)
    write_rows(shared, forget=32, retain=40)
    whole = cache(partial(record, unlearn_pl, config, ONE_BATCH))
    whole()  # before two ask for it at once
    for layout in layouts():
        if layout != ONE_BATCH:
            yield Case(
                str(layout), GRADIENT, partial(gradient, whole=whole, config=config, layout=layout, run=unlearn_pl)
            )
    for name, run in (("torchrun, 2 nodes", torchrun), ("SLURM, 2 nodes", slurm)):
        nodes = partial(nodes_gradient, whole=whole, config=config, run=run)
        yield Case(name, GRADIENT, nodes)
    yield Case("terms of a micro-batch, 2 processes", "another gradient, told once", partial(tied, base=base))
    alone = cache(lambda: fit(shared / "alone", shared, "--data.batch_size=8"))
    alone()
    for strategy in ("ddp", "ddp_spawn", "ddp_fork", "ddp_find_unused_parameters_true", "fsdp2"):
        options = ("--trainer.devices=2", f"--trainer.strategy={strategy}")
        yield Case(
            f"configs/demo/over.yaml, {strategy}, 2 processes",
            SCORES,
            partial(shipped, shared=shared, alone=alone, options=options),
        )
    script = Path(sys.executable).with_name("lightning")
    if script.exists():
        partial_fit = partial(shipped, shared=shared, alone=alone, options=DDP, program=[str(script)])
        yield Case("configs/demo/over.yaml, lightning fit, 2 processes", SCORES, partial_fit)


def nodes_gradient(folder: Path, whole: Callable[[], Recorded], config: Path, run: Any) -> str:
    return gradient(
        folder, whole, config, Layout(2, 1, PAIRS // 2), run, "--trainer.num_nodes=2", "--trainer.devices=1"
    )


def shipped(
    folder: Path, shared: Path, alone: Callable[[], Path], options: Sequence[str], program: Sequence[str] = ()
) -> str:
    return alike(folder, shared, alone, *options, program=program)
