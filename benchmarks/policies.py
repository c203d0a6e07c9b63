"""One step of PPO and of GRPO, ours, TRL's and plain ones: answers, their judgement, the updates.

PPO's has 64 prompts of a question's real lengths, cut at 128 tokens, 32 new tokens each, a pass of
all four models, and 2 epochs of one mini-batch for actor and critic. GRPO's has an eighth of the
prompts, 8 answers each, scored by their lengths, a reference, and one epoch. All are in fp32, with
PyTorch's fused AdamW; a random model ends no answer, so all write as many tokens. TRL takes the
actor's log-probabilities from the logits that it drew by, and so do ours (``reuse_log_probs``).
"""

import copy
import math
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.conversations import QUESTION, SIGMA
from benchmarks.models import CASES, VOCABULARY

PROMPTS, GROUP, NEW, MICRO, RATE, SEED = 64, 8, 32, 4, 1e-6, 0
LONGEST, EPOCHS, KL, PAD, END = 128, 2, 0.05, 0, 1
WITH_PPO = "trl==1.12.0"  # the newest release that has PPOTrainer
Side = tuple[Callable[[], None], dict]


def prompts(count: int) -> list[list[int]]:
    """Random tokens in lengths of real questions."""
    draw = np.random.default_rng(SEED)
    middle = math.log(QUESTION) - SIGMA**2 / 2
    sizes = draw.lognormal(middle, SIGMA, count).clip(8, LONGEST).astype(int)
    return [draw.integers(2, VOCABULARY, size).tolist() for size in sizes]


def _rows(asked: list[list[int]], answers: int) -> dict:
    return {"rows": answers * sum(len(prompt) + NEW for prompt in asked)}


def make_ours(count: int, method: str) -> Side:
    """Our step: the stage's own, without its files."""
    from megalite.data.chat.datasets import Question
    from megalite.distributed.launch import Launch
    from megalite.distributed.mesh import Mesh, ParallelConfig
    from megalite.engine.build import build_model
    from megalite.generation.prompts import Prompt
    from megalite.stages.rlhf.config import GRPOConfig, PPOConfig
    from megalite.stages.rlhf.models import ReferenceModels, TrainedModels
    from megalite.stages.rlhf.rollout import SpecialTokens
    from megalite.stages.rlhf.step import PolicyStep, keep_apart
    from megalite.stages.rules.scores import Rules
    from megalite.stages.setup import Stage
    from megalite.training.learner import Learner, Learning
    from megalite.training.progress import Progress
    from megalite.training.watchdog.heartbeat import Heartbeat

    is_ppo, mesh = method == "ppo", Mesh.single()
    asked = prompts(count if is_ppo else count // GROUP)
    shape = CASES["llama"].ours()
    values: dict[str, Any] = {
        "model": shape.model_dump(exclude={"preset"}),
        "train": {"steps": 999, "global_batch_size": len(asked), "micro_batch_size": MICRO},
        "optimizer": {"learning_rate": RATE},
        "kl": {"coefficient": KL},
        "update": {"epochs": EPOCHS if is_ppo else 1},
        "rollout": {"max_new_tokens": NEW, "slots": count, "micro_batch_size": count},
        "reward": {} if is_ppo else {"function": ["length"], "rules": {"length": 100}},
    }
    values["rollout"]["reuse_log_probs"] = True
    if not is_ppo:
        values["rollout"]["answers"] = GROUP
    config = PPOConfig(**values) if is_ppo else GRPOConfig(**values)

    def build(head: str):
        model = shape.model_copy(update={"head": head})
        return build_model(model, mesh, ParallelConfig(), seed=SEED)

    trained = TrainedModels(build("lm"), build("value") if is_ppo else None)
    learning = Learning(config.train, config.optimizer, config.schedule, SEED)
    named = (("actor", trained.actor), ("critic", trained.critic))
    learners = [Learner(model, mesh, learning, name) for name, model in named if model]
    frozen = ReferenceModels(build("lm"), [build("value")] if is_ppo else [])
    judges, tokens = frozen.judges(config.rollout.temperature), SpecialTokens((END,), PAD)
    stage = Stage(config, Launch(), mesh, *[None] * 5, Heartbeat(), None)
    rules = None if is_ppo else Rules(config.reward, lambda tokens: " ".join(map(str, tokens)))
    step = PolicyStep(config, stage, trained, learners, judges, tokens, rules=rules)
    questions = [Question.of(Prompt(tokens), "", "", {}) for tokens in asked]
    items = [keep_apart(questions, list(range(len(questions))))]

    def work() -> None:
        step(items, Progress())

    return work, _rows(asked, 1 if is_ppo else GROUP)


class Turns:
    """A trainer's loop in a thread, which does one step each time that it is told."""

    def __init__(self, train: Callable[[], Any]) -> None:
        """Hold the loop, which calls :meth:`wait` at the end of each step."""
        self._train, self._may, self._did = train, threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def step(self) -> None:
        """Let the loop do a step."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        else:
            self._may.release()
        self._did.acquire()
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """End a step, and wait until the next may begin."""
        self._did.release()
        self._may.acquire()

    def _run(self) -> None:
        try:
            self._train()
        except BaseException as error:
            self._error = error
            self._did.release()


def tokenizer():
    """Words t2, t3 ... for tokens, as TRL wants texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "</s>": END} | {f"t{n}": n for n in range(2, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def writer():
    """The model in transformers, with a cache for answers."""
    model = CASES["llama"].peer()
    model.config.use_cache = model.generation_config.use_cache = True
    model.config.pad_token_id = model.generation_config.pad_token_id = PAD
    return model


def scorer():
    """A scalar a sequence, in transformers."""
    from transformers import LlamaForSequenceClassification

    config = copy.deepcopy(CASES["llama"].peer().config)
    config.num_labels, config.pad_token_id = 1, PAD
    return LlamaForSequenceClassification(config)


def _told(folder: str, count: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": count // MICRO,
        "learning_rate": RATE,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "optim": "adamw_torch_fused",
        "save_strategy": "no",
        "logging_steps": 10**6,
        "temperature": 1.0,
    }


def make_trl_ppo(count: int) -> Side:
    """A step of TRL's PPOTrainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.manual_seed(SEED)
    asked = prompts(count)
    turns = Turns(lambda: trainer.train())

    class Ends(TrainerCallback):
        def on_step_end(self, *_arguments: Any, **_more: Any) -> None:
            turns.wait()

    with tempfile.TemporaryDirectory() as folder:
        arguments = PPOConfig(
            **_told(folder, count),
            num_ppo_epochs=EPOCHS,
            num_mini_batches=1,
            total_episodes=999 * count,
            local_rollout_forward_batch_size=count,
            num_sample_generations=0,
            response_length=NEW,
            kl_coef=KL,
            stop_token="eos",
        )
        trainer = PPOTrainer(
            arguments,
            tokenizer(),
            writer(),
            writer(),
            scorer(),
            Dataset.from_list([{"input_ids": prompt} for prompt in asked]),
            scorer(),
            eval_dataset=Dataset.from_list([{"input_ids": asked[0]}]),
            callbacks=[Ends()],
        )
    return turns.step, {"rows": count * (max(map(len, asked)) + NEW)}


def make_trl_grpo(count: int) -> Side:
    """A step of TRL's GRPOTrainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(SEED)
    asked = prompts(count // GROUP)
    turns = Turns(lambda: trainer.train())

    class Ends(TrainerCallback):
        def on_step_end(self, *_arguments: Any, **_more: Any) -> None:
            turns.wait()

    def length(completions: list[str], **_more: Any) -> list[float]:
        return [max(1 - abs(len(text) - 100) / 100, 0.0) for text in completions]

    with tempfile.TemporaryDirectory() as folder:
        stored = f"{folder}/model"  # from which the trainer makes the reference too
        writer().save_pretrained(stored)
        arguments = GRPOConfig(
            **_told(folder, count),
            num_generations=GROUP,
            max_completion_length=NEW,
            max_steps=999,
            beta=KL,
            loss_type="grpo",
            generation_batch_size=count,
            model_init_kwargs={"dtype": "float32"},
        )
        trainer = GRPOTrainer(
            stored,
            length,
            args=arguments,
            train_dataset=Dataset.from_list(
                [{"prompt": " ".join(f"t{n}" for n in prompt)} for prompt in asked]
            ),
            processing_class=tokenizer(),
            callbacks=[Ends()],
        )
    return turns.step, {"rows": count * (max(map(len, asked)) + NEW)}
