"""Cluster configs: each loads, its layout fits, its memory fits the device that it names."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from megalite.cli import find_command, load_config, main
from megalite.distributed.mesh import ParallelConfig
from megalite.models.config import ModelConfig
from megalite.models.size import num_parameters
from megalite.plan.advice import changes, devices
from megalite.plan.constants import constants_of
from megalite.plan.devices import DEVICES
from megalite.plan.kernels import Kernels
from megalite.plan.memory import HEADROOM, Work, estimate, most
from megalite.plan.outlook import outlook
from megalite.plan.step import step_seconds
from megalite.stages.length import in_steps
from megalite.tools.plan import cluster_of, job_of, plan, terms_of
from megalite.training.config import TrainConfig

ROOT = Path(__file__).parents[3]
A100 = constants_of("a100")
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
    config, _ = in_steps(config, 0, config.data.sequence_length)
    assert devices(config.parallel) == int(count)
    assert config.parallel.tp <= 8  # within a node
    stages = plan(config)
    assert len(stages) == config.parallel.pp
    assert max(stage.total for stage in stages) <= HEADROOM * DEVICES[gpu].memory_gib
    load_config(*pretrain(path))
    if gpu.startswith("a100"):
        job, cluster, constants = job_of(config), cluster_of(config), A100
        seconds, kernels = step_seconds(job, cluster, constants), Kernels(cluster.device, constants)
        run = outlook(job, seconds, job.operations, kernels, terms_of(config))
        assert f"Gbit/s a node: MFU {run.mfu:.0%}, {run.days:.0f} days of training." in head


def pretrain(path: Path):
    return find_command(["pretrain", str(path)])


def test_parameters_of_the_stages_are_those_of_the_model():
    model = ModelConfig(preset="llama-7b")
    work = Work(model, TrainConfig(), 2048)
    (whole,) = estimate(work, ParallelConfig())
    assert whole.parameters == num_parameters(model)
    assert sum(s.parameters for s in estimate(work, ParallelConfig(pp=4))) == whole.parameters
    assert whole.states * 2**30 == 12 * whole.parameters


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


def gpt(layers: int, width: int, heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=51200,
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        ffn_size=4 * width,
        gated=False,
        activation="gelu",
        position="learned",
    )


def test_a_parameter_takes_18_bytes_alone_in_bf16_and_16_in_fp32():
    for precision, bytes_ in (("bf16", 18), ("fp32", 16)):
        train = TrainConfig(global_batch_size=8, precision=precision)
        (whole,) = estimate(Work(ModelConfig(), train, 64), ParallelConfig())
        found = whole.states + whole.gradients + whole.gathered
        assert found * 2**30 == bytes_ * whole.parameters


@pytest.mark.parametrize(
    ("model", "pp", "chunks", "samples", "published"),
    [
        (gpt(96, 12288, 96), 8, 3, 64, 62.2),
        (gpt(105, 20480, 128), 35, 3, 280, 58.8),
        (gpt(128, 25600, 160), 64, 1, 512, 63.9),
    ],
    ids=["175B", "530B", "1T"],
)
def test_published_layouts_with_selective_recompute_take_what_they_took(
    model, pp, chunks, samples, published
):
    """Korthikanti et al. 2022, figure 1, in GB; dropout masks are not kept here."""
    work = Work(model, TrainConfig(global_batch_size=samples, precision="bf16"), 2048)
    layout = ParallelConfig(
        tp=8,
        pp=pp,
        chunks_per_rank=chunks,
        schedule="interleaved" if chunks > 1 else "1f1b",
        sequence_parallel=True,
        recompute="selective",
    )
    fullest = most(estimate(work, layout))
    assert fullest.total <= HEADROOM * DEVICES["a100-80gb"].memory_gib
    assert fullest.tensors * 1.0737 == pytest.approx(published, rel=0.1)


def test_only_one_chunk_works_at_a_time():
    train = TrainConfig(global_batch_size=16, precision="bf16")
    work = Work(ModelConfig(num_layers=8, vocab_size=64), train, 512)
    stages = [
        estimate(work, ParallelConfig(pp=2, schedule=schedule, chunks_per_rank=chunks))[0]
        for schedule, chunks in (("1f1b", 1), ("interleaved", 4))
    ]
    assert stages[0].working == stages[1].working
    assert stages[0].activations < stages[1].activations < 2 * stages[0].activations


def test_what_does_not_fit_is_refused_with_changes_that_make_it_fit(capsys):
    path = str(CLUSTER / "llama-7b-a100.toml")
    assert main(["plan", path, "--gpu", "a100-40gb"]) == 2
    captured = capsys.readouterr()
    (advice,) = re.findall(r"what fits: (.*)", captured.err)
    assert "parameters" in captured.out
    for offer in advice.split("; or "):
        words, total = re.fullmatch(r"(--.*) \(([0-9.]+) GiB\)", offer).groups()
        assert float(total) <= HEADROOM * DEVICES["a100-40gb"].memory_gib
        assert main(["plan", path, "--gpu", "a100-40gb", *words.split()]) == 0


@pytest.mark.parametrize(("output", "says"), [("", "is a folder"), ("no/x.toml", "no such folder")])
def test_where_the_best_layout_cannot_be_written_is_said_before_the_search(
    tmp_path, output, says, capsys
):
    assert main(["plan", "--search", "--output", str(tmp_path / output)]) == 2
    said = capsys.readouterr()
    assert says in said.err and not said.out


def test_advice_names_no_setting_that_is_on_or_changes_nothing():
    layout = ParallelConfig(
        tp=8, sequence_parallel=True, recompute="full", reshard_after_forward=True, shard=4
    )
    work = Work(ModelConfig(num_layers=8), TrainConfig(global_batch_size=4), 512)
    before = most(estimate(work, layout)).total
    found = changes(work, layout, 0.0)
    assert all(change.total < before for change in found)
    for name in ("sequence_parallel", "recompute", "reshard", "micro_batch_size", "tp"):
        assert not any(f".{name}" in change.words for change in found)


@pytest.mark.parametrize("bad", ["", "node7\n", "\nnode2\nnode9\n"])
def test_the_slurm_script_runs_on_good_hosts_alone(tmp_path, bad: str):
    """The programs of SLURM are stand-ins that note how they were called."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bad-hosts").write_text(bad)
    for name in ("scontrol", "srun"):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n'
            'if [ "$1 $2" = "show hostnames" ]; then echo node1; echo node2; fi\n'
        )
        program.chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "5", "SLURM_JOB_NUM_NODES": "2"}
    words = ["configs/x.toml", "--run.folder", str(tmp_path / "run")]
    done = subprocess.run(
        ["bash", CLUSTER / "slurm.sh", *words],
        env=os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    started = [call for call in calls if call.startswith("srun")]
    if "node2" not in bad:
        assert len(started) == 1
        assert started[0].endswith(" ".join(["-m megalite pretrain", *words]))
        return
    assert done.stdout.startswith("node2\nis in ")
    assert not started
    assert calls[1:] == ["scontrol requeue 5", "scontrol update JobId=5 ExcNodeList=node2,node9"]


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


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("small.toml", "pretrain on 1 processes"),
        ("dpo.toml", "dpo on 1 processes"),
        ("demo/ppo.toml", "ppo on 1 processes"),
    ],
)
def test_a_config_of_any_stage_is_planned_and_its_stage_told(path, told, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["plan", str(ROOT / "configs" / path)]) == 0
    shown = capsys.readouterr().out
    assert told in shown
    assert "s a step" in shown


def test_frozen_models_on_processes_of_their_own_are_planned(tmp_path: Path, capsys):
    path, output = str(ROOT / "configs" / "demo" / "ppo.toml"), tmp_path / "best.toml"
    words = ["--frozen.processes", "2", "--frozen.tp", "2", "--search", "--gpus", "2"]
    assert main(["plan", path, *words, "--output", str(output)]) == 0
    assert "2 processes of the frozen models" in capsys.readouterr().out
    command, rest = find_command(["ppo", str(output)])
    config, _ = load_config(command, rest)
    assert config.frozen.processes == 2
    assert config.rollout.max_new_tokens == 32
    assert main(["plan", path, "--frozen.processes", "3", "--frozen.tp", "2"]) == 2
    assert "placements that fit" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["price_per_gpu_hour", "power", "days", "failures"])
def test_endless_numbers_are_refused(key, capsys):
    assert main(["plan", f"--{key}", "inf"]) == 2
    shown = capsys.readouterr().err
    assert key in shown
    assert shown.count("\n") == 1


def test_stores_with_objectives_of_their_own_are_planned_and_their_shares_told(capsys):
    words = ["plan", "--data.objectives", '["next_token", "prefix_lm"]']
    assert main(words) == 0
    assert "the stores are taken to have equal shares" in capsys.readouterr().out
    assert main([*words, "--data.weights", "[0.9, 0.1]"]) == 0
    assert "equal shares" not in capsys.readouterr().out
    assert main([*words, "--data.weights", "[0.9, 0.1, 0.1]"]) == 2
    assert capsys.readouterr().err == (
        "megalite: --data.objectives: must be one for each store, as data.weights is, which has 3, "
        "came 2\n"
    )
