"""Any Hugging Face tokenizer folder, tokenizer.json or SentencePiece model behind one face."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megalite.errors import DataError


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        vocab_size: ids are below it.
        end_id: ends a document or an answer; None where the tokenizer has no such token.
        begin_id: begins a document; None where it has none.
        pad_id: stands in padding (0 where it has none: padding is never attended to).
    """

    def __init__(self, inner: Any, path: str) -> None:
        """Wrap a ``PreTrainedTokenizer`` of transformers."""
        self._inner, self.path = inner, path
        self.vocab_size = len(inner)
        self.end_id: int | None = inner.eos_token_id
        self.begin_id: int | None = inner.bos_token_id
        self.pad_id: int = inner.pad_token_id or 0

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self._inner.encode(text, add_special_tokens=False)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts."""
        return self._inner(list(texts), add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._inner.decode(list(ids), skip_special_tokens=True)

    def token_id(self, token: str) -> int:
        """The id of a token by its exact text.

        Raises:
            DataError: the tokenizer has no such token.
        """
        number = self._inner.convert_tokens_to_ids(token)
        if number is None or self._inner.convert_ids_to_tokens(number) != token:
            raise DataError(f"{self.path}: has no token {token!r}")
        return number

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's own chat template (Jinja), or None."""
        return self._inner.chat_template

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer as a Hugging Face folder."""
        self._inner.save_pretrained(str(folder))


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a Hugging Face folder, a ``tokenizer.json`` or a SentencePiece ``.model``.

    Raises:
        DataError: there is none, or it can't be read.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such tokenizer; give a Hugging Face folder, a tokenizer.json or a "
            "SentencePiece .model, or make one with `megalite tokenizer train`"
        )
    try:
        return Tokenizer(_load(path), str(path))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a tokenizer that can be read: {reason}") from None
    except Exception as error:  # the tokenizers library raises bare Exception on bad files
        raise DataError(f"{path}: not a tokenizer that can be read: {error}") from None


def _load(path: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if path.is_dir():
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    if path.suffix == ".json":
        return PreTrainedTokenizerFast(tokenizer_file=str(path), **_special_tokens(path))
    from transformers import LlamaTokenizer

    return LlamaTokenizer.from_pretrained(str(path.parent), vocab_file=str(path))


def _special_tokens(path: Path) -> dict[str, str]:
    """Ends and beginnings that a bare tokenizer.json has, by their usual names."""
    import json

    known = {token["content"] for token in json.loads(path.read_text()).get("added_tokens", [])}
    names = {
        "eos_token": ("</s>", "<|endoftext|>", "<|end|>"),
        "bos_token": ("<s>", "<|startoftext|>"),
        "pad_token": ("<pad>", "<|pad|>"),
    }
    found = {}
    for name, candidates in names.items():
        present = [token for token in candidates if token in known]
        if present:
            found[name] = present[0]
    return found
