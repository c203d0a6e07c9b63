"""A Hugging Face folder whose text a SentencePiece model beside it reads.

transformers 5 rebuilds such a tokenizer as BPE, and loses a space at a text's beginning or within
runs of them. So it says what tokens there are beside the model's, and SentencePiece reads the text
between them.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megalite.data.tokenizers.hugging_face import HuggingFaceTokenizer, folder_config
from megalite.data.tokenizers.segments import Owned, Segment, by_stretches
from megalite.data.tokenizers.sentence_piece import spans_of_pieces

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from transformers import PreTrainedTokenizerBase

# Classes that give a text to SentencePiece as it is; others change it before.
PLAIN = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "T5Tokenizer")


class SentencePieceFolder(HuggingFaceTokenizer):
    """A folder's tokens, and its model's way to read text."""

    def __init__(
        self, path: Path, inner: "PreTrainedTokenizerBase", processor: "SentencePieceProcessor"
    ) -> None:
        """Read a folder's text with ``processor``."""
        self._processor = processor
        added = inner.added_tokens_decoder
        self._added = {token.content: number for number, token in added.items()}
        self._any = _pattern(added.values())
        self._plain = _pattern(token for token in added.values() if not token.special)
        # folders that are older than this key were trained with the space
        self._joins = folder_config(path).get("legacy") is False
        super().__init__(path, inner)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self._read(text, self._any)

    def why_slow(self, num_characters: int) -> str:
        """Nothing: SentencePiece is what reads its texts."""
        return ""

    def encode_batch(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Token ids of several texts."""
        return [self._read(text, self._any if special else self._plain) for text in texts]

    def encode_segments(self, segments: Sequence[Segment]) -> Owned:
        """Tokens of texts with special tokens between them."""
        if self._joins:
            return super().encode_segments(segments)
        return by_stretches(segments, lambda text, _cuts: spans_of_pieces(self._processor, text))

    def _read(self, text: str, added: re.Pattern[str] | None) -> list[int]:
        if added is None:
            return self._processor.encode(text)
        ids: list[int] = []
        at = 0
        for found in added.finditer(text):
            ids += self._stretch(text[at : found.start()], at)
            name = found[0] if found[0] in self._added else found[0].strip()
            ids.append(self._added[name])
            at = found.end()
        return ids + self._stretch(text[at:], at)

    def _stretch(self, text: str, at: int) -> list[int]:
        """A text between added tokens; behind one it begins with a space, if not told otherwise."""
        if not text or not at or not self._joins:
            return self._processor.encode(text) if text else []
        unknown = self._processor.id_to_piece(self._processor.unk_id())
        return self._processor.encode(unknown + text)[len(self._processor.encode(unknown)) :]


def _pattern(added: Iterable[Any]) -> re.Pattern[str] | None:
    """Finds added tokens in a text, longer ones first, with the spaces that they take along."""
    parts = []
    for token in sorted(added, key=lambda token: len(token.content), reverse=True):
        part = re.escape(token.content)
        part = rf"(?<!\w){part}(?!\w)" if token.single_word else part
        parts.append((r"\s*" if token.lstrip else "") + part + (r"\s*" if token.rstrip else ""))
    return re.compile("|".join(parts)) if parts else None


def processor_of(path: Path, inner: "PreTrainedTokenizerBase") -> "SentencePieceProcessor | None":
    """What reads the text of a folder: its SentencePiece model, if its ids are the folder's."""
    models = list(path.glob("*.model"))
    is_plain = type(inner).__name__.removesuffix("Fast") in PLAIN
    if len(models) != 1 or not is_plain or inner.init_kwargs.get("add_prefix_space") is False:
        return None
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_file=str(models[0]))
    except (OSError, RuntimeError):  # another format of this name, such as tiktoken's
        return None
    pieces = [processor.id_to_piece(number) for number in range(processor.vocab_size())]
    return processor if inner.convert_ids_to_tokens(list(range(len(pieces)))) == pieces else None
