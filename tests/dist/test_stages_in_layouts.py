"""SFT, RM, DPO and PPO give the same numbers in every layout; a run moves between them."""

import json
import random

import pytest

from megalite.distributed.launch import Launch
from megalite.training.checkpoint.manifest import verify
from tests.dist.cluster import PROCESSES

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "sees", "likes", "and", "the"]
CONFIG = """
[model]
vocab_size = 300
hidden_size = 24
num_layers = 4
num_heads = 4
num_kv_heads = 2
ffn_size = 40
max_positions = 96
dropout = 0.1
attention_dropout = 0.1
[data]
template = "plain"
sequence_length = 64
[train]
global_batch_size = 8
micro_batch_size = 1
[optimizer]
learning_rate = 1e-3
[schedule]
kind = "constant"
warmup = 0
[checkpoint]
asynchronous = false
[run]
trackers = []
device = "cpu"
threads = 1
"""
LAYOUTS = {
    "1": (1, {}),
    "tp2 sequence": (2, {"tp": 2, "sequence_parallel": "true"}),
    "pp2": (2, {"pp": 2}),
    "fsdp2": (2, {"shard": 2}),
    "dp2": (2, {}),
    "dp4": (4, {}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}),
    "1 + 1": (2, {"frozen.processes": 1}),
    "dp2 + tp2": (4, {"frozen.processes": 2, "frozen.tp": 2}),
    "tp2 fsdp2 + pp2 fsdp2": (
        8,
        {"tp": 2, "shard": 2, "frozen.processes": 4, "frozen.pp": 2, "frozen.shard": 2},
    ),
}
assert max(processes for processes, _ in LAYOUTS.values()) <= PROCESSES


class Work:
    """Data of conversations, rankings and prompts, and runs on them."""

    def __init__(self, folder, cluster) -> None:
        from megalite.data.corpus import prepare
        from megalite.data.tokenizers.train import TokenizerTrainConfig, run

        self.folder, self.cluster, self.runs = folder, cluster, 0
        draw = random.Random(0)
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(60)]
        pairs = list(zip(texts[::2], texts[1::2], strict=True))
        self.write("text", [{"text": text} for text in texts])
        rankings = [[b, a, "red"][: 2 + len(a) % 2] for a, b in pairs]
        prompts = [{"prompt": a} for a, _ in pairs]
        rows = zip(prompts, rankings, strict=True)
        self.write("rm", [prompt | {"answers": answers} for prompt, answers in rows])
        self.write("ppo", prompts)
        self.write("sft", [{"instruction": a, "output": b} for a, b in pairs])
        source = (str(folder / "text.jsonl"),)
        tokenizer = TokenizerTrainConfig(
            source=source, vocab_size=300, output=str(folder / "tokenizer")
        )
        run(tokenizer, Launch())
        store = {"tokenizer": str(folder / "tokenizer"), "output": str(folder / "store")}
        prepare.run(prepare.PrepareConfig(source=source, processes=1, **store), Launch())
        (folder / "config.toml").write_text(CONFIG)

    def write(self, name: str, rows: list) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / f"{name}.jsonl").write_text(text)

    def words(self, stage: str, layout: str, folder, *more: str) -> list[str]:
        """The command line of a stage in a layout."""
        words = [stage, str(self.folder / "config.toml"), "--run.folder", str(folder)]
        words += ["--data.train", f'["{self.folder}/{stage}.jsonl"]']
        words += ["--tokenizer.path", str(self.folder / "tokenizer"), *more]
        for name, size in LAYOUTS[layout][1].items():
            words += [f"--{name}" if "." in name else f"--parallel.{name}", str(size)]
        return words

    def run(self, stage: str, layout: str, *more: str, folder=None):
        """Run a stage; its folder, metrics and first gradients."""
        self.runs += 1
        folder = folder or self.folder / f"run{self.runs}"
        words = self.words(stage, layout, folder, *more)
        job = "tests.dist.stage_jobs:run_stage"
        results = self.cluster.run(LAYOUTS[layout][0], job, words=words)
        gradients = {name: g for _, kept in results for name, g in kept.items()}
        return folder, results[0][0], gradients


@pytest.fixture(scope="module")
def work(tmp_path_factory, cluster):
    return Work(tmp_path_factory.mktemp("stages"), cluster)


@pytest.fixture(scope="module")
def sft(work):
    return work.run("sft", "1", "--train.steps", "6")


@pytest.fixture(scope="module")
def rm(work, sft):
    return work.run("rm", "1", "--train.steps", "4", "--checkpoint.start", str(sft[0]))


def assert_same_metrics(rows, expected, tolerance: float, names) -> None:
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        for name in names:
            assert row[name] == pytest.approx(wanted[name], rel=tolerance, abs=1e-7), name


def assert_same(found, expected, tolerance: float, names) -> None:
    """Metrics of each step, and first gradients within 1e-4."""
    (_, rows, gradients), (_, expected_rows, expected_gradients) = found, expected
    assert_same_metrics(rows, expected_rows, tolerance, names)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        difference = (gradient - expected_gradients[name]).norm()
        assert difference <= 1e-4 * expected_gradients[name].norm() + 1e-8, name


@pytest.mark.parametrize("layout", ["tp2 sequence", "pp2", "fsdp2"])
def test_sft_is_that_of_one_process(work, sft, layout):
    found = work.run("sft", layout, "--train.steps", "6")
    assert_same(found, sft, 1e-5, ("loss", "grad_norm", "tokens"))


@pytest.mark.parametrize("layout", ["tp2 sequence", "pp2", "fsdp2"])
def test_reward_modelling_is_that_of_one_process(work, sft, rm, layout):
    start = ("--train.steps", "4", "--checkpoint.start", str(sft[0]))
    found = work.run("rm", layout, *start)
    assert_same(found, rm, 1e-5, ("loss", "grad_norm", "accuracy"))


@pytest.fixture(scope="module")
def preferences(work, sft):
    """DPO and KTO of rankings of two and of three answers, in a layout."""
    work.write("dpo", [json.loads(row) for row in (work.folder / "rm.jsonl").open()])

    def run(layout: str, kind: str):
        more = ["--checkpoint.start", str(sft[0]), "--loss.kind", kind, "--train.steps", "3"]
        return work.run("dpo", layout, *more)

    return run


@pytest.mark.parametrize(("layout", "kind"), [("tp2 pp2", "dpo"), ("fsdp2", "kto")])
def test_preferences_are_learned_as_by_one_process(preferences, layout, kind):
    """The stored reference is computed in the layout too."""
    names = ("loss", "grad_norm", "margin")
    assert_same(preferences(layout, kind), preferences("1", kind), 1e-4, names)


@pytest.fixture(scope="module")
def starts(work, sft, rm):
    """Options of a small PPO run, whose answers are scored by reward models of two sizes."""
    other, *_ = work.run("rm", "1", "--train.steps", "1", "--model.hidden_size", "16")
    more = ["--checkpoint.start", str(sft[0]), "--reward_model", str(rm[0])]
    more += ["--reward.models", f'{{ other = "{other}" }}', "--reward.model_weight", "0.7"]
    return [*more, "--rollout.max_new_tokens", "12", "--update.epochs", "1"]


@pytest.fixture(scope="module")
def ppo(work, starts):
    """PPO in a layout: one rollout and its updates."""

    def run(layout: str, temperature: float = 0.7):
        more = [*starts, "--train.steps", "1"]
        more += ["--update.mini_batches", "1", "--rollout.temperature", str(temperature)]
        more += ["--reward.whiten_rewards", "true", "--update.pretrain_coefficient", "0.5"]
        more += ["--pretraining.train", f'["{work.folder}/store"]']
        more += ["--pretraining.sequence_length", "30"]
        return work.run("ppo", layout, *more)

    return run


@pytest.fixture(scope="module")
def ppo_alone(ppo):
    return ppo("1")


@pytest.mark.parametrize("layout", ["tp2 pp2", "1 + 1", "dp2 + tp2", "tp2 fsdp2 + pp2 fsdp2"])
def test_the_first_update_of_ppo_is_that_of_one_process(ppo, ppo_alone, layout):
    """Rollouts with a KV cache, whitening over the batch, and pretraining text beside answers."""
    alone = ppo_alone
    names = ["loss", "grad_norm", "critic_grad_norm", "value_loss", "reward", "response_tokens"]
    names += ["reward/model", "reward/other"]
    assert_same(ppo(layout), alone, 1e-4, names)
    assert alone[1][0]["response_tokens"] > 1


def test_text_beside_ppo_is_not_read_at_the_temperature_of_answers(ppo, ppo_alone):
    (row,), (other,) = ppo("1", temperature=2.0)[1], ppo_alone[1]
    assert row["pretraining_loss"] == other["pretraining_loss"]
    assert row["entropy"] != other["entropy"]


def test_mini_batches_are_drawn_from_the_answers_of_all_ranks(work, starts):
    """On four ranks a mini-batch of two answers leaves two of them nothing to learn from."""
    more = [*starts, "--train.steps", "2", "--train.global_batch_size", "4"]
    more += ["--update.epochs", "2", "--update.mini_batches", "2"]
    names = ("loss", "grad_norm", "critic_grad_norm", "clip_fraction", "reward", "kl")
    alone, spread = (work.run("ppo", layout, *more) for layout in ("1", "dp4"))
    assert_same(spread, alone, 1e-4, names)
    assert num_updates(alone[0]) == num_updates(spread[0]) == 2 * 2 * 2


def num_updates(folder) -> int:
    """Optimizer steps of a run's actor, as its last checkpoint counts them."""
    newest = folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text()
    return verify(newest)["learners"]["actor"]["updates"]


HELDOUT = {
    "sft": ["heldout_loss"],
    "rm": ["heldout_accuracy"],
    "dpo": ["heldout_loss", "heldout_sft_loss"],
    "ppo": [
        *("heldout_reward", "heldout_reward_deviation", "heldout_kl", "heldout_ended"),
        *("heldout_response_tokens", "heldout_distinct_1", "heldout_distinct_2"),
    ],
}


@pytest.mark.parametrize("stage", HELDOUT)
def test_held_out_numbers_are_those_of_each_sample_once(work, sft, starts, preferences, stage):
    """Of five samples, or three prompts, which no number of ranks or micro-batches divides."""
    rows = (work.folder / f"{stage}.jsonl").read_text().splitlines(keepends=True)
    (work.folder / "heldout.jsonl").write_text("".join(rows[: 3 if stage == "ppo" else 5]))
    more = {"sft": ["--data.packed", "false"], "rm": ["--checkpoint.start", str(sft[0])]}
    more["dpo"] = [*more["rm"], "--loss.sft_coefficient", "1"]
    more = [*(more | {"ppo": starts})[stage], "--train.steps", "0", "--train.evaluate_every", "1"]
    more += ["--data.heldout", f'["{work.folder}/heldout.jsonl"]']

    def measure(layout: str, micro_batch_size: int) -> list[float]:
        size = ["--train.micro_batch_size", str(micro_batch_size)]
        _, (row,), _ = work.run(stage, layout, *more, *size)
        return [row[name] for name in HELDOUT[stage]]

    alone = measure("1", 1)
    for layout, size in (("1", 4), ("dp4", 2), ("pp2", 2)):
        assert measure(layout, size) == pytest.approx(alone, rel=1e-5, abs=1e-5), (layout, size)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_one_process_ends_both_sides_of_ppo_with_the_state_saved(
    work, starts, tmp_path, rank
):
    """And the saved run goes on where all models share their processes."""
    words = work.words("ppo", "1 + 1", tmp_path, *starts, "--train.steps", "1000")
    job = "tests.dist.stage_jobs:run_until_stopped"
    said = set(work.cluster.run(2, job, words=words, rank=rank))
    step = int((tmp_path / "checkpoints" / "latest").read_text().split("-")[1])
    assert said == {f"stopped on request; step {step} is saved"}
    _, rows, _ = work.run("ppo", "1", *starts, "--train.steps", str(step + 1), folder=tmp_path)
    assert [row["step"] for row in rows] == list(range(1, step + 2))


def test_a_run_that_changes_its_layout_every_few_steps_keeps_its_curve(work, sft, tmp_path):
    """Parameters, optimizer, place in the data and dropout, through the command's own trainer.

    Each save comes after an evaluation, whose forward passes gather parameters.
    """
    folder = tmp_path / "run"
    more = ["--data.heldout", f'["{work.folder}/sft.jsonl"]', "--train.evaluate_every", "1"]
    for steps, layout in enumerate(["tp2 pp2", "fsdp2", "tp2 sequence", "1", "pp2", "fsdp2"], 1):
        _, rows, _ = work.run("sft", layout, "--train.steps", str(steps), *more, folder=folder)
    assert_same_metrics(rows[1:], sft[1], 1e-5, ("loss", "grad_norm", "learning_rate", "tokens"))


def test_a_sharded_run_becomes_a_hugging_face_folder_and_starts_from_one(work, sft, tmp_path):
    """From tp2 x pp2, and back into it; the weights are those of one process."""
    from safetensors.torch import load_file

    from megalite.tools.convert import ConvertConfig, run

    sharded, _, _ = work.run("sft", "tp2 pp2", "--train.steps", "6")
    for source, target in ((sft[0], "alone"), (sharded, "sharded")):
        run(ConvertConfig(source=str(source), target=str(tmp_path / target)), Launch())
    alone, found = (load_file(tmp_path / n / "model.safetensors") for n in ("alone", "sharded"))
    assert alone.keys() == found.keys()
    for name, tensor in found.items():
        assert (tensor - alone[name]).norm() <= 1e-3 * alone[name].norm() + 1e-6, name
    more = ("--train.steps", "1", "--checkpoint.start")
    _, (row,), _ = work.run("sft", "tp2 pp2", *more, str(tmp_path / "alone"))
    _, (wanted,), _ = work.run("sft", "1", *more, str(sft[0]))
    assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
