"""A Hugging Face folder whose text a SentencePiece model beside it reads.

transformers 5 rebuilds such a tokenizer as BPE, and loses a space at a text's beginning or within
runs of them. So it says what tokens there are beside the model's, and SentencePiece reads the text
between them.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megalite.data.tokenizers.hugging_face import HuggingFaceTokenizer, folder_config
from megalite.data.tokenizers.segments import Span, bare
from megalite.data.tokenizers.sentence_piece import SPACE, spans_of_pieces, without_space

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
        self._unknown = processor.id_to_piece(processor.unk_id())
        self._joined = without_space(processor) if self._joins else processor
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

    def _spans(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[Span]]:
        ids: list[int] = []
        spans: list[Span] = []
        for at, part, token in self._parts(text, self._any):
            own, places = ([token], [(0, len(part))]) if token is not None else self._told(part, at)
            ids += own
            spans += [(at + first, at + last) for first, last in places]
        return ids, bare(text, ids, spans, self._taking)

    def _read(self, text: str, added: re.Pattern[str] | None) -> list[int]:
        ids: list[int] = []
        for at, part, token in self._parts(text, added):
            ids += [token] if token is not None else self._stretch(part, at)
        return ids

    def _parts(
        self, text: str, added: re.Pattern[str] | None
    ) -> Iterator[tuple[int, str, int | None]]:
        """Added tokens in a text and the stretches between them, each with its place."""
        at = 0
        for found in added.finditer(text) if added is not None else ():
            if at < found.start():
                yield at, text[at : found.start()], None
            name = found[0] if found[0] in self._added else found[0].strip()
            yield found.start(), found[0], self._added[name]
            at = found.end()
        if at < len(text):
            yield at, text[at:], None

    def _stretch(self, text: str, at: int) -> list[int]:
        """A text between added tokens; behind one it begins with a space, if not told otherwise."""
        if not at or not self._joins:
            return self._processor.encode(text)
        before = self._before(text)
        return self._joined.encode(before + text)[len(self._joined.encode(before)) :]

    def _told(self, text: str, at: int) -> tuple[list[int], list[Span]]:
        """What :meth:`_stretch` gives, and the characters of each token."""
        if not at or not self._joins:
            return spans_of_pieces(self._processor, text)
        return spans_of_pieces(self._joined, text, self._before(text))

    def _before(self, text: str) -> str:
        """What keeps a space that a text begins with, which some models leave out."""
        return self._unknown if text.startswith((" ", SPACE)) else ""


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
