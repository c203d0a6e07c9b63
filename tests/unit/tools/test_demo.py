import sys

import pytest

from megalite.distributed.launch import Launch
from megalite.errors import ConfigError, MegaliteError
from megalite.tools.demo import (
    DemoConfig,
    Step,
    broken_promises,
    processes_for,
    run,
    run_steps,
    show_aligned,
    steps,
)


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_failing_step_stops_the_demo_with_its_exit_code(tmp_path):
    later = tmp_path / "later"
    todo = [
        Step("first", _python("pass")),
        Step("second", _python("raise SystemExit(2)")),
        Step("third", _python(f"open({str(later)!r}, 'w')")),
    ]
    with pytest.raises(MegaliteError, match="second failed with exit code 2") as caught:
        run_steps(todo)
    assert caught.value.exit_code == 2
    assert not later.exists()


def test_a_killed_step_is_a_failure():
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(MegaliteError, match="exit code -9") as caught:
        run_steps([Step("killed", _python(kill))])
    assert caught.value.exit_code == 1


def test_every_stage_runs_under_torchrun_with_its_own_config():
    commands = {step.name: list(step.command) for step in steps(DemoConfig(processes=2))}
    assert list(commands) == [
        "tokenizer train", "data prepare", "pretrain", "sft", "rm", "ppo", "dpo", "report"
    ]  # fmt: skip
    for stage in ("pretrain", "sft", "rm", "ppo", "dpo"):
        assert "--nproc-per-node=2" in commands[stage]
        assert commands[stage][-2:] == [stage, f"configs/demo/{stage}.toml"]


def test_another_folder_and_seed_reach_every_step():
    todo = steps(DemoConfig(folder="/elsewhere/demo", seed=7))
    for step in todo:
        words = " ".join(step.command)
        assert "/elsewhere/demo/" in words
        assert "runs/demo/" not in words
    ppo = list(next(step.command for step in todo if step.name == "ppo"))
    for key, value in (
        ("--reward_model", "/elsewhere/demo/rm"),
        ("--run.folder", "/elsewhere/demo/ppo"),
        ("--checkpoint.start", "/elsewhere/demo/sft"),
        ("--data.train", '["/elsewhere/demo/corpus/ppo.train.jsonl"]'),
        ("--run.seed", "7"),
    ):
        assert ppo[ppo.index(key) + 1] == value


def _metrics(loss: float, accuracy: float, reward: float, kl: float):
    deviation = {"heldout_reward_deviation": 0.5, "heldout_reward": -1.0, "heldout_kl": 0.0}
    return {
        "pretrain": [{"step": 0, "heldout_loss": 5.0}, {"step": 9, "heldout_loss": loss}],
        "sft": [],
        "rm": [{"step": 9, "heldout_accuracy": accuracy}],
        "ppo": [{"step": 0, **deviation}, {"step": 9, "heldout_reward": reward, "heldout_kl": kl}],
    }


def test_kept_promises_are_silent_and_each_broken_one_is_named():
    assert broken_promises(_metrics(2.5, 0.8, -0.4, 9.0)) == []
    broken = broken_promises(_metrics(3.5, 0.7, -0.8, 16.0))
    assert [line.split(":")[0] for line in broken] == [
        "fall of the held-out loss in pretraining",
        "accuracy on held-out pairs",
        "rise of the held-out reward, in its first standard deviations",
        "nats below a KL of 15 per response",
    ]
    assert len(broken_promises(_metrics(float("nan"), 0.8, -0.4, 9.0))) == 1


def test_what_both_alignments_did_to_the_answers_is_shown(capsys):
    def row(step: int, reward: float, kl: float, distinct: float) -> dict:
        values = {"heldout_reward": reward, "heldout_kl": kl, "heldout_distinct_2": distinct}
        return {"step": step, **values}

    start = row(0, 0.5, 0.0, 0.7)
    show_aligned({"ppo": [start, row(9, 2, 6.25, 0.5)], "dpo": [start, row(9, 1, 3.5, 0.625)]})
    assert capsys.readouterr().out.splitlines() == [
        "answers before: reward 0.50, KL 0.0 nats, distinct-2 0.700",
        "answers after PPO: reward 2.00, KL 6.2 nats, distinct-2 0.500",
        "answers after DPO: reward 1.00, KL 3.5 nats, distinct-2 0.625",
    ]


def test_metrics_without_evaluation_are_an_error():
    metrics = _metrics(2.5, 0.8, -0.4, 9.0)
    metrics["rm"] = [{"step": 1, "loss": 1.0}]
    with pytest.raises(MegaliteError, match="rm/metrics.jsonl holds no heldout_accuracy"):
        broken_promises(metrics)


def test_the_demo_starts_its_own_processes():
    with pytest.raises(ConfigError, match="without torchrun"):
        run(DemoConfig(), Launch(world_size=2, local_world_size=2))


@pytest.mark.parametrize(
    ("gpus", "processes", "passes"),
    [(0, 2, {}), (1, 1, {}), (2, 2, {}), (3, 2, {}), (8, 8, {"pretrain": "1", "ppo": "8"})],
)
def test_the_demo_takes_every_gpu_that_its_batches_can_be_divided_among(gpus, processes, passes):
    count = processes_for(DemoConfig(), gpus)
    assert count == processes
    commands = {step.name: list(step.command) for step in steps(DemoConfig(processes=count))}
    for stage in ("pretrain", "ppo"):
        words = commands[stage]
        assert f"--nproc-per-node={processes}" in words
        given = words[words.index("--train.micro_batch_size") + 1] if passes else None
        assert given == passes.get(stage)
    assert processes_for(DemoConfig(processes=5), gpus) == 5
