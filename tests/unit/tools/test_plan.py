"""Cluster configs: each loads, its layout fits, its memory fits the device that it names."""

import re
import subprocess
from pathlib import Path

import pytest

from megalite.cli import find_command, load_config, main
from megalite.distributed.mesh import ParallelConfig
from megalite.models.config import ModelConfig
from megalite.tools.models import num_parameters
from megalite.tools.plan import DEVICE_GIB, plan, processes
from megalite.training.config import TrainConfig
from megalite.training.memory import Work, estimate

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "configs" / "cluster"
CONFIGS = sorted(CLUSTER.glob("*.toml"))
PUBLISHED = "llama-7b llama-13b llama-65b gpt3-175b bloom-176b glm-130b t5-11b opt-175b falcon-40b"


def test_every_published_size_is_there_for_both_devices():
    wanted = {f"{name}-{device}" for name in PUBLISHED.split() for device in ("a100", "v100")}
    assert {path.stem for path in CONFIGS} == wanted


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_cluster_config_fits_its_processes_model_batch_and_device(path: Path):
    head = " ".join(re.findall(r"^# (.*)$", path.read_text(), re.MULTILINE))
    count, gpu = re.search(r"For (\d+) [AV]100", head)[1], re.search(r"--gpu (\S+)`", head)[1]
    command, rest = find_command(["plan", str(path), "--gpu", gpu])
    config = load_config(command, rest)[0]
    assert processes(config) == int(count)
    assert config.parallel.tp <= 8  # within a node
    stages = plan(config)
    assert len(stages) == config.parallel.pp
    assert max(stage.total for stage in stages) < DEVICE_GIB[gpu]
    load_config(*pretrain(path))


def pretrain(path: Path):
    return find_command(["pretrain", str(path)])


def test_parameters_of_the_stages_are_those_of_the_model():
    model = ModelConfig(preset="llama-7b")
    work = Work(model, TrainConfig(), 2048)
    (whole,) = estimate(work, ParallelConfig())
    assert whole.parameters == num_parameters(model)
    assert sum(s.parameters for s in estimate(work, ParallelConfig(pp=4))) == whole.parameters
    assert whole.states * 2**30 == 16 * whole.parameters


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"recompute": "full"}, {"recompute": "none"}),
        ({"recompute": "full"}, {"recompute": "full", "recompute_blocks": 3}),
        ({"tp": 2, "sequence_parallel": True}, {"tp": 2}),
        ({"tp": 2}, {}),
        ({"pp": 2}, {"pp": 2, "schedule": "gpipe"}),
    ],
)
def test_activations_grow_with_what_is_kept(less, more):
    train = TrainConfig(global_batch_size=16, micro_batch_size=1, precision="bf16")
    work = Work(ModelConfig(), train, 512)
    totals = [estimate(work, ParallelConfig(**one))[0].activations for one in (less, more)]
    assert totals[0] < totals[1]


def test_what_does_not_fit_is_refused_with_advice(capsys):
    path = str(CLUSTER / "llama-65b-a100.toml")
    words = ["--parallel.pp", "1", "--parallel.shard", "1", "--parallel.tp", "1"]
    assert main(["plan", path, *words]) == 2
    captured = capsys.readouterr()
    assert "needs about" in captured.err
    assert "--parallel.shard" in captured.err
    assert "parameters" in captured.out


def test_the_slurm_script_is_a_script():
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sh"], check=True)


def test_scripts_name_configs_and_options_that_exist():
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the Kubernetes example")
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    words = pod["containers"][0]["command"]
    ours = words[words.index("megalite") + 1 :]
    command, rest = find_command(ours)
    assert load_config(command, [str(ROOT / rest[0]), *rest[1:]])
    assert pod["subdomain"] == service["metadata"]["name"] == "megalite"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert f"--nnodes={job['spec']['completions']}" in words
    assert job["spec"]["parallelism"] == job["spec"]["completions"]
    script = (CLUSTER / "slurm.sh").read_text()
    for option in re.findall(r"--(?:rdzv|max|shutdown|nproc|nnodes)[a-z-]*", script):
        assert any(word.startswith(option + "=") for word in words), option
