"""Text as it is generated: stop strings, and the part that is safe to print."""

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"  # what a decoder writes for the first bytes of a longer character


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Cut ``text`` before its first stop string; tell whether there was one."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


class TextStream:
    """Turns the tokens of one answer into text as they come.

    Text is held back while its last character is incomplete, or while its end may begin a stop
    string. All that is given together is the decoded answer, cut before a stop string.

    Attributes:
        text: all that was given so far.
        stopped: whether a stop string came; nothing is given after it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        """Start an empty answer.

        Args:
            decode: from token ids to text.
            stops: strings that end an answer; empty ones are ignored.
        """
        self._decode = decode
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._given_ids = 0  # tokens whose text is wholly in _known
        self._known = ""
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take one more token; give the text that became certain."""
        if self.stopped:
            return ""
        self._ids.append(token)
        self._known += self._new_text(final=False)
        known, self.stopped = cut_at_stop(self._known, self._stops)
        certain = known if self.stopped else known[: len(known) - self._possible_stop(known)]
        return self._give(certain)

    def finish(self) -> str:
        """Give the text that was held back."""
        if self.stopped:
            return ""
        self._known += self._new_text(final=True)
        known, self.stopped = cut_at_stop(self._known, self._stops)
        return self._give(known)

    def _new_text(self, final: bool) -> str:
        """Text of the tokens after the known ones, decoded next to the one before them."""
        before = max(self._given_ids - 1, 0)
        context = self._decode(self._ids[before : self._given_ids])
        whole = self._decode(self._ids[before:])
        if whole.endswith(INCOMPLETE) and not final:
            return ""
        self._given_ids = len(self._ids)
        return whole[len(context) :]

    def _possible_stop(self, text: str) -> int:
        """Length of the longest suffix of ``text`` that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _give(self, certain: str) -> str:
        following = certain[len(self.text) :]
        self.text += following
        return following
