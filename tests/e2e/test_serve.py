"""``megalite serve`` behind the real ``openai`` client: answers, streams, refusals, the end."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request

import openai
import pytest
import torch
from transformers import GPT2LMHeadModel

from megalite.cli import main
from megalite.config import load
from megalite.data.chat.turns import Turn
from megalite.distributed.launch import Launch
from megalite.generation.answer import Asked, answer
from megalite.generation.sampling import SamplingConfig
from megalite.stages.samples import decode_with
from megalite.tools.serve import ServeConfig
from megalite.tools.speaker import open_speaker
from tests.e2e.conftest import command_line, environment
from tests.unit.tools.conftest import TEMPLATE, gpt2, save

KEY = "secret"
POSITIONS = 60_000  # an answer of so many tokens lasts until something ends it
QUEUE = 256


class Server:
    """A server in a process of its own; ``said`` is what it wrote on standard error."""

    def __init__(self, folder, *words: str) -> None:
        own = ["serve", "--model", str(folder), "--port", "0", "--run.device", "cpu"]
        own += ["--run.threads", "1", "--name", "tiny", *words]
        self.process = subprocess.Popen(
            command_line(own), stderr=subprocess.PIPE, text=True, env=environment()
        )
        self.said: list[str] = []
        self.port = 0
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
                self.port = int(found[1])
                break
        assert self.port, self.said
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        self.said += self.process.stderr

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, **options)

    def lines(self) -> list[str]:
        """All that it wrote, once it has ended."""
        self._reader.join()
        return self.said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GPT-2 that never ends an answer by itself: no logit of its end token is above 0."""
    model, folder = gpt2(POSITIONS), tmp_path_factory.mktemp("lasting")
    save(model, folder, TEMPLATE)
    with torch.no_grad():
        model.transformer.wte.weight[0] = 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    words = ["--api_key", KEY, "--limits.body_bytes", "20000", "--limits.slots", "4"]
    words += ["--limits.queue", str(QUEUE), "--limits.context_tokens", str(POSITIONS)]
    started = Server(folder, *words, "--limits.stop_s", "0")
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait()


@pytest.fixture(scope="module")
def client(server):
    return server.client()


@pytest.fixture(scope="module")
def speaker(folder):
    config = load(ServeConfig, None, ["--model", str(folder), "--run.device", "cpu"])
    return open_speaker(config, Launch(), converses=True)


@pytest.fixture(scope="module")
def alone(speaker):
    """What answers questions here, each by itself."""
    model = speaker.load_model()

    def answers(questions: list[str], most: int) -> list[str]:
        prompts = [speaker.prompt([Turn("user", question)]) for question in questions]
        sampling = SamplingConfig(temperature=0.0, max_new_tokens=most)
        asked = Asked(prompts, range(len(prompts)), 3)
        found = answer(decode_with(model), asked, sampling, speaker.ending())
        return [speaker.chat.tokenizer.decode(found.answer(n)) for n in range(len(prompts))]

    return answers


def ask(client, text: str = "the cat", **options):
    asked = {"model": "tiny", "temperature": 0, "max_tokens": 8} | options
    return client.chat.completions.create(messages=[{"role": "user", "content": text}], **asked)


def test_a_chat_a_completion_and_the_models(client, alone):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    found = ask(client)
    assert found.choices[0].message.content == alone(["the cat"], 8)[0]
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 8
    assert found.usage.prompt_tokens == found.usage.total_tokens - 8
    asked = {"model": "tiny", "temperature": 0, "max_tokens": 5}
    text = client.completions.create(prompt="the cat", **asked)
    tokens = client.completions.create(prompt=[3, 4, 5], n=2, **asked)
    assert len(tokens.choices) == 2
    several = client.completions.create(prompt=["red", "the cat"], **asked)
    assert several.choices[1].text == text.choices[0].text
    assert [choice.index for choice in several.choices] == [0, 1]


def test_a_stream_is_the_whole_answer(client):
    whole = ask(client, n=2, temperature=1, seed=3)
    texts = [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    parts, ends, usage = ["", ""], {}, None
    options = {"stream_options": {"include_usage": True}, "stream": True}
    for chunk in ask(client, n=2, temperature=1, seed=3, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert parts == texts
    assert ends == {n: choice.finish_reason for n, choice in enumerate(whole.choices)}
    assert usage == whole.usage
    stop = texts[0][3:5]
    cut = ask(client, temperature=1, seed=3, stop=[stop])
    assert cut.choices[0].message.content == texts[0][: texts[0].index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    streamed = client.completions.create(model="tiny", prompt="the", max_tokens=4, stream=True)
    assert [chunk.choices[0].finish_reason for chunk in streamed][-1] == "length"


def scored(entry) -> tuple[str, float]:
    return entry.token, pytest.approx(entry.logprob, abs=1e-4)


def test_log_probabilities_are_those_of_the_models_own_logits(client, folder, speaker):
    model, decode = GPT2LMHeadModel.from_pretrained(folder), speaker.chat.tokenizer.decode
    ids = list(speaker.prompt([Turn("user", "the cat")]).tokens)
    begun, counts = len(ids), torch.zeros(model.config.vocab_size)
    asked = {"frequency_penalty": 1.5, "max_tokens": 6}
    entries = ask(client, logprobs=True, top_logprobs=4, **asked).choices[0].logprobs.content
    for entry in entries:
        with torch.no_grad():
            row = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        token = int((row - 1.5 * counts).argmax())
        last = ids[-1:] if len(ids) > begun else []
        texts = {
            n: decode([*last, n])[len(decode(last)) :]
            for n in (token, *row.topk(4).indices.tolist())
        }
        assert (texts[token], float(row[token])) == scored(entry)
        found = [scored(one) for one in entry.top_logprobs]
        assert [(texts[n], float(row[n])) for n in row.topk(4).indices.tolist()] == found
        ids.append(token)
        counts[token] += 1
    assert len(entries) == 6
    same = client.completions.create(
        model="tiny", prompt=ids[:begun], temperature=0, logprobs=2, **asked
    ).choices[0]
    told = same.logprobs
    assert told.tokens == [entry.token for entry in entries]
    assert told.token_logprobs == pytest.approx([entry.logprob for entry in entries], abs=1e-4)
    for entry, text, top in zip(entries, told.tokens, told.top_logprobs, strict=True):
        assert {one.token for one in entry.top_logprobs[:2]} | {text} == set(top)
        assert max(top.values()) == pytest.approx(entry.top_logprobs[0].logprob, abs=1e-4)
    assert [
        same.text[at:].startswith(t) for at, t in zip(told.text_offset, told.tokens, strict=True)
    ]
    assert ask(client).choices[0].logprobs is None


def test_scores_come_with_their_texts_and_an_echo_before_them(client):
    drawn = {"temperature": 1, "seed": 5, "logprobs": True, "top_logprobs": 1, "n": 2}
    whole, parts = ask(client, max_tokens=12, **drawn), [[], []]
    for chunk in ask(client, max_tokens=12, stream=True, **drawn):
        for choice in chunk.choices:
            parts[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert parts == [choice.logprobs.content for choice in whole.choices]
    assert [len(part) for part in parts] == [12, 12]
    text = whole.choices[0].message.content
    cut = ask(client, max_tokens=12, stop=[text[4:6]], **drawn).choices[0]
    kept = [entry.token for entry in cut.logprobs.content]
    assert kept == [entry.token for entry in parts[0]][: len(kept)]
    assert 0 < len(kept) < 12
    asked = {"model": "tiny", "prompt": "the cat", "temperature": 0, "max_tokens": 4}
    plain = client.completions.create(**asked).choices[0].text
    assert client.completions.create(echo=True, **asked).choices[0].text == "the cat" + plain
    tokens = client.completions.create(echo=True, **asked | {"prompt": [[3, 4], [5]]})
    others = client.completions.create(**asked | {"prompt": [[3, 4], [5]]})
    assert all(a.text.endswith(b.text) for a, b in zip(tokens.choices, others.choices, strict=True))
    assert all(
        len(a.text) > len(b.text) for a, b in zip(tokens.choices, others.choices, strict=True)
    )
    streamed = client.completions.create(echo=True, stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "the cat" + plain


def test_two_hundred_at_once_get_what_each_gets_alone(server, alone):
    questions = [f"the {n} cat" for n in range(190)]
    drawn = [{"temperature": 1.0, "seed": n, "top_p": 0.9} for n in range(10)]
    before = [ask(server.client(), **one).choices[0].message.content for one in drawn]

    async def gather() -> list:
        connections = openai.DefaultAsyncHttpxClient(limits=openai.DEFAULT_CONNECTION_LIMITS)
        options = {"base_url": f"{server.url}/v1", "api_key": KEY, "max_retries": 0}
        async with openai.AsyncOpenAI(http_client=connections, timeout=250, **options) as client:
            each = [ask(client, text, max_tokens=5) for text in questions]
            return await asyncio.gather(*each, *[ask(client, **one) for one in drawn])

    found = [one.choices[0].message.content for one in asyncio.run(gather())]
    assert found == alone(questions, 5) + before


def post(server, path: str, body: bytes, key: str = KEY) -> tuple[int, dict]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(server.url + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answered:
            return answered.status, json.load(answered)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
ASK = {"model": "tiny", "prompt": "a"}
NOT_HERE = "is not supported by this server"
JSON = {"type": "json_object"}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
BAD = [
    (CHAT, b"{", 400, "Invalid JSON", None),
    (CHAT, b'{"model": "tiny"}', 400, "messages: Field required", "messages"),
    (CHAT, HELLO | {"messages": []}, 400, "messages", "messages"),
    (CHAT, HELLO | {"messages": [{"role": "x", "content": "a"}]}, 400, "role", "messages"),
    (CHAT, HELLO | {"temperature": "hot"}, 400, "temperature", "temperature"),
    (CHAT, HELLO | {"temperature": -1}, 400, "temperature", "temperature"),
    (CHAT, HELLO | {"n": 0}, 400, "n: ", "n"),
    (CHAT, HELLO | {"max_tokens": 10**6}, 400, "at most", "max_tokens"),
    (CHAT, HELLO | {"tools": [{"type": "function"}]}, 400, f"tools: {NOT_HERE}", "tools"),
    (CHAT, HELLO | {"tool_choice": "required"}, 400, f"tool_choice: {NOT_HERE}", "tool_choice"),
    (CHAT, HELLO | {"functions": [{"name": "f"}]}, 400, f"functions: {NOT_HERE}", "functions"),
    (CHAT, HELLO | {"top_logprobs": 2}, 400, "only with logprobs true", "top_logprobs"),
    (CHAT, HELLO | {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs: ", "top_logprobs"),
    (CHAT, HELLO | {"logprobs": 3}, 400, "logprobs: ", "logprobs"),
    (CHAT, HELLO | {"echo": True}, 400, "Unrecognized request argument: echo", "echo"),
    (CHAT, HELLO | {"response_format": JSON}, 400, f".type: {NOT_HERE}", "response_format"),
    (CHAT, HELLO | {"messages": [IMAGE]}, 400, f"content.0.image_url: {NOT_HERE}", "messages"),
    (CHAT, HELLO | {"messages": [CALL]}, 400, f"messages.0.tool_calls: {NOT_HERE}", "messages"),
    (CHAT, HELLO | {"nonsense": 1}, 400, "Unrecognized request argument: nonsense", "nonsense"),
    (CHAT, HELLO | {"min_p": float("nan")}, 400, "finite number", "min_p"),
    (CHAT, HELLO | {"stop": [""]}, 400, "stop", "stop"),
    (CHAT, HELLO | {"stream_options": {}}, 400, "only with stream", "stream_options"),
    (CHAT, HELLO | {"model": "other"}, 404, "'other' is not here", "model"),
    (CHAT, HELLO | {"messages": [{"role": "assistant", "content": "q"}]}, 400, "last", "messages"),
    (CHAT, HELLO | {"user": "u" * 30000}, 413, "20000 bytes", None),
    (TEXT, {"model": "tiny", "prompt": [5000]}, 400, "5000 is no token", "prompt"),
    (TEXT, {"model": "tiny", "prompt": []}, 400, "at least one", "prompt"),
    (TEXT, {"model": "tiny", "prompt": ""}, 400, "no tokens", None),
    (TEXT, {"model": "tiny", "prompt": [[1], ["a"]]}, 400, "prompt.1.0: ", "prompt"),
    (TEXT, ASK | {"echo": True, "logprobs": 1}, 400, f"echo: {NOT_HERE}", "echo"),
    (TEXT, ASK | {"logprobs": 6}, 400, "logprobs: ", "logprobs"),
    (TEXT, ASK | {"best_of": 3}, 400, f"best_of: {NOT_HERE}", "best_of"),
    ("/v1/nowhere", {}, 404, "Not Found", None),
]


def test_bad_bodies_are_refused_in_openais_form(server):
    for path, body, status, says, param in BAD:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        code, answered = post(server, path, sent)
        error = answered["error"]
        assert (code, error["param"]) == (status, param), (body, answered)
        assert says in error["message"], (body, answered)
        assert set(error) == {"message", "type", "param", "code"}
    assert post(server, CHAT, json.dumps(HELLO).encode(), "wrong")[0] == 401
    with pytest.raises(openai.NotFoundError, match="is not here"):
        ask(server.client(), model="other")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(server.client(), temperature=9)


def test_keys_that_ask_for_nothing_are_no_obstacle(client):
    nothing = dict.fromkeys(("functions", "prediction", "audio", "suffix", "best_of", "stop"))
    said = ask(client, extra_body=nothing | {"tools": [], "functions": []}).choices[0].message
    asked = {"role": "user", "content": "the cat"}
    turns = [asked, said.model_dump() | {"annotations": []}, asked]
    found = client.chat.completions.create(model="tiny", messages=turns, max_tokens=2)
    assert found.usage.completion_tokens == 2


def test_a_client_that_goes_amid_its_body_leaves_no_word(server, client):
    with socket.create_connection(("127.0.0.1", server.port)) as gone:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        gone.sendall(f'{head}Content-Length: 90\r\n\r\n{{"model"'.encode())
        gone.shutdown(socket.SHUT_WR)
        assert gone.recv(1) == b""
    assert ask(client, max_tokens=2).usage.completion_tokens == 2


def test_more_than_may_wait_is_refused_and_a_client_that_goes_frees_its_slots(client):
    with pytest.raises(openai.BadRequestError, match="300 answers are more than the 260"):
        client.completions.create(model="tiny", prompt=["a", "b", "c"], n=100)
    asked = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": POSITIONS // 2}
    stream = client.completions.create(n=QUEUE // 2, stream=True, **asked)
    next(iter(stream))  # a text: all four slots are taken, and the others wait
    with pytest.raises(openai.RateLimitError, match=r"\d+ answers wait already"):
        client.completions.create(n=QUEUE // 2, **asked)
    stream.close()
    assert ask(client, max_tokens=2).usage.completion_tokens == 2


def test_a_port_that_is_taken_and_an_open_host_are_named(server, folder, capsys):
    taken = str(server.port)
    assert main(["serve", "--model", str(folder), "--port", taken]) == 2
    said = capsys.readouterr().err.strip()
    assert f"--port {taken}: 127.0.0.1 can't be listened at" in said
    assert len(said.splitlines()) == 1
    assert main(["serve", "--model", "nowhere", "--port", "0", "--host", "0.0.0.0"]) == 2
    assert "every machine that reaches this one can use the model" in capsys.readouterr().err


def test_a_signal_in_the_middle_ends_it_and_tells_who_waits(server, client):
    """The last test of the file: the server has ended behind it."""
    stream = ask(client, stream=True, max_tokens=POSITIONS // 2)
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="the server is stopping"):
        for _ in stream:
            pass
    assert server.process.wait(120) == 0
    said = "".join(server.lines())
    assert re.search(r"stopping; \d+ running answers have 0 s", said)
    assert re.search(r"\d+ answers are cut, and their clients told", said)
    assert "Traceback" not in said
