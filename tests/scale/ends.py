"""How a fit ends that is stopped, refused or not alone: its last line, and what is left of the run before it."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.lightning_runs import write_rows
from tests.scale.kills import Layout, verdict
from tests.scale.programs import unlearn_pl
from tests.scale.table import Case
from tests.tiny_base import write_base
from unlearn_pl.files import sha256_of

SIGNALS = {"SIGTERM": 15, "SIGINT": 2}
# What somebody hands over as a checkpoint: a change of a whole one's bytes.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "one bit flipped": lambda whole: whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1])
    + whole[len(whole) // 2 + 1 :],
    "empty": lambda whole: b"",
    "other bytes": lambda whole: b"no checkpoint\n" * 100,
}  # fmt: skip


def cases(seed: int, shared: Path) -> Iterator[Case]:
    """Signals with one and two processes; checkpoints that are refused, with the finished run in the folder."""
    write_base(shared / "base")
    write_rows(shared, forget=12, retain=10)
    layouts = {processes: Layout(processes, 0, shared) for processes in (1, 2)}
    for processes, layout in layouts.items():
        for name in SIGNALS:
            yield Case(
                f"fit, {processes} process{'es' * (processes - 1)}, {name}, then the command of its last line",
                "stopped, then equal",
                lambda folder, args=(layout, name): stop(folder, *args),
            )
    for name in DAMAGES:
        yield Case(
            f"fit from a checkpoint, {name}, in the folder of a finished run",
            "refused in one line that names the file, finished run untouched",
            lambda folder, args=(layouts[1], name): refuse(folder, *args),
        )


def stop(folder: Path, layout: Layout, name: str) -> str:
    """Send a signal to the last process of a fit in its middle, then run what its last line says."""
    peace, run = layout.peace(), folder / "run"
    place = {"batch": 4, "signum": SIGNALS[name], "once": folder / "sent", "rank": layout.processes - 1}
    at = ["--trainer.callbacks+=ending_callbacks.SignalAt", *(f"--trainer.callbacks.{k}={v}" for k, v in place.items())]
    stopped = unlearn_pl(*layout.words(run), *at)
    told = re.fullmatch(rf"unlearn-pl: stopped by {name} at optimizer step \d+; go on with: unlearn-pl (fit .*)",
                        stopped.last_line)  # fmt: skip
    if stopped.code != 128 + SIGNALS[name] or told is None or stopped.left_some:
        return f"exit code {stopped.code}, processes left: {stopped.left_some}, {stopped.last_line}"
    checkpoint = re.search(r"--ckpt_path=(\S+)", told[1])
    if checkpoint is None:
        return f"no checkpoint in {told[1]}"
    return verdict(unlearn_pl(*layout.words(run), checkpoint[0]), peace, run).replace("killed", "stopped")


def refuse(folder: Path, layout: Layout, damage: str) -> str:
    """Go on from a damaged checkpoint in a copy of the finished run."""
    run, damaged = folder / "run", folder / "damaged.ckpt"
    shutil.copytree(layout.peace(), run)
    damaged.write_bytes(DAMAGES[damage]((run / "checkpoints/last.ckpt").read_bytes()))
    before = sha256_of(run)
    ended = unlearn_pl(*layout.words(run), f"--ckpt_path={damaged}")
    if (
        ended.code != 2
        or not ended.last_line.startswith("unlearn-pl: error: --ckpt_path: ")
        or "Traceback" in ended.err
    ):
        return f"exit code {ended.code}, {ended.last_line}"
    if str(damaged) not in ended.last_line or "weights_only" in ended.last_line:
        return ended.last_line
    touched = " but touched" if sha256_of(run) != before else " untouched"
    return f"refused in one line that names the file, finished run{touched}"
