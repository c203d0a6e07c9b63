"""Models by names on the Hub: what is asked of it, what lies in the cache, what is refused."""

import json
from pathlib import Path

import pytest

from megalite.distributed.launch import Launch
from megalite.errors import CheckpointError
from megalite.models.hub import HubName, folder_of, lacking, pinned
from tests.hub import Hub, reach, serving

NAMES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "pytorch_model.bin",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "tokenization_own.py",
    "README.md",
    "training_args.bin",
    "onnx/model.onnx",
    "original/tokenizer.model",
    "flax_model.msgpack",
)
FILES = {name: f"content of {name}" for name in NAMES}  # the cache has equal contents once
READ = set(FILES) - {
    "pytorch_model.bin",
    "README.md",
    "training_args.bin",
    "onnx/model.onnx",
    "original/tokenizer.model",
    "flax_model.msgpack",
}


def publish(folder: Path, repo: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with one model, and an empty cache."""
    publish(tmp_path / "hub", "tiny/model", FILES)
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path / "hub") as hub:
        reach(monkeypatch, hub.url, tmp_path / "cache")
        yield hub


def pin(text: str, wanted="model") -> tuple[str, str]:
    return pinned(Launch(), "checkpoint.start", text, wanted)


def refusal(text: str, wanted="model") -> str:
    with pytest.raises(CheckpointError) as error:
        pin(text, wanted)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "text", ["", "/a/b", "./a", "../a", "a/b/c", "a//b", ".a/b", "a..b", "a--b", "a/b.git", "~/a"]
)
def test_what_can_only_be_a_path_is_never_asked_for(hub: Hub, text: str):
    assert HubName.like(text) is None
    assert pin(text) == (text, "")
    assert not hub.asked


def test_a_path_that_exists_is_no_name(hub: Hub, tmp_path):
    (tmp_path / "tiny" / "model").mkdir(parents=True)
    assert pin("tiny/model") == ("tiny/model", "")
    assert folder_of("tiny/model") == Path("tiny/model")
    assert not hub.asked


def test_only_what_is_read_is_fetched_and_only_once(hub: Hub):
    commit = hub.commit("tiny/model")
    name, said = pin("tiny/model")
    assert name == f"tiny/model@{commit}"
    assert f"{len(READ)} files" in said
    assert sorted(hub.fetched()) == sorted(READ)
    folder = folder_of(name)
    assert {path.name for path in folder.iterdir()} == READ
    assert (folder / "model.safetensors").read_text() == "content of model.safetensors"
    before = len(hub.asked)
    assert pin(name) == (name, "")
    assert len(hub.asked) == before
    assert folder_of("tiny/model") == folder


@pytest.mark.parametrize(
    ("wanted", "files"),
    [
        ("config", {"config.json", "generation_config.json"}),
        ("tokenizer", READ - {"model.safetensors"}),
    ],
)
def test_a_part_is_fetched_alone(hub: Hub, wanted: str, files: set[str]):
    pin("tiny/model", wanted)
    assert set(hub.fetched()) == files


def test_weights_in_parts_and_weights_that_are_pickles_come_whole(hub: Hub):
    parts = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    index = json.dumps({"weight_map": dict(zip("ab", parts, strict=True))})
    names = {name: name for name in ("config.json", "tokenizer.json", *parts)}
    publish(hub.folder, "tiny/parts", {**names, "pytorch_model.bin.index.json": index})
    name, _ = pin("tiny/parts")
    assert set(hub.fetched()) == {*names, "pytorch_model.bin.index.json"}
    (folder_of(name) / parts[1]).unlink()  # as a fetch that was killed leaves it
    hub.asked.clear()
    pin(name)
    assert not lacking(folder_of(name), "model")
    assert set(hub.fetched()) <= {parts[1]}


def test_a_run_keeps_its_commit_when_the_branch_moves(hub: Hub):
    name, _ = pin("tiny/model")
    publish(hub.folder, "tiny/model", {"model.safetensors": "others"})
    assert pin(name)[0] == name
    assert (folder_of(name) / "model.safetensors").read_text() == "content of model.safetensors"
    other, _ = pin("tiny/model")
    assert other != name
    assert (folder_of(other) / "model.safetensors").read_text() == "others"


def test_without_the_hub_the_cache_is_taken_and_that_is_said(hub: Hub, monkeypatch, tmp_path):
    name, _ = pin("tiny/model")
    for url, offline, why in (
        ("http://127.0.0.1:9", False, "can't be reached"),
        (hub.url, True, "HF_HUB_OFFLINE is set"),
    ):
        reach(monkeypatch, url, tmp_path / "cache", offline)
        found, said = pin("tiny/model")
        assert found == name
        assert why in said
        assert str(folder_of(name)) in said


def test_what_is_not_there_is_refused_in_a_line_with_the_reason(hub: Hub, monkeypatch, tmp_path):
    publish(hub.folder, "tiny/gguf", {"config.json": "{}", "model.gguf": ""})
    publish(hub.folder, "tiny/gated", FILES)
    hub.gated.add("tiny/gated")
    said = refusal("tiny/none")
    assert said.startswith("--checkpoint.start tiny/none: there is no such file or folder here")
    assert f"{hub.url} has no such model" in said
    assert "without a branch, tag or commit v9" in refusal("tiny/model@v9")
    assert "has no weights that is read here, but config.json, model.gguf" in refusal("tiny/gguf")
    assert f"{hub.url}/tiny/gated" in refusal("tiny/gated")
    pin("tiny/model", "config")
    reach(monkeypatch, hub.url, tmp_path / "cache", offline=True)
    assert "HF_HUB_OFFLINE is set" in refusal("tiny/none")
    said = refusal("tiny/model")
    assert "doesn't have its weights and tokenizer" in said
    reach(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert "http://127.0.0.1:9 can't be reached: " in refusal("tiny/none")


def test_a_damaged_answer_is_no_traceback(hub: Hub, monkeypatch):
    monkeypatch.setattr(hub, "answer", lambda path: (500, {}, b"oops"))
    assert "can't be reached" in refusal("tiny/model")
