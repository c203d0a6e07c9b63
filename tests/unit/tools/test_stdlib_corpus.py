import json

import pytest

from megalite.errors import DataError
from megalite.tools.stdlib_corpus import functions, is_held_out, rankings, write_corpus

SOURCE = '''
def add(a: int, b=1, *rest):
    """Add two numbers
    and the rest.

    More words that are not in the first paragraph.
    """

class Tool:
    async def run(self):
        """Run this tool until the end."""

    def short(self):
        """Too short."""
'''


def test_functions_are_signatures_with_the_first_paragraph():
    found = {f.signature: f.docstring for f in functions("m.py", SOURCE)}
    assert found == {
        "def add(a: int, b=1, *rest):": "Add two numbers and the rest.",
        "def run(self):": "Run this tool until the end.",
    }
    assert functions("m.py", "def (") == []


def test_rankings_go_from_true_to_another_and_then_to_their_words_shuffled():
    pool = functions("a.py", SOURCE) + functions("b.py", SOURCE.replace("the", "other"))
    texts = {f.docstring for f in pool}
    rows = list(rankings(pool * 5, seed=1))
    assert rows
    for row in rows:
        true, other, true_shuffled, other_shuffled = row["answers"]
        assert (row["prompt"], true) in {(f.signature, f.docstring) for f in pool}
        assert other in texts
        assert sorted(true_shuffled.split()) == sorted(true.split())
        assert sorted(other_shuffled.split()) == sorted(other.split())
        assert len(set(row["answers"])) == 4


def test_the_corpus_is_the_same_twice_and_keeps_held_out_modules_apart(tmp_path):
    first = write_corpus(tmp_path / "one", seed=3, max_bytes=1_500_000)
    second = write_corpus(tmp_path / "two", seed=3, max_bytes=1_500_000)
    assert first == second
    assert set(first) == {
        f"{stage}.{part}"
        for stage in ("pretrain", "sft", "rm", "ppo")
        for part in ("train", "heldout")
    }
    assert all(first.values())
    texts = {}
    for name in first:
        path = tmp_path / "one" / f"{name}.jsonl"
        assert path.read_bytes() == (tmp_path / "two" / f"{name}.jsonl").read_bytes()
        texts[name] = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(len(row["answers"]) == 4 for row in texts["rm.train"])
    held_out = {row["text"] for row in texts["pretrain.heldout"]}
    assert not held_out & {row["text"] for row in texts["pretrain.train"]}


def test_about_a_tenth_of_modules_is_held_out():
    share = sum(is_held_out(f"module{number}.py") for number in range(5000)) / 5000
    assert 0.08 < share < 0.12


def test_a_library_without_source_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no Python source"):
        write_corpus(tmp_path / "out", 0, 10**6, root=tmp_path)
