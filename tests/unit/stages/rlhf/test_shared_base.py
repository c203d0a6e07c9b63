"""A critic on the actor's frozen weights: PPO's numbers with two copies of them, and refusals."""

import pytest

from megalite.cli import main
from megalite.training.checkpoint.reader import CheckpointReader
from tests.unit.stages.rlhf.test_grpo_runs import exact

LORA = ("--lora.rank", "3", "--lora.alpha", "12")
SHARED = ("--critic_shares_base", "true")
LOSSES = ("loss", "grad_norm", "critic_grad_norm", "value_loss", "reward", "kl")


@pytest.fixture(scope="module")
def adapted(work):
    """A reward model that is adapters of the actor's start."""
    words = ["--data.train", f'["{work.folder}/rm.jsonl"]', "--lora.rank", "2"]
    words += ["--checkpoint.start", str(work.folder / "start"), "--train.steps", "2"]
    return work.run("rm", "adapted", *words, "--lora.layers", '["feed_forward"]')


def test_a_critic_that_starts_as_the_actor_learns_as_on_a_copy(work):
    """Bit for bit, over a stop too; what is saved is adapters and the critic's head alone."""
    more = [*LORA, "--reward.function", f"{work.rewards}:short"]
    apart = work.align("ppo", "apart", *more)
    work.align("ppo", "shared", *more, *SHARED, "--train.steps", "2")
    shared = work.align("ppo", "shared", *more, *SHARED)
    assert exact(shared) == exact(apart)
    folder = work.folder / "shared" / "checkpoints"
    newest = folder / (folder / "latest").read_text()
    saved = CheckpointReader(newest).read_metadata().state_dict_metadata
    whole = {n for n in saved if ".adapter." not in n and "_optimizer." not in n}
    assert whole == {"critic.head.value.weight"}


def test_adapters_of_a_reward_model_stay_beside_the_critics(work, adapted):
    """A run goes on on a copy, into which they are merged: its checkpoints mean the same."""
    more = [*LORA, "--reward_model", str(adapted), "--update.mini_batches", "2"]
    apart = work.align("ppo", "merged", *more)
    work.align("ppo", "beside", *more, *SHARED, "--train.steps", "2")
    for row, wanted in zip(work.align("ppo", "beside", *more), apart, strict=True):
        close = {name: pytest.approx(wanted[name], rel=1e-5, abs=1e-5) for name in LOSSES}
        assert {name: row[name] for name in LOSSES} == close


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "true: the actor's weights all learn, so the critic needs others: give lora.rank"),
        ([*LORA], "has weights of its own, not adapters of checkpoint.start"),
        ([*LORA, "--reward_model", "adapted", "--lora.dora", "true"], "(this run has it)"),
        (
            [*LORA, "--reward_model", "adapted", "--lora.base_format", "int8"],
            "was held as compute, lora.base_format is int8: give compute",
        ),
        (
            [*LORA, "--reward_model", "adapted", "--checkpoint.start", "other"],
            "whose weights are others than those of checkpoint.start",
        ),
        ([*LORA, "--train.compile", "true"], "can't be with train.compile"),
    ],
)
def test_what_can_not_share_a_base_is_refused(work, adapted, capsys, more, says):
    names = {"adapted": str(adapted), "other": str(work.folder / "other")}
    if "other" in more:
        words = ["--data.train", f'["{work.folder}/sft.jsonl"]', "--train.steps", "1"]
        work.run("sft", "other", *words, "--run.seed", "5")
    words = ["--reward_model", str(work.reward), *SHARED, *(names.get(w, w) for w in more)]
    assert main(work.align_words("ppo", "refused", *words)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "--critic_shares_base" in said[0] and says in said[0]
