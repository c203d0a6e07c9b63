"""A run's model is what its start says, and is never compared with defaults."""

import json
import shutil
from pathlib import Path

import pytest

from megalite.cli import main
from megalite.config import load
from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.errors import CheckpointError, ConfigError
from megalite.models.config import ModelConfig
from megalite.models.families.table import decisive
from megalite.models.hugging_face import write_folder
from megalite.stages.rlhf.config import PPOConfig
from megalite.stages.sft import SFTConfig
from megalite.stages.start import as_stored, load_start, origin_of, settled_model
from megalite.training.checkpoint.manager import CheckpointManager

SIZES = {"vocab_size": 41, "hidden_size": 24, "num_layers": 3, "num_heads": 4, "ffn_size": 40}
STORED = ModelConfig(**SIZES, norm_eps=1e-6, rope_base=5e5, tie_embeddings=False, dropout=0.1)


def save(config: ModelConfig, folder: Path, step: int = 1) -> Path:
    """A run's folder with a checkpoint."""
    model = build_model(config, Mesh.single(), ParallelConfig(), seed=3)
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    facts = {"step": step, "learners": {"model": {}}, "model": config.model_dump()}
    CheckpointManager(folder / "checkpoints", asynchronous=False).save(step, tensors, facts)
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict[str, Path]:
    """One model as a published folder, and as a run of ours."""
    root = tmp_path_factory.mktemp("stored")
    model = build_model(STORED, Mesh.single(), ParallelConfig(), seed=3)
    write_folder(
        root / "folder", STORED, {name: p.detach() for name, p in model.named_parameters()}
    )
    return {"folder": root / "folder", "run": save(STORED, root / "run")}


@pytest.mark.parametrize("kind", ["folder", "run"])
def test_what_a_run_leaves_open_is_as_its_start_has_it(stored, kind: str):
    model, said = as_stored(ModelConfig(), stored[kind], "lm")
    assert decisive(model) == decisive(STORED)
    assert not model.model_fields_set
    assert str(stored[kind]) in said
    assert "num_layers 3" in said
    assert "rope_base 500000.0" in said


@pytest.mark.parametrize("kind", ["folder", "run"])
def test_how_it_is_trained_stays_the_runs_own(stored, kind: str):
    asked = ModelConfig(attention_dropout=0.3)
    model, said = as_stored(asked, stored[kind], "lm")
    assert (model.dropout, model.attention_dropout) == (0.0, 0.3)
    assert model.model_fields_set == {"attention_dropout"}
    assert "dropout" not in said


@pytest.mark.parametrize("kind", ["folder", "run"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("num_layers", 2), ("rope_base", 1e4), ("tie_embeddings", True), ("num_heads", 5)],
)
def test_a_key_that_contradicts_the_start_is_refused_by_name(stored, kind: str, key: str, value):
    asked = ModelConfig.model_construct({key}, **(ModelConfig().model_dump() | {key: value}))
    with pytest.raises(CheckpointError, match=rf"--model: .*\b{key} {value} \(there .*\)") as error:
        as_stored(asked, stored[kind], "lm")
    assert "vocab_size" not in str(error.value)


def test_nothing_is_said_where_a_run_says_everything(stored):
    whole = ModelConfig(**STORED.model_dump())
    assert as_stored(whole, stored["run"], "lm") == (whole, "")


def test_a_run_that_goes_on_has_the_model_of_its_checkpoint(stored, tmp_path: Path):
    own = STORED.model_copy(update={"num_layers": 2})
    folder = save(own, save(STORED, tmp_path / "run", step=1), step=2)
    model, said = settled_model(ModelConfig(), "", folder, "lm")
    assert decisive(model) == decisive(own)
    assert "step-00000002" in said
    (folder / "checkpoints" / "step-00000002" / "manifest.json").write_text("{")
    assert decisive(settled_model(ModelConfig(), "", folder, "lm")[0]) == decisive(STORED)
    assert settled_model(ModelConfig(), "", tmp_path / "none", "lm") == (ModelConfig(), "")


def test_a_head_that_the_start_does_not_have_is_refused_at_once(stored, tmp_path: Path):
    scorer = save(STORED.model_copy(update={"head": "value"}), tmp_path / "rm")
    with pytest.raises(CheckpointError, match="is a reward model"):
        as_stored(ModelConfig(), scorer, "lm")
    with pytest.raises(CheckpointError, match="no trained scalar head; `megalite rm`"):
        as_stored(ModelConfig(), stored["run"], "value", needs_head=True)
    assert as_stored(ModelConfig(), stored["run"], "value")[0].head == "lm"  # the stage makes one


def test_a_reward_model_has_the_sizes_of_its_folder(stored, tmp_path: Path):
    small = STORED.model_copy(update={"head": "value", "num_layers": 1, "hidden_size": 16})
    actor, _ = as_stored(ModelConfig(), stored["folder"], "lm")
    config = PPOConfig(model=actor, reward_model=str(save(small, tmp_path / "rm")))
    critic = config.value_model()
    assert decisive(critic) == decisive(small)
    model = build_model(critic, Mesh.single(), ParallelConfig(), seed=0)
    load_start(model, config.reward_model, needs_head=True)
    other = STORED.model_copy(update={"head": "value", "vocab_size": 40})
    config = PPOConfig(model=actor, reward_model=str(save(other, tmp_path / "other")))
    with pytest.raises(ConfigError, match="--reward_model: vocab_size is 40 in .* must be 41"):
        config.value_model()


def test_a_manifest_of_another_version_is_named(tmp_path: Path):
    facts = {"learners": {"model": {}}, "model": STORED.model_dump() | {"key_of_2030": 1}}
    CheckpointManager(tmp_path / "checkpoints", asynchronous=False).save(1, {}, facts)
    with pytest.raises(CheckpointError, match="key_of_2030.*did another version write it"):
        as_stored(ModelConfig(), tmp_path, "lm")


def test_a_key_of_a_folder_that_no_one_reads_is_said(stored, tmp_path: Path):
    shutil.copytree(stored["folder"], tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"residual_gate": 2}))
    assert "config.json: not read: residual_gate" in as_stored(ModelConfig(), path.parent, "lm")[1]


def test_a_run_keeps_the_type_that_each_tensor_of_its_start_had(stored, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(stored["folder"], tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    kept = {"model.norm.weight"}
    tensors = {n: t if n in kept else t.bfloat16() for n, t in load_file(file).items()}
    save_file(tensors, file)
    origin = origin_of(str(tmp_path / "hf"))
    assert (origin["dtype"], origin["dtypes"]) == ("bf16", {"model.norm.weight": "fp32"})
    facts = {"learners": {"model": {}}, "model": STORED.model_dump(), **origin}
    CheckpointManager(tmp_path / "run" / "checkpoints", asynchronous=False).save(1, {}, facts)
    assert origin_of(str(tmp_path / "run")) == origin


def test_a_stage_without_a_model_section_has_its_starts(tokenizer: Path, tmp_path: Path, capsys):
    """As the commands have it: told, written down, kept when the run goes on, compared first."""
    start = save(STORED.model_copy(update={"vocab_size": 300}), tmp_path / "start")
    rows, run = tmp_path / "sft.jsonl", tmp_path / "run"
    rows.write_text(json.dumps({"prompt": "the red", "response": "cat"}) + "\n")
    words = ["sft", "--data.train", f'["{rows}"]', "--data.sequence_length", "64"]
    words += ["--tokenizer.path", str(tokenizer), "--run.trackers=[]", "--train.steps", "1"]
    words += ["--train.global_batch_size", "1", "--train.micro_batch_size", "1"]
    begin = [*words, "--run.folder", str(run), "--checkpoint.start", str(start)]
    assert main([*begin, "--model.num_layers", "2"]) == 2
    assert "num_layers 2 (there 3): must be as in" in capsys.readouterr().err
    assert not run.exists()
    assert main(begin) == 0
    assert f"model as in {start}" in capsys.readouterr().out
    written = load(SFTConfig, run / "config.toml").model
    assert decisive(written) == decisive(STORED.model_copy(update={"vocab_size": 300}))
    assert main([*begin, "--train.steps", "2"]) == 0
    assert f"model as in {run}" in capsys.readouterr().out
    assert main(["plan", "--checkpoint.start", str(start)]) == 0
    assert f"model as in {start}" in capsys.readouterr().out
