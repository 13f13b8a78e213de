"""``unlearn-pl evaluate`` as a real command: in two processes, killed and started again, and with bad input."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from unlearn_pl.evaluation.table import metrics_of
from unlearn_pl.tasks.lume import Lume

FILES = ("results.json", "samples.jsonl", "documents.jsonl")
BATCHES_BEFORE_THE_END = 3

Process = subprocess.Popen[str]
Ended = tuple[int, str, str]
"""Exit code, what was printed, what was told on stderr."""


def start(*arguments: str, **environment: str) -> Process:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "unlearn_pl", "evaluate", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: Process) -> Ended:
    """Wait for the end."""
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def succeeded(processes: Sequence[Process]) -> list[tuple[str, str]]:
    """What each printed and told."""
    found = [ended(process) for process in processes]
    assert [code for code, _, _ in found] == [0] * len(found), found
    return [(out, err) for _, out, err in found]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def arguments(base_folder: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A dozen rows and ten documents, one at a time, and two samples of each row; all but --output."""
    folder = tmp_path_factory.mktemp("data")
    rows = {
        split: [
            {"id": f"{split}{task}{end}", "input": f"{split} {task} asks {end}:", "output": "Zoë did", "task": task}
            for task in ("Task1", "Task2", "Task3")
            for end in ("sc1", "qa9")
        ]
        for split in ("forget", "retain")
    }
    data = [f"--data.{split}={write_lines(folder / f'{split}.jsonl', rows[split])}" for split in rows]
    documents = [{"document": f"nobody wrote letter {number}{' at all' * number}"} for number in range(7)]
    nonmember = write_lines(folder / "nonmember.jsonl", documents)
    return [
        f"--model={base_folder}",
        *data,
        f"--membership.nonmember={nonmember}",
        "--membership.tasks=[Task1,Task2,Task3]",
        f"--reference={base_folder}",
        "--sampling.samples=2",
        "--sampling.max_new_tokens=4",
        "--sampling.batch_size=4",
        "--generation.batch_size=1",
        "--generation.max_new_tokens=64",
        "--membership.batch_size=1",
        "--resamples=20",
        "--device=cpu",
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """File name -> bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def alone(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process that nobody disturbed."""
    output = tmp_path_factory.mktemp("alone")
    ((out, _),) = succeeded([start(*arguments, f"--output={output}")])
    assert f"wrote {output}/results.json, samples.jsonl and documents.jsonl" in out.replace("\n", " ")
    assert set(contents(output)) == set(FILES)
    assert len((output / "samples.jsonl").read_text(encoding="utf-8").splitlines()) == 12
    return output


def batches(content: bytes) -> list[tuple[int, ...]]:
    """The batches of a file of finished parts; each of its lines is whole."""
    assert content.endswith(b"\n")
    return [tuple(json.loads(line)["batch"]) for line in content.splitlines()]


def work_of(file: str) -> str:
    """What a file of finished parts is of, whichever process wrote it."""
    return file.rsplit("-rank", 1)[0]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_two_processes_give_the_bytes_of_one(arguments: list[str], alone: Path, tmp_path: Path) -> None:
    """As torchrun starts them. Rank 0 alone writes and prints; together they computed each batch once."""
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [*arguments, f"--output={tmp_path}"]
    ranks = [start(*command, RANK=str(rank), LOCAL_RANK=str(rank), **meeting) for rank in (0, 1)]
    (first_out, first_err), (second_out, second_err) = succeeded(ranks)
    assert contents(tmp_path) == contents(alone)
    assert "results.json" in first_out
    assert second_out == ""
    assert "generation, rows: 1 of" in first_err
    assert "generation, rows" not in second_err

    one, two = contents(alone / "parts"), contents(tmp_path / "parts")
    assert {work_of(name) for name in two} == {work_of(name) for name in one}
    for name, content in one.items():
        shares = [batches(two.get(f"{work_of(name)}-rank{rank}.jsonl", b"\n")) for rank in (0, 1)]
        assert sorted(shares[0] + shares[1]) == sorted(batches(content))
        assert abs(len(shares[0]) - len(shares[1])) <= 1


def killed(command: list[str], moment: str) -> None:
    """Start the command and kill it as soon as it tells ``moment``."""
    process = start(*command)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(moment):
            process.kill()
            break
    assert ended(process)[0] == -signal.SIGKILL, f"it ended before it told {moment!r}"


def test_a_killed_evaluation_goes_on(arguments: list[str], alone: Path, tmp_path: Path) -> None:
    """The lines of finished batches stay as they are and are not computed again; results have the usual bytes."""
    command = [*arguments, f"--output={tmp_path}"]
    killed(command, f"generation, rows: {BATCHES_BEFORE_THE_END} of")
    assert not set(contents(tmp_path)) & set(FILES)
    parts = tmp_path / "parts"
    before, times = contents(parts), {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    complete = contents(alone / "parts")
    begun = [name for name in before if before[name] != complete[name]]
    assert [name for name in begun if name.startswith("generation-")], "it was killed in the middle of generation"
    assert before[begun[0]].count(b"\n") >= BATCHES_BEFORE_THE_END
    assert set(before) < set(complete)

    succeeded([start(*command)])
    assert contents(tmp_path) == contents(alone)
    after = contents(parts)
    assert set(after) == set(complete)
    for name, content in after.items():
        assert content.startswith(before.get(name, b"")[: before.get(name, b"").rfind(b"\n") + 1])
        found = batches(content)
        assert len(found) == len(set(found)) == len(batches(complete[name]))
        assert content == complete[name]
        if name in before and name not in begun:
            assert (parts / name).stat().st_mtime_ns == times[name], "nothing was added to finished work"


WRONG = {"--metrics": "nonsense", "--resamples": "0", "--retrained": "nowhere", "--reference": "nowhere"}


@pytest.fixture(scope="module")
def quick(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """How the commands end that compute nothing, by their flag; side by side, as each takes seconds to start."""
    output = tmp_path_factory.mktemp("quick") / "output"
    processes = {flag: start(*arguments, f"--output={output}", flag, value) for flag, value in WRONG.items()}
    processes["--list"] = start("--list", COLUMNS="200")
    found = {flag: ended(process) for flag, process in processes.items()}
    assert not output.exists()
    return found


def test_the_list_has_every_metric(quick: dict[str, Ended]) -> None:
    code, out, _ = quick["--list"]
    assert code == 0
    first_cells = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert [cell for cell in first_cells if cell] == [metric.name for metric in metrics_of(Lume([], []))]


@pytest.mark.parametrize("flag", WRONG)
def test_bad_input_ends_with_one_line(quick: dict[str, Ended], flag: str) -> None:
    """Exit code 2, and what came."""
    code, out, err = quick[flag]
    assert (code, out) == (2, "")
    assert err.startswith("unlearn-pl: error: ")
    assert err.count("\n") == 1
    assert WRONG[flag] in err


@pytest.mark.parametrize("flag", ["--metrics", "--resamples", "--retrained", "--reference"])
def test_bad_input_is_told_by_its_flag(quick: dict[str, Ended], flag: str) -> None:
    assert quick[flag][2].startswith(f"unlearn-pl: error: {flag}: ")
