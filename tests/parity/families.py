"""Tiny models of each family with odd sizes: transformers' own, or the tests' references."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.parity.heirs import gptj, internlm2, t5gemma, tiny
from tests.parity.reference_decoders import Baichuan, Moss, Palm
from tests.parity.reference_glm import ChatGLM2, DeepNormModel

VOCABULARY = 131


@dataclass(frozen=True)
class Peer:
    """A model in transformers, or a reference.

    Attributes:
        make: builds it.
        is_encoder_decoder: whether it has two streams.
        is_reference: of ``tests/parity/reference*.py``: takes any positions and mask.
        axes: of its positions.
    """

    make: Callable[[], Any]
    is_encoder_decoder: bool = False
    is_reference: bool = False
    axes: int = 1


def _llama(**more: Any):
    def make():
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {
            "vocab_size": VOCABULARY,
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 10,
            "max_position_embeddings": 64,
        }
        return LlamaForCausalLM(LlamaConfig(**(sizes | more)))

    return make


def _gpt2(**more: Any):
    def make():
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {"vocab_size": VOCABULARY, "n_embd": 36, "n_layer": 2, "n_head": 3, "n_inner": 50}
        return GPT2LMHeadModel(GPT2Config(**(sizes | {"n_positions": 64} | more)))

    return make


def _bloom(heads: int):
    def make():
        from transformers import BloomConfig, BloomForCausalLM

        sizes = {"vocab_size": VOCABULARY, "hidden_size": 12 * heads, "n_layer": 2, "n_head": heads}
        return BloomForCausalLM(BloomConfig(**sizes))

    return make


def _opt(**more: Any):
    def make():
        from transformers import OPTConfig, OPTForCausalLM

        sizes = {
            "vocab_size": VOCABULARY,
            "hidden_size": 36,
            "ffn_dim": 50,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 36,
        }
        return OPTForCausalLM(OPTConfig(**(sizes | more)))

    return make


def _falcon(**more: Any):
    def make():
        from transformers import FalconConfig, FalconForCausalLM

        sizes = {
            "vocab_size": VOCABULARY,
            "hidden_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        }
        return FalconForCausalLM(FalconConfig(**(sizes | more)))

    return make


def _t5(name: str = "T5", **more: Any):
    def make():
        import transformers

        sizes = {
            "vocab_size": VOCABULARY,
            "d_model": 36,
            "d_kv": 10,
            "d_ff": 50,
            "num_layers": 2,
            "num_decoder_layers": 3,
            "num_heads": 3,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 12,
        }
        config = getattr(transformers, f"{name}Config")(**(sizes | more))
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)

    return make


def _untied_t5(**more: Any):
    """T5 1.1 as published: a head of its own, which transformers ties in a model made afresh."""

    def make():
        model = _t5(**{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} | more)()
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        return model

    return make


def _bart(name: str = "Bart", **more: Any):
    def make():
        import transformers

        sizes = {
            "vocab_size": VOCABULARY,
            "d_model": 36,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 3,
            "decoder_attention_heads": 3,
            "encoder_ffn_dim": 50,
            "decoder_ffn_dim": 50,
            "max_position_embeddings": 64,
        }
        config = getattr(transformers, f"{name}Config")(**(sizes | more))
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)

    return make


def _codegen() -> Any:
    from transformers import CodeGenConfig, CodeGenForCausalLM

    sizes = {"n_embd": 40, "n_layer": 2, "n_head": 4, "n_inner": 50, "rotary_dim": 6}
    return CodeGenForCausalLM(CodeGenConfig(vocab_size=VOCABULARY, n_positions=64, **sizes))


def _baichuan(**more: Any):
    def make():
        sizes = {
            "model_type": "baichuan",
            "vocab_size": VOCABULARY,
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "rms_norm_eps": 1e-6,
        }
        return Baichuan(**sizes, **more)

    return make


def _moss() -> Any:
    return Moss(
        model_type="moss",
        vocab_size=VOCABULARY,
        n_embd=40,
        n_layer=2,
        n_head=4,
        n_inner=50,
        n_positions=64,
        rotary_dim=6,
        layer_norm_epsilon=1e-5,
        activation_function="gelu_new",
    )


def _deep_norm(kind: str, **more: Any):
    def make():
        sizes = {
            "vocab_size": VOCABULARY,
            "hidden_size": 36,
            "inner_hidden_size": 50,
            "num_layers": 3,
            "num_attention_heads": 3,
            "max_sequence_length": 64,
            "layernorm_epsilon": 1e-5,
            "position_encoding_2d": kind == "chatglm",
        }
        return DeepNormModel(model_type=kind, **sizes, **more)

    return make


def _chatglm2(groups: int, has_bias: bool = True):
    def make():
        return ChatGLM2(
            model_type="chatglm",
            padded_vocab_size=VOCABULARY,
            hidden_size=36,
            ffn_hidden_size=50,
            num_layers=2,
            num_attention_heads=4,
            multi_query_attention=True,
            multi_query_group_num=groups,
            kv_channels=12,
            seq_length=64,
            layernorm_epsilon=1e-5,
            add_qkv_bias=has_bias,
        )

    return make


def _palm(norms: str, scale: float):
    def make():
        return Palm(
            model_type="palm",
            num_tokens=VOCABULARY,
            dim=36,
            depth=2,
            heads=4,
            dim_head=10,
            ff_mult=50 / 36,
            parallel_block=norms,
            logit_scale=scale,
        )

    return make


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
PEERS = {
    "llama": Peer(_llama()),
    "llama gqa": Peer(_llama(num_key_value_heads=2, rope_theta=5e5)),
    "llama mqa, tied, biases": Peer(
        _llama(num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
    ),
    "llama scaled positions": Peer(_llama(rope_scaling={"rope_type": "linear", "factor": 2.0})),
    "llama stretched as 3.1": Peer(_llama(rope_scaling=_LLAMA3, rope_theta=5e5)),
    "llama stretched by ntk": Peer(
        _llama(rope_scaling={"rope_type": "dynamic", "factor": 3.0}, max_position_embeddings=8)
    ),
    "llama stretched by yarn": Peer(_llama(rope_scaling=_YARN)),
    "llama stretched by yarn, all said": Peer(
        _llama(
            rope_scaling=_YARN
            | {"attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False}
        )
    ),
    "mistral": Peer(tiny("Mistral", head_dim=12, sliding_window=4)),
    "qwen2": Peer(tiny("Qwen2", rope_theta=1e6, tie_word_embeddings=True)),
    "qwen2, windows in the last layers": Peer(
        tiny("Qwen2", use_sliding_window=True, sliding_window=3, max_window_layers=1)
    ),
    "qwen3": Peer(tiny("Qwen3", head_dim=12, attention_bias=True)),
    "gemma2": Peer(
        tiny(
            "Gemma2",
            num_hidden_layers=3,
            sliding_window=4,
            head_dim=12,
            query_pre_attn_scalar=20,
            attn_logit_softcapping=1.5,
            final_logit_softcapping=2.0,
            attn_implementation="eager",
        )
    ),
    "gemma3": Peer(
        tiny(
            "Gemma3",
            "Gemma3TextConfig",
            num_hidden_layers=3,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_theta=500.0,
            rope_local_base_freq=50.0,
            rope_scaling={"rope_type": "linear", "factor": 2.0},
            head_dim=12,
            query_pre_attn_scalar=20,
            final_logit_softcapping=2.0,
        )
    ),
    "internlm2": Peer(internlm2, is_reference=True),
    "gpt-neox": Peer(tiny("GPTNeoX", hidden_size=48, rotary_pct=0.5, rotary_emb_base=500.0)),
    "gpt-neox, one after the other": Peer(
        tiny("GPTNeoX", use_parallel_residual=False, attention_bias=False, hidden_size=32)
    ),
    "gpt-j": Peer(gptj),
    "glm": Peer(tiny("Glm", head_dim=12, pad_token_id=0)),
    "glm4": Peer(tiny("Glm4", head_dim=8, attention_bias=False, pad_token_id=0)),
    "gpt2": Peer(_gpt2()),
    "gpt2, another name of its activation": Peer(_gpt2(activation_function="gelu_pytorch_tanh")),
    "gpt2 untied": Peer(_gpt2(tie_word_embeddings=False)),
    "bloom": Peer(_bloom(4)),
    "bloom, heads no power of two": Peer(_bloom(3)),
    "opt": Peer(_opt()),
    "opt post-norm with projection": Peer(
        _opt(do_layer_norm_before=False, word_embed_proj_dim=20, activation_function="gelu")
    ),
    "falcon 7b": Peer(
        _falcon(multi_query=True, parallel_attn=True, new_decoder_architecture=False)
    ),
    "falcon 40b": Peer(_falcon(new_decoder_architecture=True, num_kv_heads=2)),
    "falcon rw": Peer(
        _falcon(
            alibi=True,
            multi_query=False,
            parallel_attn=False,
            new_decoder_architecture=False,
            bias=True,
        )
    ),
    "t5": Peer(_t5(), is_encoder_decoder=True),
    "t5 gated, unscaled head": Peer(
        _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False), is_encoder_decoder=True
    ),
    "t5 v1.1, untied": Peer(_untied_t5(), is_encoder_decoder=True),
    "mt5": Peer(_untied_t5(name="MT5"), is_encoder_decoder=True),
    "ul2": Peer(_untied_t5(feed_forward_proj="gated-silu"), is_encoder_decoder=True),
    "bart": Peer(_bart(), is_encoder_decoder=True),
    "mbart": Peer(_bart("MBart", scale_embedding=True), is_encoder_decoder=True),
    "pegasus": Peer(
        _bart("Pegasus", scale_embedding=True, activation_function="relu"), is_encoder_decoder=True
    ),
    "pegasus, an odd width": Peer(_bart("Pegasus", d_model=39), is_encoder_decoder=True),
    "t5gemma": Peer(t5gemma(), is_encoder_decoder=True),
    "t5gemma, untied, biases": Peer(
        t5gemma(tie_word_embeddings=False, attention_bias=True, encoder_layers=4),
        is_encoder_decoder=True,
    ),
    "codegen": Peer(_codegen),
    "moss": Peer(_moss, is_reference=True),
    "baichuan 7b": Peer(_baichuan(max_position_embeddings=64), is_reference=True),
    "baichuan 13b": Peer(_baichuan(model_max_length=64), is_reference=True),
    "baichuan2 7b": Peer(_baichuan(max_position_embeddings=64, z_loss_weight=0), is_reference=True),
    "baichuan2 13b": Peer(_baichuan(model_max_length=64, z_loss_weight=0), is_reference=True),
    "chatglm": Peer(_deep_norm("chatglm"), is_reference=True, axes=2),
    "chatglm untied": Peer(
        _deep_norm("chatglm", tie_word_embeddings=False), is_reference=True, axes=2
    ),
    "chatglm2": Peer(_chatglm2(2), is_reference=True),
    "chatglm2 one group": Peer(_chatglm2(1, has_bias=False), is_reference=True),
    "chatglm2 all groups": Peer(_chatglm2(4), is_reference=True),
    "glm-130b": Peer(_deep_norm("glm-130b"), is_reference=True),
    "palm": Peer(_palm("one_norm", 1 / 6), is_reference=True),
    "palm, a norm each": Peer(_palm("two_norms", 1.0), is_reference=True),
}


def randomise(model: Any) -> None:
    """Give what learns values that matter, norms and biases too; tied ones stay tied."""
    generator = torch.Generator().manual_seed(3)
    learned = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    for name, parameter in learned:
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = parameter.dim() == 1 and not name.endswith("bias")
        parameter.data.copy_(1 + 0.1 * noise if is_scale else 0.1 * noise)
