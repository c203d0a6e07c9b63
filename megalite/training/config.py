"""What a training run is told, besides its model, data and layout."""

from typing import Literal

from pydantic import Field

from megalite.config.section import Section


class RunConfig(Section):
    """Where a run writes, and what makes it repeatable."""

    folder: str = Field("runs/run", description="gets metrics, checkpoints and the config")
    seed: int = Field(0, ge=0, description="of initial values, order of samples and dropout")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where it computes")
    threads: int = Field(0, ge=0, description="of a process on the CPU; 0: cores / processes")
    tensorboard: bool = Field(True, description="write TensorBoard's files too")


class TrainConfig(Section):
    """The loop."""

    steps: int = Field(1000, ge=0, description="optimizer steps")
    global_batch_size: int = Field(8, ge=1, description="samples an optimizer step")
    micro_batch_size: int = Field(1, ge=1, description="samples a forward pass and process")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of compute")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to it; 0: never")
    max_bad_steps: int = Field(
        20, ge=1, description="steps in a row without finite gradients after which the run ends"
    )
    log_every: int = Field(10, ge=1, description="steps between console lines")
    evaluate_every: int = Field(0, ge=0, description="steps between evaluations; 0: never")
    evaluate_samples: int = Field(64, ge=1, description="held-out samples of an evaluation")


class OptimizerConfig(Section):
    """AdamW. Loshchilov & Hutter 2017, arXiv:1711.05101."""

    kind: Literal["adamw", "apex"] = Field(
        "adamw", description="PyTorch's fused AdamW, or NVIDIA apex's FusedAdam"
    )
    learning_rate: float = Field(3e-4, gt=0, description="peak")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the mean square")
    eps: float = Field(1e-8, gt=0, description="added to the root")
    weight_decay: float = Field(0.1, ge=0, description="of matrices; biases and norms have none")


class ScheduleConfig(Section):
    """The learning rate over samples."""

    kind: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="wsd: constant, then a linear decay at the end"
    )
    warmup: float = Field(0.01, ge=0, le=1, description="share of the run that warms up")
    decay: float = Field(0.2, ge=0, le=1, description="share of the run that decays (wsd)")
    floor: float = Field(0.1, ge=0, le=1, description="lowest rate after warm-up, share of peak")


class CheckpointConfig(Section):
    """When state is saved and how much of it is kept."""

    every: int = Field(100, ge=0, description="steps between checkpoints; 0: at the end only")
    keep: int = Field(2, ge=2, description="complete checkpoints that stay")
    asynchronous: bool = Field(True, description="write while training goes on (holds a copy)")
    start: str = Field(
        "", description="checkpoint or Hugging Face folder whose weights the run starts from"
    )
