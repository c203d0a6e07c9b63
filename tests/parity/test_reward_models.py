"""Reward models in transformers: the score of a sequence's last token, and the way back."""

from pathlib import Path

import pytest
import torch

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.errors import CheckpointError
from megalite.models.families import FAMILIES
from megalite.models.hugging_face import read_config, write_folder
from megalite.models.outputs import Values
from megalite.ops import mask as masks
from megalite.stages.start import load_start
from tests.parity.families import PEERS
from tests.parity.test_families import make_batch, tokens_of

SCORERS = ("llama gqa", "gpt2", "opt", "bloom", "falcon 7b", "falcon 40b", "falcon rw", "mistral")
SCORERS += ("qwen2", "qwen3", "gpt-neox", "glm", "glm4", "gemma2")


def reward_model(name: str, folder: Path):
    """A peer's model with a scalar head, random in all of it."""
    PEERS[name].make().save_pretrained(folder)
    config = read_config(folder)[0].model_copy(update={"head": "value"})
    model = build_model(config, Mesh.single(), ParallelConfig(), seed=4)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


@pytest.mark.parametrize("name", SCORERS)
def test_transformers_gives_the_score_of_the_last_token(name: str, tmp_path: Path):
    from transformers import AutoModelForSequenceClassification

    model = reward_model(name, tmp_path / "peer")
    tensors = {n: p.detach() for n, p in model.named_parameters()}
    write_folder(tmp_path / "hf", model.config, tensors)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokens, padding, lengths = tokens_of(2, 9, seed=1), 1, (9, 6)
    padded = tokens.clone()
    padded[1, lengths[1] :] = theirs.config.pad_token_id = padding
    attended = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        values = model.parts[0](make_batch(tokens, masks.causal(2, 9)), Values())
        scores = theirs(padded, attention_mask=attended).logits
    ours = torch.stack([values[row, length - 1] for row, length in enumerate(lengths)])
    assert scores.shape == (2, 1)
    assert (scores[:, 0] - ours).abs().max() <= 1e-5 * values.abs().max()


def test_what_is_written_is_read_as_a_reward_model(tmp_path: Path):
    model = reward_model("llama gqa", tmp_path / "peer")
    tensors = {n: p.detach() for n, p in model.named_parameters()}
    write_folder(tmp_path / "hf", model.config, tensors)
    assert read_config(tmp_path / "hf")[0].head == "value"
    again = build_model(model.config, Mesh.single(), ParallelConfig(), seed=0)
    load_start(again, str(tmp_path / "hf"), needs_head=True)
    assert all(torch.equal(tensors[n], p) for n, p in again.named_parameters())
    with pytest.raises(CheckpointError, match="no trained scalar head"):
        load_start(again, str(tmp_path / "peer"), needs_head=True)


@pytest.mark.parametrize(
    "name", ["t5", "bart", "codegen", "gpt-j", "opt post-norm with projection"]
)
def test_a_family_without_such_a_class_is_refused_in_plain_words(name: str, tmp_path: Path):
    model = reward_model(name, tmp_path / "peer")
    with pytest.raises(CheckpointError, match="has no class of it|embedding_size|head_bias"):
        write_folder(tmp_path / "hf", model.config, {})
    assert not (tmp_path / "hf").exists()


def test_classes_with_a_score_are_those_of_transformers():
    import transformers

    for family in FAMILIES.values():
        assert not family.is_scored or hasattr(transformers, family.scorer), family.name
