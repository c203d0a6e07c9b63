"""Tiny models of LLaMA's heirs and others of transformers, with odd sizes."""

from collections.abc import Callable
from typing import Any

from tests.parity.reference_decoders import InternLM2

_SIZES = {
    "vocab_size": 131,
    "hidden_size": 40,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def tiny(name: str, config_name: str = "", **more: Any) -> Callable[[], Any]:
    """Build a causal decoder by the names of its classes, of sizes as LLaMA calls them."""

    def make() -> Any:
        import transformers

        config = getattr(transformers, config_name or f"{name}Config")(**(_SIZES | more))
        return getattr(transformers, f"{name}ForCausalLM")(config)

    return make


def gptj() -> Any:
    from transformers import GPTJConfig, GPTJForCausalLM

    sizes = {"n_embd": 36, "n_layer": 2, "n_head": 3, "n_inner": 50, "rotary_dim": 6}
    return GPTJForCausalLM(GPTJConfig(vocab_size=131, n_positions=64, **sizes))


def internlm2() -> Any:
    sizes = _SIZES | {"bias": True, "rms_norm_eps": 1e-5}
    return InternLM2(model_type="internlm2", **sizes)


def t5gemma(
    tie_word_embeddings: bool = True, encoder_layers: int = 2, **more: Any
) -> Callable[[], Any]:
    """Build a T5Gemma whose stacks have other depths."""

    def make() -> Any:
        from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration

        sizes = _SIZES | {"sliding_window": 4, "head_dim": 12, "query_pre_attn_scalar": 20}
        sizes |= {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0} | more
        config = T5GemmaConfig(
            encoder=sizes | {"num_hidden_layers": encoder_layers},
            decoder=sizes | {"num_hidden_layers": 3},
            vocab_size=_SIZES["vocab_size"],
            tie_word_embeddings=tie_word_embeddings,
            attn_implementation="eager",
        )
        return T5GemmaForConditionalGeneration(config)

    return make
