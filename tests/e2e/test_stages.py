"""SFT, reward modelling and PPO, each from the stage before and from a Hugging Face folder."""

import json

import pytest

from megalite.data.tokenizers.load import load_tokenizer
from tests.e2e.conftest import losses, megalite

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def hugging_face(work):
    """A tiny LLaMA as transformers saves it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=5,
        rms_norm_eps=1e-5,  # as the config that starts from it
    )
    folder = work.folder / "hf"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def stage(work, name: str, start, data: str, *more: str, processes: int = 1):
    run = work.new_run()
    words = [name, work.config(4), "--run.folder", run, "--checkpoint.start", start]
    words += ["--data.train", f'["{work.folder}/{data}.jsonl"]', "--data.sequence_length", "96"]
    words += ["--data.heldout", f'["{work.folder}/{data}.jsonl"]', "--train.evaluate_every", "2"]
    words += ["--tokenizer.path", f"{work.folder}/tokenizer", *more]
    done = megalite(*words, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(run)) == 4
    return run


@pytest.fixture(scope="module")
def sft(work, whole):
    return stage(work, "sft", whole, "sft", processes=2)


@pytest.fixture(scope="module")
def rm(work, sft):
    return stage(work, "rm", sft, "rankings")


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_sft_starts_where_pretraining_ended(work, whole, sft, hugging_face):
    fresh = stage(work, "sft", hugging_face, "sft")
    assert losses(sft)[0] < losses(fresh)[0]
    target = work.folder / "trained"
    done = megalite("convert", "--source", fresh, "--target", target)
    assert done.returncode == 0, done.stderr
    trained, began = (json.loads((f / "config.json").read_text()) for f in (target, hugging_face))
    assert trained["bos_token_id"] == load_tokenizer(work.folder / "tokenizer").begin_id != 5
    assert trained["architectures"] == began["architectures"]


def test_a_reward_model_reports_held_out_accuracy(rm):
    accuracies = [row["heldout_accuracy"] for row in rows(rm) if "heldout_accuracy" in row]
    assert len(accuracies) == 3
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)


def test_a_reward_model_starts_from_a_hugging_face_folder(work, hugging_face):
    stage(work, "rm", hugging_face, "rankings")


PPO = ("--rollout.max_new_tokens", "8", "--rollout.micro_batch_size", "2")


@pytest.fixture(scope="module")
def ppo(work, sft, rm):
    return stage(work, "ppo", sft, "prompts", "--reward_model", rm, *PPO, processes=2)


def test_ppo_runs_on_two_processes(ppo):
    names = {"reward", "kl", "entropy", "clip_fraction", "value_loss", "response_tokens"}
    assert names <= set(rows(ppo)[-1])
    assert abs(rows(ppo)[1]["kl"]) < 1e-4  # the first rollout is by the reference itself


COMPARED = ("loss", "reward", "kl", "entropy", "value_loss", "grad_norm", "heldout_reward")


def curves(run) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows(run) if name in row] for name in COMPARED}


@pytest.mark.parametrize(
    ("processes", "layout"),
    [(1, []), (3, ["--frozen.processes", "1"])],
    ids=["one", "frozen models on a process of their own"],
)
def test_ppo_starts_the_same_in_another_layout(work, sft, rm, ppo, processes, layout):
    """Its first rollout and update; Adam's first steps at this rate then magnify rounding."""
    words = ("--reward_model", rm, *PPO, *layout)
    other = stage(work, "ppo", sft, "prompts", *words, processes=processes)
    for name, curve in curves(other).items():
        assert curve[:1] == pytest.approx(curves(ppo)[name][:1], rel=1e-5, abs=2e-6), name


def test_every_stage_repeats_itself_bit_for_bit(work, whole, sft, rm, ppo):
    assert losses(stage(work, "sft", whole, "sft", processes=2)) == losses(sft)
    assert losses(stage(work, "rm", sft, "rankings")) == losses(rm)
    again = stage(work, "ppo", sft, "prompts", "--reward_model", rm, *PPO, processes=2)
    assert curves(again) == curves(ppo)


def test_a_policy_is_no_reward_model(work, sft):
    words = ["ppo", work.config(4), "--run.folder", work.new_run(), "--checkpoint.start", sft]
    words += ["--data.train", f'["{work.folder}/prompts.jsonl"]', "--reward_model", sft]
    done = megalite(*words, "--tokenizer.path", f"{work.folder}/tokenizer", *PPO)
    assert done.returncode == 2
    assert "head" in done.stderr
    assert "Traceback" not in done.stderr
