"""No command runs what a checkpoint or a model's folder names, and none advises to."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megalite.cli import main
from megalite.training.checkpoint.files import checksum
from megalite.training.checkpoint.manifest import read_manifest, write_manifest
from megalite.training.checkpoint.reader import CheckpointReader

SIZES = {"vocab_size": 300, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "ffn_size": 24}
Spoil = Callable[[Path, Path], None]


class Leaves:
    """Leaves a mark where it is unpickled, and gives what stands in ``then``."""

    def __init__(self, mark: Path, then: bytes) -> None:
        self.mark, self.then = mark, then

    def __reduce__(self) -> tuple[Any, ...]:
        true = f"__import__('pickle').loads({self.then!r})"
        return eval, (f"(open({str(self.mark)!r}, 'w').close(), {true})[1]",)


def spoil_metadata(step: Path, mark: Path) -> None:
    file = step / ".metadata"
    file.write_bytes(pickle.dumps(Leaves(mark, file.read_bytes())))


def spoil_tensors(step: Path, mark: Path) -> None:
    """The true metadata, of files whose tensors are pickles with code."""
    places = CheckpointReader(step).read_metadata().storage_data.values()
    for file in step.glob("*.distcp"):
        torch.save(Leaves(mark, pickle.dumps(None)), file)
        content = file.read_bytes()
        most = max(place.offset + place.length for place in places)
        file.write_bytes(content.ljust(most, b"\0"))
    metadata = CheckpointReader(step).read_metadata()
    for place in metadata.storage_data.values():
        place.offset, place.length = 0, len(content)
    (step / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.fixture(scope="module")
def trained(tokenizer: Path, tmp_path_factory) -> Path:
    """A folder with a run of one step, and what it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "sft.jsonl").write_text(json.dumps({"prompt": "the red", "response": "cat"}) + "\n")
    words = [word for key, value in SIZES.items() for word in (f"--model.{key}", str(value))]
    assert main([*stage(folder, tokenizer), "--run.folder", str(folder / "run"), *words]) == 0
    return folder


def stage(folder: Path, tokenizer: Path, steps: int = 1) -> list[str]:
    words = ["sft", "--data.train", f'["{folder}/sft.jsonl"]', "--data.sequence_length", "64"]
    words += ["--tokenizer.path", str(tokenizer), "--run.trackers=[]"]
    words += ["--train.global_batch_size", "1", "--train.micro_batch_size", "1"]
    return [*words, "--train.steps", str(steps)]


def words_of(command: str, folder: Path, tokenizer: Path) -> list[str]:
    run, going_on = f"{folder}/run", stage(folder, tokenizer, steps=2)
    return {
        "convert": ["convert", "--source", run, "--target", f"{folder}/out"],
        "generate": ["generate", "--model", run, "--prompt", '["the"]']
        + ["--tokenizer.path", str(tokenizer)],
        "start": [*going_on, "--checkpoint.start", run, "--run.folder", f"{folder}/new"],
        "resume": [*going_on, "--run.folder", run],
    }[command]


@pytest.mark.parametrize("command", ["convert", "generate", "start", "resume"])
@pytest.mark.parametrize("spoil", [spoil_metadata, spoil_tensors])
def test_a_command_runs_nothing_of_a_crafted_checkpoint(
    command: str, spoil: Spoil, trained: Path, tokenizer: Path, tmp_path: Path, capsys
):
    """Its manifest is made to fit."""
    folder, mark = tmp_path / "copy", tmp_path / "mark"
    shutil.copytree(trained, folder)
    step = folder / "run" / "checkpoints" / "step-00000001"
    spoil(step, mark)
    facts, files = read_manifest(step)
    for name in files:
        file = step / name
        files[name] = {"bytes": file.stat().st_size, "blake2b": checksum(file)}
    write_manifest(step, facts, files)
    capsys.readouterr()
    code = main(words_of(command, folder, tokenizer))
    said = capsys.readouterr()
    assert not mark.exists()
    assert "weights_only" not in said.err + said.out
    assert code == 2
    assert len(said.err.strip().splitlines()) == 1, said.err
    assert "was not" in said.err


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_command_runs_nothing_of_a_crafted_folder(form: str, tmp_path: Path, capsys):
    folder, mark = tmp_path / "hf", tmp_path / "mark"
    folder.mkdir()
    keys = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    keys |= {"intermediate_size": 24, "rms_norm_eps": 1e-5, "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(keys))
    file = folder / "pytorch_model.bin"
    content = {"model.norm.weight": torch.ones(16), "more": Leaves(mark, pickle.dumps(None))}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    words = ["convert", "--source", str(folder), "--target", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert not mark.exists()
    assert "could run code" in said
    assert "weights_only" not in said
    assert len(said.strip().splitlines()) == 1, said
    assert sorted(os.listdir(tmp_path)) == ["hf"]
