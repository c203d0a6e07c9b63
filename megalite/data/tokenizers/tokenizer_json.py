"""A bare ``tokenizer.json``, read by the tokenizers library."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from megalite.data.tokenizers.byte_pairs import Batches
from megalite.data.tokenizers.segments import (
    Owned,
    Segment,
    Span,
    around,
    at_once,
    bare,
    by_stretches,
    taking_spaces,
)
from megalite.data.tokenizers.tokenizer import Tokenizer, decode_known, no_template, size_of

# The file doesn't say what ends or begins a document: special tokens by their usual names.
USUAL_NAMES = {
    "eos_token": ("</s>", "<|endoftext|>", "<|end|>"),
    "bos_token": ("<s>", "<|startoftext|>"),
    "pad_token": ("<pad>", "<|pad|>"),
}
TEXT = "text"  # of which a tokenizer shows what it writes around one


class JSONTokenizer(Tokenizer):
    """The tokenizer of one file, which has no chat template."""

    def __init__(self, path: Path) -> None:
        """Open a ``tokenizer.json``; truncation and padding that it asks for are switched off."""
        self.path = str(path)
        self._inner = tokenizers.Tokenizer.from_file(str(path))
        self._batches = Batches(self._inner)
        self._special = self._special_tokens()
        self._inner.no_truncation()
        self._inner.no_padding()
        self._ids = frozenset(self._inner.get_vocab(with_added_tokens=True).values())
        self.vocab_size = size_of(self._ids)
        self._taking = taking_spaces(self._inner.get_added_tokens_decoder())
        self.end_id = self._special_id("eos_token")
        self.begin_id = self._special_id("bos_token")
        self.pad_id = self._special_id("pad_token") or 0
        self.before, self.after = around(self.encode(TEXT), self._inner.encode(TEXT).ids)
        self.chat_template = None

    def _special_tokens(self) -> dict[str, str]:
        """The tokens that end, begin and pad, under transformers' names; those that there are."""
        added = {token.content for token in self._inner.get_added_tokens_decoder().values()}
        padding = self._inner.padding
        found = {"pad_token": str(padding["pad_token"])} if padding else {}
        for role, names in USUAL_NAMES.items():
            present = [name for name in names if name in added]
            if present:
                found[role] = present[0]
        return found

    def _special_id(self, role: str) -> int | None:
        token = self._special.get(role)
        return None if token is None else self.find(token)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Token ids of several texts."""
        return self._batches.ids(texts, special)

    def why_slow(self, num_characters: int) -> str:
        """Why so many characters of text are not read by ``tiktoken``; empty if they are."""
        return self._batches.why_slow(num_characters)

    def encode_segments(self, segments: Sequence[Segment]) -> Owned:
        """Tokens of texts with special tokens between them, which a text gives too if it can."""
        texts = [one if isinstance(one, str) else self._text(one) for one in segments]
        whole = at_once(segments, texts, self._spans)
        return by_stretches(segments, self._spans) if whole is None else whole

    def _text(self, token: int) -> str:
        return self._inner.id_to_token(token) or ""

    def _spans(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[Span]]:
        read = self._inner.encode(text, add_special_tokens=False)
        return read.ids, bare(text, read.ids, read.offsets, self._taking)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return decode_known(ids, self._ids, self._inner.decode)

    def find(self, token: str) -> int | None:
        """The id of a token by its exact text, or None."""
        return self._inner.token_to_id(token)

    def special_tokens(self) -> dict[str, int]:
        """The tokens that no decoded text shows, by their exact text."""
        added = self._inner.get_added_tokens_decoder().items()
        return {token.content: number for number, token in added if token.special}

    def token_texts(self) -> list[str]:
        """The text of every token, by id; empty for special tokens and ids without a token."""
        texts = [""] * self.vocab_size
        for number in self._ids:
            texts[number] = self._inner.decode([number])
        return texts

    def render(self, messages: Sequence[dict[str, str]], is_question: bool) -> str:
        """Never renders: the file has no place for a chat template.

        Raises:
            DataError: always.
        """
        raise no_template(self.path)

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer as a Hugging Face folder."""
        from transformers import PreTrainedTokenizerFast

        PreTrainedTokenizerFast(tokenizer_file=self.path, **self._special).save_pretrained(
            str(folder)
        )
