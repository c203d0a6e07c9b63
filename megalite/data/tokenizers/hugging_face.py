"""A Hugging Face tokenizer folder, read by transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megalite.data.tokenizers.tokenizer import Tokenizer, decode_known, no_template, size_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HuggingFaceTokenizer(Tokenizer):
    """Whatever transformers' ``AutoTokenizer`` makes of a folder."""

    def __init__(self, path: Path) -> None:
        """Open a folder; nothing is downloaded."""
        from transformers import AutoTokenizer

        inner: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True
        )
        self._inner, self.path = inner, str(path)
        self._ids = frozenset(inner.get_vocab().values())
        self.vocab_size = size_of(self._ids)
        self.end_id = inner.eos_token_id
        self.begin_id = inner.bos_token_id
        self.pad_id = inner.pad_token_id or 0
        self.chat_template = inner.chat_template

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self._inner.encode(text, add_special_tokens=False)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts."""
        if not texts:
            return []
        return self._inner(list(texts), add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return decode_known(ids, self._ids, self._decode)

    def _decode(self, ids: list[int]) -> str:
        return self._inner.decode(ids, skip_special_tokens=True)

    def find(self, token: str) -> int | None:
        """The id of a token by its exact text, or None."""
        number = self._inner.convert_tokens_to_ids(token)
        if number is None or self._inner.convert_ids_to_tokens(number) != token:
            return None
        return int(number)

    def token_texts(self) -> list[str]:
        """The text of every token, by id; empty for special tokens and ids without a token."""
        ids = sorted(self._ids)
        decoded = self._inner.batch_decode([[number] for number in ids], skip_special_tokens=True)
        texts = [""] * self.vocab_size
        for number, text in zip(ids, decoded, strict=True):
            texts[number] = text
        return texts

    def render(self, messages: Sequence[dict[str, str]], is_question: bool) -> str:
        """Messages by the tokenizer's own chat template, up to where an answer begins if asked.

        Raises:
            DataError: the tokenizer has no chat template.
        """
        if not self.chat_template:
            raise no_template(self.path)
        return self._inner.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=is_question
        )

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer as a Hugging Face folder."""
        self._inner.save_pretrained(str(folder))
