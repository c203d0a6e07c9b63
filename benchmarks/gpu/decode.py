"""Answers of a LLaMA of 1.3 billion parameters, in the ways that a token's pass can be launched."""

import time

import torch

from benchmarks.gpu.here import Here
from benchmarks.gpu.step import REAL, TINY
from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.generation.answer import Asked
from megalite.generation.decoder import Forward
from megalite.generation.generate import Answers, Ending, generate
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.sampling import SamplingConfig
from megalite.generation.slots import SlotDecoder
from megalite.models.config import ModelConfig
from megalite.ops.tape import Trust
from megalite.stages.samples import decode_with

SLOTS = 32
BY_REQUEST = "by request"


def _trust(way: str) -> Trust:
    """What may be repeated, and how."""
    trust = Trust()
    trust.why_not = BY_REQUEST if way == "Python" else ""
    trust.why_no_graph = "" if way == "a graph" else BY_REQUEST
    return trust


def run(here: Here) -> None:
    """The same answers by Python, by a tape and by a CUDA graph: equal tokens, and seconds."""
    config = ModelConfig(**(TINY if here.is_tiny else REAL))
    format_of = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    precision = "fp32" if here.is_rehearsal else format_of[here.dtypes()[0]]
    mesh = Mesh.single(here.device)
    model = build_model(config, mesh, ParallelConfig(), seed=0, precision=precision)
    with model.gathered():
        _compare_all(here, decode_with(model))


def _compare_all(here: Here, decode: Forward) -> None:
    generator = torch.Generator().manual_seed(1)
    known, new = (8, 6) if here.is_tiny else (128, 64)
    for count in (1, SLOTS, 2 * SLOTS):  # the last with slots that are given on
        lengths = torch.randint(known // 2, known + 1, (count,), generator=generator).tolist()
        rows = [torch.randint(5, 300, (n,), generator=generator).tolist() for n in lengths]
        limits = torch.randint(new // 2, new + 1, (count,), generator=generator).tolist()
        asked = Asked([Prompt(row) for row in rows], range(count), SLOTS, here.device, limits)
        _compare(here, decode, asked)


def _compare(here: Here, decode: Forward, asked: Asked) -> None:
    limits = asked.limits or []
    config = SamplingConfig(max_new_tokens=max(limits), seed=0)
    batch = batch_prompts(asked.prompts, asked.sample_ids).to(asked.device)
    room, name = asked.room(config), f"{len(limits)} answers in {min(SLOTS, len(limits))} slots"
    first: Answers | None = None
    for way in ("Python", "a tape", "a graph"):
        times, trust = [], _trust(way)
        for _ in range(2):  # the first also loads and chooses kernels
            trust = _trust(way)
            decoder = SlotDecoder(decode, room, asked.device, trust=trust)
            decoder.ask_all(asked.prompts, limits)
            here.wait()
            started = time.perf_counter()
            answers = generate(decoder, batch, config, Ending(()), limits)
            here.wait()
            times.append(time.perf_counter() - started)
        first = first or answers
        is_equal = torch.equal(answers.tokens, first.tokens)
        fault = "" if is_equal else "other tokens than those of Python"
        said = {"not_repeated": trust.why_not, "no_graph": trust.why_no_graph}
        reasons = {key: why for key, why in said.items() if why not in ("", BY_REQUEST)}
        here.note(
            f"{name}, by {way}",
            fault,
            tokens_per_s=sum(limits) / times[-1],
            first_s=times[0],
            **reasons,
        )
