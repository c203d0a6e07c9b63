"""Every recipe at a scale of its own, 30 steps of it on the documents here, and a resume in it.

    python -m benchmarks.recipes [--name llama] [--steps 30] [--json]

Each is a run of its stage's command on a CPU, one after another; then another one goes on from the
checkpoint after a third of it, and must give the same losses bit for bit. The figures are the
steps, the first and the last loss, and whether it went on and did.
Layouts of 4 processes are those of ``pytest tests/dist/test_recipes_in_layouts.py --recipes all``.
"""

import argparse
import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path

from benchmarks.recipe_runs import done, losses, make_text, scale_to, words_of
from megalite.config.bases import recipe_names


def run(name: str, steps: int, text: Path) -> dict:
    """Run a recipe for about so many steps, and again from its middle."""
    folder, scale = text / name, scale_to(name, steps)
    every = ["--checkpoint.every", str(steps // 3), "--checkpoint.keep", "99"]
    done(*words_of(name, scale, text, folder, *every))
    found = losses(folder)
    again = text / f"{name}-again"
    shutil.copytree(folder, again)
    cut(again, steps // 3)
    done(*words_of(name, scale, text, again, *every))
    same = went_on(again, steps // 3) and losses(again) == found
    for one in (folder, again):
        shutil.rmtree(one)
    return {
        "recipe": name,
        "steps": len(found),
        "first_loss": found[0],
        "last_loss": found[-1],
        "resumes": same,
    }


def cut(folder: Path, step: int) -> None:
    """Leave a run as it was after its first checkpoint."""
    saved, first = folder / "checkpoints", f"step-{step:08}"
    for one in saved.glob("step-*"):
        if one.name > first:
            shutil.rmtree(one)
    (saved / "latest").write_text(first)


def went_on(folder: Path, step: int) -> bool:
    """Whether a run went on from its checkpoint of a step, and did not begin anew."""
    lines = (folder / "log.txt").read_text().splitlines()
    found = [line for line in lines if line.startswith("resuming from")]
    return len(found) == 1 and found[0].endswith(f"step-{step:08}")


def main() -> None:
    """Run the benchmark; it ends with 1 where a resumed run differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="", help="part of the recipes' names")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            make_text(Path(folder))
        for name in recipe_names():
            if options.name not in name:
                continue
            with contextlib.redirect_stdout(io.StringIO()):
                row = run(name, options.steps, Path(folder))
            differ += not row["resumes"]
            shown = json.dumps(row) if options.json else "  ".join(map(str, row.values()))
            print(shown, flush=True)
    raise SystemExit(1 if differ else 0)


if __name__ == "__main__":
    main()
