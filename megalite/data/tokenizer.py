"""Any Hugging Face tokenizer folder, tokenizer.json or SentencePiece model behind one face."""

import shutil
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
        number = self.find(token)
        if number is None:
            raise DataError(f"{self.path}: has no token {token!r}")
        return number

    def find(self, token: str) -> int | None:
        """The id of a token by its exact text, or None."""
        number = self._inner.convert_tokens_to_ids(token)
        if number is None or self._inner.convert_ids_to_tokens(number) != token:
            return None
        return int(number)

    def token_texts(self) -> list[str]:
        """The text of every token, by id; special ones are empty."""
        ids = [[number] for number in range(self.vocab_size)]
        return list(self._inner.batch_decode(ids, skip_special_tokens=True))

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's own chat template (Jinja), or None."""
        return self._inner.chat_template

    def render(self, messages: list[dict[str, str]], is_question: bool) -> str:
        """Messages by the tokenizer's own chat template, up to where an answer begins if asked."""
        return self._inner.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=is_question
        )

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer as a Hugging Face folder."""
        self._inner.save_pretrained(str(folder))


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model by its own library: transformers reads all of them as BPE."""

    def __init__(self, path: Path) -> None:
        """Open a ``.model``."""
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_file=str(path))
        self.path, self.vocab_size = str(path), self._processor.vocab_size()
        self.end_id = _known(self._processor.eos_id())
        self.begin_id = _known(self._processor.bos_id())
        self.pad_id = max(self._processor.pad_id(), 0)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts."""
        return self._processor.encode(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._processor.decode(list(ids))

    def token_id(self, token: str) -> int:
        """The id of a token by its exact text.

        Raises:
            DataError: the tokenizer has no such token.
        """
        number = self._processor.piece_to_id(token)
        if self._processor.id_to_piece(number) != token:
            raise DataError(f"{self.path}: has no token {token!r}")
        return number

    @property
    def chat_template(self) -> str | None:
        """None: a SentencePiece model has no chat template."""
        return None

    def save(self, folder: Path | str) -> None:
        """Copy the model into a folder, from which it can be loaded."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.path, Path(folder) / "tokenizer.model")


def _known(number: int) -> int | None:
    return number if number >= 0 else None


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
        model = _sentencepiece_model(path)
        return SentencePieceTokenizer(model) if model else Tokenizer(_load(path), str(path))
    except ImportError as error:
        raise DataError(f"{path}: needs {error.name}: pip install {error.name}") from None
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a tokenizer that can be read: {reason}") from None
    except Exception as error:  # the tokenizers library raises bare Exception on bad files
        raise DataError(f"{path}: not a tokenizer that can be read: {error}") from None


def _sentencepiece_model(path: Path) -> Path | None:
    """The SentencePiece model at a path, or alone in a folder; None where there is none."""
    if path.is_file():
        return path if path.suffix == ".model" else None
    models = list(path.glob("*.model"))
    has_more = any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    return models[0] if len(models) == 1 and not has_more else None


def _load(path: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if path.is_dir():
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    if path.suffix == ".json":
        return PreTrainedTokenizerFast(tokenizer_file=str(path), **_special_tokens(path))
    raise ValueError("must be a folder, a tokenizer.json or a SentencePiece .model")


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
