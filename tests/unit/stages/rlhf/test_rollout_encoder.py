"""A rollout of an encoder-decoder reads a prompt once, however many tokens its answer has."""

from collections import Counter

import torch

from megalite.data.layout import as_prompt
from megalite.data.structure import Structure
from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.engine.model import Model
from megalite.generation.answer import Asked
from megalite.generation.prompts import batch_prompts
from megalite.models.batch import Batch, Stream
from megalite.models.config import ModelConfig
from megalite.models.outputs import Logits
from megalite.ops.mask import causal, full
from megalite.stages.rlhf.rollout import RolloutConfig, SpecialTokens, write_answers
from megalite.stages.samples import decode_with

TOKENS = 7


def make_model() -> Model:
    sizes = {"hidden_size": 32, "num_heads": 2, "ffn_size": 40}
    layers = {"num_layers": 3, "num_encoder_layers": 2}
    config = ModelConfig(vocab_size=131, init_std=0.3, **sizes, **layers)
    return build_model(config, Mesh.single(), ParallelConfig(), seed=0)


def test_the_encoder_and_its_keys_are_computed_once():
    model, calls = make_model(), Counter()
    for name, module in model.parts[0].named_modules():
        if name == "encoder" or name.endswith((".cross", "cross.key", "cross.value")):
            key = name.split(".", 3)[-1] if "cross" in name else name
            module.register_forward_hook(lambda *_, key=key: calls.update([key]))
    prompts = [as_prompt(tokens, Structure(True, start_id=3)) for tokens in ([20, 21, 22], [30])]
    config = RolloutConfig(max_new_tokens=TOKENS)
    answers = write_answers(
        decode_with(model), Asked(prompts, [0, 1]), config, 0, SpecialTokens((), 0)
    )
    assert answers.lengths.tolist() == [TOKENS, TOKENS]
    layers = 3
    assert calls["encoder"] == len(prompts)
    assert calls["cross.key"] == calls["cross.value"] == layers * len(prompts)
    recorded = 3  # passes, of which the first makes blocks; others run without Python
    assert calls["cross"] == layers * recorded


def test_what_the_cache_answers_is_what_reading_all_again_answers():
    model = make_model()
    prompts = [as_prompt(tokens, Structure(True, start_id=3)) for tokens in ([20, 21, 22], [30])]
    config = RolloutConfig(max_new_tokens=TOKENS, temperature=1e-4)
    answers = write_answers(
        decode_with(model), Asked(prompts, [0, 1]), config, 0, SpecialTokens((), 0)
    )
    for number, prompt in enumerate(prompts):
        tokens = [*prompt.tokens]
        for _ in range(TOKENS):
            again = batch_prompts(
                [as_prompt(list(prompt.encoder_tokens), Structure(True, start_id=3))], [0]
            )
            count, rows = len(tokens), torch.arange(len(tokens))[None].int()
            longer = Batch(
                Stream(torch.tensor([tokens]), rows, causal(1, count)),
                torch.full((1, count), -100),
                again.sample_ids,
                encoder=again.encoder,
                cross=full(1, count, len(prompt.encoder_tokens)),
            )
            (logits,) = model.evaluate([longer], Logits())
            tokens.append(int(logits[0, -1].argmax()))
        assert tokens[1:] == answers.answer(number)
