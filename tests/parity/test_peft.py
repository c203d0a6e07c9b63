"""Adapters in PEFT's format: what PEFT loads of ours, and what is read here of PEFT's."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import BuildOptions, build_model
from megalite.engine.lora import ADAPTER, LoRAConfig
from megalite.errors import CheckpointError, ConfigError
from megalite.models.hugging_face import read_config, read_their_config
from megalite.models.outputs import Logits
from megalite.models.peft import CONFIG, WEIGHTS
from megalite.ops import mask as masks
from megalite.stages.start import load_start, stored_config
from megalite.tools.convert import ConvertConfig, run
from megalite.training.adapted import named_base
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.folder.fingerprint import weights_source
from tests.parity.families import PEERS, randomise
from tests.parity.test_families import make_batch, tokens_of

# One of each way in which a family's tensors hold ours.
FORMATS = {
    "llama gqa": ("all",),
    "gpt2": ("all",),
    "t5": ("attention", "cross.value", "feed_forward.output"),
    "bloom": ("attention.query", "attention.value", "feed_forward"),
}
WRITTEN = [
    "gpt2",
    "bloom",
    "falcon 40b",
    "internlm2",
    "moss",
    "baichuan 7b",
    "chatglm2",
    "palm",
    "bart",
]
ALPHA, RANK = 6.0, 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters")


def peer_of(name: str, root: Path):
    """The peer, and a Hugging Face folder of it."""
    torch.manual_seed(0)
    peer = PEERS[name].make().eval()
    randomise(peer)
    path = root / name.replace(" ", "-").replace(",", "")
    if not path.exists():
        peer.save_pretrained(path)
    return peer, path


def trained(path: Path, layers, target: Path, **more) -> Path:
    """A checkpoint of adapters on a Hugging Face folder, as a run saves it."""
    config, _ = read_config(path)
    lora = LoRAConfig(rank=RANK, alpha=ALPHA, layers=layers, **more)
    options = BuildOptions(lora=lora)
    model = build_model(config, Mesh.single(), ParallelConfig(), seed=5, options=options)
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name, parameter in model.named_parameters():
        if ADAPTER in name:
            tensors[f"model.{name}"] = 0.2 * torch.randn(parameter.shape, generator=generator)
    facts = {
        "step": 0,
        "learners": {"model": {}},
        "model": config.model_dump(),
        "published": read_their_config(path),
        "lora": {
            "model": {
                "config": lora.model_dump(mode="json"),
                "base": named_base(weights_source(str(path))),
            }
        },
    }
    manager = CheckpointManager(target / "checkpoints", asynchronous=False)
    manager.save(0, tensors, facts)
    manager.wait()
    return target


def convert(source: Path, target: Path, **more) -> Path:
    assert run(ConvertConfig(source=str(source), target=str(target), **more), Launch()) == 0
    return target


def our_logits(path: Path, name: str) -> torch.Tensor:
    config, _ = stored_config(path)
    model = build_model(config, Mesh.single(), ParallelConfig(), seed=0)
    load_start(model, str(path))
    (found,) = model.evaluate([batch_of(name)], Logits())
    return found


def batch_of(name: str):
    tokens, source = tokens_of(2, 7, 1), tokens_of(2, 5, 2)
    if not PEERS[name].is_encoder_decoder:
        return make_batch(tokens, masks.packed([[7], [7]], 7))
    return make_batch(tokens, masks.packed([[7], [7]], 7), None, source, torch.tensor([5, 5]))


def their_logits(peer, name: str) -> torch.Tensor:
    tokens, source = tokens_of(2, 7, 1), tokens_of(2, 5, 2)
    inputs = {"input_ids": tokens}
    if PEERS[name].is_encoder_decoder:
        inputs = {"input_ids": source, "decoder_input_ids": tokens}
    with torch.no_grad():
        return peer(**inputs).logits


def assert_near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).norm() <= 3e-6 * wanted.norm()


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_peft_loads_what_is_written_here(root, tmp_path, name, dora):
    peft = pytest.importorskip("peft", reason="PEFT is a development requirement")
    peer, path = peer_of(name, root)
    more = {"rslora": name == "gpt2", "dora": dora}
    run_folder = trained(path, FORMATS[name], tmp_path / "run", **more)
    folder = convert(run_folder, tmp_path / "peft", adapter=True)
    base = their_logits(peer, name)
    found = their_logits(peft.PeftModel.from_pretrained(peer, folder).eval(), name)
    assert_near(our_logits(run_folder, name), found)
    assert (found - base).norm() > 1e-2 * base.norm()
    assert_near(our_logits(convert(folder, tmp_path / "again"), name), found)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_what_peft_writes_is_read_here(root, tmp_path, name, dora):
    """With another rank and factor for some modules, and for one layer alone."""
    peft = pytest.importorskip("peft", reason="PEFT is a development requirement")
    peer, path = peer_of(name, root)
    modules = {
        "llama gqa": ["q_proj", "v_proj", "down_proj"],
        "gpt2": ["c_attn", "mlp.c_proj"],
        "t5": ["q", "v", "wo"],
        "bloom": ["query_key_value", "dense_h_to_4h"],
    }[name]
    options = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=modules,
        rank_pattern={modules[0]: 6},
        alpha_pattern={modules[1]: 9},
        use_rslora=name == "bloom",
        use_dora=dora,
        fan_in_fan_out=name == "gpt2",
        layers_to_transform=[1] if name == "llama gqa" else None,
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(peer, options).eval()
    for parameter_name, parameter in theirs.named_parameters():
        if "magnitude" in parameter_name:
            parameter.data *= torch.linspace(0.7, 1.3, len(parameter))
    theirs.save_pretrained(tmp_path / "peft", safe_serialization=name != "bloom")
    found = convert(tmp_path / "peft", tmp_path / "ours", base=str(path))
    assert_near(our_logits(found, name), their_logits(theirs, name))


@pytest.mark.parametrize("name", WRITTEN)
def test_an_adapter_that_is_written_is_what_its_merged_weights_have(root, tmp_path, name):
    """By its definition: W + B A alpha / r, of every matrix of theirs."""
    _, path = peer_of(name, root)
    run_folder = trained(path, ("all",), tmp_path / "run")
    said, factors = folder_of(convert(run_folder, tmp_path / "peft", adapter=True))
    folders = path, convert(run_folder, tmp_path / "merged")
    base, merged = (load_file(folder / "model.safetensors") for folder in folders)
    changed = {key for key in merged if not torch.equal(base[key].float(), merged[key].float())}
    for key in changed:
        module = key.removesuffix(".weight")
        down, up = (factors[f"base_model.model.{module}.lora_{f}.weight"] for f in "AB")
        rank = said["rank_pattern"].get(re.escape(module), said["r"])
        alpha = said["alpha_pattern"].get(re.escape(module), said["lora_alpha"])
        product = alpha / rank * up @ down
        product = product.t() if said["fan_in_fan_out"] else product
        assert_near(merged[key], base[key] + product)
    assert len(factors) == 2 * len(changed)


def folder_of(path: Path) -> tuple[dict, dict]:
    return json.loads((path / CONFIG).read_text()), load_file(path / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "q_proj.lora_magnitude_vector, and adapter_config.json says use_dora"),
        ({"lora_bias": True}, "lora_bias true: an adapter here has nothing of the kind"),
        ({"bias": "all"}, 'bias "all": must be "none": merge it with PEFT'),
        ({"peft_type": "IA3"}, 'peft_type "IA3": must be "LORA"'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights "pissa": changes the base'),
        ({"base_model_name_or_path": None}, "--base: "),
        ({"base_model_name_or_path": "/not/there"}, "belongs to /not/there, which is no"),
    ],
)
def test_adapters_that_no_model_here_has_are_refused_by_key(root, tmp_path, change, said):
    _, path = peer_of("llama gqa", root)
    folder = convert(trained(path, ("all",), tmp_path / "run"), tmp_path / "a", adapter=True)
    config, _ = folder_of(folder)
    (folder / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises((CheckpointError, ConfigError)) as refused:
        convert(folder, tmp_path / "ours")
    assert said in str(refused.value)
    assert not (tmp_path / "ours").exists()


def test_adapters_of_other_modules_are_refused_by_name(root, tmp_path):
    _, path = peer_of("llama gqa", root)
    folder = convert(trained(path, ("all",), tmp_path / "run"), tmp_path / "a", adapter=True)
    _, factors = folder_of(folder)
    factors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(RANK, 36)
    save_file(factors, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"has lm_head.lora_A.weight beside adapters"):
        convert(folder, tmp_path / "ours")


def test_a_base_that_is_gone_or_changed_is_refused_by_name(root, tmp_path):
    _, path = peer_of("llama gqa", root)
    base = tmp_path / "base"
    base.mkdir()
    for file in path.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    run_folder = trained(base, ("all",), tmp_path / "run")
    our_logits(run_folder, "llama gqa")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config, indent=7))
    with pytest.raises(CheckpointError, match=rf"their base {base} has another content"):
        our_logits(run_folder, "llama gqa")
    base.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=rf"their base {base} is not there"):
        convert(run_folder, tmp_path / "merged")
