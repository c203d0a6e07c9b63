"""What a published config says of special tokens: where answers end, how a decoder starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of special tokens.

    Attributes:
        ends: end an answer; empty: the config doesn't say.
        decoder_start: the first token of an encoder-decoder's decoder, or None.
        forced_begin: the first token of every answer of an encoder-decoder, or None.
    """

    ends: tuple[int, ...] = ()
    decoder_start: int | None = None
    forced_begin: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "SpecialTokens":
        """What a config.json says, or one with the keys of generation_config.json.

        A config with one for its decoder (T5Gemma's) may leave it to that; its decoder starts with
        the token that begins a text.
        """
        inner = config.get("decoder")
        inner = inner if isinstance(inner, Mapping) else {}
        said = {k: v for part in (inner, config) for k, v in part.items() if v is not None}
        ends, start = said.get("eos_token_id", ()), config.get("decoder_start_token_id")
        if start is None and inner:
            start = said.get("bos_token_id")
        return cls(
            tuple(ends) if isinstance(ends, list | tuple) else (ends,),
            start,
            config.get("forced_bos_token_id"),
        )


NOTHING_SAID = SpecialTokens()
