from hypothesis import given
from hypothesis import strategies as st

from megalite.generation.text import TextStream, cut_at_stop


def decode(ids) -> str:
    """Tokens are bytes of UTF-8, as in a byte-level vocabulary."""
    return bytes(ids).decode("utf-8", errors="replace")


def _stream(text: str, stops=()) -> tuple[list[str], TextStream]:
    stream = TextStream(decode, stops)
    pieces = [stream.add(byte) for byte in text.encode()]
    pieces.append(stream.finish())
    return pieces, stream


def test_a_character_of_several_tokens_comes_out_whole():
    pieces, _ = _stream("a语b")
    assert [piece for piece in pieces if piece] == ["a", "语", "b"]


def test_text_ends_before_a_stop_string_that_spans_tokens():
    pieces, stream = _stream("one END two", ["END"])
    assert "".join(pieces) == "one "
    assert stream.stopped


def test_what_only_looked_like_a_stop_string_is_given_later():
    pieces, stream = _stream("xENx", ["END"])
    assert pieces[:3] == ["x", "", ""]
    assert "".join(pieces) == "xENx"
    assert not stream.stopped


def test_a_cut_character_at_the_end_is_shown_as_replacement():
    stream = TextStream(decode)
    assert stream.add("语".encode()[0]) == ""
    assert stream.finish() == "\ufffd"


@given(
    st.text("ab語\n", max_size=12), st.lists(st.text("ab語", min_size=1, max_size=3), max_size=2)
)
def test_pieces_together_are_the_text_cut_at_the_first_stop(text, stops):
    pieces, stream = _stream(text, stops)
    shown, stopped = stream.text, stream.stopped
    assert "".join(pieces) == shown
    assert stopped == cut_at_stop(text, stops)[1]
    if not stopped:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
