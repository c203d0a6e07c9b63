"""Every recipe of pretraining at a scale of its own, 30 steps of it on the documents here.

    python -m benchmarks.recipes [--name llama] [--steps 30] [--json]

Each is a run of ``megalite pretrain recipe:NAME --scale ...`` on a CPU, one after another. The
figures are the first and the last loss, and the seconds of the run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from megalite.config.bases import recipe_names
from megalite.config.load import read_based

ROOT = Path(__file__).parents[1]
VOCABULARY = 512


def megalite(*words: str) -> None:
    """Run a command; a failure ends the benchmark."""
    done = subprocess.run(
        [sys.executable, "-m", "megalite", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)


def make_text(folder: Path) -> None:
    """A tokenizer and a token store of the documents."""
    pages = [{"text": path.read_text()} for path in sorted((ROOT / "docs").glob("*.md"))]
    (folder / "pages.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    source = ["--source", f'["{folder}/pages.jsonl"]']
    sizes = ["--vocab_size", str(VOCABULARY), "--sentinels", "100"]
    megalite("tokenizer", "train", *source, *sizes, "--output", f"{folder}/tokenizer")
    words = ["--tokenizer", f"{folder}/tokenizer", "--output", f"{folder}/data"]
    megalite("data", "prepare", *source, *words, "--processes", "1")


def steps_of(name: str) -> int:
    """Steps of the whole run."""
    from megalite.cli import find_command, load_config
    from megalite.stages.length import in_steps

    config = load_config(*find_command(["pretrain", f"recipe:{name}"]))[0]
    return in_steps(config, 0, config.data.sequence_length)[0].train.steps


def run(name: str, steps: int, text: Path) -> dict:
    """Run a recipe for about so many steps."""
    folder, started = text / name, time.perf_counter()
    words = ["--scale", str(steps / steps_of(name)), "--run.folder", str(folder)]
    words += ["--data.train", f'["{text}/data"]', "--tokenizer.path", f"{text}/tokenizer"]
    words += ["--model.vocab_size", str(VOCABULARY), "--run.device", "cpu"]
    megalite("pretrain", f"recipe:{name}", *words)
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [row["loss"] for row in rows if "loss" in row]
    return {
        "recipe": name,
        "steps": len(losses),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "run_s": time.perf_counter() - started,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="", help="part of the recipes' names")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_text(Path(folder))
        for name in recipe_names():
            table = read_based(f"recipe:{name}").recipe
            if options.name not in name or table["stage"] != "pretrain":
                continue
            row = run(name, options.steps, Path(folder))
            shown = json.dumps(row) if options.json else "  ".join(map(str, row.values()))
            print(shown, flush=True)


if __name__ == "__main__":
    main()
