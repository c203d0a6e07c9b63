"""What stages hold and take, beside each other."""

import pytest

from megalite.cli import main
from megalite.distributed.mesh import ParallelConfig
from megalite.models.config import ModelConfig
from megalite.plan.constants import constants_of
from megalite.plan.devices import DEVICES, NETWORKS, Cluster
from megalite.plan.job import Job
from megalite.plan.memory import GIB, Work, estimate
from megalite.plan.stages import (
    Stage,
    critic_of,
    frozen_memory,
    stage_memory,
    stage_operations,
    stage_seconds,
)
from megalite.training.config import TrainConfig

LAYOUT = ParallelConfig(shard=8, recompute="selective")
WORK = Work(
    ModelConfig(preset="llama-7b"), TrainConfig(global_batch_size=64, precision="bf16"), 1024
)


def test_fine_tuning_holds_what_pretraining_does():
    assert stage_memory(Stage("sft"), WORK, LAYOUT) == estimate(WORK, LAYOUT)


def test_a_reward_model_has_no_head_of_the_vocabulary():
    (language,), (reward,) = estimate(WORK, LAYOUT), stage_memory(Stage("rm"), WORK, LAYOUT)
    saved = WORK.model.vocab_size * WORK.model.hidden_size - WORK.model.hidden_size
    assert language.parameters - reward.parameters == saved


def test_ppo_holds_two_learning_models_and_two_frozen_ones():
    (actor,), (critic,) = estimate(WORK, LAYOUT), estimate(critic_of(WORK), LAYOUT)
    (four,) = stage_memory(Stage("ppo"), WORK, LAYOUT)
    assert four.parameters == 2 * (actor.parameters + critic.parameters)
    assert four.states * GIB == pytest.approx(16 / 8 * (actor.parameters + critic.parameters))
    assert four.total > actor.total + critic.states


def test_answers_have_keys_and_values():
    """Of all rows of a step; where a process has few, learning needs more than they do."""
    few, many = (
        WORK.train.model_copy(update={"global_batch_size": size}) for size in (64, 64 * 64)
    )
    tensors = [
        stage_memory(Stage("ppo", slots=512), Work(WORK.model, train, 1024), LAYOUT)[0].tensors
        for train in (few, many)
    ]
    assert tensors[0] < tensors[1]


def test_ppo_takes_longer_than_learning_both_models():
    cluster, constants = Cluster(DEVICES["a100-80gb"], NETWORKS["ib-200"]), constants_of("a100")
    job = Job(WORK, LAYOUT)
    times = {
        stage: stage_seconds(Stage(stage), job, cluster, constants).total
        for stage in ("pretrain", "sft", "rm", "ppo")
    }
    assert times["sft"] == times["pretrain"]
    assert times["ppo"] > 4 * times["sft"]


def test_a_stage_that_does_not_fit_is_refused_with_what_fits(capsys):
    words = ["plan", "--model.preset", "llama-7b", "--parallel.shard", "4"]
    words += ["--train.global_batch_size", "32", "--parallel.recompute", "selective"]
    assert main(words) == 0
    assert main([*words, "--of_stage", "ppo"]) == 2
    shown = capsys.readouterr().err
    assert "--parallel" in shown
    assert shown.count("\n") == 1
    assert main([*words, "--of_stage", "elsewhere"]) == 2


def test_frozen_models_elsewhere_leave_room_and_judge_beside():
    shared = Stage("ppo")
    apart = Stage("ppo", frozen=ParallelConfig(shard=8))
    (four,), (two,) = (stage_memory(stage, WORK, LAYOUT) for stage in (shared, apart))
    (frozen,) = frozen_memory(apart, WORK)
    assert frozen.states * GIB == pytest.approx(4.0 * frozen.parameters / 8)
    assert two.total < four.total
    assert two.parameters + frozen.parameters == four.parameters
    assert frozen_memory(shared, WORK) == []
    cluster, constants = Cluster(DEVICES["a100-80gb"], NETWORKS["ib-200"]), constants_of("a100")
    times = [stage_seconds(one, Job(WORK, LAYOUT), cluster, constants) for one in (shared, apart)]
    assert times[1].total < times[0].total


def test_rules_alone_need_no_reward_model():
    (four,), (three,) = (
        stage_memory(stage, WORK, LAYOUT)
        for stage in (Stage("ppo"), Stage("ppo", has_reward=False))
    )
    assert three.states < four.states
    assert three.parameters < four.parameters


def test_a_further_reward_model_is_held_in_its_own_size():
    small = WORK.model.model_copy(update={"num_layers": 2})
    for frozen in (None, ParallelConfig(shard=8)):
        stages = Stage("ppo", frozen=frozen), Stage("ppo", judging=(small,), frozen=frozen)
        memory = frozen_memory if frozen else lambda stage, work: stage_memory(stage, work, LAYOUT)
        (one,), (two,) = (memory(stage, WORK) for stage in stages)
        (own,) = estimate(critic_of(WORK, small), LAYOUT)
        assert two.parameters - one.parameters == own.parameters
        assert (two.states - one.states) * GIB == pytest.approx(4.0 * own.parameters / 8)


def test_comparing_answers_takes_two_sequences_and_a_reference_a_pass():
    cluster, constants = Cluster(DEVICES["a100-80gb"], NETWORKS["ib-200"]), constants_of("a100")
    job = Job(WORK, LAYOUT)
    plain, pair, asked = Stage(), Stage("dpo"), Stage("dpo", has_reference=True)
    times = [stage_seconds(one, job, cluster, constants).compute for one in (plain, pair, asked)]
    assert times[1] == pytest.approx(2 * times[0], rel=0.1)
    assert times[2] == pytest.approx(4 / 3 * times[1], rel=0.05)
    done = [stage_operations(one, job).model for one in (plain, pair, asked)]
    assert done[1] == pytest.approx(2 * done[0])
    assert done[2] == pytest.approx(4 / 3 * done[1])
    (alone,), (both,) = (stage_memory(one, WORK, LAYOUT) for one in (pair, asked))
    assert both.states - alone.states == pytest.approx(alone.states / 3)
    (judged,) = stage_memory(Stage("dpo", has_reference=True, judges=1), WORK, LAYOUT)
    assert judged.states - both.states == pytest.approx(alone.states / 3)
