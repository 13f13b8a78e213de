"""The benchmark: what it counts is counted by hand, what it compares is equal where it can be, and its command runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_runs import write_rows
from transformers import LlamaForCausalLM

from benchmarks.command import run
from benchmarks.estimate import Load, Shape, estimate, estimate_training
from benchmarks.flops import Sizes, pair_flops, pairs_flops, row_flops, sizes_of
from benchmarks.growth import GrowthSizes, measure_growth
from benchmarks.measure import matmul_peak, peak_bytes, reset_peak, resident_bytes, seconds_of, settle
from benchmarks.released import EncodedPair
from benchmarks.train import Round, train
from benchmarks.variants import Build, Competent, KeepFloat64, Ours, Plain64, Released, Settings, Window
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.models.lora import Lora
from unlearn_pl.models.padding import STANDING_FOR_ALL

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
Tiny = Callable[[], LlamaForCausalLM]


def pairs_of_lengths(*lengths: tuple[int, int]) -> list[EncodedPair]:
    """Random pairs of (forget, retain) tokens; the last third of a row is its answer."""
    generator = torch.Generator().manual_seed(1)

    def row(name: str, length: int) -> Encoded:
        ids = torch.randint(1, 300, (length,), generator=generator).tolist()
        return Encoded(name, tuple(ids), length - length // 3, False)

    return [(row(f"f{i}", forget), row(f"r{i}", retain)) for i, (forget, retain) in enumerate(lengths)]


@pytest.fixture
def settings() -> Settings:
    """Two optimizer steps of two pairs, rows of very different lengths, dropout on."""
    pairs = pairs_of_lengths((9, 30), (24, 6), (12, 12), (40, 17))
    return Settings(pairs, accumulate=2, max_length=48, pad_token_id=7, lora=Lora(rank=4, dropout=0.5))


def gradient_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    gap, whole = (
        torch.cat([values.double().flatten() for values in side])
        for side in ([one[name].double() - other[name] for name in one], list(other.values()))
    )
    return float(gap.norm() / whole.norm())


def test_the_packed_loss_is_the_released_one_in_float64(tiny_model: Tiny, settings: Settings) -> None:
    loss, gradient = Plain64(tiny_model(), settings).check(0)
    ours = Ours(tiny_model(), settings)
    ours.policy.double()
    with KeepFloat64():
        own_loss, own_gradient = ours.check(0)
    assert own_loss == pytest.approx(loss, rel=1e-10)
    assert gradient_difference(own_gradient, gradient) < 1e-10


def test_the_competent_loss_is_ours_without_padding_in_float64(tiny_model: Tiny, settings: Settings) -> None:
    """KL summed over the tokens and divided by ``max_length`` is positions `padded`."""
    loss_of_both(tiny_model, replace(settings, positions="padded"))


def loss_of_both(tiny_model: Tiny, settings: Settings, **ours: bool) -> float:
    """The competent loss of the first window in float64, after it and its gradient were found equal to ours."""
    found = []
    for kind, own in ((Competent, settings), (Ours, replace(settings, **ours))):
        variant = kind(tiny_model(), own)
        variant.policy.double()
        with KeepFloat64():
            found.append(variant.check(0))
    (loss, gradient), (own_loss, own_gradient) = found
    assert own_loss == pytest.approx(loss, rel=1e-10)
    assert gradient_difference(own_gradient, gradient) < 1e-10
    return loss


def test_both_take_the_terms_of_several_pairs_together(tiny_model: Tiny, settings: Settings) -> None:
    """Micro-batches of two pairs, the second one of rows of one length, which needs no mask."""
    pairs = [*settings.pairs[:2], settings.pairs[2], settings.pairs[2]]
    together = replace(settings, pairs=pairs, positions="padded", accumulate=4, micro_batch=2, tokens_per_forward=60)
    alone = replace(together, micro_batch=1)
    losses = [loss_of_both(tiny_model, one, checkpointing=True) for one in (together, alone)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-6), "the layout must matter, or this shows nothing"


def test_checkpointing_and_autocast_reach_the_competent_step(tiny_model: Tiny, settings: Settings) -> None:
    plain, other = (
        Competent(tiny_model(), replace(settings, checkpointing=asked, autocast=asked)) for asked in (False, True)
    )
    assert not plain.policy.is_gradient_checkpointing
    assert other.policy.is_gradient_checkpointing
    (loss, gradient), (low_loss, low_gradient) = (variant.check(0) for variant in (plain, other))
    assert loss != low_loss == pytest.approx(loss, rel=0.05)
    assert 1e-4 < gradient_difference(low_gradient, gradient) < 0.1


@pytest.mark.parametrize("kind", [Released, Ours])
def test_float32_is_near_and_the_check_leaves_no_trace(
    kind: type[Released] | type[Ours], tiny_model: Tiny, settings: Settings
) -> None:
    loss, gradient = Plain64(tiny_model(), settings).check(1)
    variant = kind(tiny_model(), settings)
    before = {name: value.clone() for name, value in variant.policy.state_dict().items()}
    own_loss, own_gradient = variant.check(1)
    assert own_loss == pytest.approx(loss, rel=1e-5)
    assert 0 < gradient_difference(own_gradient, gradient) < 1e-4
    assert all(torch.equal(value, before[name]) for name, value in variant.policy.state_dict().items())
    assert all(parameter.grad is None for parameter in variant.policy.parameters())
    assert {m.p for m in variant.policy.modules() if isinstance(m, torch.nn.Dropout)} == {0.5}


def test_a_window_trains_and_counts_its_tokens(tiny_model: Tiny, settings: Settings, tmp_path: Path) -> None:
    ours, released = Ours(tiny_model(), settings), Released(tiny_model(), settings)
    assert ours.build(tmp_path, settings.pairs).seconds > 0
    packed = 9 + 30 + 24 + 6 + 11  # rounded up to a multiple of 16
    padding = 2 * (STANDING_FOR_ALL + 1)  # policy and base, in the one pack of this step
    competent = Competent(tiny_model(), settings)
    for variant, tokens in ((ours, packed + padding), (released, 2 * 2 * 48), (competent, 9 + 30 + 24 + 6)):
        window = variant.window(0)
        assert window.tokens == tokens
        assert 0 < window.gradient_seconds < window.seconds
        assert any(value.any() for name, value in variant.policy.named_parameters() if "lora_B" in name)


def test_padding_is_counted_where_rows_cannot_be_packed(tiny_model: Tiny, settings: Settings, tmp_path: Path) -> None:
    base = tiny_model()
    base.set_attn_implementation("eager")
    ours = Ours(base, replace(settings, positions="padded"))
    ours.build(tmp_path, settings.pairs)
    assert not ours.packed
    lengths = [40, 17, 12, 12]  # of these only the last two are alike
    assert ours.window(1).tokens == sum(lengths)
    close = Settings(pairs_of_lengths((20, 19)), 1, max_length=48, pad_token_id=0, positions="padded")
    base = tiny_model()
    base.set_attn_implementation("eager")
    ours = Ours(base, close)
    assert ours.build(tmp_path, close.pairs)
    assert ours.window(0).tokens == 2 * 20


def test_flops_by_hand() -> None:
    sizes = Sizes(linear=1000, lora=100, layers=2, attention=8, hidden=8, vocabulary=50)
    # body: 10 tokens x (4 x 1000 + 6 x 100); attention of a layer: 2 products, 2 operations, 10 x 10 x 8, half of it
    attention = 2 * 2 * 100 * 8 // 2
    assert row_flops(sizes, 10) == 10 * 4600 + 2 * (attention + 2.5 * attention)
    head = 2 * 50 * 8
    rows = 2 * row_flops(sizes, 10)
    assert pair_flops(sizes, (10, 3), (10, 4), "attended") == rows + head * (2 * 3 + 3 * 10 + 4)
    assert pair_flops(sizes, (10, 3), (10, 4), "answer") == rows + head * (2 * 3 + 3 * 4 + 4)


def test_sizes_are_read_off_the_model(tiny_model: Tiny, settings: Settings) -> None:
    sizes = sizes_of(Ours(tiny_model(), settings).policy)
    linear = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    vocabulary = tiny_model().config.vocab_size
    assert sizes == Sizes(
        2 * sum(i * o for i, o in linear), 2 * 4 * sum(i + o for i, o in linear), 2, 32, 32, vocabulary
    )
    assert pairs_flops(sizes, settings.pairs[:1], "attended") == pair_flops(sizes, (9, 3), (30, 10), "attended")


def test_the_peak_sees_what_is_gone_again() -> None:
    settle()
    reset_peak(CPU)
    start = peak_bytes(CPU)
    assert abs(start - resident_bytes(CPU)) < 5e6
    block = torch.ones(50_000_000, dtype=torch.uint8)
    del block
    settle()
    assert 49e6 < peak_bytes(CPU) - start < 60e6
    reset_peak(CPU)
    assert peak_bytes(CPU) - start < 10e6


def test_a_stopwatch_and_the_peak_of_products() -> None:
    assert 0.0 < seconds_of(lambda: sum(range(1000)), CPU) < 1.0
    assert 1e8 < matmul_peak(CPU, torch.float32, repeats=1) < 1e14


def test_ratios_by_hand() -> None:
    windows = {
        kind: [Window(1.0, seconds, seconds / 2, 0, 10) for seconds in times]
        for kind, times in (("released", (6.0, 9.0)), ("competent", (3.0, 3.0)), ("ours", (2.0, 1.0)))
    }
    done = Round(Build(2.0, 0), windows, peaks=[10.0, 30.0, 20.0])  # type: ignore[arg-type]
    assert (done.ratio_warm("released"), done.ratio_first_epoch("released"), done.ratio_window("released")) == (5, 3, 6)
    assert (done.ratio_warm("competent"), done.ratio_first_epoch("competent")) == (2, 1.2)
    assert done.ratio_window("competent") == (1.5 + 3) / 2
    assert done.matmul_peak_share(15) == 15 / 1.5 / 20


def test_an_estimate_by_hand() -> None:
    shape, load = Shape(), Load(tokens=640)
    one, eight = (estimate_training(shape, load, devices, 312e12, 0.5) for devices in (1, 8))
    block = 4 * 4096**2 + 3 * 4096 * 11008
    assert one.weights_bytes == 2 * (32 * block + 2 * 50304 * 4096)
    assert one.adapter_bytes == 16 * 32 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert one.activations_bytes == 2 * 20 * 4096 * 32 * 640
    assert one.cache_bytes == 1000 * (16 + 26 * 4 + 80 * 4096 * 4)
    assert one.step_seconds == pytest.approx(4 * one.flops_per_pair / 156e12)
    assert eight.step_seconds == pytest.approx(one.step_seconds / 8)
    assert eight.memory_bytes == one.memory_bytes


def test_growth_measures_every_point() -> None:
    sizes = GrowthSizes((8, 16), (100,), (1,), length=12, vocabulary=120, depth=1, hidden=64, pairs=1)
    points = measure_growth(sizes, "cpu", lambda line: None)
    assert [(p.varied, p.length, p.vocabulary, p.layers) for p in points] == [
        ("length", 8, 120, 1),
        ("length", 16, 120, 1),
        ("vocabulary", 12, 100, 1),
        ("layers", 12, 120, 1),
    ]
    assert all(point.released_seconds > 0 and point.ours_seconds > 0 for point in points)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--pairs=3"], "--pairs: must be at least 4, as accumulate is, got 3"),
        (["train", "--pairs=99"], "--pairs: an epoch over these files has 8, got 99"),
        (["train", "--accumulate=0"], "--accumulate: must be at least 1, got 0"),
        (["train", "--data.forget=nowhere.jsonl"], "--data.forget: nowhere.jsonl does not exist"),
        (["train", "--dtype=float8"], "--dtype: must be one of float32, bfloat16, float16, got float8"),
        (["estimate", "--share=1.5"], "--share: must be above 0 and at most 1, got 1.5"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    base_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = write_rows(tmp_path)
    output = tmp_path / "out.json"
    if arguments[0] == "train":
        whole = [f"--model={base_folder}", *(f"--data.{name}={path}" for name, path in rows.items())]
        arguments = [arguments[0], *whole, f"--json={output}", *arguments[1:]]
    command = {"train": train, "estimate": estimate}[arguments[0]]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        run(command)
    assert end.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"unlearn-pl: error: {message}")
    assert "\n" not in error
    assert not output.exists()


def test_the_estimate_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["estimate", "--tflops=312", "--share=0.5", "--tokens=640"])
    run(estimate)
    text = capsys.readouterr().out
    assert "8 devices" in text
    assert "13.8" in text


def test_the_whole_comparison(base_folder: str, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    rows = [f"--data.{name}={path}" for name, path in write_rows(tmp_path).items()]
    sizes = ["--pairs=4", "--accumulate=2", "--rank=4", "--max_length=64", "--rounds=2"]
    command = [sys.executable, "-m", "benchmarks.train", f"--model={base_folder}", *rows, *sizes]
    done = subprocess.run([*command, f"--json={output}"], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "times faster" in done.stdout
    figures: dict[str, Any] = json.loads(output.read_text())
    assert figures["ratio_warm"] > figures["ratio_first_epoch"] > 0
    assert 0 < figures["matmul_peak_share"] < 1
    assert figures["peak_memory_ratio"] > 0
    assert figures["loss_relative_difference"] < 1e-4
    assert 0 < figures["gradient_relative_difference"] < 1e-4
    assert 0 <= figures["padding_share"] < 0.4  # each of two packs is rounded up to 16 tokens, and 16 are padding's
    assert figures["versions"]["torch"]
    assert figures["ratio_competent_warm"] > figures["ratio_competent_first_epoch"] > 0
    assert figures["peak_memory_ratio_competent"] > 0
    for kind in ("released", "competent", "ours"):
        raw = figures[kind]
        assert [len(times) for times in raw["window_seconds"]] == [2, 2]
        assert raw["pairs_per_second"] == pytest.approx(4 / raw["seconds"])
        assert raw["tokens_per_second"] == pytest.approx(figures["tokens"] / raw["seconds"])
        assert 0 < raw["peak_above_base_bytes"] < raw["peak_above_imports_bytes"]
