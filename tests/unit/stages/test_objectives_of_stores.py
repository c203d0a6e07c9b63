"""Stores with objectives of their own: each is read as it would be alone."""

import numpy as np
import pytest

from megalite.cli import main
from megalite.data.config import CorpusConfig, TokenizerConfig
from megalite.data.corpus.store import StoreWriter
from megalite.data.example import Example
from megalite.data.split import Split
from megalite.data.tokenizers.load import load_tokenizer
from megalite.models.config import ModelConfig
from megalite.stages.corpus import blend_parts, store_opener

LENGTH = 24


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("stores")
    random = np.random.default_rng(0)
    for name in ("text", "tasks", "other"):
        writer = StoreWriter(folder / name, np.dtype(np.uint16))
        for _ in range(40):
            writer.add(random.integers(1, 200, LENGTH))
        writer.close()
    return [str(folder / name) for name in ("text", "tasks", "other")]


def opener(stores: list[str], tokenizer, **more):
    told = {"train": tuple(stores[:2]), "sequence_length": LENGTH, **more}
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    model = ModelConfig(vocab_size=load_tokenizer(tokenizer).vocab_size, **sizes)
    data = CorpusConfig(**told)
    return data, store_opener(data, TokenizerConfig(path=str(tokenizer)), model, seed=3)


def is_same(one: Example, other: Example) -> bool:
    return bool(
        np.array_equal(one.decoder.tokens, other.decoder.tokens)
        and np.array_equal(one.labels, other.labels)
    )


def test_each_store_is_read_by_its_own_objective(stores, tokenizer):
    mixed = {"objectives": ("next_token", "prefix_lm"), "objective": "prefix_lm"}
    data, opened = opener(stores, tokenizer, heldout=(stores[2],), **mixed)
    for number, (path, name) in enumerate(
        [(stores[0], "next_token"), (stores[1], "prefix_lm"), (stores[2], "prefix_lm")]
    ):
        _, alone = opener(stores, tokenizer, objective=name)
        ours, theirs = opened(path, number), alone(path, number)
        assert len(ours) == len(theirs)
        assert all(is_same(ours[n], theirs[n]) for n in range(5))
    _, other = opener(stores, tokenizer, objective="next_token")
    assert not is_same(opened(stores[1], 1)[0], other(stores[1], 1)[0])
    data = data.model_copy(update={"weights": (0.9, 0.1)})
    blend = blend_parts(opened, data, stores[:2], Split())
    text = opened(stores[0], 0)
    windows = {text[n].labels.tobytes() for n in range(2 * len(text))}  # of two epochs
    found = sum(blend[n].labels.tobytes() in windows for n in range(len(blend)))
    assert found == pytest.approx(0.9 * len(blend), abs=1)


@pytest.mark.parametrize("names", ['["next_token"]', '["next_token", "prefix_lm", "prefix_lm"]'])
def test_as_many_objectives_as_stores_are_needed(stores, tokenizer, tmp_path, capsys, names):
    words = ["pretrain", "--data.train", f'["{stores[0]}", "{stores[1]}"]']
    words += ["--tokenizer.path", str(tokenizer), "--run.folder", str(tmp_path / "run")]
    assert main([*words, "--data.objectives", names, "--run.device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "--data.objectives: must be one for each of the 2 stores" in said
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()
