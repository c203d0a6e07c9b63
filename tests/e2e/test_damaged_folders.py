"""Hugging Face folders that can't be converted: one line that names what is wrong, exit code 2."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megalite.cli import main
from tests.parity.families import PEERS, randomise


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A LLaMA in several files."""
    peer = PEERS["llama gqa"].make()
    randomise(peer)
    path = tmp_path_factory.mktemp("whole") / "hf"
    peer.save_pretrained(path, max_shard_size="30KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def first_shard(path: Path) -> Path:
    return sorted(path.glob("*.safetensors"))[0]


def cut(path: Path) -> None:
    shard = first_shard(path)
    shard.write_bytes(shard.read_bytes()[:-100])


def scribble(path: Path) -> None:
    shard = first_shard(path)
    shard.write_bytes(b"\xff" * 64 + shard.read_bytes()[64:])


def drop_a_shard(path: Path) -> None:
    first_shard(path).unlink()


def drop_a_tensor(path: Path) -> None:
    """The index still names it."""
    shard = first_shard(path)
    tensors = load_file(shard)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, shard)


def forget_a_tensor(path: Path) -> None:
    """The index has lost one, and names a stranger."""
    index = path / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    told["weight_map"]["model.layers.0.surprise"] = told["weight_map"].pop("model.norm.weight")
    index.write_text(json.dumps(told))


def change_a_tensor(
    name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        for shard in path.glob("*.safetensors"):
            tensors = load_file(shard)
            if name in tensors:
                tensors[name] = change(tensors[name]).contiguous()
                save_file(tensors, shard)

    return damage


def spoil_the_index(path: Path) -> None:
    (path / "model.safetensors.index.json").write_text('{"weight_map": ')


def no_weights(path: Path) -> None:
    for file in path.glob("model*"):
        file.unlink()


def a_broken_pickle(path: Path) -> None:
    no_weights(path)
    (path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 no archive")


def a_pointer(path: Path) -> None:
    """What a clone holds where Git LFS is not set up."""
    first_shard(path).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\n")


def settings(**values) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        config |= values
        config = {key: value for key, value in config.items() if value is not None}
        (path / "config.json").write_text(json.dumps(config))

    return change


DAMAGES = {
    "a file cut short": (cut, "00001-of-.*can't be read"),
    "a file overwritten": (scribble, "00001-of-.*can't be read"),
    "a missing file": (drop_a_shard, "00001-of-.*is missing; the index names it"),
    "a file without a tensor": (drop_a_tensor, "is incomplete: has no .*, which the index names"),
    "unknown and missing tensors": (
        forget_a_tensor,
        "missing model.norm.weight; unknown model.layers.0.surprise",
    ),
    "a tensor of another size": (
        change_a_tensor("model.norm.weight", lambda tensor: tensor[1:]),
        r"decoder.norm.weight is \[35\].*\[36\]",
    ),
    "a matrix the other way round": (
        change_a_tensor("model.layers.0.mlp.up_proj.weight", lambda tensor: tensor.t()),
        r"layers.0.ffn.up.weight is \[36, 50\], and \[50, 36\] by config.json",
    ),
    "a broken index": (spoil_the_index, "index.json: can't be read"),
    "a pointer of Git LFS": (a_pointer, "00001-of-.*is a pointer of Git LFS.*run `git lfs pull`"),
    "no weights": (no_weights, "has no model.safetensors"),
    "a broken pickle": (a_broken_pickle, "pytorch_model.bin: can't be read"),
    "an unknown architecture": (settings(model_type="mamba"), "model_type 'mamba' must be one of"),
    "no config key": (settings(hidden_size=None), "must have the key or value 'hidden_size'"),
    "a value the family can't have": (
        settings(hidden_act="gelu"),
        """hidden_act must be "silu" here, came 'gelu'""",
    ),
    "a value no model can have": (settings(num_hidden_layers=0), "num_layers = 0: must be"),
    "heads that don't divide": (settings(num_key_value_heads=3), "must divide num_heads 4"),
    "unknown positions": (
        settings(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}),
        "rope type 'longrope'; default, linear, .* are known",
    ),
    "positions without their factor": (
        settings(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
        "config.json: rope: must have factor or original_max_position_embeddings",
    ),
    "a config for other weights": (
        settings(intermediate_size=51),
        r"ffn.gate.weight is \[50, 36\]",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_folder_that_cannot_be_read_is_named_in_one_line(what, folder, tmp_path, capsys):
    damage, said = DAMAGES[what]
    shutil.copytree(folder, tmp_path / "hf")
    damage(tmp_path / "hf")
    assert_refused(tmp_path, said, capsys)


def assert_refused(folder: Path, said: str, capsys) -> None:
    words = ["convert", "--source", str(folder / "hf"), "--target", str(folder / "out")]
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(said, lines[0]), lines[0]
    assert [path.name for path in folder.iterdir()] == ["hf"]


def test_a_bias_of_logits_that_would_be_lost_is_refused(tmp_path, capsys):
    peer = PEERS["bart"].make()
    peer.final_logits_bias[0, 3] = -0.25
    peer.save_pretrained(tmp_path / "hf")
    capsys.readouterr()  # its progress bar
    assert_refused(tmp_path, "final_logits_bias must be all 0.* came 0.25", capsys)
