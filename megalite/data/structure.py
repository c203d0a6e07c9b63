"""How the data of a model of some structure is laid out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Structure:
    """What data must know of the model.

    Attributes:
        is_encoder_decoder: prompts go to an encoder.
        is_prefix: rows of a prompt see each other both ways.
        start_id: the decoder's first token, for an encoder-decoder.
        blank: GLM's two tokens behind a prompt: the mask that the answer fills, and the answer's
            first token; None for other families. The mask is the prompt's last row.
        axes: of positions; with two (ChatGLM) an answer's rows stand at the mask and count on the
            second.
    """

    is_encoder_decoder: bool = False
    is_prefix: bool = False
    start_id: int = 0
    blank: tuple[int, int] | None = None
    axes: int = 1
