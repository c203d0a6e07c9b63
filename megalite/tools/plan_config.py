"""What ``megalite plan`` is asked: a run of any stage, the devices, and what to tell of it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from megalite.config.section import Section, section_class
from megalite.data.config import CorpusConfig
from megalite.plan.rows import Rows, conversation_rows, corpus_rows
from megalite.plan.stages import StageName
from megalite.stages.dpo import DPOConfig
from megalite.stages.planned import stage_of, work_of
from megalite.stages.pretrain import PretrainConfig
from megalite.stages.rlhf.config import PPOConfig
from megalite.stages.rm import RMConfig
from megalite.stages.setup import StageConfig
from megalite.stages.sft import SFTConfig

PROMPT = 0.5  # of a row of prompt and answer, where nothing says how long answers are
CONFIGS: dict[StageName, type[StageConfig]] = {
    "pretrain": PretrainConfig,
    "sft": SFTConfig,
    "rm": RMConfig,
    "ppo": PPOConfig,
    "dpo": DPOConfig,
}
Gpu = Literal[
    "a100-80gb",
    "a100-40gb",
    "a800-80gb",
    "h100-80gb",
    "h200-141gb",
    "v100-32gb",
    "v100-16gb",
    "v100-32gb-pcie",
    "v100-16gb-pcie",
    "cpu",
]


class PlanOptions(Section):
    """The devices that a run is planned for, and what is asked of the plan."""

    gpu: Gpu = Field(
        "a100-80gb",
        description="device of each process: a100-80gb, a100-40gb, a800-80gb, h100-80gb, "
        "h200-141gb, v100-32gb, v100-16gb; in PCIe slots v100-32gb-pcie, v100-16gb-pcie; or cpu, "
        "which needs a calibration",
    )
    network: Literal[
        "ib-100",
        "ib-200",
        "ib-400",
        "ib-800",
        "roce-100",
        "roce-200",
        "roce-400",
        "efa-100",
        "efa-400",
        "omni-path-100",
    ] = Field(
        "ib-200",
        description="network between nodes by Gbit/s of an adapter: InfiniBand (ib-100, ib-200, "
        "ib-400, ib-800), Ethernet (roce-100, roce-200, roce-400), AWS (efa-100; efa-400 with 32 "
        "adapters) or omni-path-100",
    )
    per_node: int = Field(8, ge=1, description="devices of a node")
    adapters: int = Field(8, ge=1, description="adapters of a node's network")
    price_per_gpu_hour: float = Field(
        0.0,
        ge=0,
        description="price of a device, an hour, for the cost; 0: not asked",
    )
    power: float = Field(
        0.0,
        ge=0,
        description="watts of a device with its share of node and cooling; 0: not asked",
    )
    failures: float = Field(
        6.5,
        ge=0,
        description="failures that stop a run, of a thousand nodes a day",
    )
    save_s: float = Field(60.0, gt=0, description="seconds that a checkpoint stops training for")
    of_stage: Literal["", "pretrain", "sft", "rm", "ppo", "dpo"] = Field(
        "",
        description="stage that is planned: pretrain, sft, rm, ppo or dpo; empty: that whose keys "
        "the config has",
    )
    document_tokens: int = Field(
        0,
        ge=0,
        description="tokens of a document or conversation, several of which share a sequence; 0: "
        "as many as fit one",
    )
    search: bool = Field(
        False, description="whether the fastest layouts that fit are searched and the best written"
    )
    output: str = Field("plan.toml", description="file that the best layout is written to")
    gpus: int = Field(
        0, ge=0, le=2**20, description="devices to search; 0: as many as the layout has"
    )
    days: float = Field(
        0.0,
        ge=0,
        description="days in which the run must end: the fewest devices are searched; 0: not asked",
    )
    calibration: str = Field(
        "", description="file of constants that calibrate wrote; empty: those of the package"
    )
    calibrate: str = Field(
        "", description="run whose measured steps set the constants; they are written to output"
    )

    @classmethod
    def chosen(cls, values: Mapping[str, Any], stage: str) -> "type[Section]":
        """The class of a config: of its recipe's stage, or the first that has all its keys."""
        if stage in PLANS:
            return PLANS[stage]
        lacks = {name: len(_unknown(one, values)) for name, one in PLANS.items()}
        named = values.get("of_stage")
        return PLANS[min(lacks, key=lambda name: (lacks[name], name != named))]


class PlanConfig(PlanOptions, PretrainConfig):
    """A pretraining run that is planned."""


class SFTPlan(PlanOptions, SFTConfig):
    """A fine-tuning run that is planned."""


class RMPlan(PlanOptions, RMConfig):
    """A reward-modelling run that is planned."""


class PPOPlan(PlanOptions, PPOConfig):
    """A PPO run that is planned."""


class DPOPlan(PlanOptions, DPOConfig):
    """A run of learning from preferences that is planned."""


AnyPlan = PlanConfig | SFTPlan | RMPlan | PPOPlan | DPOPlan
PLANS: dict[str, type[Section]] = {
    "pretrain": PlanConfig,
    "sft": SFTPlan,
    "rm": RMPlan,
    "ppo": PPOPlan,
    "dpo": DPOPlan,
}


def _unknown(cls: type[Section], values: Mapping[str, Any]) -> list[str]:
    """Keys that a class does not have, to the second level."""
    found = []
    for name, value in values.items():
        field = cls.model_fields.get(name)
        if field is None:
            found.append(name)
            continue
        inner = section_class(field.annotation)
        if inner is not None and isinstance(value, Mapping):
            found += [key for key in value if key not in inner.model_fields]
    return found


def stage_name(config: AnyPlan) -> StageName:
    """The stage that is planned."""
    return config.of_stage or config.stage  # type: ignore[return-value]


def rows_of(config: AnyPlan) -> Rows:
    """What the rows of a sequence see."""
    data, work, document = config.data, work_of(config), config.document_tokens
    if isinstance(data, CorpusConfig):
        if stage_name(config) == "pretrain":
            return corpus_rows(data, config.model, document)
        is_prefix = data.prefix and data.objective_names != ("next_token",)
    else:
        is_prefix = data.prefix
    stage = stage_of(config, stage_name(config))
    prompt = 1 - stage.answered if stage.name == "ppo" else PROMPT
    own = 0 if stage.name == "ppo" else document
    share = prompt if is_prefix else 0.0
    return conversation_rows(work.sequence_length, work.encoder_length, own, share)
