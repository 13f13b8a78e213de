"""The tables of docs/scaling.md: their arithmetic by hand, and the commands that print them."""

import sys
from pathlib import Path

import pytest

from benchmarks.command import run
from benchmarks.estimate import Load, Shape
from benchmarks.memory import CODES, Cluster, coded, ddp, fsdp2, memory
from benchmarks.scale import Point, scale, weak_scaling

CLUSTER = Cluster(tflops=1, in_node=1, between_nodes=0.5, node=8)
LOAD = Load(tokens=640, tokens_per_forward=320, rank=32)


def test_ddp_by_hand() -> None:
    """A copy of everything; the adapter's gradient, 4 bytes a number, twice 7/8 (15/16) times at 1 (0.5) GB/s."""
    shape, numbers = Shape(), 32 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    one, eight, sixteen = (ddp(shape, LOAD, CLUSTER, devices, 0.5) for devices in (1, 8, 16))
    assert one.memory_bytes == eight.memory_bytes == sixteen.memory_bytes
    assert one.compute_seconds == eight.compute_seconds
    assert one.exchange_seconds == 0
    assert eight.exchange_seconds == pytest.approx(7 * numbers / 1e9)
    assert sixteen.exchange_seconds == pytest.approx(7.5 * numbers / 0.5e9)


def test_fsdp2_by_hand() -> None:
    """An eighth of the blocks and two of 32 whole, the rest as alone; two packs gather the blocks twice each."""
    shape, lora = Shape(), 32 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    block = 4 * 4096**2 + 3 * 4096 * 11008
    blocks, rest = 2 * 32 * block, 2 * 2 * 50304 * 4096
    activations = 2 * 20 * 4096 * 32 * 320
    cost = fsdp2(shape, LOAD, CLUSTER, 8, 0.5)
    assert cost.memory_bytes == pytest.approx(blocks / 8 + 2 * 2 * block + rest + 16 * lora + activations)
    assert cost.exchange_seconds == pytest.approx(7 / 8 * (4 * blocks + 8 * lora) / 1e9)
    assert cost.compute_seconds == ddp(shape, LOAD, CLUSTER, 8, 0.5).compute_seconds


def test_codes_by_hand() -> None:
    """4 bits a weight of the blocks, 1 byte for 64 and 4 bytes for 256 of these; one layer whole in bfloat16."""
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    plain, nf4, int8 = ddp(Shape(), LOAD, CLUSTER, 1, 0.5), *(coded(c, Shape(), LOAD, CLUSTER, 1, 0.5) for c in CODES)
    layer = 2 * 4096 * 11008
    assert nf4.memory_bytes - layer == plain.memory_bytes - 2 * weights + weights / 2 + weights / 64 + weights / 4096
    assert int8.memory_bytes - layer == plain.memory_bytes - weights


def test_a_share_is_of_as_many_that_are_each_as_fast_as_one() -> None:
    assert weak_scaling({1: 100.0, 2: 150.0}) == [Point(1, 100.0, 1.0), Point(2, 150.0, 0.75)]
    assert weak_scaling({2: 100.0, 4: 200.0}) == [Point(2, 100.0, 1.0), Point(4, 200.0, 1.0)]


def test_the_table_is_that_of_the_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs/scaling.md").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["memory"])
    run(memory)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len(printed) == 28
    for line in printed:
        assert "| " + " | ".join(cell.strip() for cell in line.strip("│").split("│")) + " |" in page


@pytest.mark.parametrize(
    ("command", "argument", "message"),
    [
        (memory, "--share=2", "--share: must be above 0 and at most 1, got 2"),
        (memory, "--pairs_per_step=0", "--tokens: must be at least 6 for each of 0 pairs"),
        (memory, "--rank=0", "--rank: must be at least 1, got 0"),
        (scale, "--processes=[0]", "--processes: must be at least 1 each, got [0]"),
        (scale, "--rounds=0", "--rounds: must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(
    command: object, argument: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = ["--model=m", "--data.forget=f", "--data.retain=r"] if command is scale else []
    monkeypatch.setattr(sys, "argv", [command.__name__, *needed, argument])  # type: ignore[attr-defined]
    with pytest.raises(SystemExit):
        run(command)  # type: ignore[arg-type]
    assert capsys.readouterr().err.strip().startswith(f"unlearn-pl: error: {message}")
