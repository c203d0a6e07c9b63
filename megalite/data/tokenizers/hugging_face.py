"""A Hugging Face tokenizer folder, read by transformers."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    spans_by_cuts,
    taking_spaces,
)
from megalite.data.tokenizers.tokenizer import Tokenizer, decode_known, no_template, size_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERAL = ("TokenizersBackend", "PreTrainedTokenizerFast")  # one class, of two versions
TEXT = "text"  # of which a tokenizer shows what it writes around one


class HuggingFaceTokenizer(Tokenizer):
    """Whatever transformers' ``AutoTokenizer`` makes of a folder."""

    def __init__(self, path: Path, inner: "PreTrainedTokenizerBase") -> None:
        """Wrap what :func:`open_folder` made of a folder."""
        self._inner, self.path = inner, str(path)
        added = (*inner.added_tokens_decoder, *inner.all_special_ids)
        self._ids = frozenset((*inner.get_vocab().values(), *added))
        self._taking = taking_spaces(inner.added_tokens_decoder)
        self.vocab_size = size_of(self._ids)
        self.end_id = inner.eos_token_id
        self.begin_id = inner.bos_token_id
        self.pad_id = inner.pad_token_id or 0
        self.before, self.after = around(self.encode(TEXT), inner.encode(TEXT))
        self.chat_template = inner.chat_template
        self._batches = self._rust_alone()

    def _rust_alone(self) -> Batches | None:
        """The tokenizer of the ``tokenizers`` library inside, if its ids are all there is to it."""
        if not self._inner.is_fast:
            return None
        rust = self._inner.backend_tokenizer
        rust.no_truncation()
        rust.no_padding()
        batches = Batches(rust)
        spelled = "".join(map(str, self._inner.all_special_tokens))
        probes = [TEXT, f"  {TEXT}\n\n é字 {TEXT} ", f"{spelled}{TEXT} {spelled}"]
        for special in (True, False):
            if batches.ids(probes, special) != self._by_transformers(probes, special):
                return None
        return batches

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self._inner.encode(text, add_special_tokens=False, verbose=False)

    def encode_batch(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Token ids of several texts."""
        if not texts:
            return []
        if self._batches is not None:
            return self._batches.ids(texts, special)
        return self._by_transformers(texts, special)

    def _by_transformers(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        how = {"add_special_tokens": False, "split_special_tokens": not special, "verbose": False}
        return self._inner(list(texts), **how)["input_ids"]  # not verbose: any length is right here

    def why_slow(self, num_characters: int) -> str:
        """Why so many characters of text are not read by ``tiktoken``; empty if they are."""
        if self._batches is None:
            return "transformers does more to a text than the tokenizer's tokenizer.json says"
        return self._batches.why_slow(num_characters)

    def encode_segments(self, segments: Sequence[Segment]) -> Owned:
        """Tokens of texts with special tokens between them, which a text gives too if it can."""
        texts = [one if isinstance(one, str) else self._text(one) for one in segments]
        whole = at_once(segments, texts, self._spans)
        return by_stretches(segments, self._spans) if whole is None else whole

    def _text(self, token: int) -> str:
        return str(self._inner.convert_ids_to_tokens(token))

    def _spans(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[Span]]:
        if not self._inner.is_fast:
            return spans_by_cuts(text, cuts, self.encode)
        read = self._inner(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = read["input_ids"]
        return ids, bare(text, ids, read["offset_mapping"], self._taking)

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

    def special_tokens(self) -> dict[str, int]:
        """The tokens that no decoded text shows, by their exact text."""
        added = self._inner.added_tokens_decoder.items()
        special = {number for number, token in added if token.special}
        return {self._text(number): number for number in special | set(self._inner.all_special_ids)}

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


def folder_config(path: Path) -> dict[str, Any]:
    """What a folder's ``tokenizer_config.json`` says; nothing where there is none."""
    file = path / "tokenizer_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def open_folder(path: Path, trust_code: bool = False) -> "PreTrainedTokenizerBase":
    """What transformers makes of a folder, also of one that has a bare vocabulary alone.

    Nothing is downloaded, and code in the folder runs only if it is trusted.
    """
    inner = _opened(path, trust_code)
    theirs = type(inner)
    is_rebuilt = theirs.__name__ not in GENERAL and theirs.__module__.startswith("transformers.")
    if is_rebuilt and inner.is_fast and (path / "tokenizer.json").is_file():
        _read_as_written(inner.backend_tokenizer, path)
    return inner


def _read_as_written(rust: tokenizers.Tokenizer, path: Path) -> None:
    """Let a folder's tokenizer read text as its ``tokenizer.json`` says.

    transformers 5 takes the vocabulary of that file, and reads text as the class that the folder
    names does by itself: LLaMA's loses a space at a text's beginning, others a normalizer. What the
    folder says beside the file is left to it: WordPiece's capitals, another ``add_prefix_space``.
    """
    file = path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    asked = folder_config(path).get("add_prefix_space")
    if content["model"].get("type") == "WordPiece" or asked not in (None, _prefixes(content)):
        return
    written = tokenizers.Tokenizer.from_file(str(file))
    rust.normalizer, rust.pre_tokenizer = written.normalizer, written.pre_tokenizer
    rust.model, rust.decoder = written.model, written.decoder


def _prefixes(content: dict[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` puts a space before a text."""
    first, then = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    steps = [*first.get("normalizers", [first]), *then.get("pretokenizers", [then])]
    return any(
        step.get("add_prefix_space", step.get("prepend_scheme", "never") != "never")
        or step.get("type") == "Prepend"
        for step in steps
    )


def _opened(path: Path, trust_code: bool) -> "PreTrainedTokenizerBase":
    files = {file.name for file in path.iterdir()}
    if not files & {"tokenizer.json", "tokenizer_config.json", "config.json"}:
        if "vocab.txt" in files:
            from transformers import BertTokenizerFast

            is_lower = _is_lower(path / "vocab.txt")
            return BertTokenizerFast.from_pretrained(str(path), do_lower_case=is_lower)
        if {"vocab.json", "merges.txt"} <= files:
            from transformers import GPT2TokenizerFast

            return GPT2TokenizerFast.from_pretrained(str(path))
    if _is_general(path, files):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        str(path), local_files_only=True, trust_remote_code=trust_code
    )


def _is_general(path: Path, files: Collection[str]) -> bool:
    """Whether a folder names the class of any ``tokenizer.json``, and nothing that overrules it.

    ``AutoTokenizer`` would choose that class, too, and import torch to do so.
    """
    if "tokenizer.json" not in files or "config.json" in files:
        return False
    said = folder_config(path)
    return said.get("tokenizer_class") in GENERAL and "auto_map" not in said


def _is_lower(vocabulary: Path) -> bool:
    """Whether no word of a BERT vocabulary has a capital; its special tokens are in brackets."""
    words = vocabulary.read_text(encoding="utf-8").splitlines()
    return not any(word != word.lower() for word in words if not word.startswith("["))
