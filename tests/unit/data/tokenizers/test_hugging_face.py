"""A Hugging Face folder against transformers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from megalite.data.tokenizers.hugging_face import HuggingFaceTokenizer
from megalite.data.tokenizers.load import load_tokenizer
from tests.unit.data.conftest import TEXTS


@pytest.fixture(scope="module")
def theirs(tokenizer_folder):
    return AutoTokenizer.from_pretrained(tokenizer_folder)


@settings(max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"])), data=st.data())
def test_ids_and_text_are_those_of_transformers(tokenizer, theirs, text, data):
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)
    ids = data.draw(st.lists(st.integers(0, len(theirs) - 1), max_size=8))
    assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_its_own_template_writes_messages(theirs, tokenizer_folder, tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    writer = AutoTokenizer.from_pretrained(tokenizer_folder)
    writer.chat_template = template + "{% if add_generation_prompt %}assistant: {% endif %}"
    writer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.chat_template == writer.chat_template
    messages = [{"role": "user", "content": "one"}]
    assert tokenizer.render(messages, False) == "user: one<|endoftext|>"
    assert tokenizer.render(messages, True) == "user: one<|endoftext|>assistant: "


def test_what_is_saved_is_a_folder_of_hugging_face(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == tokenizer.end_id
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
