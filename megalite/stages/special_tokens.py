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
        """What a config.json says, or one with the keys of generation_config.json."""
        ends = config.get("eos_token_id")
        if ends is None:
            ends = ()
        return cls(
            tuple(ends) if isinstance(ends, list | tuple) else (ends,),
            config.get("decoder_start_token_id"),
            config.get("forced_bos_token_id"),
        )


NOTHING_SAID = SpecialTokens()
