"""Published config.json files of LLaMA's heirs, GPT-NeoX, GPT-J, and mT5, UL2 and mBART."""

from typing import Any

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def _of(*sizes: int, inner: int, **more: Any) -> dict[str, Any]:
    named = dict(zip(_SIZES, sizes, strict=True))
    return named | {"intermediate_size": inner} | more


_COMMON = {"hidden_act": "silu", "initializer_range": 0.02, "use_cache": True}
_LLAMA = _COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rope_scaling": None,
}
_LLAMA3 = _LLAMA | {
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "mlp_bias": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
_STRETCHED = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_YI = _LLAMA | {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": False,
    "vocab_size": 64000,
}
_QWEN2 = _COMMON | {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "use_mrope": False,
    "use_sliding_window": False,
}
_MISTRAL = _COMMON | {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "model_type": "mistral",
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "model_type": "gemma2",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "use_cache": True,
    "vocab_size": 256000,
}
_T5GEMMA_STACK = {key: value for key, value in _GEMMA2.items() if not key.endswith("_token_id")}
_T5GEMMA_STACK |= _of(2304, 26, 8, 4, inner=9216, head_dim=256, max_position_embeddings=8192)
_T5GEMMA_STACK |= {
    "attention_bias": False,
    "classifier_dropout_rate": 0.0,
    "dropout_rate": 0.0,
    "layer_types": ["sliding_attention", "full_attention"] * 13,
    "model_type": "t5_gemma_module",
    "query_pre_attn_scalar": 256,
}
_GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "model_type": "gemma3_text",
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "use_cache": True,
    "vocab_size": 262144,
}
_NEOX = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_parallel_residual": True,
}
_GLM = _COMMON | {
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_T5 = {
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "use_cache": True,
}

# Name: preset, what the preset doesn't say, config.json.
HEIRS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Meta-Llama-3-8B": (
        "llama3-8b",
        {},
        _LLAMA3
        | _of(4096, 32, 32, 8, inner=14336, max_position_embeddings=8192)
        | {"tie_word_embeddings": False},
    ),
    "Llama-3.2-1B": (
        "llama3.2-1b",
        {},
        _LLAMA3
        | _of(2048, 16, 32, 8, inner=8192, head_dim=64, max_position_embeddings=131072)
        | {"rope_scaling": _STRETCHED, "tie_word_embeddings": True},
    ),
    "Yi-6B": ("yi-6b", {}, _YI | _of(4096, 32, 32, 4, inner=11008, rms_norm_eps=1e-05)),
    "Yi-1.5-9B": (
        "yi-1.5-9b",
        {},
        _YI | _of(4096, 48, 32, 4, inner=11008, rms_norm_eps=1e-06, mlp_bias=False),
    ),
    "Qwen2.5-0.5B": (
        "qwen2.5-0.5b",
        {},
        _QWEN2
        | _of(896, 24, 14, 2, inner=4864, max_position_embeddings=32768, vocab_size=151936)
        | {"max_window_layers": 24, "sliding_window": 32768, "tie_word_embeddings": True},
    ),
    "Qwen2-7B": (
        "qwen2-7b",
        {},
        _QWEN2
        | _of(3584, 28, 28, 4, inner=18944, max_position_embeddings=131072, vocab_size=152064)
        | {"max_window_layers": 28, "sliding_window": 131072, "tie_word_embeddings": False},
    ),
    "Mistral-7B-v0.1": (
        "mistral-7b-v0.1",
        {},
        _MISTRAL
        | _of(4096, 32, 32, 8, inner=14336, max_position_embeddings=32768, vocab_size=32000)
        | {"rope_theta": 10000.0, "sliding_window": 4096},
    ),
    "Mistral-Nemo-Base-2407": (
        "mistral-nemo",
        {},
        _MISTRAL
        | _of(5120, 40, 32, 8, inner=14336, head_dim=128, max_position_embeddings=131072)
        | {"rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 131072},
    ),
    "Qwen3-0.6B": (
        "qwen3-0.6b",
        {},
        _COMMON
        | _of(1024, 28, 16, 8, inner=3072, head_dim=128, max_position_embeddings=40960)
        | {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "model_type": "qwen3"}
        | {"attention_dropout": 0.0, "max_window_layers": 28, "rms_norm_eps": 1e-06}
        | {"rope_scaling": None, "rope_theta": 1000000, "sliding_window": None}
        | {"tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936},
    ),
    "gemma-2-2b": (
        "gemma2-2b",
        {},
        _GEMMA2
        | _of(2304, 26, 8, 4, inner=9216, head_dim=256, max_position_embeddings=8192)
        | {"query_pre_attn_scalar": 256},
    ),
    "gemma-2-27b": (
        "gemma2-27b",
        {},
        _GEMMA2
        | _of(4608, 46, 32, 16, inner=36864, head_dim=128, max_position_embeddings=8192)
        | {"query_pre_attn_scalar": 144},
    ),
    "t5gemma-2b-2b-ul2": (
        "t5gemma-2b-2b",
        {},
        {
            "architectures": ["T5GemmaForConditionalGeneration"],
            "attention_dropout": 0.0,
            "classifier_dropout_rate": 0.0,
            "decoder": _T5GEMMA_STACK
            | {"cross_attention_hidden_size": 2304, "is_decoder": True, "use_cache": True},
            "dropout_rate": 0.0,
            "encoder": _T5GEMMA_STACK | {"is_decoder": False},
            "initializer_range": 0.02,
            "is_encoder_decoder": True,
            "model_type": "t5gemma",
            "pad_token_id": 0,
            "vocab_size": 256000,
        },
    ),
    "gemma-3-1b-pt": (
        "gemma3-1b",
        {},
        _GEMMA3
        | _of(1152, 26, 4, 1, inner=6912, head_dim=256, max_position_embeddings=32768)
        | {"sliding_window": 512, "sliding_window_pattern": 6},
    ),
    "gemma-3-270m, with its kinds of layers": (
        "gemma3-270m",
        {},
        _GEMMA3
        | _of(640, 18, 4, 1, inner=2048, head_dim=256, max_position_embeddings=32768)
        | {"_sliding_window_pattern": 6, "sliding_window": 512}
        | {"use_bidirectional_attention": False}
        | {"layer_types": [*["sliding_attention"] * 5, "full_attention"] * 3},
    ),
    "internlm2-7b": (
        "internlm2-7b",
        {"rope_scaling": "dynamic", "rope_scale": 2.0},
        _COMMON
        | _of(4096, 32, 32, 8, inner=14336, max_position_embeddings=32768, vocab_size=92544)
        | {"architectures": ["InternLM2ForCausalLM"], "attn_implementation": "eager"}
        | {"bias": False, "model_type": "internlm2", "rms_norm_eps": 1e-05}
        | {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1000000}
        | {"tie_word_embeddings": False},
    ),
    "pythia-160m": (
        "pythia-160m",
        {},
        _NEOX
        | {"hidden_act": "gelu", "hidden_size": 768, "intermediate_size": 3072}
        | {"num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 50304},
    ),
    "gpt-neox-20b": (
        "gpt-neox-20b",
        {},
        _NEOX
        | {"attention_probs_dropout_prob": 0, "hidden_act": "gelu_fast", "hidden_dropout_prob": 0}
        | {"hidden_size": 6144, "intermediate_size": 24576, "num_attention_heads": 64}
        | {"num_hidden_layers": 44, "vocab_size": 50432},
    ),
    "gpt-j-6b": (
        "gpt-j-6b",
        {},
        {
            "activation_function": "gelu_new",
            "architectures": ["GPTJForCausalLM"],
            "attn_pdrop": 0.0,
            "bos_token_id": 50256,
            "embd_pdrop": 0.0,
            "eos_token_id": 50256,
            "gradient_checkpointing": False,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "model_type": "gptj",
            "n_embd": 4096,
            "n_head": 16,
            "n_inner": None,
            "n_layer": 28,
            "n_positions": 2048,
            "resid_pdrop": 0.0,
            "rotary": True,
            "rotary_dim": 64,
            "scale_attn_weights": True,
            "summary_activation": None,
            "summary_first_dropout": 0.1,
            "summary_proj_to_labels": True,
            "summary_type": "cls_index",
            "summary_use_proj": True,
            "task_specific_params": {"text-generation": {"do_sample": True}},
            "tie_word_embeddings": False,
            "tokenizer_class": "GPT2Tokenizer",
            "use_cache": True,
            "vocab_size": 50400,
        },
    ),
    "mt5-small": (
        "mt5-small",
        {},
        _T5
        | {"architectures": ["MT5ForConditionalGeneration"], "d_ff": 1024, "d_kv": 64}
        | {"d_model": 512, "dropout_rate": 0.1, "feed_forward_proj": "gated-gelu"}
        | {"model_type": "mt5", "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8}
        | {"tokenizer_class": "T5Tokenizer", "vocab_size": 250112},
    ),
    "flan-ul2": (
        "flan-ul2",
        {},
        _T5
        | {"architectures": ["T5ForConditionalGeneration"], "d_ff": 16384, "d_kv": 256}
        | {"d_model": 4096, "dense_act_fn": "silu", "dropout_rate": 0.0}
        | {"feed_forward_proj": "gated-silu", "is_gated_act": True, "model_type": "t5"}
        | {"num_decoder_layers": 32, "num_heads": 16, "num_layers": 32}
        | {"relative_attention_max_distance": 128, "vocab_size": 32128},
    ),
    "mbart-large-cc25": (
        "mbart-large-cc25",
        {},
        {
            "_num_labels": 3,
            "activation_dropout": 0.0,
            "activation_function": "gelu",
            "add_bias_logits": False,
            "add_final_layer_norm": True,
            "architectures": ["MBartForConditionalGeneration"],
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "classif_dropout": 0.0,
            "classifier_dropout": 0.0,
            "d_model": 1024,
            "decoder_attention_heads": 16,
            "decoder_ffn_dim": 4096,
            "decoder_layerdrop": 0.0,
            "decoder_layers": 12,
            "dropout": 0.1,
            "encoder_attention_heads": 16,
            "encoder_ffn_dim": 4096,
            "encoder_layerdrop": 0.0,
            "encoder_layers": 12,
            "eos_token_id": 2,
            "forced_eos_token_id": 2,
            "init_std": 0.02,
            "is_encoder_decoder": True,
            "max_length": 1024,
            "max_position_embeddings": 1024,
            "model_type": "mbart",
            "normalize_before": True,
            "normalize_embedding": True,
            "num_beams": 5,
            "num_hidden_layers": 12,
            "output_past": True,
            "pad_token_id": 1,
            "scale_embedding": True,
            "static_position_embeddings": False,
            "task_specific_params": {"translation_en_to_ro": {"decoder_start_token_id": 250020}},
            "vocab_size": 250027,
        },
    ),
    "pegasus-large": (
        "pegasus-large",
        {},
        {
            "activation_dropout": 0.1,
            "activation_function": "relu",
            "add_bias_logits": False,
            "add_final_layer_norm": True,
            "architectures": ["PegasusForConditionalGeneration"],
            "attention_dropout": 0.1,
            "bos_token_id": 0,
            "classif_dropout": 0.0,
            "classifier_dropout": 0.0,
            "d_model": 1024,
            "decoder_attention_heads": 16,
            "decoder_ffn_dim": 4096,
            "decoder_layerdrop": 0.0,
            "decoder_layers": 16,
            "decoder_start_token_id": 0,
            "dropout": 0.1,
            "encoder_attention_heads": 16,
            "encoder_ffn_dim": 4096,
            "encoder_layerdrop": 0.0,
            "encoder_layers": 16,
            "eos_token_id": 1,
            "extra_pos_embeddings": 1,
            "forced_eos_token_id": 1,
            "gradient_checkpointing": False,
            "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
            "init_std": 0.02,
            "is_encoder_decoder": True,
            "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
            "length_penalty": 0.8,
            "max_length": 256,
            "max_position_embeddings": 1024,
            "model_type": "pegasus",
            "normalize_before": True,
            "normalize_embedding": False,
            "num_beams": 8,
            "num_hidden_layers": 16,
            "pad_token_id": 0,
            "scale_embedding": True,
            "static_position_embeddings": True,
            "use_cache": True,
            "vocab_size": 96103,
        },
    ),
    "glm-4-9b-chat-hf": (
        "glm-4-9b-chat",
        {},
        _GLM
        | _of(4096, 40, 32, 2, inner=13696, max_position_embeddings=131072, vocab_size=151552)
        | {"architectures": ["GlmForCausalLM"], "attention_bias": True, "model_type": "glm"}
        | {"rms_norm_eps": 1.5625e-07, "rope_theta": 5000000.0},
    ),
    "glm-4-9b-chat, the files of 2024": (
        "chatglm2-6b",
        {"vocab_size": 151552, "num_layers": 40, "norm_eps": 1.5625e-07}
        | {"max_positions": 131072, "rope_base": 5000000.0},
        {
            "add_bias_linear": False,
            "add_qkv_bias": True,
            "apply_query_key_layer_scaling": True,
            "apply_residual_connection_post_layernorm": False,
            "architectures": ["ChatGLMModel"],
            "attention_dropout": 0.0,
            "attention_softmax_in_fp32": True,
            "bias_dropout_fusion": True,
            "classifier_dropout": None,
            "eos_token_id": [151329, 151336, 151338],
            "ffn_hidden_size": 13696,
            "fp32_residual_connection": False,
            "hidden_dropout": 0.0,
            "hidden_size": 4096,
            "interleaved_qkv": False,
            "kv_channels": 128,
            "layernorm_epsilon": 1.5625e-07,
            "model_type": "chatglm",
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_layers": 40,
            "original_rope": True,
            "pad_token_id": 151329,
            "padded_vocab_size": 151552,
            "post_layer_norm": True,
            "rmsnorm": True,
            "rope_ratio": 500,
            "seq_length": 131072,
            "tie_word_embeddings": False,
            "use_cache": True,
            "vocab_size": 151552,
        },
    ),
    "GLM-4-32B-0414": (
        "glm-4-32b-0414",
        {},
        _GLM
        | _of(6144, 61, 48, 2, inner=23040, max_position_embeddings=32768, vocab_size=151552)
        | {"architectures": ["Glm4ForCausalLM"], "attention_bias": False, "model_type": "glm4"}
        | {"rms_norm_eps": 1e-05},
    ),
}
