"""The floating point operations that a training step needs, whatever computes it; a multiply-add counts as two."""

from collections.abc import Iterable
from dataclasses import dataclass

from peft import PeftModel
from torch import nn

from benchmarks.released import EncodedPair
from unlearn_pl.models.body import causal_model, text_config
from unlearn_pl.objectives.passes import Positions


@dataclass(frozen=True)
class Sizes:
    """What the operations of a causal language model with LoRA depend on."""

    linear: int
    """Weights of the frozen linear layers of the body, all layers together; the vocabulary head is not among them."""
    lora: int
    """Weights of the adapter."""
    layers: int
    attention: int
    """Width of all attention heads of a layer together."""
    hidden: int
    vocabulary: int


def sizes_of(model: PeftModel) -> Sizes:
    """Counted in the model itself, so they hold for any architecture made of linear layers and attention."""
    causal = causal_model(model)
    config = text_config(model)
    layers = {name: m for name, m in causal.base_model.named_modules() if isinstance(m, nn.Linear)}
    weights = {True: 0, False: 0}
    for name, layer in layers.items():
        weights["lora_" in name] += layer.weight.numel()
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    vocabulary, hidden = causal.get_output_embeddings().weight.shape
    width = config.num_attention_heads * head_width
    return Sizes(weights[False], weights[True], config.num_hidden_layers, width, hidden, vocabulary)


def row_flops(sizes: Sizes, length: int) -> int:
    """Body, forward and backward, of a row of ``length`` tokens.

    A frozen weight costs 2 operations a token forward and 2 for the gradient of its input; an adapter's weight 2
    forward and 4 backward. Attention is causal: half of two products of length x length x width, and two and a half
    times that backward. The gradient of the first layer's input counts although nobody asks for it.
    """
    products = 2 * 2 * length * length * sizes.attention // 2
    return length * (4 * sizes.linear + 6 * sizes.lora) + sizes.layers * (products + 5 * products // 2)


def pair_flops(sizes: Sizes, forget: tuple[int, int], retain: tuple[int, int], positions: Positions) -> int:
    """The policy's loss and gradient of a forget and a retain row, each given as (tokens, answer tokens).

    The head, 2 x vocabulary x hidden a product and position: on the forget row the logits of the answer and their
    gradient. On the retain row, at the positions of the KL, the logits of policy and reference and the gradient, and
    once more the gradient of the answer's NLL. The reference's body comes from the cache. Nothing recomputed counts.
    """
    product = 2 * sizes.vocabulary * sizes.hidden
    compared = retain[1] if positions == "answer" else retain[0]
    head = product * (2 * forget[1] + 3 * compared + retain[1])
    return row_flops(sizes, forget[0]) + row_flops(sizes, retain[0]) + head


def pairs_flops(sizes: Sizes, pairs: Iterable[EncodedPair], positions: Positions) -> int:
    """The same, of encoded pairs."""
    rows = (
        [(len(row.input_ids), len(row.input_ids) - row.answer_start) for row in (forget, retain)]
        for forget, retain in pairs
    )
    return sum(pair_flops(sizes, forget, retain, positions) for forget, retain in rows)
