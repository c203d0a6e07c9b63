"""PPO: the actor answers prompts, a reward model or rules score them, actor and critic learn.

The trainer's loop with a rollout before each set of updates. Dropout is off throughout. GRPO is the
same with other advantages: groups of answers in place of a critic.

Source: Ouyang et al. 2022, arXiv:2203.02155; Schulman et al. 2017, arXiv:1707.06347.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain

from megalite.data.chat.chat import Chat
from megalite.data.chat.datasets import Prompts
from megalite.data.chat.long_rows import RowRules
from megalite.distributed.launch import Launch
from megalite.engine.layout import Demand, check_layout
from megalite.stages.conversation import open_chat
from megalite.stages.datasets import Datasets, evaluations, notes_of
from megalite.stages.length import in_steps
from megalite.stages.rlhf.config import PolicyConfig, PPOConfig
from megalite.stages.rlhf.models import ReferenceModels, TrainedModels
from megalite.stages.rlhf.placement import Side, check_placement
from megalite.stages.rlhf.remote import Bridge, remote_models, serve
from megalite.stages.rlhf.rollout import FrozenModels, SpecialTokens, special_tokens
from megalite.stages.rlhf.scoring import check_guarded_rows
from megalite.stages.rlhf.step import PolicyStep, keep_apart
from megalite.stages.rlhf.text import Text
from megalite.stages.rules.scores import Rules
from megalite.stages.samples import Samples, write_samples
from megalite.stages.setup import SeparateMesh, Stage, set_up, settled
from megalite.stages.start import said_by
from megalite.stages.told import check_reward_model, notes_of_writing


@dataclass(frozen=True)
class Inputs:
    """What a run reads, all of it opened before anything starts.

    Attributes:
        prompts: that are answered.
        special_tokens: of the answers.
        text: that is learned beside them, or None.
        samples: that are answered at the end, or None.
        rules: that score answers, or None.
    """

    prompts: Datasets[Prompts]
    special_tokens: SpecialTokens
    text: Text | None
    samples: Samples | None
    rules: Rules | None


def run(config: PolicyConfig, launch: Launch) -> int:
    """Align a model with PPO, or with GRPO where the config is of it."""
    with ExitStack() as ending:
        return _run(config, launch, ending)


def _run(config: PolicyConfig, launch: Launch, ending: ExitStack) -> int:
    """See :func:`run`; ``ending`` ends the processes of reward functions."""
    config.check_sources()
    config = settled(config, launch)
    data, temperature, start = config.data, config.rollout.temperature, config.checkpoint.start
    chat_format = open_chat(config.tokenizer, data, config.model, said_by(start))
    for key, folder in config.reward_models().items():
        check_reward_model(config, chat_format.chat.tokenizer, key, folder)

    def read(paths: Sequence[str], rules: RowRules) -> Prompts:
        keep_rows = bool(config.reward.function or config.reward.guard.column)
        return Prompts(paths, chat_format.chat, chat_format.structure, rules, keep_rows)

    prompts = Datasets.read(data, config.run.seed, read)
    if config.reward.guard.column:
        check_guarded_rows(config.reward.guard.column, prompts.train, prompts.heldout.values())
    inputs = Inputs(
        prompts,
        special_tokens(chat_format.chat),
        Text.open(config),
        Samples.read(config.samples, chat_format, config.model),
        _open_rules(config, chat_format.chat, prompts, ending),
    )
    config, length = in_steps(config, len(inputs.prompts.train))
    stage, bridge = _place(config, launch)
    stage.say(length, chat_format.notes, notes_of_writing(data, start), notes_of(inputs.prompts))
    with stage.running():
        if bridge is None:
            models = TrainedModels.build(stage, config, config.lora)
            frozen = ReferenceModels.of(stage, config, models).judges(temperature)
            _train(config, stage, models, frozen, inputs)
        elif launch.rank >= bridge.frozen.first:
            frozen = ReferenceModels.build(stage, config).judges(temperature)
            serve(frozen, bridge, stage.heartbeat, launch.stop)
        else:
            models = TrainedModels.build(stage, config, config.lora)
            with remote_models(bridge, stage.heartbeat) as remote:
                _train(config, stage, models, remote, inputs)
    return 0


def _open_rules(
    config: PolicyConfig, chat: Chat, prompts: Datasets[Prompts], ending: ExitStack
) -> Rules | None:
    """The reward functions, tried on the prompts; None without any.

    Raises:
        UserError: a file, a function or a row can't be used.
    """
    if not config.reward.function:
        return None

    def decode(answer: Sequence[int]) -> str:
        return chat.tokenizer.decode([token for token in answer if token not in chat.end_ids])

    rules = ending.enter_context(Rules(config.reward, decode))
    rules.check(chain(prompts.train, *prompts.heldout.values()))
    return rules


def _place(config: PolicyConfig, launch: Launch) -> tuple[Stage, Bridge | None]:
    """Set up the stage, and the bridge where the frozen models have processes of their own."""
    frozen = config.frozen
    for model in config.models():
        demand = Demand(model, launch.world_size, config.batch_sizes())
        check_placement(demand, config.parallel, frozen)
        if not frozen.processes:
            check_layout(demand, config.parallel)
    if not frozen.processes:
        return set_up(config, launch), None
    layout, first = frozen.layout(config.parallel), launch.world_size - frozen.processes
    stage = set_up(config, launch, SeparateMesh(frozen.processes, layout))
    actor = Side.of(0, first, config.parallel)
    return stage, Bridge(actor, Side.of(first, frozen.processes, layout), stage.mesh)


def _train(
    config: PolicyConfig,
    stage: Stage,
    models: TrainedModels,
    frozen: FrozenModels,
    inputs: Inputs,
) -> None:
    critic = [] if models.critic is None else [("critic", models.critic)]
    trainer, learners = stage.trainer(("actor", models.actor), *critic)
    if isinstance(config, PPOConfig) and config.critic_learning_rate:
        learners[1].set_learning_rate(config.critic_learning_rate)
    trainer.resume()
    prompts = inputs.prompts.train
    read = inputs.special_tokens, inputs.text, inputs.rules, prompts
    step = PolicyStep(config, stage, models, learners, frozen, *read)
    size = config.batch_sizes().unit
    trainer.fit(
        partial(stage.loader, prompts, keep_apart, size=size),
        step,
        evaluations(inputs.prompts.heldout, lambda part: partial(step.evaluate, part)),
    )
    write_samples(stage, models.actor, inputs.samples)
