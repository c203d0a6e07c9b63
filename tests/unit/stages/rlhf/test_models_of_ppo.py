"""What PPO's four models start from, and that neither padding nor dropout reaches their numbers."""

import pytest
import torch
from tokenizers import Tokenizer, models

from megalite.data.chat.chat import Chat
from megalite.data.chat.datasets import ranking_batch
from megalite.data.example import collate
from megalite.data.layout import scored_example
from megalite.data.structure import Structure
from megalite.data.tokenizers.load import load_tokenizer
from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.generation.cache import Cache
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.models.config import ModelConfig
from megalite.models.outputs import Logits, LogProbs, Values
from megalite.stages.rlhf.responses import respond
from megalite.stages.rlhf.rollout import special_tokens
from megalite.stages.samples import decode_with

SHAPE = {"vocab_size": 31, "hidden_size": 24, "num_layers": 2, "num_heads": 4, "ffn_size": 40}
GPT = {"norm": "layer_norm", "gated": False, "activation": "gelu", "position": "learned"}


def model(**more):
    config = ModelConfig(**(SHAPE | {"max_positions": 64} | more))
    return build_model(config, Mesh.single(), ParallelConfig(), seed=3)


def test_a_reward_heads_first_weights_are_normal_with_their_own_deviation():
    """1 / sqrt(D + 1), and a bias of 0 where it has one."""
    large = model(hidden_size=1024, num_layers=1, head="value", head_bias=True)
    head = large.parts[0].head.value
    weight, bias = head.weight, head.bias
    assert float(weight.std()) == pytest.approx(1025**-0.5, rel=0.1)
    assert abs(float(weight.mean())) < 0.003
    assert float(bias) == 0
    assert float(model(head="value").parts[0].head.value.weight.std()) == pytest.approx(
        25**-0.5, rel=0.4
    )


@pytest.mark.parametrize("family", [{}, GPT, {"position": "alibi"}])
@pytest.mark.parametrize("padding", [1, 7])
def test_padding_on_the_left_changes_no_logit(family, padding):
    actor = model(**family)
    prompt = Prompt([4, 9, 2, 7, 7])
    (alone,) = actor.evaluate([batch_prompts([prompt], [0])], Logits())
    longer = Prompt(list(range(1, 6 + padding)))
    (both,) = actor.evaluate([batch_prompts([prompt, longer], [0, 1], pad_id=13)], Logits())
    assert torch.allclose(both[0, padding:], alone[0], atol=1e-5)


@pytest.mark.parametrize("head", ["lm", "value"])
def test_padding_on_the_right_changes_nothing_an_update_reads(head):
    judge = model(head=head)
    output = Values() if head == "value" else LogProbs(0.7)
    prompts, answers = [Prompt([4, 9, 2]), Prompt([5])], [[1, 2], [3, 4, 5, 6, 7, 8]]
    both = respond(prompts, answers, [0, 1], pad_id=13)
    (whole,) = judge.evaluate([both.batch], output)
    for row in range(2):
        alone = respond(prompts[row : row + 1], answers[row : row + 1], [row])
        (single,) = judge.evaluate([alone.batch], output)
        a, b = (whole, single) if head == "value" else (whole[0], single[0])
        count = len(prompts[row].tokens) + len(answers[row])
        assert torch.allclose(a[row, :count], b[0, :count], atol=1e-5)


@pytest.mark.parametrize("prefix", [False, True])
def test_answers_that_share_a_row_are_scored_as_if_each_stood_alone(prefix):
    """K answers in one forward pass, rankings of different lengths in one batch."""
    judge = model(head="value")
    structure = Structure(is_prefix=prefix)
    generator = torch.Generator().manual_seed(0)
    draw = lambda most: torch.randint(1, 30, (most,), generator=generator).tolist()  # noqa: E731
    rankings = [
        [scored_example(prompt, draw(1 + k), structure) for k in range(count)]
        for prompt, count in ((draw(5), 4), (draw(2), 2))
    ]
    made = ranking_batch(rankings, [0, 1])
    (values,) = judge.evaluate([made.batch], Values())
    for number, ranking in enumerate(rankings):
        assert made.valid[number].sum() == len(ranking)
        for k, example in enumerate(ranking):
            (alone,) = judge.evaluate([collate([example], [0])], Values())
            score = values[made.sequences[number, k], made.ends[number, k]]
            assert float(score) == pytest.approx(float(alone[0, -1]), abs=1e-5)


def test_log_probs_are_those_of_the_logits_divided_by_the_temperature():
    actor, temperature = model(), 0.7
    answered = respond([Prompt([4, 9, 2])], [[1, 2, 3]], [0])
    ((log_probs, entropy),) = actor.evaluate([answered.batch], LogProbs(temperature))
    (logits,) = actor.evaluate([answered.batch], Logits())
    expected = (logits / temperature).log_softmax(-1)
    taken = expected.gather(-1, answered.batch.labels.clamp(min=0)[..., None]).squeeze(-1)
    assert torch.allclose(log_probs[answered.mask], taken[answered.mask], atol=1e-5)
    own = -(expected.exp() * expected).sum(-1)
    assert torch.allclose(entropy[answered.mask], own[answered.mask], atol=1e-5)


@pytest.mark.parametrize(("end", "pad", "expected"), [(5, 5, 0), (0, 0, 1), (5, 3, 3), (5, 0, 0)])
def test_padding_is_never_the_end_token(end, pad, expected, tmp_path):
    letters = Tokenizer(models.BPE({"a": 0}, []))
    letters.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    chat = Chat("plain", tokenizer)
    chat.end_ids, tokenizer.pad_id = [end], pad
    found = special_tokens(chat)
    assert tuple(found.end_ids) == (end,)
    assert found.pad_id == expected


def test_decoding_makes_the_logits_of_the_last_row_alone():
    """Of prompts of S tokens the logits of all rows would be S times as many."""
    actor = model()
    batch = batch_prompts([Prompt([4, 9, 2]), Prompt([5])], [0, 1])
    (whole,) = actor.evaluate([batch], Logits())
    last = decode_with(actor)(batch, Cache(8))
    assert last.shape == (2, 1, 31)
    assert torch.allclose(last, whole[:, -1:], atol=1e-6)
