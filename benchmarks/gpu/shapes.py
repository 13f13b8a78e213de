"""Models of known shapes with random weights, made on the device: no download, and the real model's products."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, OlmoConfig, PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal language model."""

    family: str
    """``llama`` or ``olmo``."""
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int
    tied: bool
    """Whether the embedding is the vocabulary head."""

    def config(self) -> PreTrainedConfig:
        """Of transformers. No id is special: transformers would freeze the embedding of a pad token."""
        kind = {"llama": LlamaConfig, "olmo": OlmoConfig}[self.family]
        return kind(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.positions, tie_word_embeddings=self.tied, pad_token_id=None,
            bos_token_id=None, eos_token_id=0,
        )  # fmt: skip


SHAPES = {
    "SmolLM2-135M": Shape("llama", 30, 576, 1536, 9, 3, 49152, 8192, True),
    "OLMo-1B": Shape("olmo", 16, 2048, 8192, 16, 16, 50304, 2048, True),
    "OLMo-7B": Shape("olmo", 32, 4096, 11008, 32, 32, 50304, 2048, False),
}
SMALL = {
    "SmolLM2-135M": Shape("llama", 2, 48, 96, 3, 1, 320, 512, True),
    "OLMo-1B": Shape("olmo", 2, 64, 128, 4, 4, 320, 512, True),
    "OLMo-7B": Shape("olmo", 3, 64, 128, 4, 4, 320, 512, False),
}
"""What stands for each of them on a CPU."""


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """In eval mode, a function of its arguments; the random state is as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype)
    return model.eval()


def walk(model: PreTrainedModel, successor: dict[int, int], seed: int = 0, size: float = 30.0) -> None:
    """Let ``model``, whose head is not its embedding, say after the token i always ``successor[i]``, and nothing else.

    The embeddings of those tokens are set to normal(0, ``size``), beside which what random blocks add is small; the
    head of a successor is the direction of the token before it, and that of any other token zero.
    """
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    before, after = list(successor), list(successor.values())
    drawn = torch.randn(len(before), embedding.shape[1], generator=generator)
    with torch.no_grad():
        head.zero_()
        embedding[before] = (size * drawn).to(embedding)
        head[after] = nn.functional.normalize(drawn).to(head)
