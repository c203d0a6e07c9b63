"""What stands before a run's first step."""

from megalite.distributed.mesh import Mesh
from megalite.models.config import ModelConfig
from megalite.models.transformer import Transformer
from megalite.stages.overview import overview
from megalite.stages.ppo import PPOConfig
from megalite.stages.sft import SFTConfig

SIZES = {"vocab_size": 50, "hidden_size": 24, "num_layers": 3, "num_heads": 2, "ffn_size": 40}


def test_it_says_what_the_run_is_in_a_line_each():
    model = ModelConfig(**SIZES, num_encoder_layers=2)
    config = SFTConfig(
        model=model,
        data={"sequence_length": 30},
        train={"steps": 1500, "global_batch_size": 40, "micro_batch_size": 4, "precision": "bf16"},
    )
    count = sum(p.numel() for p in Transformer(model, Mesh.single()).parameters())
    assert overview(config, Mesh.single(), [("model", model)]) == [
        f"model    {count:,} parameters: 2 + 3 blocks of width 24, vocabulary 50",
        "start    initial values of seed 0",
        "devices  1 process on CPU, bf16",
        "batch    40 samples a step, 4 at once in a process, 1,200 tokens at most",
        "run      sft, 1,500 steps, in runs/sft",
    ]


def test_ppo_tells_both_models_that_learn_and_its_start():
    actor, critic = ModelConfig(**SIZES), ModelConfig(**SIZES, head="value")
    config = PPOConfig(checkpoint={"start": "runs/sft"})
    names = [("actor", actor), ("critic", critic)]
    lines = overview(config, Mesh.single(), names)
    assert [line.split()[0] for line in lines] == [
        "actor", "critic", "start", "devices", "batch", "run",
    ]  # fmt: skip
    assert lines[2] == "start    runs/sft"
