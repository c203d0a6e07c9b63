"""What stages hold and take, beside each other."""

import pytest

from megalite.cli import main
from megalite.distributed.mesh import ParallelConfig
from megalite.models.config import ModelConfig
from megalite.plan.constants import constants_of
from megalite.plan.devices import DEVICES, NETWORKS, Cluster
from megalite.plan.job import Job
from megalite.plan.memory import GIB, Work, estimate
from megalite.plan.stages import stage_memory, stage_seconds
from megalite.training.config import TrainConfig

LAYOUT = ParallelConfig(shard=8, recompute="selective")
WORK = Work(
    ModelConfig(preset="llama-7b"), TrainConfig(global_batch_size=64, precision="bf16"), 1024
)


def test_fine_tuning_holds_what_pretraining_does():
    assert stage_memory("sft", WORK, LAYOUT) == estimate(WORK, LAYOUT)


def test_a_reward_model_has_no_head_of_the_vocabulary():
    (language,), (reward,) = estimate(WORK, LAYOUT), stage_memory("rm", WORK, LAYOUT)
    saved = WORK.model.vocab_size * WORK.model.hidden_size - WORK.model.hidden_size
    assert language.parameters - reward.parameters == saved


def test_ppo_holds_two_learning_models_and_two_frozen_ones():
    (actor,), (critic,) = stage_memory("sft", WORK, LAYOUT), stage_memory("rm", WORK, LAYOUT)
    (four,) = stage_memory("ppo", WORK, LAYOUT)
    assert four.parameters == 2 * (actor.parameters + critic.parameters)
    assert four.states * GIB == pytest.approx(16 / 8 * (actor.parameters + critic.parameters))
    assert four.total > actor.total + critic.states


def test_answers_have_keys_and_values():
    """Of all rows of a step; where a process has few, learning needs more than they do."""
    few, many = (
        WORK.train.model_copy(update={"global_batch_size": size}) for size in (64, 64 * 64)
    )
    tensors = [
        stage_memory("ppo", Work(WORK.model, train, 1024), LAYOUT)[0].tensors
        for train in (few, many)
    ]
    assert tensors[0] < tensors[1]


def test_ppo_takes_longer_than_learning_both_models():
    cluster, constants = Cluster(DEVICES["a100-80gb"], NETWORKS["ib-200"]), constants_of("a100")
    job = Job(WORK, LAYOUT)
    times = {
        stage: stage_seconds(stage, job, cluster, constants).total
        for stage in ("pretrain", "sft", "rm", "ppo")
    }
    assert times["sft"] == times["pretrain"] > times["rm"]
    assert times["ppo"] > times["sft"] + times["rm"]


def test_a_stage_that_does_not_fit_is_refused_with_what_fits(capsys):
    words = ["plan", "--model.preset", "llama-7b", "--parallel.shard", "4"]
    words += ["--train.global_batch_size", "32", "--parallel.recompute", "selective"]
    assert main(words) == 0
    assert main([*words, "--of_stage", "ppo"]) == 2
    shown = capsys.readouterr().err
    assert "--parallel" in shown
    assert shown.count("\n") == 1
    assert main([*words, "--of_stage", "dpo"]) == 2
