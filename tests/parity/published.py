"""Configs as they stand in published folders, and the preset that each of them is."""

from typing import Any

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 32000,
}
_BLOOM = {
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True,
    "model_type": "bloom",
    "n_inner": None,
    "offset_alibi": 100,
    "pad_token_id": 3,
    "pretraining_tp": 1,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "slow_but_exact": False,
    "unk_token_id": 0,
    "use_cache": True,
    "vocab_size": 250880,
}
_REFINED_WEB = {
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "bias": False,
    "bos_token_id": 11,
    "eos_token_id": 11,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "parallel_attn": True,
    "use_cache": True,
    "vocab_size": 65024,
}
_CHATGLM2 = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "model_type": "chatglm",
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 32768,
    "tie_word_embeddings": False,
    "use_cache": True,
}
_T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
_BART = {
    "activation_dropout": 0.1,
    "activation_function": "gelu",
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "attention_dropout": 0.1,
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "dropout": 0.1,
    "early_stopping": True,
    "eos_token_id": 2,
    "extra_pos_embeddings": 2,
    "forced_eos_token_id": 2,
    "init_std": 0.02,
    "is_encoder_decoder": True,
    "max_position_embeddings": 1024,
    "model_type": "bart",
    "normalize_before": False,
    "normalize_embedding": True,
    "pad_token_id": 1,
    "scale_embedding": False,
    "static_position_embeddings": False,
    "vocab_size": 50265,
}
_OPT = {
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "do_layer_norm_before": True,
    "dropout": 0.1,
    "eos_token_id": 2,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": 2048,
    "model_type": "opt",
    "pad_token_id": 1,
    "use_cache": True,
    "vocab_size": 50272,
}
_BAICHUAN = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "baichuan",
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "use_cache": True,
}

# Name: preset, what the preset doesn't say, config.json.
CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama-7b, first files without a length": (
        "llama-7b",
        {},
        _LLAMA | {"max_sequence_length": 2048, "pad_token_id": -1, "rms_norm_eps": 1e-06},
    ),
    "Llama-2-7b": (
        "llama2-7b",
        {},
        _LLAMA
        | {"max_position_embeddings": 4096, "num_key_value_heads": 32, "rms_norm_eps": 1e-05}
        | {"pretraining_tp": 1, "rope_scaling": None},
    ),
    "Llama-2-70b": (
        "llama2-70b",
        {},
        _LLAMA
        | {"hidden_size": 8192, "intermediate_size": 28672, "max_position_embeddings": 4096}
        | {"num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8}
        | {"rms_norm_eps": 1e-05},
    ),
    "Llama-3.1-8B": (
        "",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "num_layers": 32,
            "num_heads": 32,
            "num_kv_heads": 8,
            "ffn_size": 14336,
            "norm_eps": 1e-5,
            "tie_embeddings": False,
            "rope_base": 500000.0,
            "rope_scaling": "llama3",
            "rope_scale": 8.0,
            "rope_original_positions": 8192,
        },
        _LLAMA
        | {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000}
        | {"eos_token_id": 128001, "intermediate_size": 14336, "max_position_embeddings": 131072}
        | {"mlp_bias": False, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05}
        | {"rope_theta": 500000.0, "vocab_size": 128256}
        | {
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            }
        },
    ),
    "bloom-560m": (
        "bloom-560m",
        {},
        _BLOOM | {"n_embed": 1024, "n_layer": 24, "num_attention_heads": 16},
    ),
    "bloom": (
        "bloom-176b",
        {},
        _BLOOM | {"hidden_size": 14336, "n_head": 112, "n_layer": 70, "seq_length": 2048},
    ),
    "falcon-7b, files of 2023": (
        "falcon-7b",
        {},
        _REFINED_WEB
        | {"hidden_size": 4544, "model_type": "RefinedWebModel", "multi_query": True}
        | {"n_head": 71, "n_layer": 32},
    ),
    "falcon-40b, files of 2023": (
        "falcon-40b",
        {},
        _REFINED_WEB
        | {"hidden_size": 8192, "model_type": "RefinedWeb", "n_head": 128, "n_head_kv": 8}
        | {"n_layer": 60},
    ),
    "falcon-rw-1b": (
        "",
        {
            "vocab_size": 50304,
            "hidden_size": 2048,
            "num_layers": 24,
            "num_heads": 32,
            "ffn_size": 8192,
            "norm": "layer_norm",
            "activation": "gelu",
            "gated": False,
            "qkv_bias": True,
            "attention_bias": True,
            "ffn_bias": True,
            "position": "alibi",
            "alibi_scale": 64**-0.5,
        },
        _REFINED_WEB
        | {"alibi": True, "bias": True, "bos_token_id": 1, "eos_token_id": 2}
        | {"hidden_size": 2048, "model_type": "falcon", "multi_query": False}
        | {"new_decoder_architecture": False, "num_attention_heads": 32, "num_hidden_layers": 24}
        | {"parallel_attn": False, "vocab_size": 50304},
    ),
    "gpt2": (
        "gpt2",
        {},
        {
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "attn_pdrop": 0.1,
            "bos_token_id": 50256,
            "embd_pdrop": 0.1,
            "eos_token_id": 50256,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "model_type": "gpt2",
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "resid_pdrop": 0.1,
            "summary_activation": None,
            "summary_first_dropout": 0.1,
            "summary_proj_to_labels": True,
            "summary_type": "cls_index",
            "summary_use_proj": True,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
            "vocab_size": 50257,
        },
    ),
    "opt-125m": (
        "opt-125m",
        {},
        _OPT
        | {"_remove_final_layer_norm": False, "ffn_dim": 3072, "hidden_size": 768}
        | {"num_attention_heads": 12, "num_hidden_layers": 12, "word_embed_proj_dim": 768},
    ),
    "opt-350m": (
        "opt-350m",
        {},
        _OPT
        | {"do_layer_norm_before": False, "ffn_dim": 4096, "hidden_size": 1024}
        | {"num_attention_heads": 16, "num_hidden_layers": 24, "word_embed_proj_dim": 512},
    ),
    "t5-small": (
        "t5-small",
        {},
        _T5
        | {"d_ff": 2048, "d_kv": 64, "d_model": 512, "n_positions": 512, "num_heads": 8}
        | {"num_layers": 6, "output_past": True},
    ),
    "t5-v1_1-small": (
        "t5-v1.1-small",
        {},
        _T5
        | {"d_ff": 1024, "d_kv": 64, "d_model": 512, "feed_forward_proj": "gated-gelu"}
        | {"num_decoder_layers": 8, "num_heads": 6, "num_layers": 8}
        | {"output_past": True, "tie_word_embeddings": False},
    ),
    "flan-t5-base": (
        "flan-t5-base",
        {},
        _T5
        | {"d_ff": 2048, "d_kv": 64, "d_model": 768, "feed_forward_proj": "gated-gelu"}
        | {"n_positions": 512, "num_decoder_layers": 12, "num_heads": 12, "num_layers": 12}
        | {"relative_attention_max_distance": 128, "tie_word_embeddings": False},
    ),
    "bart-base": (
        "bart-base",
        {},
        _BART
        | {"d_model": 768, "decoder_attention_heads": 12, "decoder_ffn_dim": 3072}
        | {"decoder_layers": 6, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072}
        | {"encoder_layers": 6, "num_hidden_layers": 6},
    ),
    "Baichuan-7B": (
        "baichuan-7b",
        {},
        _BAICHUAN
        | {"hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096}
        | {"num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 64000},
    ),
    "Baichuan2-13B": (
        "baichuan2-13b",
        {},
        _BAICHUAN
        | {"gradient_checkpointing": False, "hidden_size": 5120, "intermediate_size": 13696}
        | {"model_max_length": 4096, "num_attention_heads": 40, "num_hidden_layers": 40}
        | {"vocab_size": 125696, "z_loss_weight": 0},
    ),
    "moss-moon-003": (
        "moss-moon-003",
        {},
        {
            "activation_function": "gelu_new",
            "attn_pdrop": 0.0,
            "bos_token_id": 106028,
            "embd_pdrop": 0.0,
            "eos_token_id": 106068,
            "gradient_checkpointing": False,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "model_type": "moss",
            "n_ctx": 2048,
            "n_embd": 6144,
            "n_head": 24,
            "n_inner": None,
            "n_layer": 34,
            "n_positions": 2048,
            "resid_pdrop": 0.0,
            "rotary_dim": 64,
            "scale_attn_weights": True,
            "tie_word_embeddings": False,
            "vocab_size": 107008,
        },
    ),
    "chatglm-6b": (
        "chatglm-6b",
        {},
        {
            "bos_token_id": 130004,
            "eos_token_id": 130005,
            "gmask_token_id": 130001,
            "hidden_size": 4096,
            "inner_hidden_size": 16384,
            "layernorm_epsilon": 1e-05,
            "mask_token_id": 130000,
            "max_sequence_length": 2048,
            "model_type": "chatglm",
            "num_attention_heads": 32,
            "num_layers": 28,
            "pad_token_id": 3,
            "position_encoding_2d": True,
            "pre_seq_len": None,
            "prefix_projection": False,
            "quantization_bit": 0,
            "use_cache": True,
            "vocab_size": 130528,
        },
    ),
    "chatglm2-6b": ("chatglm2-6b", {}, _CHATGLM2),
    "chatglm2-6b-32k": ("chatglm2-6b", {"rope_base": 500000.0}, _CHATGLM2 | {"rope_ratio": 50}),
}
