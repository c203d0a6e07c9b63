"""Every family against transformers: logits, gradients, and the way out."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from megalite.data.example import (
    Example,
    Intervals,
    Tokens,
    collate,
    decoder_example,
    encoder_decoder_example,
    pack,
)
from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.engine.weights import load_weights
from megalite.errors import CheckpointError
from megalite.models.batch import Batch, Stream
from megalite.models.hugging_face import (
    Storage,
    _flat,
    our_tensors,
    read_config,
    read_their_config,
    write_folder,
)
from megalite.models.outputs import Logits
from megalite.ops import backend
from megalite.ops import mask as masks
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
    return model.parts[0], config, family


def tokens_of(rows: int, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def make_batch(tokens: torch.Tensor, mask, positions=None, source=None, used=None) -> Batch:
    rows, length = tokens.shape
    if positions is None:
        positions = torch.arange(length, dtype=torch.int32).expand(rows, length)
    encoder = cross = None
    if source is not None:
        keys = source.shape[1]
        own = torch.arange(keys, dtype=torch.int32).expand(rows, -1)
        encoder = Stream(source, own, masks.padding(used, keys))
        cross = masks.cross(used, length, keys)
    labels = torch.full_like(tokens, -100)
    ids, decoder = torch.arange(rows), Stream(tokens, positions, mask)
    return Batch(decoder, labels, ids, encoder=encoder, cross=cross)


@dataclasses.dataclass(frozen=True)
class Document:
    """Tokens of one document, and how the model may look at them."""

    tokens: torch.Tensor  # [1, S]
    prefix: int = 0
    positions: torch.Tensor | None = None  # [S, 2] for two axes
    source: torch.Tensor | None = None  # [1, Se]

    def example(self) -> Example:
        tokens = self.tokens[0].numpy()
        if self.source is not None:
            return encoder_decoder_example(self.source[0].numpy(), tokens, tokens)
        example = decoder_example(tokens, tokens, self.prefix)
        if self.positions is None:
            return example
        decoder = dataclasses.replace(example.decoder, positions=self.positions.int().numpy())
        return dataclasses.replace(example, decoder=decoder)

    def inputs(self) -> dict:
        """What the peer is given; only a reference has prefixes."""
        if self.source is not None:
            return {"input_ids": self.source, "decoder_input_ids": self.tokens}
        if not self.prefix:
            return {"input_ids": self.tokens}
        allowed = masks.prefix(torch.tensor([self.prefix]), self.tokens.shape[1]).materialize()
        positions = None if self.positions is None else self.positions[None]
        return {"input_ids": self.tokens, "allowed": allowed, "positions": positions}


def documents_of(name: str, lengths: list[int]) -> list[Document]:
    """Documents of odd lengths: with prefixes, two position axes or a source where there are."""
    peer, documents = PEERS[name], []
    for number, length in enumerate(lengths):
        tokens, prefix = tokens_of(1, length, number), 0
        positions = source = None
        if peer.is_encoder_decoder:
            source = tokens_of(1, 2 * length + 1, number + 50)
        if peer.is_reference:
            prefix = length - length // 2
        if peer.axes == 2:
            place = torch.arange(length)
            masked = place.clamp(max=max(prefix - 1, 0))  # the masked place, at the prefix's end
            positions = torch.stack((masked, (place - prefix + 1).clamp(min=0)), -1)
        documents.append(Document(tokens, prefix, positions, source))
    return documents


def empty(length: int, axes: int, has_encoder: bool) -> Example:
    """Rows of padding, which belong in front of others."""
    zeros = np.zeros(length, dtype=np.int32)
    positions = zeros if axes == 1 else np.zeros((length, axes), dtype=np.int32)
    mask, tokens = Intervals(zeros, zeros), zeros.astype(np.int64)
    encoder = None
    if has_encoder:
        none = np.zeros(0, dtype=np.int32)
        encoder = Tokens(none.astype(np.int64), none, Intervals(none, none))
    decoder = Tokens(tokens, positions, mask)
    return Example(decoder, tokens, encoder=encoder, cross=mask if has_encoder else None)


def packed_and_padded(name: str, documents: list[Document]) -> tuple[Batch, list]:
    """Three packed, one padded on the left, one on the right; and where each stands."""
    first = [document.example() for document in documents]
    gap = empty(4, PEERS[name].axes, PEERS[name].is_encoder_decoder)
    rows = [pack(first[:3]), pack([gap, first[3]]), first[4]]
    lengths = [len(example) for example in first]
    starts = [(0, 0), (0, lengths[0]), (0, lengths[0] + lengths[1]), (1, len(gap)), (2, 0)]
    places = [(row, slice(at, at + n)) for (row, at), n in zip(starts, lengths, strict=True)]
    return collate(rows, range(3), pad_id=1), places


def assert_same_gradients(model, config, family, peer) -> None:
    """Equal to 1e-4 of each tensor's norm."""
    gradients = {n: p.grad for n, p in model.named_parameters()}
    expected = {n: p.grad for n, p in peer.named_parameters()}
    expected |= {"embed_out.weight": expected.get("lm_head.weight")}  # GPT-NeoX's name in files
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
def test_logits_and_gradients_are_the_references(name: str, root: Path):
    """Documents packed, and padded on either side, against each alone in the reference."""
    peer, path = folder_of(name, root)
    model, config, family = ours_from(path)
    documents = documents_of(name, [7, 1, 5, 9, 6])
    batch, places = packed_and_padded(name, documents)
    together = model(batch, Logits())
    peer.zero_grad()
    total = 0.0
    for number, (document, place) in enumerate(zip(documents, places, strict=True)):
        theirs = peer(**document.inputs(), use_cache=False).logits[0]
        ours = together[place[0], place[1]]
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        upstream = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(number))
        (theirs * upstream).sum().backward()
        total = total + (ours * upstream).sum()
    total.backward()
    assert_same_gradients(model, config, family, peer)


@pytest.mark.parametrize("name", PEERS)
def test_packing_and_padding_change_nothing(name: str, root: Path):
    model = ours_from(folder_of(name, root)[1])[0]
    documents = documents_of(name, [5, 1, 8, 3, 7])
    batch, places = packed_and_padded(name, documents)
    alone = [collate([document.example()], [0]) for document in documents]

    def check(bound: float) -> None:
        together = model(batch, Logits())
        for one, (row, rows) in zip(alone, places, strict=True):
            expected = model(one, Logits())[0]
            assert (together[row, rows] - expected).abs().max() <= bound * expected.abs().max()

    with torch.no_grad():
        check(1e-5)  # a product of other rows may round otherwise
        model.double()
        with backend("reference"):
            check(1e-12)


@pytest.mark.parametrize("name", [n for n, peer in PEERS.items() if peer.is_encoder_decoder])
def test_a_padded_source_is_read_like_in_transformers(name: str, root: Path):
    peer, path = folder_of(name, root)
    model = ours_from(path)[0]
    tokens, source = tokens_of(BATCH, LENGTH, 1), tokens_of(BATCH, ENCODER_LENGTH, 2)
    used = torch.tensor([ENCODER_LENGTH, 5])
    attention = (torch.arange(ENCODER_LENGTH) < used[:, None]).long()
    inputs = {"input_ids": source, "attention_mask": attention, "decoder_input_ids": tokens}
    with torch.no_grad():
        theirs = peer(**inputs, use_cache=False).logits
        ours = model(make_batch(tokens, masks.causal(BATCH, LENGTH), None, source, used), Logits())
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_chatglm2_is_transformers_glm(root: Path):
    """An independent class of the same architecture, its separate matrices joined."""
    from transformers import GlmConfig, GlmForCausalLM

    reference, path = folder_of("chatglm2", root)
    glm = GlmForCausalLM(
        GlmConfig(
            vocab_size=VOCABULARY,
            hidden_size=36,
            intermediate_size=50,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            partial_rotary_factor=0.5,
            attention_bias=True,
            rms_norm_eps=1e-5,
            pad_token_id=0,
        )
    ).eval()
    glm.load_state_dict(dict(_as_glm(reference.state_dict())))
    tokens = tokens_of(2, 11, 3)
    with torch.no_grad():
        theirs = glm(tokens).logits
        ours = ours_from(path)[0](make_batch(tokens, masks.causal(2, 11)), Logits())
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def _as_glm(tensors: dict[str, torch.Tensor]):
    renamed = {
        "transformer.embedding.word_embeddings": "model.embed_tokens",
        "transformer.encoder.layers": "model.layers",
        "transformer.encoder.final_layernorm": "model.norm",
        "transformer.output_layer": "lm_head",
        "self_attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.gate_up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    }
    for name, tensor in tensors.items():
        for theirs, other in renamed.items():
            name = name.replace(theirs, other)
        if "query_key_value" not in name:
            yield name, tensor
            continue
        for letter, part in zip("qkv", tensor.split([48, 24, 24]), strict=True):
            yield name.replace("self_attention.query_key_value", f"self_attn.{letter}_proj"), part


@pytest.mark.parametrize("name", PEERS)
def test_what_is_written_loads_in_transformers_and_gives_the_same_logits(name, root, tmp_path):
    peer, path = folder_of(name, root)
    model, config, _ = ours_from(path)
    tensors = {n: p.detach() for n, p in model.named_parameters()}
    published = read_their_config(path)
    write_folder(tmp_path, config, tensors, Storage(shard_bytes=20_000), published)
    again = type(peer).from_pretrained(tmp_path).eval()
    tokens = tokens_of(BATCH, LENGTH, 5)
    inputs = {"input_ids": tokens, "use_cache": False}
    if PEERS[name].is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens_of(BATCH, 4, 6)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, peer(**inputs).logits)
    assert read_config(tmp_path)[0] == config


@pytest.mark.parametrize("name", ["t5", "t5 v1.1, untied", "mt5"])
def test_a_model_that_transformers_5_saved_again_is_the_same(name: str, root: Path, tmp_path: Path):
    """It says of all of them that the head is tied; the files tell."""
    peer, path = folder_of(name, root)
    type(peer).from_pretrained(path).save_pretrained(tmp_path / "again")
    assert read_their_config(tmp_path / "again")["tie_word_embeddings"]
    model, config, _ = ours_from(tmp_path / "again")
    batch, places = packed_and_padded(name, documents := documents_of(name, [7, 1, 5, 9, 6]))
    tensors = {n: p.detach() for n, p in model.named_parameters()}
    published = read_their_config(tmp_path / "again")
    write_folder(tmp_path / "written", config, tensors, published=published)
    written = type(peer).from_pretrained(tmp_path / "written").eval()
    with torch.no_grad():
        together = model(batch, Logits())
        for document, (row, rows) in zip(documents, places, strict=True):
            theirs = peer(**document.inputs(), use_cache=False).logits[0]
            out = written(**document.inputs(), use_cache=False).logits[0]
            for found in (together[row, rows], out):
                assert (found - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_a_tied_mt5_is_scaled_as_the_version_that_wrote_it_scales(tmp_path: Path):
    """Transformers 4 does, 5 no longer does."""
    from transformers import MT5ForConditionalGeneration

    config = PEERS["mt5"].make().config
    config.tie_word_embeddings = True
    MT5ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert read_config(tmp_path)[0].logit_scale == 1.0
    theirs = read_their_config(tmp_path) | {"transformers_version": "4.57.3"}
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    assert read_config(tmp_path)[0].logit_scale == 36**-0.5


def test_bart_is_read_with_the_numbers_that_fairseq_left_in_its_files(root: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    _, path = folder_of("bart", root)
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    tensors = load_file(path / "model.safetensors")
    versions = {f"model.{stack}.version": torch.tensor([3.0]) for stack in ("encoder", "decoder")}
    save_file(tensors | versions, tmp_path / "model.safetensors")
    found, expected = (dict(our_tensors(p, *read_config(p))) for p in (tmp_path, path))
    assert found.keys() == expected.keys()


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
