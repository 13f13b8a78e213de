"""What training a large model would take, by arithmetic from its sizes and a measured share of a device's peak."""

from dataclasses import dataclass

from benchmarks.flops import Sizes, pair_flops
from unlearn_pl.objectives.passes import Positions


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
    # embedding and head, which large models have apart
    weights = sizes.linear + 2 * sizes.vocabulary * sizes.hidden
    compared = length if load.positions == "attended" else length // 3
    seconds = flops / (devices * peak * share)
    at_once = min(load.tokens, load.tokens_per_forward)
    return Estimate(
        weights_bytes=load.weight_bytes * weights,
        adapter_bytes=16 * sizes.lora,
        activations_bytes=round(load.weight_bytes * load.kept_per_token * shape.hidden * shape.layers * at_once),
        # 4 bytes for the forget row's NLL, 8 for where the retain row's states end
        cache_bytes=load.pairs * (4 + 8 + 4 * shape.hidden * compared),
        flops_per_pair=flops,
        step_seconds=seconds * load.pairs_per_step,
        epoch_seconds=seconds * load.pairs,
    )
