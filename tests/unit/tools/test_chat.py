"""``megalite chat``: what is kept of a conversation, what ends it and what it says of itself."""

import io
import os
import signal
import sys
import threading

import pytest

from megalite.cli import main
from megalite.config import load
from megalite.data.chat.turns import Turn
from megalite.distributed.launch import Launch
from megalite.errors import DataError
from megalite.generation.answer import Asked, answer
from megalite.generation.sampling import SamplingConfig
from megalite.stages.samples import decode_with
from megalite.tools.chat import ChatConfig, notes_on
from megalite.tools.speaker import open_speaker
from megalite.tools.talk import Talk

GREEDY = {"temperature": 0.0, "max_new_tokens": 6}


def talk_with(folder, *words, **sampling) -> Talk:
    config = load(ChatConfig, None, ["--model", str(folder), "--run.device", "cpu", *words])
    speaker = open_speaker(config, Launch(), converses=True)
    return Talk(speaker, speaker.load_model(), SamplingConfig(**(GREEDY | sampling)))


def chat(monkeypatch, folder, text: str, *words) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    own = ["chat", "--model", str(folder), "--run.device", "cpu", "--sampling.temperature", "0"]
    return main([*own, "--sampling.max_new_tokens", "6", *words])


@pytest.mark.parametrize(
    ("structure", "words"),
    [("causal", []), ("causal", ["--prefix"]), ("encoder_decoder", ["--template", "plain"])],
    ids=["causal", "prefix", "encoder-decoder"],
)
def test_an_answer_is_that_to_all_turns_before_it(structure, words, request):
    folder = request.getfixturevalue(structure)
    talk = talk_with(folder, *words)
    talk.system = "be red"
    shown: list[str] = []
    first = talk.ask("the cat", shown.append)
    assert "".join(shown) == first.text
    second = talk.ask("and?", shown.append)
    turns = [Turn("system", "be red"), Turn("user", "the cat"), Turn("assistant", first.text)]
    prompt = talk.speaker.prompt([*turns, Turn("user", "and?")])
    ending, asked = talk.speaker.ending(), Asked([prompt], [7])
    found = answer(decode_with(talk.model), asked, talk.sampling, ending)
    assert first.text
    assert second.text == talk.speaker.chat.tokenizer.decode(found.answer(0))
    assert (prompt.prefix > 0) == ("--prefix" in words)
    assert bool(prompt.encoder_tokens) == (structure == "encoder_decoder")


def test_a_folders_own_template_is_taken_unsaid(causal):
    talk = talk_with(causal)
    assert talk.speaker.template == "tokenizer"
    tokens = talk.speaker.prompt([Turn("user", "hi")]).tokens
    assert talk.speaker.chat.tokenizer.decode(tokens) == "[user]hi[assistant]"


def test_whole_rounds_are_left_out_where_positions_end_and_it_is_said(causal):
    talk = talk_with(causal)
    left_out = [talk.ask(f"question {n}", lambda _: None).left_out for n in range(6)]
    assert sum(left_out) > 0
    assert len(talk.rounds) == 6 - sum(left_out)
    assert all(question.role == "user" for question, _ in talk.rounds)
    said = talk.ask("question 9", lambda _: None)
    assert "longer than the model's positions" in " ".join(notes_on(said))
    before = list(talk.rounds)
    with pytest.raises(DataError, match="96 positions: shorten it"):
        talk.ask("q" * 200, lambda _: None)
    assert talk.rounds == before
    full = talk_with(causal, max_new_tokens=500).ask("q" * 50, lambda _: None)
    assert full.reason in ("full", "end")


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(causal):
    talk, shown = talk_with(causal, max_new_tokens=40), []
    before = signal.getsignal(signal.SIGINT)

    def show(text: str) -> None:
        shown.append(text)
        if len(shown) == 2:
            signal.raise_signal(signal.SIGINT)

    said = talk.ask("the cat", show)
    assert said.reason == "stopped"
    assert said.num_tokens == 3
    assert said.text == "".join(shown)
    assert talk_with(causal, max_new_tokens=9).ask("the cat", print).text.startswith(said.text)
    assert signal.getsignal(signal.SIGINT) is before
    assert talk.rounds[-1][1].text == said.text
    assert talk.ask("and?", lambda _: None).text


def test_lines_of_a_pipe_are_a_conversation(causal, monkeypatch, capsys):
    lines = "the cat\n\n/temperature x\n/system be red\nthe cat\n/nonsense\n//x\n/exit\nnever\n"
    assert chat(monkeypatch, causal, lines) == 0
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.startswith("> ")][:3] == [
        "> the cat",
        "> /temperature x",
        "> /system be red",
    ]
    assert "never" not in out
    assert "/temperature = 'x': must be a number" in err
    assert "/nonsense: no such command" in err
    assert len(out.split("> the cat\n")) == 3
    assert "the system message is 'be red'" in err
    assert "> //x\n" in out


def test_a_terminal_is_asked_and_ctrl_d_ends(causal, monkeypatch, capsys):
    ours, theirs = os.openpty()
    with open(theirs, encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        feed = threading.Thread(target=os.write, args=(ours, b"the cat\n/settings\n\x04"))
        feed.start()
        words = ["chat", "--model", str(causal), "--run.device", "cpu"]
        assert main([*words, "--sampling.max_new_tokens", "3"]) == 0
        feed.join()
    os.close(ours)
    out, err = capsys.readouterr()
    assert out.startswith("> ")
    assert "max_new_tokens 3" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
        (["--stop", '["<|end|>x"]'], "<|end|> is a special token"),
        (["--template", "llama3"], "template llama3: writes"),
        (["--sampling.temperature", "-1"], "sampling.temperature"),
    ],
)
def test_what_cannot_be_is_one_line(causal, words, says, monkeypatch, capsys):
    assert chat(monkeypatch, causal, "hi\n", *words) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert len(said.splitlines()) == 1


def test_text_that_is_no_utf8_is_refused(causal, monkeypatch, capsys):
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["chat", "--model", str(causal), "--run.device", "cpu"]) == 2
    assert "standard input: not UTF-8" in capsys.readouterr().err
