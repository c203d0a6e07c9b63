"""Which blocks of a model one pipeline stage holds."""

from dataclasses import dataclass

from megalite.models.config import ModelConfig


@dataclass(frozen=True)
class Part:
    """A stage's share of a model; the whole model is the only part of one.

    Attributes:
        index: from 0.
        count: parts of the model.
        encoder: [first, last) encoder blocks.
        decoder: [first, last) decoder blocks.
    """

    index: int
    count: int
    encoder: tuple[int, int]
    decoder: tuple[int, int]

    @classmethod
    def whole(cls, config: ModelConfig) -> "Part":
        """The part that holds everything."""
        return cls(0, 1, (0, config.num_encoder_layers), (0, config.num_layers))

    @property
    def has_encoder(self) -> bool:
        """Whether any encoder block is here."""
        return self.encoder[1] > self.encoder[0]

    @property
    def has_decoder(self) -> bool:
        """Whether any decoder block is here."""
        return self.decoder[1] > self.decoder[0]

    @property
    def starts_encoder(self) -> bool:
        """Whether encoder tokens are embedded here."""
        return self.has_encoder and self.encoder[0] == 0

    @property
    def starts_decoder(self) -> bool:
        """Whether decoder tokens are embedded here."""
        return self.has_decoder and self.decoder[0] == 0

    @property
    def ends(self) -> bool:
        """Whether the head is here."""
        return self.index == self.count - 1
