"""Real text for recipes at --scale: the documents of this repository."""

import json
from pathlib import Path

from megalite.cli import main

ROOT = Path(__file__).parents[2]
VOCABULARY = 384
OWN = ["--run.device", "cpu", "--run.threads", "1", "--model.vocab_size", str(VOCABULARY)]


def make_text(folder: Path) -> None:
    """A tokenizer and a token store of the documents, in a folder."""
    pages = [{"text": path.read_text()} for path in sorted((ROOT / "docs").glob("*.md"))]
    (folder / "pages.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    source = ["--source", f'["{folder}/pages.jsonl"]']
    train = ["--vocab_size", str(VOCABULARY), "--output", f"{folder}/tokenizer"]
    assert main(["tokenizer", "train", *source, *train, "--sentinels", "32"]) == 0
    prepare = ["--tokenizer", f"{folder}/tokenizer", "--output", f"{folder}/data"]
    assert main(["data", "prepare", *source, *prepare, "--processes", "1"]) == 0


def pretraining(name: str, scale: float, text: Path, run: Path, *more: str) -> list[str]:
    """The words of a command that pretrains by a recipe at a scale."""
    words = ["pretrain", f"recipe:{name}", "--scale", str(scale), "--run.folder", str(run)]
    words += ["--data.train", f'["{text}/data"]', "--tokenizer.path", f"{text}/tokenizer"]
    return [*words, *OWN, *more]
