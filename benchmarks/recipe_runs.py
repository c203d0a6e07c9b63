"""What a recipe needs to run at ``--scale``: the documents here as its data, and its command."""

import json
import re
from pathlib import Path

from megalite.cli import find_command, load_config, main
from megalite.config.load import read_based
from megalite.stages.length import in_steps

ROOT = Path(__file__).parents[1]
VOCABULARY, SENTINELS, LONGEST = 384, 32, 90  # tokens, sentinels, characters of an answer
SPECIAL = "[NLU] [S2S] [NLG] <mask> [MASK] [gMASK] <sop> <eop> <eoh> <eot> <eoc> <eor> <eom> <EOT> "
SPECIAL += "<reserved_106> <reserved_107>"  # of the objectives and templates of all recipes
OWN = ["--run.device", "cpu", "--run.threads", "1", "--run.trackers", "[]"]
TINY = "hidden_size=32 num_layers=2 num_heads=2 ffn_size=48 max_positions=1024"  # a PPO's start
PARTS = 5  # files of a mixture of conversations
RANKED = 4  # answers to each prompt


def done(*words: str) -> None:
    """Run a command here; a failure ends it all."""
    if code := main(list(words)):
        raise SystemExit(f"megalite {' '.join(words)}: ended with {code}")


def make_text(folder: Path) -> None:
    """A tokenizer, token stores, conversations, rankings and prompts of the documents."""
    texts = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    for name, part in (("pages", texts), ("more", texts[::2])):
        _write(folder / f"{name}.jsonl", [{"text": text} for text in part])
    source = ["--source", f'["{folder}/pages.jsonl"]']
    sizes = ["--vocab_size", str(VOCABULARY), "--sentinels", str(SENTINELS)]
    sizes += ["--special_tokens", json.dumps(SPECIAL.split())]
    done("tokenizer", "train", *source, *sizes, "--output", f"{folder}/tokenizer")
    for name, store in (("pages", "data"), ("more", "more")):
        words = ["--tokenizer", f"{folder}/tokenizer", "--processes", "1"]
        source = ["--source", f'["{folder}/{name}.jsonl"]']
        done("data", "prepare", *source, *words, "--output", f"{folder}/{store}")
    _make_rows(folder, texts)


def _make_rows(folder: Path, texts: list[str]) -> None:
    lines = [line for text in texts for line in text.splitlines() if re.match(r"[A-Z]\w+ ", line)]
    halves = [(line[:40], line[40 : 40 + LONGEST]) for line in lines if len(line) > 80]
    rows = [{"prompt": prompt, "response": answer} for prompt, answer in halves]
    _write(folder / "conversations.jsonl", rows)
    _write(folder / "with_tools.jsonl", [_with_tools(*half) for half in halves])
    for part in range(PARTS):
        _write(folder / f"conversations-{part}.jsonl", rows[part::PARTS])
    prompts = [{"prompt": prompt} for prompt, _ in halves]
    _write(folder / "prompts.jsonl", prompts)
    ranked = [
        {
            "prompt": prompt,
            "answers": [answer, *(halves[(n + k) % len(halves)][1] for k in range(1, RANKED))],
            "margin": [1.0] * (RANKED - 1),
        }
        for n, (prompt, answer) in enumerate(halves)
    ]
    _write(folder / "rankings.jsonl", ranked)


def _with_tools(question: str, answer: str) -> dict:
    """A conversation as MOSS's authors have it."""
    written = {
        "Human": f"<|Human|>: {question}<eoh>\n",
        "Inner Thoughts": "<|Inner Thoughts|>: what comes next?<eot>\n",
        "Commands": f"<|Commands|>: Next({json.dumps(question[-9:])})<eoc>\n",
        "Tool Responses": f"<|Results|>:\n{answer[:9]}\n<eor>\n",
        "MOSS": f"<|MOSS|>: {answer}<eom>\n",
    }
    return {"meta_instruction": "You are MOSS.\n", "num_turns": 1, "chat": {"turn_1": written}}


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def stage_of(name: str) -> str:
    """The stage of a recipe."""
    return str(read_based(f"recipe:{name}").recipe["stage"])


def scale_to(name: str, steps: int) -> list[str]:
    """The words that make a recipe about so many steps long; epochs become them exactly."""
    stage = stage_of(name)
    config = load_config(*find_command([stage, f"recipe:{name}"]))[0]
    if config.train.epochs:
        return ["--scale", "1", "--train.epochs", "0", "--train.steps", str(steps)]
    tokens = config.data.sequence_length if stage == "pretrain" else 0
    whole = in_steps(config, 0, tokens)[0].train.steps
    return ["--scale", str(min(steps / whole, 1.0))]


def words_of(name: str, scale: list[str], text: Path, run: Path, *more: str) -> list[str]:
    """The words of a recipe's command, on the data of :func:`make_text` below ``text``."""
    stage = stage_of(name)
    words = [stage, f"recipe:{name}", *scale, "--run.folder", str(run), *OWN]
    words += ["--tokenizer.path", f"{text}/tokenizer", *_data_of(name, text)]
    if stage != "ppo":
        words += ["--model.vocab_size", str(VOCABULARY)]
    return [*words, *more]


def _data_of(name: str, text: Path) -> list[str]:
    config = load_config(*find_command([stage_of(name), f"recipe:{name}"]))[0]
    if (stage := stage_of(name)) == "pretrain":
        stores = [f"{text}/data", f"{text}/more"][: len(config.data.objectives) or 1]
        return ["--data.train", json.dumps(stores)]
    file = {"sft": "conversations", "rm": "rankings", "ppo": "prompts"}[stage]
    if config.data.template == "moss":
        file = "with_tools"
    parts = len(config.data.weights) if stage == "sft" else 0
    names = [f"{file}-{part}" for part in range(parts)] or [file]
    words = ["--data.train", json.dumps([f"{text}/{name}.jsonl" for name in names])]
    if stage != "ppo":
        return words
    start = _start_of(config.data.template, text)
    words += ["--checkpoint.start", f"{start}/sft", "--reward_model", f"{start}/rm"]
    has_text = config.update.pretrain_coefficient
    return [*words, *(["--pretraining.train", json.dumps([f"{text}/data"])] if has_text else [])]


def _start_of(template: str, text: Path) -> Path:
    """A fine-tuned model and a reward model of a step each, of conversations of a template."""
    folder = text / f"start-{template}"
    model = [f"--model.{key}" for key in (*TINY.split(), f"vocab_size={VOCABULARY}")]
    train = [*OWN, "--tokenizer.path", f"{text}/tokenizer", "--train.steps", "1"]
    train += ["--data.template", template]
    for stage, file in (("sft", "conversations"), ("rm", "rankings")):
        data = ["--data.train", json.dumps([f"{text}/{file}.jsonl"])]
        if not (folder / stage).exists():
            done(stage, *model, *train, *data, "--run.folder", f"{folder}/{stage}")
    return folder


def losses(folder: Path) -> list[float]:
    """The loss of each step; of PPO that of the values, as the policy's is 0 at a first update."""
    rows = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    key = "value_loss" if any("value_loss" in row for row in rows) else "loss"
    return [row[key] for row in rows if key in row]
