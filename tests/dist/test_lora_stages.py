"""Stages that learn by adapters: their checkpoints, their reference, and what starts from them."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from megalite.distributed.launch import Launch
from megalite.tools.convert import ConvertConfig
from megalite.tools.convert import run as convert
from megalite.training.checkpoint.reader import CheckpointReader
from tests.dist.test_stages_in_layouts import Work, assert_same, assert_same_metrics

LORA = ("--lora.rank", "3", "--lora.alpha", "12", "--optimizer.learning_rate", "1e-2")
NAMES = ("loss", "grad_norm", "learning_rate", "tokens")


@pytest.fixture(scope="module")
def work(tmp_path_factory, cluster):
    return Work(tmp_path_factory.mktemp("adapters"), cluster)


@pytest.fixture(scope="module")
def base(work):
    return work.run("sft", "1", "--train.steps", "2")[0]


@pytest.fixture(scope="module")
def sft(work, base):
    return work.run("sft", "1", *sft_words(base), "--train.steps", "4")


def sft_words(base) -> tuple[str, ...]:
    return (*LORA, "--lora.dropout", "0.1", "--checkpoint.start", str(base))


def newest(folder):
    return folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text()


def test_a_run_keeps_its_curve_over_stops_and_layouts(work, base, sft, tmp_path):
    """Bit for bit where the layout is the same; what is saved is adapters and their state alone."""
    for folder, layouts in (
        ("one", {"2": "1", "4": "1"}),
        ("several", {"1": "tp2 pp2", "2": "fsdp2", "4": "tp2 sequence"}),
    ):
        for steps, layout in layouts.items():
            more = (*sft_words(base), "--train.steps", steps)
            _, rows, _ = work.run("sft", layout, *more, folder=tmp_path / folder)
        if folder == "one":
            assert [row["loss"] for row in rows] == [row["loss"] for row in sft[1]]
        assert_same_metrics(rows, sft[1], 1e-5, NAMES)
        saved = CheckpointReader(newest(tmp_path / folder)).read_metadata().state_dict_metadata
        assert all(".adapter." in name for name in saved)
    log = (tmp_path / "several" / "log.txt").read_text()
    assert "model: 4,320 of " in log


def test_another_rank_or_base_is_refused_where_a_run_goes_on(work, base, sft, tmp_path):
    go_on = partial(work.run, "sft", "1", "--train.steps", "9", folder=sft[0])
    for more, said in (
        (("--lora.rank", "5", "--checkpoint.start", str(base)), "--lora.rank 5: "),
        (("--checkpoint.start", str(base)), "--lora.rank 0: "),
        ((*LORA, "--checkpoint.start", str(sft[0])), "--checkpoint.start "),
    ):
        with pytest.raises(AssertionError, match=rf"CheckpointError: {said}"):
            go_on(*more)


def test_merged_weights_are_those_that_another_run_starts_from(work, base, sft, tmp_path):
    convert(ConvertConfig(source=str(sft[0]), target=str(tmp_path / "merged")), Launch())
    convert(ConvertConfig(source=str(base), target=str(tmp_path / "base")), Launch())
    merged, plain = (load_file(tmp_path / n / "model.safetensors") for n in ("merged", "base"))
    same = {name for name in merged if torch.equal(merged[name], plain[name])}
    assert same and all("norm" in name or "embed" in name for name in same)
    (rows, wanted) = (
        work.run("sft", layout, "--train.steps", "1", "--checkpoint.start", str(start))[1]
        for layout, start in (("tp2 pp2", sft[0]), ("1", tmp_path / "merged"))
    )
    assert rows[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=1e-5)


QUANTISED = ("--lora.base_format", "nf4", "--lora.dora", "true")


def test_a_quantised_base_is_the_same_wherever_it_is_read(work, base, tmp_path):
    """By a run in another layout, by one that starts from its adapters, and in merged weights."""
    words = (*LORA, *QUANTISED, "--checkpoint.start", str(base), "--train.steps", "2")
    run = work.run("sft", "1", *words)
    _, rows, _ = work.run("sft", "fsdp2", *words)
    assert_same_metrics(rows, run[1], 1e-5, NAMES)
    assert "held as nf4" in (run[0] / "log.txt").read_text()
    saved = CheckpointReader(newest(run[0])).read_metadata().state_dict_metadata
    assert all(".adapter." in name for name in saved)
    convert(ConvertConfig(source=str(run[0]), target=str(tmp_path / "merged")), Launch())
    (found, wanted) = (
        work.run("sft", layout, "--train.steps", "1", "--checkpoint.start", str(start))[1]
        for layout, start in (("fsdp2", run[0]), ("1", tmp_path / "merged"))
    )
    assert found[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=1e-5)


@pytest.fixture(scope="module")
def dpo(work, sft):
    rankings = [{"prompt": a, "answers": b} for a, b in rows_of(work)]
    work.write("dpo", rankings)

    def run(layout: str, *more: str):
        start = ("--checkpoint.start", str(sft[0]), "--train.steps", "3")
        return work.run("dpo", layout, *LORA, *start, *more)

    return run


def rows_of(work):
    rows = [json.loads(line) for line in (work.folder / "rm.jsonl").open()]
    return [(row["prompt"], row["answers"]) for row in rows]


def test_the_reference_of_dpo_is_the_policy_without_adapters(dpo):
    """As the log-probabilities are that were stored before the first step; on adapters again."""
    stored, asked, spread = (
        dpo("1"),
        dpo("1", "--reference.kind", "model"),
        dpo("tp2 pp2", "--reference.kind", "model"),
    )
    names = ("loss", "grad_norm", "margin", "accuracy")
    assert stored[1][-1]["margin"] != 0
    assert_same(asked, stored, 1e-5, names)
    assert_same(spread, stored, 1e-4, names)


@pytest.fixture(scope="module")
def ppo(work, base, sft):
    """PPO by adapters, from an actor and a reward model that learned by adapters."""
    rm, rows, _ = work.run(
        "rm", "fsdp2", *LORA, "--train.steps", "2", "--checkpoint.start", str(base)
    )
    saved = CheckpointReader(newest(rm)).read_metadata().state_dict_metadata
    assert {name for name in saved if ".adapter." not in name and "optimizer" not in name} == {
        "model.head.value.weight"
    }

    def run(layout: str, *words: str):
        more = ["--checkpoint.start", str(sft[0]), "--reward_model", str(rm), *words]
        more += [
            "--rollout.max_new_tokens",
            "8",
            "--update.epochs",
            "1",
            "--update.mini_batches",
            "1",
        ]
        return work.run("ppo", layout, *LORA, *more, "--train.steps", "2")

    return run


def test_reference_and_reward_of_ppo_are_actor_and_critic_as_they_started(ppo):
    """Which processes of their own hold as copies."""
    names = ("loss", "grad_norm", "critic_grad_norm", "value_loss", "reward", "kl")
    copies = ppo("1 + 1")
    assert abs(copies[1][-1]["kl"]) > 1e-5
    for layout in ("1", "tp2 pp2", "fsdp2"):
        assert_same(ppo(layout), copies, 1e-4, names)


def test_actor_and_critic_on_one_base_learn_as_on_two(ppo, base):
    """Where the base and its guests are cut, too; two have the reward model merged in one."""
    names = ("loss", "grad_norm", "critic_grad_norm", "value_loss", "reward", "kl")
    start = ("--checkpoint.start", str(base))
    apart = ppo("1", *start)
    for layout in ("1", "tp2 pp2", "1 + 1"):
        found = ppo(layout, *start, "--critic_shares_base", "true")
        assert_same_metrics(found[1], apart[1], 1e-4, names)


def test_frozen_copies_of_a_quantised_base_are_quantised(ppo):
    names = ("loss", "grad_norm", "critic_grad_norm", "value_loss", "reward", "kl")
    assert_same(ppo("1", *QUANTISED), ppo("1 + 1", *QUANTISED), 1e-4, names)
