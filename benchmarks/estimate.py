"""What training a large model would take, by arithmetic from its sizes and a measured share of a device's peak.

python -m benchmarks.estimate --share .47
"""

from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.command import run, shown
from benchmarks.flops import Sizes, pair_flops
from unlearn_pl.errors import InputError
from unlearn_pl.files import write_json
from unlearn_pl.objectives.passes import Positions
from unlearn_pl.provenance import provenance

ESTIMATES = {
    "weights_bytes": ("base weights, GB on each device", 1e9),
    "adapter_bytes": ("adapter, gradient and Adam, GB on each", 1e9),
    "activations_bytes": ("activations, GB on each", 1e9),
    "memory_bytes": ("together, GB on each", 1e9),
    "cache_bytes": ("reference cache on disk, GB", 1e9),
    "flops_per_pair": ("TFLOP a pair", 1e12),
    "step_seconds": ("seconds of an optimizer step", 1),
    "epoch_seconds": ("seconds of an epoch", 1),
}


@dataclass(frozen=True)
class Shape:
    """A Llama-like model: four attention projections and three feed-forward ones in each layer."""

    layers: int = 32
    hidden: int = 4096
    intermediate: int = 11008
    vocabulary: int = 50304
    kv_share: float = 1.0
    """Width of keys and values, of that of the queries."""

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of a block."""
        h, kv, inner = self.hidden, int(self.hidden * self.kv_share), self.intermediate
        return [(h, h), (h, kv), (h, kv), (h, h), (h, inner), (h, inner), (inner, h)]

    def sizes(self, rank: int) -> Sizes:
        """With an adapter of ``rank`` on every linear layer."""
        linear = self.layers * sum(inputs * outputs for inputs, outputs in self.linear)
        lora = self.layers * rank * sum(inputs + outputs for inputs, outputs in self.linear)
        return Sizes(linear, lora, self.layers, self.hidden, self.hidden, self.vocabulary)


@dataclass(frozen=True)
class Load:
    """The work of an optimizer step and how it is held."""

    tokens: int
    """Of an optimizer step; half forget and half retain, rows of equal length, a third of them answers."""
    pairs_per_step: int = 4
    pairs: int = 1000
    """Of the data set."""
    tokens_per_forward: int = 1024
    rank: int = 32
    weight_bytes: int = 2
    """Of a number of the base weights and of the activations."""
    kept_per_token: float = 20
    """Numbers kept for the backward pass of each token and layer, in units of the hidden width."""
    positions: Positions = "attended"
    """Where the KL is taken."""
    block_bits: float | None = None
    """Of a number of the base weights in the blocks, if they are codes; embedding and head are not."""

    def base_bytes(self, sizes: Sizes) -> int:
        """Of the base weights, embedding and head apart, as large models have them."""
        blocks = sizes.linear * (self.weight_bytes if self.block_bits is None else self.block_bits / 8)
        return round(blocks) + self.weight_bytes * 2 * sizes.vocabulary * sizes.hidden


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device, operations and seconds."""

    weights_bytes: int
    adapter_bytes: int
    """The adapter, its gradient and Adam's two moments, in float32."""
    activations_bytes: int
    cache_bytes: int
    """On disk, for the whole data set, in float32."""
    flops_per_pair: int
    step_seconds: float
    epoch_seconds: float

    @property
    def memory_bytes(self) -> int:
        """Of a device, without what the allocator loses and the buffers of the vocabulary head."""
        return self.weights_bytes + self.adapter_bytes + self.activations_bytes


def estimate_training(shape: Shape, load: Load, devices: int, peak: float, share: float) -> Estimate:
    """Data parallel on ``devices`` that each have a copy of everything and reach ``share`` of ``peak`` FLOP/s.

    The exchange of the adapter's gradient is not counted, nor whether so small a step can fill so many devices.
    """
    sizes = shape.sizes(load.rank)
    length = load.tokens // (2 * load.pairs_per_step)
    row = (length, length // 3)
    flops = pair_flops(sizes, row, row, load.positions)
    compared = length if load.positions == "attended" else length // 3
    seconds = flops / (devices * peak * share)
    at_once = min(load.tokens, load.tokens_per_forward)
    return Estimate(
        weights_bytes=load.base_bytes(sizes),
        adapter_bytes=16 * sizes.lora,
        activations_bytes=round(load.weight_bytes * load.kept_per_token * shape.hidden * shape.layers * at_once),
        # 4 bytes for the NLL of each answer token of the forget row, 8 for where either row ends in its array
        cache_bytes=load.pairs * (8 + 4 * row[1] + 8 + 4 * shape.hidden * compared),
        flops_per_pair=flops,
        step_seconds=seconds * load.pairs_per_step,
        epoch_seconds=seconds * load.pairs,
    )


def estimate(
    share: float,
    tflops: float = 312,
    tokens: int = 640,
    pairs_per_step: int = 4,
    pairs: int = 1000,
    tokens_per_forward: int = 1024,
    rank: int = 32,
    layers: int = 32,
    hidden: int = 4096,
    intermediate: int = 11008,
    vocabulary: int = 50304,
    kv_share: float = 1.0,
    weight_bytes: int = 2,
    kept_per_token: float = 20,
    json: str | None = None,
) -> None:
    """What training a large model would take on 1 and 8 devices, by arithmetic; the defaults are OLMo-7B.

    Args:
        share: Share of the devices' peak that training reaches, in (0, 1]; `python -m benchmarks.train` measures one.
        tflops: Peak of a device, in 10^12 operations a second; above 0.
        tokens: Tokens of an optimizer step, half of them forget and half retain, a third of them answers.
        pairs_per_step: Pairs of an optimizer step.
        pairs: Pairs of the data set, for the size of the reference cache.
        tokens_per_forward: Tokens whose activations are in memory at once.
        rank: Rank of the adapter.
        layers: Transformer blocks.
        hidden: Width of the residual stream.
        intermediate: Width inside the feed-forward blocks.
        vocabulary: Words of the head.
        kv_share: Width of keys and values, of that of the queries; 1 without grouped queries.
        weight_bytes: Of a number of the base weights and the activations.
        kept_per_token: Numbers kept for the backward pass of each token and layer, in units of the hidden width.
        json: File for the figures.
    """
    for name, value in (("share", share), ("tflops", tflops), ("kept_per_token", kept_per_token)):
        if value <= 0 or (name == "share" and value > 1):
            raise InputError(f"must be above 0{' and at most 1' * (name == 'share')}, got {value}", name)
    if pairs_per_step < 1 or tokens < 6 * pairs_per_step:
        raise InputError(f"must be at least 6 for each of {pairs_per_step} pairs, got {tokens}", "tokens")
    shape = Shape(layers, hidden, intermediate, vocabulary, kv_share)
    load = Load(tokens, pairs_per_step, pairs, tokens_per_forward, rank, weight_bytes, kept_per_token)
    figures = {count: estimate_training(shape, load, count, tflops * 1e12, share) for count in (1, 8)}
    print_estimates(figures)
    if json is not None:
        config = {**asdict(shape), **asdict(load), "tflops": tflops, "share": share}
        write_json(json, provenance(estimates={n: asdict(f) for n, f in figures.items()}, config=config))


def print_estimates(figures: dict[int, Estimate]) -> None:
    """Print a column for each number of devices."""
    table = Table("", *(f"{count} device{'s' * (count > 1)}" for count in figures))
    for key, (name, unit) in ESTIMATES.items():
        table.add_row(name, *(shown(getattr(figure, key) / unit) for figure in figures.values()))
    Console(width=100).print(table)


if __name__ == "__main__":
    run(estimate)
