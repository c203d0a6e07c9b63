"""Weights are loaded only into a model that computes what they were trained for."""

from pathlib import Path

import pytest
import torch

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.engine.weights import load_weights
from megalite.errors import CheckpointError
from megalite.models.config import ModelConfig
from megalite.models.hugging_face import read_config, write_folder
from megalite.stages.start import load_start
from megalite.training.checkpoint.manager import CheckpointManager

SIZES = {
    "vocab_size": 41,
    "hidden_size": 24,
    "num_layers": 3,
    "num_heads": 4,
    "ffn_size": 40,
    "norm_eps": 1e-6,
    "tie_embeddings": False,
}
WRONG = {
    "activation": "gelu",
    "norm_eps": 1e-2,
    "rope_base": 5e5,
    "position": "alibi",
    "norm_position": "post",
    "num_layers": 2,
    "tie_embeddings": True,
    "rope_interleaved": True,
    "rope_scaling": "llama3",
    "num_kv_heads": 2,
    "qkv_bias": True,
    "logit_scale": 2.0,
    "attention_scale": 1.0,
}


def model(seed: int = 0, **changes):
    config = ModelConfig(**(SIZES | changes))
    return build_model(config, Mesh.single(), ParallelConfig(), seed=seed)


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict[str, Path]:
    """One model as a published folder and as a checkpoint of ours."""
    root, trained = tmp_path_factory.mktemp("stored"), model(seed=3)
    tensors = {name: p.detach() for name, p in trained.named_parameters()}
    write_folder(root / "folder", trained.config, tensors)
    manager = CheckpointManager(root / "run" / "checkpoints", asynchronous=False)
    facts = {"step": 1, "learners": {"model": {}}, "model": trained.config.model_dump()}
    manager.save(1, {f"model.{name}": tensor for name, tensor in tensors.items()}, facts)
    return {"folder": root / "folder", "run": root / "run"}


@pytest.mark.parametrize("kind", ["folder", "run"])
def test_the_same_model_gets_every_weight(stored, kind: str):
    ours, trained = model(seed=1), model(seed=3)
    load_start(ours, str(stored[kind]))
    pairs = zip(ours.named_parameters(), trained.named_parameters(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)


@pytest.mark.parametrize("kind", ["folder", "run"])
@pytest.mark.parametrize("key", WRONG)
def test_another_model_is_refused_by_key_and_stays_as_it_is(stored, kind: str, key: str):
    ours = model(seed=1, **{key: WRONG[key]})
    before = [p.detach().clone() for p in ours.parameters()]
    with pytest.raises(CheckpointError, match=rf"--model: .*\b{key} .*\(there .*\): must be as in"):
        load_start(ours, str(stored[kind]))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", ["folder", "run"])
def test_values_that_decide_nothing_may_differ(stored, kind: str):
    """Dropout, initial values and another way to say the same."""
    ours = model(seed=1, dropout=0.3, init_std=0.1, max_positions=77, num_kv_heads=4, head_size=6)
    load_start(ours, str(stored[kind]))


@pytest.mark.parametrize("kind", ["folder", "run"])
def test_a_reward_model_starts_from_a_language_model(stored, kind: str):
    ours, trained = model(seed=1, head="value"), dict(model(seed=3).named_parameters())
    load_start(ours, str(stored[kind]))
    for name, parameter in ours.named_parameters():
        assert "head" in name or torch.equal(parameter, trained[name])


def test_a_head_that_is_tied_there_must_be_the_embedding(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    tied = model(seed=3, tie_embeddings=True)
    tensors = {name: p.detach() for name, p in tied.named_parameters()}
    write_folder(tmp_path, tied.config, tensors)
    file = tmp_path / "model.safetensors"
    written = load_file(file)
    written["lm_head.weight"] = written["model.embed_tokens.weight"].clone()
    save_file(written, file, {"format": "pt"})
    load_weights(model(tie_embeddings=True), tmp_path)
    written["lm_head.weight"][2, 3] += 1
    save_file(written, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="lm_head.weight must be model.embed_tokens.weight"):
        load_weights(model(tie_embeddings=True), tmp_path)


def test_a_pickle_that_is_more_than_tensors_is_refused_in_our_words(stored, tmp_path: Path):
    (tmp_path / "config.json").write_text((stored["folder"] / "config.json").read_text())
    torch.save({"model.norm.weight": torch.ones(2), "code": Path}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="could run code") as error:
        load_weights(model(), tmp_path)
    assert "weights_only" not in str(error.value)


def test_a_base_that_is_changed_on_purpose_stands_under_every_key(stored, tmp_path: Path):
    import json

    published = {"rope_theta": 10000.0, "rope_parameters": {"rope_theta": 10000.0}}
    published |= {"model_type": "llama", "hidden_act": "silu", "custom": 1}
    changed = model(rope_base=77.0)
    tensors = {name: p.detach() for name, p in changed.named_parameters()}
    write_folder(tmp_path, changed.config, tensors, published=published)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 77.0
    assert written["custom"] == 1
    assert read_config(tmp_path)[0].rope_base == 77.0


def test_linear_scaling_goes_out_in_the_form_it_came_in_or_in_both(tmp_path: Path):
    """transformers before 4.43 reads ``type``, later ones ``rope_type``."""
    import json

    stretched = model(rope_scale=2.0)
    tensors = {name: p.detach() for name, p in stretched.named_parameters()}
    came = {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}
    for name, published in (("as it came", came), ("ours", {})):
        write_folder(tmp_path / name, stretched.config, tensors, published=published)
    kept, both = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("as it came", "ours")
    )
    assert kept["rope_scaling"] == came["rope_scaling"]
    assert both["rope_scaling"] == {"rope_type": "linear", "type": "linear", "factor": 2.0}
    for written in (kept, both):
        assert written["rope_parameters"]["factor"] == 2.0
        assert written["rope_theta"] == written["rope_parameters"]["rope_theta"]
    changed = model(rope_scale=4.0)
    tensors = {name: p.detach() for name, p in changed.named_parameters()}
    write_folder(tmp_path / "changed", changed.config, tensors, published=came)
    written = json.loads((tmp_path / "changed" / "config.json").read_text())
    assert written["rope_scaling"]["factor"] == written["rope_parameters"]["factor"] == 4.0


@pytest.mark.parametrize("rows", [39, 43])
def test_a_table_of_other_rows_than_its_config_says_is_never_filled_up(tmp_path: Path, rows: int):
    """A vocabulary may grow from what the folder has by its own config alone."""
    trained = model(seed=3)
    tensors = {name: p.detach() for name, p in trained.named_parameters()}
    tensors["embedding.weight"] = torch.ones(rows, 24)
    write_folder(tmp_path, trained.config, tensors)
    said = rf"embedding.weight is \[{rows}, 24\], and \[41, 24\] by config.json: correct that"
    for wanted in (41, 45):
        with pytest.raises(CheckpointError, match=said):
            load_start(model(seed=1, vocab_size=wanted), str(tmp_path), grows=True)
