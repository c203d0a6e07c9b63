"""What can't be read as a tokenizer is refused in one line."""

import pytest

from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import DataError


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}', "[]"])
def test_a_damaged_tokenizer_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "broken.model").write_bytes(content.encode())
    for path in (tmp_path / "tokenizer.json", tmp_path, tmp_path / "broken.model"):
        with pytest.raises(DataError) as caught:
            load_tokenizer(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_says_what_would_do(tmp_path):
    with pytest.raises(DataError, match="no such tokenizer; give a Hugging Face folder"):
        load_tokenizer(tmp_path / "none")
