"""Which architectures train and generate exactly: every causal language model of transformers that can be built small.

    PYTHONPATH=tests python tests/architecture_table.py [MODEL_TYPE ...] > docs/architectures.md

Each is built with random weights; a training step is compared with the plain formulation, as in
``test_plain_formulation.py``, and greedy texts with ``model.generate``, one row at a time.
"""

import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import transformers
from row_by_row import sharpened
from test_plain_formulation import FORGET, OBJECTIVES, RETAIN, adapted, gap, plain_loss
from tiny_adapters import batch_of, gradients
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.decoding import continue_batch
from unlearn_pl.evaluation.forward import evaluating
from unlearn_pl.evaluation.network import Network
from unlearn_pl.merging.parents import read_parent
from unlearn_pl.models.lora import save_adapter
from unlearn_pl.training.loss import PackedLoss
from unlearn_pl.training.policy import prepare_policy
from unlearn_pl.training.reference import live_reference

SECONDS = 40
# What makes a configuration small, under every name that families have for it.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "lru_width", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", "decoder_ffn_dim", "dim_ff",
                     "intermediate_size_mlp", "shared_expert_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("sliding_window", "attention_window_size", "attention_chunk_size"), 8),
    "head_dim": 8, "moe_intermediate_size": 16, "vocab_size": 300, "pad_token_id": None, "state_size": 4,
    "n_groups": 1, "rotary_dim": 4, "mamba_d_state": 4, "mamba_dt_rank": 4, "kv_lora_rank": 16, "q_lora_rank": 16,
    "n_group": 1,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "topk_group": 1, "dim_head": 8,
    "first_k_dense_replace": 1,
}  # fmt: skip


class TooSlow(BaseException):
    """Not an Exception: the code under test has handlers for those."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TooSlow if the block takes longer."""

    def stop(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def build(model_type: str) -> PreTrainedModel:
    """A small one with random weights, its dropout off; raises whatever its classes raise if it cannot be so small."""
    config_class = type(AutoConfig.for_model(model_type))
    known = config_class().get_text_config(decoder=True).to_dict()
    config = type(config_class().get_text_config(decoder=True))(**{n: v for n, v in SIZES.items() if n in known})
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    model = sharpened(AutoModelForCausalLM.from_config(config).eval())
    if sum(weight.numel() for weight in model.parameters()) > 3e6:
        raise ValueError("not small")
    with torch.no_grad():
        model(input_ids=torch.arange(1, 9)[None])  # sizes may not go together
    return model


def training(model_type: str) -> tuple[str, str, str]:
    """How exact a step is, whether rows are packed, whether the adapter can be merged."""
    plain, model = (adapted(build(model_type), "all-linear", own, torch.float32).eval() for own in (False, True))
    packed = prepare_policy(model)
    model.eval()
    _, expected = gradients(plain, lambda: plain_loss(plain))
    loss = PackedLoss(OBJECTIVES, 64, 20)
    _, own = gradients(model, lambda: loss(model, batch_of(FORGET, RETAIN), live_reference)[0])
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, f"{folder}/adapter")
        try:
            read_parent(Path(folder) / "adapter")
            merges = "yes"
        except InputError as error:
            merges = str(error).rsplit(": ", 1)[-1]
    return f"{gap(own, expected):.0e}", "packed" if packed else "padded", merges


def generation(model_type: str) -> str:
    """Of six prompts of different lengths, how many go on as ``generate`` has it for each alone."""
    model = build(model_type)
    prompts = [list(row.input_ids) for row in (*FORGET, *RETAIN)]
    alone = []
    for row in prompts:
        ids = torch.tensor([row])
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
        alone.append(model.generate(ids, **options)[0, len(row) :].tolist())
    with evaluating(model):
        together = continue_batch(Network(model), prompts, [8] * len(prompts), frozenset([299]))
    cut = [row[: row.index(299)] if 299 in row else row for row in alone]
    return f"{sum(list(a)[: len(b)] == b for a, b in zip(together, cut, strict=True))} of {len(cut)}"


def attempt(step: Any, model_type: str) -> Any:
    """What ``step`` gives, or why it gives nothing."""
    try:
        with at_most(SECONDS), redirect_stdout(sys.stderr):
            return step(model_type)
    except TooSlow:
        return f"over {SECONDS} s"
    except InputError as error:
        return f"refused: {error}"
    except Exception as error:  # every family fails in its own way
        return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"


def main(chosen: list[str]) -> None:
    """Print the page."""
    exact, refused, unbuilt = [], [], []
    for model_type in chosen or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        print(model_type, file=sys.stderr, flush=True)
        model = attempt(build, model_type)
        if isinstance(model, str):
            unbuilt.append(model_type)
            continue
        found, texts = attempt(training, model_type), attempt(generation, model_type)
        if isinstance(found, str):
            refused.append(f"| {model_type} | {shortened(found)} | {shortened(texts)} |")
        else:
            exact.append(f"| {model_type} | {found[0]} | {found[1]} | {found[2]} | {shortened(texts)} |")
    print(PAGE.format(version=transformers.__version__, exact="\n".join(exact), refused="\n".join(refused),
                      unbuilt=", ".join(unbuilt)))  # fmt: skip


def shortened(text: str) -> str:
    return text.replace("|", "/")[:230]


PAGE = """# Architectures

Made by `PYTHONPATH=tests python tests/architecture_table.py > docs/architectures.md` with transformers {version}: every
causal language model that could be built small, with random weights, in float32. `refused: ...` is the
one line with which `unlearn-pl fit` ends before it trains; other reasons are errors of the architecture's own code.

## Trained

*Gradient*: relative distance of a step (NPO, NLL and KL, an adapter on every linear layer, packs of 20 tokens, rows
beyond a window of 8 tokens) from the plain formulation: the whole model with PEFT's own layers, one row at a time.
Float32 alone makes 1e-7 to 1e-5. *Rows*: packed without padding, or padded in groups of like lengths. *Merge*: whether
two such adapters can be merged. *Texts*: greedy texts of six prompts in one batch that equal `model.generate` on each
alone; random weights make close calls, which rounding may decide.

| model type | gradient | rows | merge | texts |
|---|---:|---|---|---|
{exact}

## Not trained with an adapter on every linear layer

| model type | why | texts |
|---|---|---|
{refused}

## Not built small by the script, or not running at that size, so not looked at

This says nothing about them. Jamba, Recurrent Gemma, Llama 4 (adapter on its attention) and a wrapped Gemma 3 are in
`tests/test_plain_formulation.py`.

{unbuilt}
"""


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    main(sys.argv[1:])
