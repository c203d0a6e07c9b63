"""How the data of a model of some structure is laid out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AnswerBlank:
    """GLM's two tokens after a prompt.

    Attributes:
        mask_id: the mask that the answer fills; the prompt's last row.
        start_id: the answer's first token.
    """

    mask_id: int
    start_id: int


@dataclass(frozen=True)
class Structure:
    """What data must know of the model.

    Attributes:
        is_encoder_decoder: prompts go to an encoder.
        is_prefix: rows of a prompt see each other both ways.
        start_id: the decoder's first token, for an encoder-decoder.
        forced_id: the first token of every answer of an encoder-decoder, or None.
        blank: the tokens that an answer fills and starts with (GLM), or None.
        axes: of positions; with two (ChatGLM) an answer's rows stand at the mask and count on the
            second.
    """

    is_encoder_decoder: bool = False
    is_prefix: bool = False
    start_id: int = 0
    blank: AnswerBlank | None = None
    axes: int = 1
    forced_id: int | None = None
