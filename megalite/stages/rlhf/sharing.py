"""A critic on the actor's frozen weights: where it can be, and what it begins as."""

from megalite.engine.guests import Guest, GuestOptions
from megalite.engine.lora import ADAPTER, HEAD, LoRAConfig
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.models.hub import folder_of
from megalite.models.hugging_face import is_hugging_face
from megalite.stages.adapters import StoredAdapters, adapters_of
from megalite.training.checkpoint.checking import Checkers, verify_together
from megalite.training.checkpoint.load import find_checkpoint, load
from megalite.training.checkpoint.manifest import read_manifest
from megalite.training.folder.fingerprint import weights_source

CRITIC, SCORER = "critic", "scorer"  # guests of the actor; the second is the first as it starts
KEY = "--critic_shares_base true"
DO = "or leave critic_shares_base out"


def check_sharing(lora: LoRAConfig, is_compiled: bool) -> None:
    """Refuse a shared base that learns itself, or whose blocks are compiled.

    Raises:
        ConfigError: it names the key.
    """
    if not lora.rank:
        raise ConfigError(
            f"{KEY}: the actor's weights all learn, so the critic needs others: give lora.rank, "
            f"such as 16, {DO}"
        )
    if is_compiled:
        raise ConfigError(
            f"{KEY}: can't be with train.compile: blocks would be traced with the adapters of one "
            f"model: leave one of them out"
        )


def shared_start(start: str, reward_model: str, lora: LoRAConfig) -> StoredAdapters | None:
    """The adapters that a critic on the actor's base begins with, which stay beside its own.

    Args:
        start: of the actor.
        reward_model: that the critic starts from; empty: it starts as the actor does.
        lora: of both.

    Returns:
        Those of the reward model; None without one.

    Raises:
        ConfigError: the reward model is no adapters, of another base, or can't stand beside others.
        CheckpointError: it can't be read, or its base isn't what it was.
    """
    if not reward_model:
        return None
    found, folder = None, folder_of(reward_model)
    if not is_hugging_face(folder):
        path = find_checkpoint(folder)
        found = adapters_of(read_manifest(path)[0], path)
    if found is None:
        raise ConfigError(
            f"{KEY}: reward_model {reward_model} has weights of its own, not adapters of "
            f"checkpoint.start {start}: train it with lora.rank from there, {DO}"
        )
    source = weights_source(start)
    if source is None or source["fingerprint"] != found.fingerprint:
        raise ConfigError(
            f"{KEY}: reward_model {reward_model} has adapters of {found.base}, whose weights are "
            f"others than those of checkpoint.start {start}: start both from one model, {DO}"
        )
    if found.lora.base_format != lora.base_format:
        raise ConfigError(
            f"{KEY}: the base of reward_model {reward_model} was held as {found.lora.base_format}, "
            f"lora.base_format is {lora.base_format}: give {found.lora.base_format}, {DO}"
        )
    if found.lora.dora or lora.dora:
        whose = f"reward_model {reward_model} has it" if found.lora.dora else "this run has it"
        raise ConfigError(
            f"{KEY}: the critic's adapters stand beside the reward model's, and with lora.dora "
            f"({whose}) their products don't add up: leave lora.dora out, {DO}"
        )
    return found


def guests_of(
    shape: ModelConfig, lora: LoRAConfig, start: StoredAdapters | None
) -> list[GuestOptions]:
    """What an actor holds for its critic, which is last.

    Args:
        shape: of the critic.
        lora: its adapters.
        start: as :func:`shared_start` has it.
    """
    own = GuestOptions(CRITIC, shape, lora)
    if start is None:
        return [own]
    return [GuestOptions(SCORER, shape, start.lora, learns=False), own]


def fill_scorer(start: StoredAdapters, scorer: Guest, critic: Guest, checkers: Checkers) -> None:
    """Make a guest the stored reward model, and give its head to the critic.

    Args:
        start: the reward model's adapters.
        scorer: gets them; where they leave out a layer it has no product.
        critic: gets the head.
        checkers: who check the files, who all call this.

    Raises:
        CheckpointError: the files are damaged.

    Comm: as :func:`verify_together`.
    """
    verify_together(start.path, checkers)
    layers = start.layers().items()
    stored = {f"{layer}{ADAPTER}{factor}" for layer, factors in layers for factor in factors}
    for guest, names in ((scorer, stored), (critic, set[str]())):
        own = ((n, p) for n, p in guest.named_parameters() if n in names or n.startswith(HEAD))
        load(start.path, {f"{start.name}.{name}": p.detach() for name, p in own})
