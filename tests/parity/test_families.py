"""Every family against transformers: logits, gradients, and the way out."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import pytest
import torch

from megalite.errors import CheckpointError
from megalite.models.batch import Batch
from megalite.models.build import build_model
from megalite.models.hugging_face import load_weights, our_tensors, read_config, write_folder
from megalite.models.outputs import Logits
from megalite.ops import mask as masks
from megalite.parallel.mesh import Mesh, ParallelConfig
from tests.parity.families import PEERS, VOCABULARY, randomise

BATCH, LENGTH, ENCODER_LENGTH = 2, 13, 9


@cache
def folder_of(name: str, root: Path):
    """The peer, and a Hugging Face folder of it."""
    torch.manual_seed(0)
    peer = PEERS[name].make().eval()
    randomise(peer)
    path = root / name.replace(" ", "-").replace(",", "")
    peer.save_pretrained(path)
    return peer, path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("peers")


def ours_from(path: Path):
    config, family = read_config(path)
    model = build_model(config, Mesh.single(), ParallelConfig(), seed=0)
    load_weights(model, path)
    return model, config, family


def tokens_of(rows: int, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def make_batch(tokens: torch.Tensor, mask, positions=None, source=None, used=None) -> Batch:
    rows, length = tokens.shape
    if positions is None:
        positions = torch.arange(length, dtype=torch.int32).expand(rows, length)
    fields = {}
    if source is not None:
        encoder = masks.padding(used, source.shape[1])
        cross = masks.cross(used, length, source.shape[1])
        fields = {
            "encoder_tokens": source,
            "encoder_positions": torch.arange(source.shape[1], dtype=torch.int32).expand(rows, -1),
            "encoder_start": encoder.start,
            "encoder_end": encoder.end,
            "cross_start": cross.start,
            "cross_end": cross.end,
        }
    labels = torch.full_like(tokens, -100)
    ids = torch.arange(rows)
    return Batch(tokens, labels, positions, mask.start, mask.end, ids, **fields)


def both_logits(name: str, root: Path):
    """Ours and theirs on the same tokens, with the gradients of one random projection."""
    peer, path = folder_of(name, root)
    model, config, family = ours_from(path)
    tokens = tokens_of(BATCH, LENGTH, 1)
    if PEERS[name].is_encoder_decoder:
        source, used = tokens_of(BATCH, ENCODER_LENGTH, 2), torch.tensor([ENCODER_LENGTH, 5])
        attention = (torch.arange(ENCODER_LENGTH) < used[:, None]).long()
        inputs = {"input_ids": source, "attention_mask": attention, "decoder_input_ids": tokens}
        batch = make_batch(tokens, masks.causal(BATCH, LENGTH), None, source, used)
    else:
        inputs = {"input_ids": tokens}
        batch = make_batch(tokens, masks.causal(BATCH, LENGTH))
    upstream = torch.randn(BATCH, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(4))
    peer.zero_grad()
    theirs = peer(**inputs, use_cache=False).logits
    (theirs * upstream).sum().backward()
    ours = model(batch, Logits())
    (ours * upstream).sum().backward()
    return (model, config, family, ours.detach()), (peer, theirs.detach())


@pytest.mark.parametrize("name", PEERS)
def test_logits_and_gradients_are_those_of_transformers(name: str, root: Path):
    (model, config, family, ours), (peer, theirs) = both_logits(name, root)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    expected = {n: p.grad for n, p in peer.named_parameters()}
    from megalite.models.hugging_face import _flat

    seen = set()
    # A key's bias moves all scores of a row alike: its gradient is a rounding of zero.
    rounding = 1e-6 * max(float(g.norm()) for g in expected.values() if g is not None)
    for entry in family.entries(config):
        want = expected[entry.theirs]
        got = entry.join([_flat(n, gradients[n]) for n in entry.ours], config).reshape(want.shape)
        assert (got - want).norm() <= 1e-4 * want.norm() + rounding, entry.theirs
        seen |= set(entry.ours)
    assert seen == set(gradients)


@pytest.mark.parametrize("name", PEERS)
def test_what_is_written_loads_in_transformers_and_gives_the_same_logits(name, root, tmp_path):
    peer, path = folder_of(name, root)
    model, config, _ = ours_from(path)
    tensors = {n: p.detach() for n, p in model.named_parameters()}
    write_folder(tmp_path, config, tensors, shard_bytes=20_000)
    again = type(peer).from_pretrained(tmp_path).eval()
    tokens = tokens_of(BATCH, LENGTH, 5)
    inputs = {"input_ids": tokens, "use_cache": False}
    if PEERS[name].is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens_of(BATCH, 4, 6)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, peer(**inputs).logits)
    assert read_config(tmp_path)[0] == config


def assert_same(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-6 of the largest logit."""
    assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max()


DECODERS = [name for name, peer in PEERS.items() if not peer.is_encoder_decoder]


@pytest.mark.parametrize("name", DECODERS)
def test_left_and_right_padding_change_nothing(name: str, root: Path):
    model = ours_from(folder_of(name, root)[1])[0]
    tokens = tokens_of(1, 7, 7)
    with torch.no_grad():
        alone = model(make_batch(tokens, masks.causal(1, 7)), Logits())
        for left, right in ((4, 0), (0, 5), (2, 3)):
            length = left + 7 + right
            wide = torch.nn.functional.pad(tokens, (left, right), value=1)
            documents = masks.packed([[left, 7]], length)
            positions = (torch.arange(length, dtype=torch.int32) - left).clamp(min=0)[None]
            logits = model(make_batch(wide, documents, positions), Logits())
            assert_same(logits[:, left : left + 7], alone)


@pytest.mark.parametrize("name", DECODERS)
def test_packing_changes_nothing(name: str, root: Path):
    model = ours_from(folder_of(name, root)[1])[0]
    parts = [tokens_of(1, length, length) for length in (5, 1, 8)]
    lengths = [part.shape[1] for part in parts]
    positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths])[None]
    with torch.no_grad():
        packed = make_batch(torch.cat(parts, 1), masks.packed([lengths], sum(lengths)), positions)
        together = model(packed, Logits()).split(lengths, 1)
        for part, logits in zip(parts, together, strict=True):
            alone = model(make_batch(part, masks.causal(1, part.shape[1])), Logits())
            assert_same(logits, alone)


def test_an_unknown_architecture_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(CheckpointError, match="model_type 'mamba' must be one of"):
        read_config(tmp_path)


def test_missing_and_unknown_tensors_are_listed(root: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    _, path = folder_of("llama", root)
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.surprise"] = tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    config, family = read_config(tmp_path)
    with pytest.raises(CheckpointError, match="missing model.norm.weight; unknown .*surprise"):
        list(our_tensors(tmp_path, config, family))


def test_a_damaged_file_is_named(root: Path, tmp_path: Path):
    _, path = folder_of("llama", root)
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:100])
    config, family = read_config(tmp_path)
    with pytest.raises(CheckpointError, match="model.safetensors: can't be read"):
        list(our_tensors(tmp_path, config, family))


def test_a_family_is_data():
    """No family has a class, and no code of the models asks for a family's name."""
    from megalite.models.families import FAMILIES

    folder = Path(__file__).parents[2] / "megalite" / "models"
    for file in folder.rglob("*.py"):
        text = file.read_text()
        if file.parent.name == "families" and file.name != "table.py":
            assert "class " not in text, file
        assert "if family ==" not in text, file
        assert "family.name ==" not in text, file
    assert all(dataclasses.is_dataclass(family) for family in FAMILIES.values())
