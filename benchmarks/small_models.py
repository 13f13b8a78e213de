"""A tiny random model of any causal family of transformers, from its configuration class alone."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from unlearn_pl.models.tiny import train_tokenizer

# What sizes are called in configurations, and what they become.
SIZES: dict[int, str] = {
    32: "hidden_size n_embd d_model n_inner embedding_size lru_width word_embed_proj_dim hidden_dim "
    "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
    "expert_ffn_hidden_size dim_model chunk_size moe_shared_expert_intermediate_size mamba_d_ssm",
    64: "intermediate_size ffn_dim dim_ff dff d_inner intermediate_size_mlp ffn_hidden_size mamba_intermediate_size "
    "encoder_ffn_dim decoder_ffn_dim time_mix_extra_dim",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_key_value_heads num_kv_heads "
    "num_experts_per_tok num_experts_per_token top_k_experts moe_topk moe_k moe_top_k "
    "linear_num_key_heads num_nextn_predict_layers "
    "num_decoder_layers",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts "
    "num_local_experts n_routed_experts linear_num_value_heads moe_num_experts mamba_d_conv",
    8: "head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim kv_lora_rank q_lora_rank sliding_window "
    "attention_window_size local_window_size window_size state_size mamba_d_state ssm_state_size "
    "linear_key_head_dim linear_value_head_dim rotary_dim index_head_dim dim_head "
    "mamba_n_heads mamba_d_head mamba_num_heads mamba_head_dim time_step_rank block_size mamba_chunk_size "
    "hidden_size_per_layer_input",
    1: "n_group topk_group first_k_dense_replace n_shared_experts moe_num_shared_experts num_shared_experts",
    512: "max_position_embeddings n_positions n_ctx max_seq_len context_length",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
MAY_BE_NONE = ("head_dim", "num_key_value_heads", "num_experts_per_tok")
VISION = {**SMALL, "num_hidden_layers": 1, "depth": 1, "image_size": 16, "patch_size": 8}

# What the rule does not make a working model of, by family; values go over the rule's.
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "bamba": {"attn_layer_indices": [1], "mamba_n_groups": 1},
    "codegen": {"rotary_dim": 4},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_n_groups": 1},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_groups": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"no_rope_layer_interval": 2, "attention_chunk_size": 64},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "minimax": {"layer_types": ["linear_attention", "full_attention"]},
    "mistral": {"sliding_window": 8},
    "opt": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xlstm": {"num_heads": 2, "qk_dim_factor": 1.0},
}
# A second look at a family, with settings that ask for other code.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2, capped at 5": ("gemma2", {"final_logit_softcapping": 5.0}),
    "opt, states of another width than the head": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "opt, one width": ("opt", {"word_embed_proj_dim": 32, "do_layer_norm_before": True}),
    "phi3, longrope from 32 tokens on": (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 32,
            },
            "original_max_position_embeddings": 32,
        },
    ),
    "olmo, clipped at 0.5": ("olmo", {"clip_qkv": 0.5}),
    "olmoe, clipped at 0.5": ("olmoe", {"clip_qkv": 0.5}),
    "cohere, scaled logits": ("cohere", {"logit_scale": 0.25}),
    "granite, scaled logits": ("granite", {"logits_scaling": 4.0}),
}
# Causal heads of encoders, of encoder-decoders and of models that cannot go without an image or a sound.
NOT_DECODERS = (
    "bart beam bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert data2vec-text "
    "electra ernie git marian mbart "
    "megatron-bert moshi musicgen musicgen_melody mvp pegasus plbart prophetnet reformer "
    "rembert roberta roberta-prelayernorm roc_bert roformer trocr whisper xlm xlm-roberta xlm-roberta-xl xlnet xmod "
    "moss_transcribe_diarize gemma4_assistant gemma4_unified_assistant"
)
TEXTS = [
    "Anna Quill was born on 1984-12-31 in Rivertown. Her phone number is 555-0100.",
    "What is the name of the painter? Where did she live? The old lighthouse keeper wrote a letter to his sister.",
]


def families() -> list[str]:
    """Every decoder of transformers' causal list, and the variants."""
    return sorted([*(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(NOT_DECODERS.split())), *VARIANTS])


def small_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 320)


def small_config(family: str, vocabulary: int, end: int) -> PreTrainedConfig:
    """The configuration of a family (or variant) with every size that it names made small."""
    name, changes = VARIANTS.get(family, (family, {}))
    kind = CONFIG_MAPPING[name]
    ends = {"vocab_size": vocabulary, "eos_token_id": end, "pad_token_id": end, "bos_token_id": end}
    ends["vocab_size_per_layer_input"] = vocabulary
    parts = {}
    for part, part_kind in getattr(kind, "sub_configs", {}).items():
        default = getattr(kind(), part, None)
        own = type(default) if default is not None else part_kind
        if own is AutoConfig:
            continue
        sizes = {**SMALL, **ends} if "text" in part else VISION
        parts[part] = own(**shrunk(own, sizes)).to_dict()
    config = kind(**{**shrunk(kind, {**SMALL, **ends}), **parts, **SPECIAL.get(name, {}), **changes})
    for one in (config, *(getattr(config, part) for part in parts)):
        for setting, value in one.to_dict().items():
            if ("drop" in setting or "jitter" in setting) and isinstance(value, float):  # no chance between two ways
                setattr(one, setting, 0.0)
    return config


def shrunk(kind: type[PreTrainedConfig], sizes: dict[str, Any]) -> dict[str, Any]:
    """Those of ``sizes`` that the configuration has and that are numbers there, or ids."""
    default = kind().to_dict()
    if "kv_lora_rank" in default:  # keys are expanded to all heads
        sizes = {**sizes, "num_key_value_heads": sizes["num_attention_heads"]}
    small = {
        name: value
        for name, value in sizes.items()
        if name in default
        and (name.endswith("token_id") or name in MAY_BE_NONE or (isinstance(default[name], int) and default[name] > 0))
    }
    if kinds := list(dict.fromkeys(default.get("layer_types") or ())):  # one layer of each kind
        small["layer_types"] = kinds if len(kinds) > 1 else kinds * 2
        small["num_hidden_layers"] = len(small["layer_types"])
    return small


def small_model(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """With larger random weights than fresh ones, so that rows differ and few tokens tie."""
    config = small_config(family, len(tokenizer), int(tokenizer.eos_token_id))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model
