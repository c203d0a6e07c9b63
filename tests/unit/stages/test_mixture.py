"""Conversations in shares of their own: by entry, and by size up to a limit."""

import json

import numpy as np
import pytest

from megalite.cli import main
from megalite.data.chat.chat import Chat
from megalite.data.chat.datasets import Conversations
from megalite.data.chat.long_rows import RowRules
from megalite.data.config import MixedConversationConfig
from megalite.data.structure import Structure
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import ConfigError, DataError
from megalite.stages.mixture import mixture

SIZES = {"tasks/red.jsonl": 30, "tasks/blue.jsonl": 7, "cats.jsonl": 12}
LENGTH = 64


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "tasks").mkdir()
    for name, count in SIZES.items():
        rows = [{"prompt": f"{name} {n}", "response": "a" * (5 + n % 9)} for n in range(count)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def counts(files, tokenizer, packed: bool, epochs: int, **more) -> dict[str, int]:
    """Conversations of each file in some epochs."""
    chat = Chat("plain", load_tokenizer(tokenizer))

    def read(paths) -> Conversations:
        return Conversations(paths, chat, Structure(), RowRules(LENGTH), packed)

    train = (f"{files}/tasks", f"{files}/cats.jsonl")
    mixed = mixture(MixedConversationConfig(train=train, **more), read)
    whose = {}
    for name in SIZES:
        alone = read([f"{files}/{name}"])
        whose |= {alone[n].labels.tobytes(): name for n in range(len(alone))}
    found = dict.fromkeys(SIZES, 0)
    for n in range(epochs * len(mixed)):
        example = mixed[n]
        found[whose[example.labels.tobytes()]] += int(
            (example.labels == chat.tokenizer.end_id).sum()
        )
    assert mixed.notes[-1].startswith(f"shares of the examples: {files}/tasks ")
    return found


def shares(found: dict[str, int]) -> list[float]:
    return list(np.array(list(found.values())) / sum(found.values()))


@pytest.mark.parametrize("packed", [False, True])
def test_shares_are_those_of_examples_up_to_a_limit(files, tokenizer, packed: bool):
    found = counts(files, tokenizer, packed, 40, size_limits=(10, 0))
    assert shares(found) == pytest.approx([10 / 29, 7 / 29, 12 / 29], abs=0.02)
    found = counts(files, tokenizer, packed, 40, weights=(3.0, 1.0), size_limits=(21, 0))
    assert shares(found) == pytest.approx([0.75 * 21 / 28, 0.75 * 7 / 28, 0.25], abs=0.02)


def test_every_conversation_has_its_turn_in_time(files, tokenizer):
    found = counts(files, tokenizer, False, 1, weights=(1.0, 1.0))
    assert sum(found.values()) == sum(SIZES.values())
    assert found["cats.jsonl"] > SIZES["cats.jsonl"]  # again before the epoch is over


def test_what_can_not_be_is_refused(files, tokenizer, capsys, tmp_path):
    train = (f"{files}/tasks", f"{files}/tasks/*.jsonl")
    with pytest.raises(DataError, match="all its files are those of entries before it"):
        mixture(MixedConversationConfig(train=train, weights=(1.0, 1.0)), pytest.fail)
    for told, says in (
        ({"weights": (1.0,)}, "data.weights: must be one for each of the 2 entries .* came 1"),
        ({"size_limits": (1, 2, 3)}, "data.size_limits: must be one for each of the 2 entries"),
        ({"size_limits": (1, -2)}, "must not be negative"),
        ({"weights": (1.0, 0.0)}, "must be positive"),
        ({"weights": (1.0, 2.0), "split": 0.1}, "data.split 0.1: counts records through all files"),
    ):
        with pytest.raises(ConfigError, match=says):
            MixedConversationConfig(train=train, **told)
    words = ["--data.train", f'["{files}/cats.jsonl"]', "--run.folder", str(tmp_path / "run")]
    assert main(["sft", *words, "--data.weights", "[1.0, 2.0]"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["rm", *words, "--data.weights", "[1.0]"]) == 2
    assert "weights" in capsys.readouterr().err
