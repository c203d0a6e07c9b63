"""Orders that come while others are written: each answer is the one that is given alone."""

import threading
from dataclasses import dataclass, field

import pytest

from megalite.generation.answer import Asked, answer
from megalite.generation.desk import Desk, DeskFull, DeskStopped, End, Order
from megalite.generation.generate import Ending
from megalite.generation.room import Room
from megalite.generation.sampling import SamplingConfig
from megalite.stages.samples import decode_with
from tests.unit.generation.test_slots import ENDS, PAD, make, prompts_of

LIMIT = 20
ROOM = {"llama": Room.for_any(3, 64), "t5": Room.for_any(3, 64, 64)}


def letters(ids) -> str:
    return "".join(chr(ord("A") + number) for number in ids if number not in ENDS)


@dataclass
class Taken:
    """What a client gets."""

    text: str = ""
    end: End | None = None
    scores: list = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def add(self, text: str) -> None:
        self.text += text

    def finish(self, end: End) -> None:
        assert self.end is None
        self.end = end
        self.done.set()


class Office:
    """A desk and the thread that writes."""

    def __init__(self, name: str, most_waiting: int = 50, decode=None) -> None:
        self.model = make(name)
        ending = Ending(ENDS, PAD, decode=letters)
        decode = decode or decode_with(self.model)
        self.desk = Desk(decode, ROOM[name], ending, most_waiting)
        self._thread = threading.Thread(target=self.desk.run)

    def __enter__(self) -> "Office":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.desk.stop("done")
        self._thread.join()

    def order(self, prompt, taken, stops=(), limit=LIMIT, likeliest=None, **sampling) -> Order:
        config = SamplingConfig(max_new_tokens=limit, **sampling)
        told = () if likeliest is None else (likeliest, taken.scores.append)
        return Order(prompt, config, limit, 0, stops, taken.add, taken.finish, *told)


SAMPLINGS = [
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 4},
    {"temperature": 1.3, "seed": 9, "top_p": 0.8},
    {"temperature": 0.0, "presence_penalty": 1.5},
    {"temperature": 1.0, "seed": 1, "repetition_penalty": 1.4},
]


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_each_answer_is_the_one_given_alone_whatever_comes_beside_it(name):
    prompts = prompts_of(name)
    pairs = [(prompt, SAMPLINGS[n % 5]) for n, prompt in enumerate(prompts * 2)]
    with Office(name) as office:
        taken = [Taken() for _ in pairs]
        orders = [
            office.order(prompt, own, likeliest=(None, 2)[n % 2], **sampling)
            for n, ((prompt, sampling), own) in enumerate(zip(pairs, taken, strict=True))
        ]
        for at in range(0, len(orders), 4):  # they come while others are written
            office.desk.ask(orders[at : at + 4])
            assert taken[at].done.wait(60)
        for own in taken:
            assert own.done.wait(60)
    for n, ((prompt, sampling), own) in enumerate(zip(pairs, taken, strict=True)):
        config = SamplingConfig(max_new_tokens=LIMIT, **sampling)
        asked = Asked([prompt], [0], 1)
        found = answer(decode_with(office.model), asked, config, Ending(ENDS, PAD))
        assert own.text == letters(found.answer(0))
        assert own.end == End("stop" if bool(found.ended[0]) else "length", int(found.lengths[0]))
        drawn = [token for token in found.answer(0) if token not in ENDS]
        assert [one.token for one in own.scores] == (drawn if n % 2 else [])
        for one in own.scores:
            best, second = one.likeliest
            assert best[1] >= second[1]
            assert one.token == best[0] or one.log_prob <= second[1]


def test_stop_texts_are_each_orders_own():
    prompt = prompts_of("llama")[0]
    with Office("llama") as office:
        whole, cut = Taken(), Taken()
        office.desk.ask([office.order(prompt, whole, temperature=0.0)])
        assert whole.done.wait(60)
        assert len(whole.text) > 2
        stop = whole.text[1:3]
        both = [office.order(prompt, cut, [stop], temperature=0.0)]
        again = Taken()
        office.desk.ask([*both, office.order(prompt, again, temperature=0.0)])
        assert again.done.wait(60)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.end.reason == "stop"
    assert again.text == whole.text


def test_more_orders_than_may_wait_are_refused_whole_and_closed_ones_end():
    prompt = prompts_of("llama")[0]
    gate, entered = threading.Event(), threading.Event()
    inner = decode_with(make("llama"))

    def decode(batch, cache, *output):
        entered.set()
        assert gate.wait(60)
        return inner(batch, cache, *output)

    with Office("llama", 1, decode) as office:
        taken = [Taken() for _ in range(5)]
        orders = [office.order(prompt, own, temperature=0.0) for own in taken]
        office.desk.ask(orders[:3])
        assert entered.wait(60)
        office.desk.ask([orders[3]])
        with pytest.raises(DeskFull):
            office.desk.ask([orders[4]])
        office.desk.close([orders[0], orders[3]])
        gate.set()
        for own in taken[:4]:
            assert own.done.wait(60)
        assert [own.end.reason == "closed" for own in taken[:4]] == [True, False, False, True]
        assert taken[4].end is None
        office.desk.ask([orders[4]])
        assert taken[4].done.wait(60)
        assert taken[4].text == taken[1].text
    with pytest.raises(DeskStopped, match="done"):
        office.desk.ask([orders[4]])


def test_a_failure_is_told_and_the_next_order_is_answered():
    prompt, fails = prompts_of("llama")[0], [True]
    inner = decode_with(make("llama"))

    def decode(batch, cache, *output):
        if fails:
            fails.clear()
            raise MemoryError("no room")
        return inner(batch, cache, *output)

    with Office("llama", decode=decode) as office:
        first, second = Taken(), Taken()
        office.desk.ask([office.order(prompt, first)])
        assert first.done.wait(60)
        assert (first.end.reason, first.end.why) == ("failed", "MemoryError: no room")
        office.desk.ask([office.order(prompt, second)])
        assert second.done.wait(60)
        assert second.end.reason in ("stop", "length")
