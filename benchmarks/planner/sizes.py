"""The least number of GPUs on which each published size fits, for each stage, as Markdown.

    python -m benchmarks.planner.sizes [--devices a100-80gb,h100-80gb,a100-40gb]

Sequences of 2,048 tokens in bf16; 128 of them a step. Of the layouts of that many GPUs, a power of
two, the fastest is shown, with the GiB of its fullest process and its tokens/s. PPO's four models
share the processes, half of a row is an answer, and answers are learned four times. A sample of RM
and DPO is two such rows, and DPO asks its reference in every step. SFT holds and takes what
pretraining does.
"""

import argparse
import math

from megalite.distributed.mesh import ParallelConfig
from megalite.models.config import ModelConfig
from megalite.models.part import Part
from megalite.plan.constants import constants_of
from megalite.plan.devices import DEVICES, NETWORKS, Cluster
from megalite.plan.memory import HEADROOM, Work, size_of
from megalite.plan.search import Found, Search
from megalite.plan.stages import Stage
from megalite.training.config import TrainConfig

SIZES = ("llama-7b", "llama-13b", "falcon-40b", "llama-65b", "gpt3-175b")
STAGES = {
    "pretraining, SFT": Stage(),
    "RM": Stage("rm"),
    "DPO": Stage("dpo", has_reference=True),
    "PPO": Stage("ppo"),
}
STATES = {"ppo": 32.0, "dpo": 16.0}  # bytes a parameter
SAMPLES, LENGTH, MOST = 128, 2048, 1024


def least(name: str, stage: Stage, gpu: str) -> tuple[int, Found] | None:
    """The fewest GPUs, a power of two, that a stage of a size fits, and the fastest layout."""
    model = ModelConfig.model_validate({"preset": name, "dropout": 0.0})
    train = TrainConfig(global_batch_size=SAMPLES, precision="bf16")
    cluster = Cluster(DEVICES[gpu], NETWORKS["ib-200"])
    work = Work(model, train, LENGTH)
    search = Search(work, ParallelConfig(), cluster, constants_of(cluster.device.kind), stage)
    bytes_ = STATES.get(stage.name, 12.0)
    states = bytes_ * size_of(model, Part.whole(model)).parameters
    room = HEADROOM * cluster.device.memory_gib * 2**30
    count = 1 << max(math.ceil(math.log2(states / room)), 0)
    while count <= MOST:
        found = search.best(count, 1)
        if found:
            return count, found[0]
        count *= 2
    return None


def cell(stage: Stage, found: tuple[int, Found] | None) -> str:
    """What the table says of a size, stage and device."""
    if found is None:
        return f"> {MOST}"
    count, best = found
    rate = stage.job(best.job).tokens / best.seconds.total
    return f"{count}: {best.total:.0f} GiB, {rate:,.0f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", default="a100-80gb,h100-80gb,a100-40gb")
    parser.add_argument("--sizes", default=",".join(SIZES), help="presets")
    options = parser.parse_args()
    gpus = options.devices.split(",")
    print(f"| size | stage | {' | '.join(gpus)} |")
    print("| --- | --- |" + " --- |" * len(gpus))
    for name in options.sizes.split(","):
        for label, stage in STAGES.items():
            cells = " | ".join(cell(stage, least(name, stage, gpu)) for gpu in gpus)
            print(f"| {name} | {label} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
