"""A SentencePiece model, read by its own library: transformers reads every one as BPE."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megalite.data.tokenizers.segments import Owned, Segment, Span, by_stretches
from megalite.data.tokenizers.tokenizer import Tokenizer, no_template, shown

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SPACE = "▁"  # a space in a piece
# A model's file ended by this says ``normalizer_spec { add_dummy_prefix: false }``: of protobuf's
# fields the last word counts. Source: fields 3 and 3 of sentencepiece_model.proto.
NO_SPACE = b"\x1a\x02\x18\x00"


class SentencePieceTokenizer(Tokenizer):
    """The tokenizer of a ``.model`` file.

    Control symbols and the unknown token are its special tokens. User-defined symbols are text:
    they are found in texts and shown.
    """

    def __init__(self, path: Path) -> None:
        """Open a ``.model``."""
        from sentencepiece import SentencePieceProcessor

        self.path = str(path)
        self._processor = SentencePieceProcessor(model_file=self.path)
        self.vocab_size = self._processor.vocab_size()
        self.end_id = _known(self._processor.eos_id())
        self.begin_id = _known(self._processor.bos_id())
        self.pad_id = max(self._processor.pad_id(), 0)
        # the file doesn't say; LLaMA's own code writes the beginning wherever there is one
        self.before = [] if self.begin_id is None else [self.begin_id]
        self.after: list[int] = []
        self.chat_template = None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Token ids of several texts."""
        return self._processor.encode(list(texts))

    def encode_segments(self, segments: Sequence[Segment]) -> Owned:
        """Tokens of texts with special tokens between them."""
        return by_stretches(segments, lambda text, _cuts: spans_of_pieces(self._processor, text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        numbers = list(ids)
        if all(0 <= number < self.vocab_size for number in numbers):
            return self._processor.decode(numbers)
        return self._processor.decode([self._piece(number) for number in numbers])

    def _piece(self, number: int) -> str:
        is_known = 0 <= number < self.vocab_size
        return self._processor.id_to_piece(number) if is_known else shown(number)

    def find(self, token: str) -> int | None:
        """The id of a token by its exact text, or None."""
        number = self._processor.piece_to_id(token)
        return number if self._processor.id_to_piece(number) == token else None

    def special_tokens(self) -> dict[str, int]:
        """The tokens that no decoded text shows, by their exact text."""
        processor = self._processor
        control = filter(processor.is_control, range(self.vocab_size))
        return {processor.id_to_piece(number): number for number in control}

    def token_texts(self) -> list[str]:
        """The text of every token, by id; empty for special tokens."""
        processor = self._processor
        return [
            ""
            if processor.is_control(number) or processor.is_unknown(number)
            else processor.decode([number])
            for number in range(self.vocab_size)
        ]

    def render(self, messages: Sequence[dict[str, str]], is_question: bool) -> str:
        """Never renders: a SentencePiece model has no chat template.

        Raises:
            DataError: always.
        """
        raise no_template(self.path)

    def save(self, folder: Path | str) -> None:
        """Copy the model into a folder, from which it can be loaded."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.path, Path(folder) / "tokenizer.model")


def without_space(processor: "SentencePieceProcessor") -> "SentencePieceProcessor":
    """The same model, which puts no space in front of a text."""
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=processor.serialized_model_proto() + NO_SPACE)


def spans_of_pieces(
    processor: "SentencePieceProcessor", text: str, before: str = ""
) -> tuple[list[int], list[Span]]:
    """The tokens of a text, those of ``before`` in front of it left out, and their characters."""
    before_0_2_2 = getattr(processor, "encode_as_immutable_proto", None)
    pieces = (before_0_2_2 or processor.encode_as_proto)(before + text).pieces
    pieces = pieces[len(processor.encode(before)) :]
    spans: list[Span] = []
    end = len(text)
    for piece in reversed(pieces):  # the first bytes of a character have no text of their own
        begin = end - len(piece.surface)
        spans.append((begin, end) if begin < end or not spans else spans[-1])
        end = begin
    return [piece.id for piece in pieces], spans[::-1]


def _known(number: int) -> int | None:
    return number if number >= 0 else None
