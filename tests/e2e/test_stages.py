"""SFT, reward modelling and PPO, each from the stage before and from a Hugging Face folder."""

import json
from pathlib import Path

import pytest

from megalite.cli import main
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


def words_of(work, name: str, start, data: str, *more: str) -> list[str]:
    """A stage's command line up to the run's folder, which is last."""
    rows = (work.folder / f"{data}.jsonl").read_text().splitlines(keepends=True)
    heldout = work.folder / f"heldout-{data}.jsonl"
    heldout.write_text("".join(rows[:6]))
    words = [name, work.config(4), "--checkpoint.start", start, "--data.sequence_length", "96"]
    words += ["--data.train", f'["{work.folder}/{data}.jsonl"]', "--data.heldout", f'["{heldout}"]']
    words += ["--train.evaluate_every", "2", "--tokenizer.path", f"{work.folder}/tokenizer"]
    return [*map(str, words), *more, "--run.folder", str(work.new_run())]


def stage(work, *told: str):
    """Run a stage in this process; its folder."""
    words = words_of(work, *told)
    assert main(words) == 0
    return run_of(words)


def run_of(words: list[str]) -> Path:
    run = Path(words[-1])
    assert len(losses(run)) == 4
    return run


@pytest.fixture(scope="module")
def sft(work, whole):
    return stage(work, "sft", whole, "sft")


@pytest.fixture(scope="module")
def rm(work, sft):
    return stage(work, "rm", sft, "rankings")


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_sft_starts_where_pretraining_ended(work, whole, sft, hugging_face):
    fresh = stage(work, "sft", hugging_face, "sft")
    assert losses(sft)[0] < losses(fresh)[0]
    target = work.folder / "trained"
    assert main(["convert", "--source", str(fresh), "--target", str(target)]) == 0
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
    words = words_of(work, "ppo", sft, "prompts", "--reward_model", str(rm), *PPO)
    done = megalite(*words, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return run_of(words)


def test_ppo_runs_on_two_processes(ppo):
    names = {"reward", "kl", "entropy", "clip_fraction", "value_loss", "response_tokens"}
    assert names <= set(rows(ppo)[-1])
    assert abs(rows(ppo)[1]["kl"]) < 1e-4  # the first rollout is by the reference itself


COMPARED = ("loss", "reward", "kl", "entropy", "value_loss", "grad_norm", "heldout_reward")


def curves(run) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows(run) if name in row] for name in COMPARED}


def test_ppo_starts_the_same_on_one_process(work, sft, rm, ppo):
    """Its first rollout and update; Adam's first steps at this rate then magnify rounding."""
    other = stage(work, "ppo", sft, "prompts", "--reward_model", str(rm), *PPO)
    for name, curve in curves(other).items():
        assert curve[:1] == pytest.approx(curves(ppo)[name][:1], rel=1e-5, abs=2e-6), name


def test_every_stage_repeats_itself_bit_for_bit_in_other_processes(work, pair, whole, sft, rm, ppo):
    """With other hashes of strings than here, or than under torchrun."""
    for words, first in (
        (words_of(work, "sft", whole, "sft"), sft),
        (words_of(work, "rm", sft, "rankings"), rm),
    ):
        assert work.start(words).wait().returncode == 0
        assert losses(run_of(words)) == losses(first)
    words = words_of(work, "ppo", sft, "prompts", "--reward_model", str(rm), *PPO)
    pair.run(2, "tests.dist.stage_jobs:run_stage", words=words)
    assert curves(run_of(words)) == curves(ppo)


def test_a_policy_is_no_reward_model(work, sft, capsys):
    words = words_of(work, "ppo", sft, "prompts", "--reward_model", str(sft), *PPO)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "head" in said
    assert "Traceback" not in said
