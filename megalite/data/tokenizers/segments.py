"""Texts with special tokens between them as one sequence, each token with the text it ends in."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

Segment = str | int  # a text, or the id of a special token
# a token's id, and the number of the segment that has its last character
Owned = list[tuple[int, int]]
Span = tuple[int, int]  # the characters [first, last) of a token

EncodeSpans = Callable[[str, Sequence[int]], tuple[list[int], list[Span]]]  # of a text and its cuts


def by_stretches(segments: Sequence[Segment], encode: EncodeSpans) -> Owned:
    """Tokenize each stretch of texts between special tokens whole.

    Args:
        segments: texts and special tokens.
        encode: from a text, and where its parts end, to its tokens and their spans.
    """
    owned: Owned = []
    stretch: list[tuple[int, str]] = []
    for number, segment in enumerate(segments):
        if isinstance(segment, str):
            stretch.append((number, segment))
            continue
        owned += _stretch(stretch, encode)
        owned.append((segment, number))
        stretch = []
    return owned + _stretch(stretch, encode)


def _stretch(texts: Sequence[tuple[int, str]], encode: EncodeSpans) -> Owned:
    whole = "".join(text for _, text in texts)
    if not whole:
        return []
    owners = [number for number, text in texts for _ in text]
    ids, spans = encode(whole, list(accumulate(len(text) for _, text in texts)))
    return [
        (token, owners[_last(span, len(owners))]) for token, span in zip(ids, spans, strict=True)
    ]


def at_once(segments: Sequence[Segment], texts: Sequence[str], encode: EncodeSpans) -> Owned | None:
    """Tokenize all of it as one text, in which the tokenizer finds its special tokens.

    Args:
        segments: texts and special tokens.
        texts: the text of each segment.
        encode: from a text, and where its parts end, to its tokens and their spans.

    Returns:
        The tokens, or None where a special token was not found at its place.
    """
    owners = [number for number, text in enumerate(texts) for _ in text]
    ends = list(accumulate(len(text) for text in texts))
    if not owners:
        return [] if all(isinstance(segment, str) for segment in segments) else None
    special = [(one, number) for number, one in enumerate(segments) if isinstance(one, int)]
    ids = {one for one, _ in special}
    owned: Owned = []
    for token, span in zip(*encode("".join(texts), ends), strict=True):
        owner = owners[_last(span, len(owners))]
        if token in ids:  # it may have taken the spaces beside it along
            inside = [n for n in dict.fromkeys(owners[slice(*span)]) if segments[n] == token]
            owner = inside[0] if inside else owner
        owned.append((token, owner))
    found = [(token, number) for token, number in owned if not isinstance(segments[number], str)]
    return owned if found == special else None


def taking_spaces(added: Mapping[int, Any]) -> dict[int, str]:
    """The texts of those added tokens (``AddedToken``, by their ids) that take spaces along."""
    return {n: token.content for n, token in added.items() if token.lstrip or token.rstrip}


def bare(
    text: str, ids: Sequence[int], spans: Sequence[Span], taking: Mapping[int, str]
) -> list[Span]:
    """The spans of a text's tokens, without the spaces that special tokens take along.

    Args:
        text: what was tokenized.
        ids: its tokens.
        spans: theirs.
        taking: of :func:`taking_spaces`.
    """
    found = list(spans)
    for place, token in enumerate(ids) if taking else ():
        if token in taking:
            first = text.find(taking[token], *spans[place])
            found[place] = (first, first + len(taking[token])) if first >= 0 else spans[place]
    return found


def _last(span: Span, count: int) -> int:
    """The last character of a token; libraries may leave spaces out of a span's front."""
    return min(max(span[1] - 1, 0), count - 1)


def spans_by_cuts(
    text: str, cuts: Sequence[int], encode: Callable[[str], list[int]]
) -> tuple[list[int], list[Span]]:
    """Tokens of a text and the cuts that they lie between, for tokenizers that tell no spans.

    A cut falls behind those tokens that the text up to it has as well.
    """
    ids, before = encode(text), 0
    spans: list[Span] = []
    for cut in cuts:
        known = ids if cut == len(text) else encode(text[:cut])
        same = [a == b for a, b in zip(known, ids, strict=False)]
        count = same.index(False) if False in same else len(same)
        spans += [(before, cut)] * (count - len(spans))
        before = cut
    return ids, spans + [(before, len(text))] * (len(ids) - len(spans))


def around(plain: Sequence[int], whole: Sequence[int]) -> tuple[list[int], list[int]]:
    """What a tokenizer writes before and after a text, of its tokens without and with that."""
    for at in range(len(whole) - len(plain) + 1):
        if list(whole[at : at + len(plain)]) == list(plain):
            return list(whole[:at]), list(whole[at + len(plain) :])
    return [], []
