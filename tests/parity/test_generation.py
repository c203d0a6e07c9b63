"""Our models decoding with a cache: token for token transformers' ``generate``, or a reference."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from megalite.generation.beam import BeamConfig, BeamSearch
from megalite.generation.decoder import CachedDecoder
from megalite.generation.generate import Ending, generate
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.sampling import SamplingConfig
from megalite.models.outputs import Logits
from tests.parity.families import PEERS, VOCABULARY, randomise
from tests.parity.test_families import ours_from

END, PAD, START, LIMIT = 2, 0, 1, 9
LENGTHS = (7, 3, 5, 1)
SEARCHES = [(1, 1.0, "heuristic"), (3, 2.0, "first"), (4, -0.5, "heuristic")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Gives a peer whose logits are sharp enough to be no lottery, and ours; each made once."""
    made = {}

    def get(name: str):
        if name not in made:
            torch.manual_seed(3)
            peer = PEERS[name].make().eval()
            randomise(peer)
            with torch.no_grad():
                for parameter in {id(p): p for p in peer.parameters() if p.requires_grad}.values():
                    parameter.mul_(3 if parameter.dim() > 1 else 1)
            path = tmp_path_factory.mktemp("peer")
            peer.save_pretrained(path)
            made[name] = peer, ours_from(path)[0].eval()
        return made[name]

    return get


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(3, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    return [tokens[i, :length].tolist() for i, length in enumerate(LENGTHS)]


def answers(decoder, batch, search) -> list[list[int]]:
    beams, penalty, early = search
    if beams == 1:
        config = SamplingConfig(max_new_tokens=LIMIT, temperature=0.0)
        ending = Ending({END}, PAD)
        found = generate(decoder, batch, config, ending)
    else:
        config = BeamConfig(num_beams=beams, length_penalty=penalty, early_stopping=early)
        found = BeamSearch(decoder, config, Ending({END}, PAD), LIMIT).run()
    return [found.answer(i) for i in range(len(LENGTHS))]


def ours_from_prompts(model, prompts: list[Prompt], search) -> list[list[int]]:
    batch = batch_prompts(prompts, range(len(prompts)), PAD)
    decoder = CachedDecoder(lambda b, cache: model(b, Logits(), cache=cache), batch, LIMIT)
    return answers(decoder, batch, search)


def grows_with_its_batch(peer) -> bool:
    """Whether a prompt's angles would hang on the longest prompt beside it, and on calls before."""
    return (getattr(peer.config, "rope_parameters", None) or {}).get("rope_type") == "dynamic"


def theirs_from(peer, search, is_encoder_decoder: bool) -> list[list[int]]:
    longest = max(LENGTHS)
    padded = [[PAD] * (longest - len(row)) + row for row in rows()]
    if is_encoder_decoder:
        padded = [row + [PAD] * (longest - len(row)) for row in rows()]
    beams, penalty, early = search
    peer.generation_config = GenerationConfig(
        max_new_tokens=LIMIT,
        do_sample=False,
        use_cache=not is_encoder_decoder,  # its cache has the encoder's number of layers for T5
        num_beams=beams,
        length_penalty=penalty,
        early_stopping={"heuristic": False, "first": True}[early],
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=START,
        decoder_start_token_id=START if is_encoder_decoder else None,
    )
    begin = 1 if is_encoder_decoder else longest
    found = []
    for part in torch.tensor(padded).split(1 if grows_with_its_batch(peer) else len(padded)):
        out = copy.deepcopy(peer).generate(part, attention_mask=(part != PAD).long())
        found += out[:, begin:].tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in found]


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "3 beams", "4 beams"])
@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if not peer.is_reference])
def test_answers_are_those_of_transformers(name: str, search, pair):
    peer, model = pair(name)
    is_encoder_decoder = PEERS[name].is_encoder_decoder
    prompts = [Prompt(row) for row in rows()]
    if is_encoder_decoder:
        prompts = [Prompt([START], encoder_tokens=row) for row in rows()]
    assert ours_from_prompts(model, prompts, search) == theirs_from(
        peer, search, is_encoder_decoder
    )


class WholeRows:
    """A reference that reads each row anew for each token, without padding or cache."""

    def __init__(self, peer, prompts: list[Prompt], axes: int) -> None:
        self.peer, self.axes = peer, axes
        self.rows = [(list(p.tokens), p.prefix) for p in prompts]

    @torch.no_grad()
    def start(self) -> torch.Tensor:
        return torch.stack([self._next(tokens, prefix) for tokens, prefix in self.rows])

    def _next(self, tokens: list[int], prefix: int) -> torch.Tensor:
        place = torch.arange(len(tokens))
        allowed = (place[None, :] <= place[:, None]) | (place[None, :] < prefix)
        positions = place
        if self.axes == 2:
            masked = place.clamp(max=max(prefix - 1, 0))
            positions = torch.stack((masked, (place - prefix + 1).clamp(min=0)), -1)
        batch = torch.tensor([tokens])
        return self.peer(batch, positions=positions[None], allowed=allowed[None]).logits[0, -1]

    def advance(self, tokens: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.rows, tokens.tolist(), strict=True)
        self.rows = [([*row, token], prefix) for (row, prefix), token in pairs]
        return self.start()

    def select(self, chosen: torch.Tensor) -> None:
        self.rows = [self.rows[i] for i in chosen.tolist()]


@pytest.mark.parametrize("search", SEARCHES[:2], ids=["greedy", "3 beams"])
@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.is_reference])
def test_answers_behind_a_prefix_are_those_of_the_reference(name: str, search, pair):
    """The last token of a prompt, ChatGLM's <sop>, is behind the prefix."""
    peer, model = pair(name)
    axes, prompts = PEERS[name].axes, []
    for row in rows():
        prefix, positions = len(row) - 1, None
        if axes == 2:
            positions = [
                (min(i, max(prefix - 1, 0)), max(i - prefix + 1, 0)) for i in range(len(row))
            ]
        prompts.append(Prompt(row, prefix=prefix, positions=positions))
    batch = batch_prompts(prompts, range(len(prompts)), PAD)
    whole = answers(WholeRows(peer, prompts, axes), batch, search)
    assert ours_from_prompts(model, prompts, search) == whole
