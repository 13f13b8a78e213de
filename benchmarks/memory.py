"""Memory and time of models of 1 to 70 billion weights on one device, eight, and two nodes of eight, by arithmetic.

python -m benchmarks.memory
"""

from dataclasses import asdict, dataclass, replace
from functools import partial

from rich.console import Console
from rich.table import Table

from benchmarks.command import run, shown
from benchmarks.estimate import Load, Shape, estimate_training
from unlearn_pl.errors import InputError
from unlearn_pl.files import write_json
from unlearn_pl.provenance import provenance

SHAPES = {
    "1B": Shape(layers=16, hidden=2048, intermediate=8192, vocabulary=128256, kv_share=1 / 4),
    "7B": Shape(layers=32, hidden=4096, intermediate=11008, vocabulary=50304),
    "8B": Shape(layers=32, hidden=4096, intermediate=14336, vocabulary=128256, kv_share=1 / 4),
    "70B": Shape(layers=80, hidden=8192, intermediate=28672, vocabulary=128256, kv_share=1 / 8),
}
"""Those of Llama-3.2-1B, OLMo-7B, Llama-3.1-8B and Llama-3.1-70B, embedding and head counted apart."""
CODES = {"nf4": 4 + 8 / 64 + 32 / (64 * 256), "int8": 8}
"""Bits of a weight. NF4 has a scale of 8 bits for 64 weights and one of 32 for 256 of these; int8 has 32 for a row."""
DEVICES = (1, 8, 16)


@dataclass(frozen=True)
class Cluster:
    """What the devices are and how they are joined."""

    tflops: float = 312
    """Peak of a device, in 10^12 operations a second."""
    gigabytes: float = 80
    """Memory of a device."""
    in_node: float = 250
    """GB a second that each device of a node sends while it receives as much."""
    between_nodes: float = 25
    """GB a second of each device to another node."""
    node: int = 8
    """Devices of a node."""

    def gigabytes_a_second(self, devices: int) -> float:
        """Of the slowest link."""
        return self.in_node if devices <= self.node else self.between_nodes


@dataclass(frozen=True)
class Cost:
    """Of each device, for one optimizer step in which each has the same work (weak scaling)."""

    memory_bytes: int
    compute_seconds: float
    exchange_seconds: float
    """Were none of it hidden behind the computation."""


def ddp(shape: Shape, load: Load, cluster: Cluster, devices: int, share: float) -> Cost:
    """Every device has a copy of everything; once a step the adapter's gradient (4 bytes a number) is averaged by a
    ring, which sends 2 (n - 1) / n of it.

    Eight devices, an adapter of 1e6 numbers, 1 GB/s: 2 x 7/8 x 4e6 bytes = 7e6 bytes, 0.007 s.
    """
    alone = estimate_training(shape, load, 1, cluster.tflops * 1e12, share)
    sent = 2 * (devices - 1) / devices * 4 * shape.sizes(load.rank).lora
    return Cost(alone.memory_bytes, alone.step_seconds, sent / (1e9 * cluster.gigabytes_a_second(devices)))


def fsdp2(shape: Shape, load: Load, cluster: Cluster, devices: int, share: float) -> Cost:
    """The blocks of the base in n shards, but for two that are whole at a time, one that computes and one that arrives;
    embedding, head and adapter are whole. Each pack of rows gathers the blocks forward and again backward, (n - 1) / n
    of them sent each time, and the adapter's gradient is averaged as by ddp.
    """
    alone = estimate_training(shape, load, 1, cluster.tflops * 1e12, share)
    blocks = alone.weights_bytes - 2 * load.weight_bytes * shape.vocabulary * shape.hidden
    at_once = min(blocks, blocks / devices + 2 * blocks / shape.layers)
    packs = -(-load.tokens // load.tokens_per_forward)
    sent = (devices - 1) / devices * (2 * packs * blocks + 2 * 4 * shape.sizes(load.rank).lora)
    seconds = sent / (1e9 * cluster.gigabytes_a_second(devices))
    return Cost(round(alone.memory_bytes - blocks + at_once), alone.step_seconds, seconds)


def coded(codes: str, shape: Shape, load: Load, cluster: Cluster, devices: int, share: float) -> Cost:
    """As ``ddp``, with the blocks in codes; the largest layer is there in full while it computes.

    A block of one layer 4,000 x 1,000, nf4: 4e6 x 4.127 / 8 = 2.06e6 bytes of codes, and 8e6 of numbers in bfloat16.
    """
    cost = ddp(shape, replace(load, block_bits=CODES[codes]), cluster, devices, share)
    largest = load.weight_bytes * max(inputs * outputs for inputs, outputs in shape.linear)
    return replace(cost, memory_bytes=cost.memory_bytes + largest)


STRATEGIES = {"ddp": ddp, "fsdp2": fsdp2} | {f"ddp, {codes}": partial(coded, codes) for codes in CODES}
COUNTS = {"fsdp2": (8, 16)} | {f"ddp, {codes}": (1,) for codes in CODES}
"""Of devices, where they are not all of ``DEVICES``."""


def memory(
    share: float = 0.4,
    tokens: int = 8192,
    pairs_per_step: int = 32,
    tokens_per_forward: int = 2048,
    rank: int = 32,
    kept_per_token: float = 13.5,
    cluster: Cluster | None = None,
    json: str | None = None,
) -> None:
    """Memory and time of 1B, 7B, 8B and 70B on 1, 8 and 16 devices, by arithmetic, the base in bfloat16, and on one
    device in codes. What it takes to make numbers of the codes in each pass is not in the time.

    Args:
        share: Share of the devices' peak that the computation reaches, in (0, 1].
        tokens: Tokens of a device in an optimizer step, half of them forget and half retain, a third of them answers.
        pairs_per_step: Pairs of a device in an optimizer step.
        tokens_per_forward: Tokens whose activations are in memory at once.
        rank: Rank of the adapter, on every linear layer but the head.
        kept_per_token: Numbers kept for the backward pass of each token and layer, in units of the hidden width.
        cluster: The devices.
        json: File for the figures.
    """
    if not 0 < share <= 1:
        raise InputError(f"must be above 0 and at most 1, got {share}", "share")
    if pairs_per_step < 1 or tokens < 6 * pairs_per_step:
        raise InputError(f"must be at least 6 for each of {pairs_per_step} pairs, got {tokens}", "tokens")
    for name, value in (("tokens_per_forward", tokens_per_forward), ("rank", rank)):
        if value < 1:
            raise InputError(f"must be at least 1, got {value}", name)
    if kept_per_token <= 0:
        raise InputError(f"must be above 0, got {kept_per_token}", "kept_per_token")
    cluster = cluster or Cluster()
    load = Load(tokens, pairs_per_step, 1000, tokens_per_forward, rank, 2, kept_per_token)
    costs = {
        (name, strategy, devices): cost(shape, load, cluster, devices, share)
        for name, shape in SHAPES.items()
        for strategy, cost in STRATEGIES.items()
        for devices in COUNTS.get(strategy, DEVICES)
    }
    print_costs(costs, cluster)
    if json is not None:
        rows = [dict(zip(("model", "strategy", "devices"), key, strict=True)) | asdict(c) for key, c in costs.items()]
        write_json(json, provenance(costs=rows, config={"share": share, **asdict(load), **asdict(cluster)}))


def print_costs(costs: dict[tuple[str, str, int], Cost], cluster: Cluster) -> None:
    """One line for each model, strategy and number of devices."""
    columns = ("devices", "GB on each", f"in {cluster.gigabytes:g} GB", "s computing", "s exchanging")
    table = Table("model", "strategy", *columns)
    for (name, strategy, devices), cost in costs.items():
        gigabytes = cost.memory_bytes / 1e9
        fits = "yes" if gigabytes <= 0.9 * cluster.gigabytes else "no"  # the allocator loses some, the head has buffers
        seconds = (shown(cost.compute_seconds), shown(cost.exchange_seconds))
        table.add_row(name, strategy, str(devices), shown(gigabytes), fits, *seconds)
    Console(width=100).print(table)


if __name__ == "__main__":
    run(memory)
