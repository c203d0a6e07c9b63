"""Checkpoints to Hugging Face folders and back; answers equal to transformers' own."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megalite.cli import main
from megalite.engine.weights import parameter_shapes
from megalite.models.config import ModelConfig
from megalite.models.hugging_face import Storage, write_folder
from tests.parity.families import PEERS, randomise


def command(*words) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("family", ["llama gqa", "gpt2", "bloom", "falcon 40b", "t5", "bart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_gives_the_same_file(family: str, dtype, tmp_path, capsys):
    peer = PEERS[family].make()
    randomise(peer)
    peer.to(dtype).save_pretrained(tmp_path / "hf")
    assert command("convert", "--source", tmp_path / "hf", "--target", tmp_path / "ours") == 0
    back = ["convert", "--source", tmp_path / "ours", "--target", tmp_path / "back"]
    assert command(*back, "--shard_gib", "1e-5") == 0
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    again = type(peer).from_pretrained(tmp_path / "back", dtype=dtype)
    for (name, mine), (_, theirs) in zip(
        again.named_parameters(), peer.named_parameters(), strict=True
    ):
        assert mine.dtype == dtype
        assert torch.equal(mine, theirs), name


REFERENCES = ("moss", "baichuan 7b", "baichuan2 13b", "chatglm untied", "chatglm2", "glm-130b")


@pytest.mark.parametrize("family", [*REFERENCES, "palm"])
def test_a_family_without_a_class_comes_back_under_its_own_names_and_keys(family, tmp_path):
    peer = PEERS[family].make()
    randomise(peer)
    peer.settings |= {"eos_token_id": 7, "auto_map": {"AutoModel": "modeling_own.Own"}}
    peer.to(torch.float16).save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "modeling_own.py").write_text("Own = None")
    (tmp_path / "hf" / "tokenizer_config.json").write_text("{}")
    assert command("convert", "--source", tmp_path / "hf", "--target", tmp_path / "ours") == 0
    back = ["convert", "--source", tmp_path / "ours", "--target", tmp_path / "back"]
    assert command(*back, "--shard_gib", "1e-5") == 0
    tensors = {}
    for file in (tmp_path / "back").glob("*.safetensors"):
        tensors |= load_file(file)
    assert tensors.keys() == dict(peer.named_parameters()).keys()
    for name, theirs in peer.named_parameters():
        assert torch.equal(tensors[name], theirs), name
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {key: config[key] for key in peer.settings} == peer.settings
    for name in ("modeling_own.py", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_text() == (tmp_path / "hf" / name).read_text()


def test_a_folder_of_bin_files_gives_the_same_as_safetensors(tmp_path):
    peer = PEERS["gpt2"].make()
    randomise(peer)
    peer.save_pretrained(tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    bins = tmp_path / "bins"
    bins.mkdir()
    (bins / "config.json").write_text((tmp_path / "hf" / "config.json").read_text())
    halves = list(tensors)[::2], list(tensors)[1::2]
    for number, half in enumerate(halves):
        part = {name: tensors[name] for name in half}
        torch.save(part, bins / f"{number}.bin", _use_new_zipfile_serialization=number == 0)
    weight_map = {name: f"{number}.bin" for number, half in enumerate(halves) for name in half}
    index = bins / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    for source in ("hf", "bins"):
        ours = tmp_path / f"ours-{source}"
        assert command("convert", "--source", tmp_path / source, "--target", ours) == 0
        assert command("convert", "--source", ours, "--target", tmp_path / f"back-{source}") == 0
    first, second = (tmp_path / f"back-{source}" / "model.safetensors" for source in ("hf", "bins"))
    assert first.read_bytes() == second.read_bytes()


CHILD = """
import sys
import torch.distributed.checkpoint
import megalite.tools.convert
from megalite.cli import main
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main(sys.argv[1:]))
"""


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that no file stands behind."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def peak_of(*words) -> int:
    """The most memory that a command needs beyond its imports, in bytes."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *(str(word) for word in words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    before = peak = anonymous_bytes(child.pid)
    child.stdin.write("go\n")
    child.stdin.flush()
    while child.poll() is None:
        peak = max(peak, anonymous_bytes(child.pid))
        time.sleep(0.002)
    assert child.returncode == 0
    return peak - before


def test_memory_is_about_one_file_of_weights(tmp_path):
    """Two files' worth and what lazy imports take; the model is over 16 files long."""
    preset = {"hidden_size": 512, "num_layers": 16, "ffn_size": 1376, "max_positions": 64}
    config = ModelConfig(vocab_size=4096, tie_embeddings=False, **preset)
    shapes = parameter_shapes(config)
    shard = 13 * 2**20
    write_folder(
        tmp_path / "hf",
        config,
        {name: torch.ones(shape) for name, shape in shapes.items()},
        Storage(shard_bytes=shard),
    )
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 16
    ours, back = tmp_path / "ours", tmp_path / "back"
    most = 2 * shard + 2**25
    assert 3 * most < sum(4 * shape.numel() for shape in shapes.values())
    assert peak_of("convert", "--source", tmp_path / "hf", "--target", ours) < most
    words = ["convert", "--source", ours, "--target", back, "--shard_gib", shard / 2**30]
    assert peak_of(*words) < most


def test_an_existing_target_is_left_alone(tmp_path, capsys):
    (tmp_path / "target").mkdir()
    assert command("convert", "--source", tmp_path, "--target", tmp_path / "target") == 2
    assert "exists already" in capsys.readouterr().err


def test_a_failed_conversion_leaves_nothing(tmp_path, capsys):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "mamba"}')
    assert command("convert", "--source", tmp_path / "hf", "--target", tmp_path / "out") == 2
    assert "mamba" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_each_tensor_keeps_its_own_type(tmp_path):
    peer = PEERS["llama gqa"].make().to(torch.bfloat16)
    for name, parameter in peer.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float() + 1e-3
    peer.save_pretrained(tmp_path / "hf")
    assert command("convert", "--source", tmp_path / "hf", "--target", tmp_path / "ours") == 0
    assert command("convert", "--source", tmp_path / "ours", "--target", tmp_path / "back") == 0
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("hf", "back"))
    assert {name: t.dtype for name, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_folder_brings_all_code_that_its_config_may_name(tmp_path):
    peer = PEERS["baichuan 13b"].make()
    randomise(peer)
    peer.save_pretrained(tmp_path / "hf")
    for name in ("modeling_baichuan.py", "quantizer.py", "generation_utils.py"):
        (tmp_path / "hf" / name).write_text("")
    assert command("convert", "--source", tmp_path / "hf", "--target", tmp_path / "ours") == 0
    assert command("convert", "--source", tmp_path / "ours", "--target", tmp_path / "back") == 0
    found = {path.name for path in (tmp_path / "back").glob("*.py")}
    assert found == {"modeling_baichuan.py", "quantizer.py", "generation_utils.py"}


@pytest.mark.parametrize("named", ["runs/tokenizr", "folder without one"])
def test_a_tokenizer_that_is_not_there_is_refused_before_anything_is_written(
    named, tmp_path, capsys
):
    peer = PEERS["gpt2"].make()
    peer.save_pretrained(tmp_path / "hf")
    (tmp_path / "folder without one").mkdir()
    words = ["convert", "--source", tmp_path / "hf", "--target", tmp_path / "out"]
    assert command(*words, "--tokenizer", tmp_path / named) == 2
    assert "must be a folder with a tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_exported_run_brings_its_tokenizer_and_stops_where_ours_stops(work, whole, tmp_path):
    """Without being asked: the run's config names it."""
    from transformers import AutoTokenizer, GenerationConfig

    assert command("convert", "--source", whole, "--target", tmp_path / "out") == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    stops = GenerationConfig.from_pretrained(tmp_path / "out")
    assert config["eos_token_id"] == stops.eos_token_id == tokenizer.eos_token_id
    assert config["pad_token_id"] == stops.pad_token_id
    assert config["bos_token_id"] == stops.bos_token_id


@pytest.fixture(scope="module")
def exported(work, whole):
    """The pretrained tiny model as a Hugging Face folder with its tokenizer."""
    target = work.folder / "exported"
    words = ["convert", "--source", whole, "--target", target]
    assert command(*words, "--tokenizer", work.folder / "tokenizer") == 0
    return target


def theirs(exported, prompt: str, **options) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id or 0,
        **options,
    )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


PROMPTS = ["the red cat", "two"]
GREEDY = ("--sampling.temperature", "0", "--sampling.max_new_tokens", "12")


@pytest.mark.parametrize(
    ("more", "options"), [((), {}), (("--beam.num_beams", "3"), {"num_beams": 3})]
)
def test_answers_are_those_of_transformers(work, whole, exported, tmp_path, more, options):
    for model in (whole, exported):
        output = tmp_path / f"{model.name}.jsonl"
        words = ["generate", "--model", model, "--prompt", json.dumps(PROMPTS), *GREEDY, *more]
        words += ["--tokenizer.path", work.folder / "tokenizer", "--output", output]
        assert command(*words) == 0
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert [row["prompt"] for row in rows] == PROMPTS
        for row in rows:
            assert row["answer"] == theirs(exported, row["prompt"], **options)


def test_one_prompt_is_streamed_and_stops_at_a_text(work, whole, capsys):
    words = ["generate", "--model", whole, "--prompt", '["the red cat"]', *GREEDY]
    words += ["--tokenizer.path", work.folder / "tokenizer"]
    assert command(*words) == 0
    answer = capsys.readouterr().out.rstrip("\n")
    stop = answer[3:5]
    assert command(*words, "--stop", json.dumps([stop])) == 0
    assert capsys.readouterr().out.rstrip("\n") == answer[: answer.index(stop)]


def test_the_seed_decides_a_drawn_answer(work, whole, capsys):
    answers = []
    for seed in (1, 1, 2):
        words = ["generate", "--model", whole, "--prompt", '["the red cat"]']
        words += ["--tokenizer.path", work.folder / "tokenizer", "--sampling.seed", seed]
        assert command(*words, "--sampling.max_new_tokens", "20") == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


def test_a_model_that_is_not_there_is_named(work, capsys):
    assert command("generate", "--model", "nowhere", "--prompt", '["a"]') == 2
    said = capsys.readouterr().err.strip()
    assert "nowhere" in said
    assert len(said.splitlines()) == 1
