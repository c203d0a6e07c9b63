"""Byte-level BPE of the ``tokenizers`` library, read ten times as fast by ``tiktoken``: same ids.

``tiktoken`` joins any two neighbours whose bytes are a token; ``tokenizers`` joins the pairs of a
list. What is joined inside a token's bytes depends on nothing outside of them, so the last two
parts of which BPE makes a token are the same wherever it makes it. Both therefore join the same
pairs, and in the same order if tokens are ranked as their pairs stand in the list. A token that BPE
doesn't make of its own bytes alone is made nowhere, and is left out.

How a text is cut into words is a regular expression that two engines read; what they make of each
character is compared when a text first has it. A text that has one they differ in, a special token
or very long whitespace is left to ``tokenizers``, and so is a tokenizer of any other make.
"""

import importlib.util
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import tokenizers

# How words are cut, of which letters, digits, whitespace and apostrophes are all that matters.
ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = rf"{ENDINGS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
NEWER = (
    rf"(?i:{ENDINGS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
KNOWN = {GPT2, NEWER % "", NEWER % "{1,3}"}  # GPT-2; Qwen 2 and 3; LLaMA 3 and GPT-4
LONG_SPACE = re.compile(r"\s{4096}")  # beyond which tiktoken's engine runs out of its stack
BESIDE = ("a", "1", "!", " ", "'")  # with which a letter, digit, sign, space or ending is a word
WORTH = 8  # characters for each token, from which on the second's preparation is worth it


class NotByteLevel(Exception):
    """Why ``tiktoken`` doesn't read a tokenizer, in words that follow its path and a colon."""


class Batches:
    """Token ids of many texts, without the places of tokens, which take longer than the ids."""

    def __init__(self, rust: tokenizers.Tokenizer) -> None:
        """Read by ``rust``, and from so many characters on by :class:`BytePairs` where it can."""
        self._rust, self._left = rust, WORTH * rust.get_vocab_size()
        self._fast: BytePairs | None = None

    def why_slow(self, num_characters: int) -> str:
        """Why ``tiktoken`` doesn't read so many characters; empty if it does, or they are few."""
        try:
            if num_characters < self._left:
                _pattern(_described(self._rust))
            elif self._fast is None:
                self._fast, self._left = fast_byte_pairs(self._rust), 0
        except NotByteLevel as error:
            return str(error)
        return ""

    def ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Token ids of texts; see :meth:`Tokenizer.encode_batch`."""
        if self._left > 0:
            self._left -= sum(map(len, texts))
            if self._left <= 0:
                with suppress(NotByteLevel):
                    self._fast = fast_byte_pairs(self._rust)
        if self._fast is None:
            return self._by_rust(texts, special)
        found = [self._fast.encode(text) for text in texts]
        others = [text for text, ids in zip(texts, found, strict=True) if ids is None]
        left = iter(self._by_rust(others, special))
        return [next(left) if ids is None else ids for ids in found]

    def _by_rust(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        self._rust.encode_special_tokens = not special
        try:
            read = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
            return [one.ids for one in read]
        finally:
            self._rust.encode_special_tokens = False


class BytePairs:
    """A tokenizer's ids by ``tiktoken``."""

    def __init__(
        self, rust: tokenizers.Tokenizer, fast: Any, pattern: str, ids: Sequence[int]
    ) -> None:
        """Join what :func:`fast_byte_pairs` made.

        Args:
            rust: the tokenizer, which what is left out is left to.
            fast: tiktoken's encoding, whose ids are ranks.
            pattern: that cuts a text into words.
            ids: of ranks.
        """
        self._rust, self._fast, self._ids = rust, fast, np.asarray(ids)
        self._pattern = pattern
        content = [token.content for token in rust.get_added_tokens_decoder().values()]
        self._added = sorted(content)
        self._starts = {token[:2] for token in content}
        self._alike: set[str] = set()
        self._unlike: set[str] = set()
        self._meet(map(chr, range(128)))

    def encode(self, text: str) -> list[int] | None:
        """Token ids of a text without special tokens; None if the text is left to the tokenizer."""
        if not self._may_read(text):
            return None
        return self._ids[self._fast.encode_to_numpy(text, disallowed_special=())].tolist()

    def _may_read(self, text: str) -> bool:
        if any(start in text for start in self._starts) and any(t in text for t in self._added):
            return False
        if LONG_SPACE.search(text):
            return False
        if text.isascii():
            return not self._unlike or self._unlike.isdisjoint(text)
        characters = set(text)
        self._meet(characters - self._alike - self._unlike)
        if not self._unlike.isdisjoint(characters):
            return False
        return self._rust.normalizer is None or unicodedata.is_normalized("NFC", text)

    def _meet(self, characters: Iterable[str]) -> None:
        """Compare of what kind characters, which no text had so far, are to both engines."""
        characters = list(characters)
        if not characters:
            return
        probes = [beside + one for one in characters for beside in BESIDE]
        fast = iter(_number_of_words(self._pattern, probes))
        for one in characters:
            own = [next(fast) for _ in BESIDE]
            words = self._rust.pre_tokenizer.pre_tokenize_str
            is_alike = own == [len(words(beside + one)) for beside in BESIDE]
            if self._rust.normalizer is not None:  # by Unicode's present rules, known to both
                is_alike &= unicodedata.category(one) != "Cn"
            (self._alike if is_alike else self._unlike).add(one)


def _number_of_words(pattern: str, texts: Sequence[str]) -> list[int]:
    """How many words texts of two characters are to tiktoken: each word is made a token."""
    import tiktoken

    words = {text.encode() for text in texts} | {text[1:].encode() for text in texts}
    ranks = {bytes([n]): n for n in range(256)}
    for word in words:
        ranks.setdefault(word, len(ranks))
    fast = tiktoken.Encoding("words", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return [len(fast.encode_ordinary(text)) for text in texts]


def fast_byte_pairs(rust: tokenizers.Tokenizer) -> BytePairs:
    """A tokenizer's ids by ``tiktoken``.

    Raises:
        NotByteLevel: it isn't there, or they might be others.
    """
    content = _described(rust)
    pattern, ranked = _pattern(content), _ranked(content)
    import tiktoken

    ranks = {token: rank for rank, token in enumerate(ranked)}
    fast = tiktoken.Encoding("ids", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return BytePairs(rust, fast, pattern, list(ranked.values()))


def _described(rust: tokenizers.Tokenizer) -> dict[str, Any]:
    """What a ``tokenizer.json`` says, if there is something that might read it faster."""
    if importlib.util.find_spec("tiktoken") is None:
        raise NotByteLevel("it isn't installed: pip install 'megalite[data]'")
    content: dict[str, Any] = json.loads(rust.to_str())
    return content


def _pattern(content: dict[str, Any]) -> str:
    """The regular expression that cuts a text into words."""
    if content["model"]["type"] != "BPE":
        raise NotByteLevel(f"the tokenizer is {content['model']['type']}, not byte-level BPE")
    if content["normalizer"] not in (None, {"type": "NFC"}):
        raise NotByteLevel(f"the tokenizer's normalizer is {content['normalizer']['type']}")
    steps = [content["pre_tokenizer"]]
    if steps[0] and steps[0]["type"] == "Sequence":
        steps = steps[0]["pretokenizers"]
    pattern = _pattern_of(steps)
    if pattern is None:
        raise NotByteLevel("the tokenizer doesn't cut words as those of GPT-2, LLaMA 3 or Qwen do")
    return pattern


def _pattern_of(steps: Sequence[Any]) -> str | None:
    *before, last = steps
    if not last or last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last["use_regex"]:
        return None if before else GPT2
    if len(before) != 1 or before[0]["type"] != "Split":
        return None
    split = before[0]
    pattern = split["pattern"].get("Regex")
    is_plain = split["behavior"] == "Isolated" and not split["invert"]
    return pattern if is_plain and pattern in KNOWN else None


def _ranked(content: dict[str, Any]) -> dict[bytes, int]:
    """Ids of tokens, in the order in which BPE makes them."""
    model = content["model"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise NotByteLevel(f"the tokenizer's BPE has {key} {model[key]}")
    ids, of_characters = model["vocab"], _bytes_of_characters()
    if not of_characters.keys() <= ids.keys():
        raise NotByteLevel("the tokenizer has no token for some bytes")
    order = _order(model["merges"])
    added = {token["content"] for token in content["added_tokens"]}
    alone = tokenizers.models.BPE(vocab=ids, merges=[_pair(m) for m in model["merges"]])
    ranked, last = list(of_characters), []
    ranked += [token for token in order if len(alone.tokenize(token)) == 1]
    if model.get("ignore_merges"):  # a word that is a token is that token, however it is made
        for token in ids.keys() - set(ranked) - added:
            if not all(c in of_characters for c in token) or len(alone.tokenize(token)) == 2:
                raise NotByteLevel(f"the tokenizer's {token!r} would be made of its parts, too")
            last.append(token)
    return {
        bytes(of_characters[c] for c in token): ids[token] for token in (*ranked, *sorted(last))
    }


def _pair(merge: str | list[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _order(merges: list[Any]) -> list[str]:
    """The tokens that pairs give, in their order."""
    order: dict[str, None] = {}
    before = ""
    for merge in merges:
        token = "".join(_pair(merge))
        if token != before and token in order:
            raise NotByteLevel(f"the tokenizer's pairs that give {token!r} don't stand together")
        order[token] = None
        before = token
    return list(order)


def _bytes_of_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for. Source: GPT-2."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printed += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(b): b for b in printed} | {chr(256 + n): b for n, b in enumerate(others)}
