"""How the data of a model of some structure is laid out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Structure:
    """What data must know of the model.

    Attributes:
        is_encoder_decoder: prompts go to an encoder.
        is_prefix: rows of a prompt see each other both ways.
        start_id: the decoder's first token, for an encoder-decoder.
    """

    is_encoder_decoder: bool = False
    is_prefix: bool = False
    start_id: int = 0
