"""A second start in a run's folder: it is the same run, says what is another, or is refused."""

import contextlib
import io
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from megalite.cli import main
from megalite.training.checkpoint.manifest import read_manifest, write_manifest
from megalite.training.checkpoint.search import newest_facts
from megalite.training.config import ScheduleConfig
from megalite.training.folder.lock import FolderLock
from megalite.training.schedule import rate

CONFIG = """
[model]
vocab_size = 270
hidden_size = 16
num_layers = 2
num_heads = 2
ffn_size = 16
max_positions = 64
[train]
steps = 4
global_batch_size = 4
micro_batch_size = 2
[checkpoint]
every = 2
[run]
trackers = []
device = "cpu"
threads = 1
[data]
sequence_length = 32
"""


class Folder:
    """A tokenizer, a store, conversations and a finished pretraining, and commands there."""

    def __init__(self, path: Path, capsys=None) -> None:
        self.path, self.capsys = path, capsys

    def words(self, stage: str, run: str, *more: str) -> list[str]:
        data = "data" if stage == "pretrain" else "sft.jsonl"
        paths = ["--data.train", f'["{data}"]', "--tokenizer.path", "tokenizer"]
        return [stage, "config.toml", *paths, "--run.folder", run, *more]

    def runs(self, stage: str, run: str, *more: str) -> str:
        """What a run says; it ends well."""
        code = main(self.words(stage, run, *more))
        said = self.capsys.readouterr()
        assert code == 0, said.err
        return said.out

    def refuses(self, stage: str, run: str, *more: str) -> str:
        """The one line of a refused run; it has written nothing."""
        before = self.files(run)
        code = main(self.words(stage, run, *more))
        said = self.capsys.readouterr()
        assert code == 2, said.out
        assert len(said.err.splitlines()) == 1
        assert self.files(run) == before
        return said.err

    def files(self, run: str) -> dict[str, bytes]:
        """All but the history of starts, in which a refused one stands too."""
        paths = (path for path in (self.path / run).rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in paths if path.name != "history.jsonl"}

    def rates(self, run: str) -> list[float]:
        lines = (self.path / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["learning_rate"] for line in lines]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("second") / "made"
    path.mkdir()
    with pytest.MonkeyPatch.context() as here:
        here.chdir(path)
        make(path)
    return path


def make(path: Path) -> None:
    (path / "config.toml").write_text(CONFIG)
    texts = [f"the cat {number} sees a red dog and {number * 7} birds" for number in range(60)]
    (path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    rows = [{"instruction": text[:20], "output": text[-9:]} for text in texts[:20]]
    (path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ["--source", '["texts.jsonl"]']
    for words in (
        ["tokenizer", "train", *source, "--vocab_size", "270", "--output", "tokenizer"],
        ["data", "prepare", *source, "--tokenizer", "tokenizer", "--output", "data"]
        + ["--processes", "1"],
        Folder(path).words("pretrain", "run"),
    ):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = main(words)
        assert code == 0, said.getvalue()


@pytest.fixture
def folder(made, tmp_path, capsys, monkeypatch) -> Folder:
    shutil.copytree(made, tmp_path / "here")
    capsys.readouterr()
    monkeypatch.chdir(tmp_path / "here")
    return Folder(tmp_path / "here", capsys)


def test_a_finished_run_says_that_it_is_done_and_changes_nothing(folder):
    before = folder.files("run")
    assert folder.runs("pretrain", "run") == "run: is done: 4 of 4 steps\n"
    said = folder.runs("pretrain", "run", "--train.steps", "3")
    assert "is done: it has 4 steps, and --train.steps asks for 3" in said
    changed = folder.files("run").items() - before.items()
    assert [name for name, _ in changed] == [f"{folder.path}/run/log.txt"]


@pytest.mark.parametrize(
    ("stage", "more", "says"),
    [
        ("sft", (), "is of the stage pretrain, this is sft"),
        ("sft", ("--checkpoint.start", "run"), "is of the stage pretrain, this is sft"),
        ("pretrain", ("--model.num_layers", "1"), "num_layers 1 (there 2)"),
        ("pretrain", ("--model.rope_base", "77"), "rope_base 77.0 (there 10000.0)"),
        ("pretrain", ("--data.objective", "prefix_lm"), "--data.objective prefix_lm: "),
        ("pretrain", ("--data.prefix", "false"), "--data.prefix false: "),
        ("pretrain", ("--checkpoint.start", "run"), "began without it"),
        ("pretrain", ("--tokenizer.path", "none"), "is not there any more"),
        ("pretrain", ("--tokenizer.path", "other"), "--tokenizer.path"),
    ],
)
def test_what_makes_the_state_mean_something_else_is_refused(folder, stage, more, says):
    """Also of a run that is done; nothing is written."""
    shutil.copytree(folder.path / "tokenizer", folder.path / "other")
    vocabulary = folder.path / "other" / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace("cat", "dog"))
    for steps in ("4", "8"):
        said = folder.refuses(stage, "run", *more, "--train.steps", steps)
        assert says in said
        assert "step-00000004" in said


def test_every_other_difference_is_said_key_by_key(folder):
    said = folder.runs(
        *("pretrain", "run", "--train.steps", "5", "--run.seed", "3", "--optimizer.beta2", "0.9"),
        *("--model.dropout", "0.1", "--train.micro_batch_size", "4", "--data.weights", "[2.0]"),
        *("--train.max_grad_norm", '{ 0 = 1.0, "9 samples" = 0.3 }'),
        *("--train.batch_ramp.sizes", "{ 0 = 4 }", "--data.weights_at", "{ '50%' = [3.0] }"),
    )
    changes = [line for line in said.splitlines() if line.startswith("going on with")]
    assert sorted(changes) == [
        "going on with --data.weights [2.0], was []",
        'going on with --data.weights_at {"10 samples": [3.0]}, was {}',
        "going on with --model.dropout 0.1, was 0.0",
        "going on with --optimizer.beta2 0.9, was 0.95",
        "going on with --run.seed 3, was 0",
        'going on with --train.batch_ramp.sizes {"0": 4}, was {}',
        'going on with --train.max_grad_norm {"0": 1.0, "9 samples": 0.3}, was 1.0',
        "going on with --train.micro_batch_size 4, was 2",
        "going on with --train.steps 5, was 4",
    ]
    assert "seed = 3" in (folder.path / "run" / "config.toml").read_text()
    assert "going on with --run.seed 3" in (folder.path / "run" / "log.txt").read_text()


def test_other_versions_are_said_by_name(folder):
    checkpoint = folder.path / "run" / "checkpoints" / "step-00000004"
    facts, files = read_manifest(checkpoint)
    assert facts["run"]["versions"].keys() == {
        "megalite",
        "kernels",
        "torch",
        "python",
        "processes",
    }
    facts["run"]["versions"] |= {"torch": "1.13.0", "processes": "64"}
    write_manifest(checkpoint, facts, files)
    said = folder.runs("pretrain", "run", "--train.steps", "5")
    changes = [line for line in said.splitlines() if line.startswith("going on with")]
    assert changes[1:] == [
        f"going on with torch {torch.__version__}, was 1.13.0",
        "going on with processes 1, was 64",
    ]


def test_a_run_that_is_the_same_says_no_difference_and_may_be_moved(folder):
    rates = folder.rates("run")
    shutil.rmtree(folder.path / "run" / "checkpoints" / "step-00000004")
    (folder.path / "run").rename(folder.path / "moved")
    said = folder.runs("pretrain", "moved")
    assert "resuming from" in said
    assert "going on with" not in said
    assert "the schedule is over" not in said
    assert folder.rates("moved") == rates


def test_the_clock_is_in_samples_really_seen(folder):
    """Four steps of 4 samples, then two of 16: a run of 48 samples, to its last."""
    said = folder.runs("pretrain", "run", "--train.steps", "6", "--train.global_batch_size", "16")
    schedule = ScheduleConfig()
    wanted = [3e-4 * rate(schedule, seen, 48) for seen in (16, 32)]
    assert folder.rates("run")[4:] == wanted
    was = 3e-4 * rate(schedule, 16, 16)
    assert (
        "the schedule is over 48 samples, was over 16; 16 are done: the learning rate of the next "
        f"step is {wanted[0]:.3g}, was to be {was:.3g}"
    ) in said
    more = ("--train.steps", "8", "--train.global_batch_size", "2")
    folder.runs("pretrain", "run", *more)
    assert folder.rates("run")[6:] == [3e-4 * rate(schedule, seen, 52) for seen in (48, 50)]


def test_a_batch_of_another_size_ends_where_an_equal_run_does(folder):
    """The rate at a sample is that of a run that had the second batch from its beginning."""
    shutil.rmtree(folder.path / "run" / "checkpoints" / "step-00000004")
    more = ("--train.global_batch_size", "2", "--train.micro_batch_size", "1", "--train.steps")
    folder.runs("pretrain", "run", *more, "6")
    folder.runs("pretrain", "small", *more, "8")
    assert folder.rates("run")[2:] == folder.rates("small")[4:]


@pytest.mark.parametrize("change", ["goes on", "is gone"])
def test_a_start_that_has_moved_is_refused(folder, change):
    start = ("--checkpoint.start", "run")
    folder.runs("sft", "sft", *start, "--train.steps", "2")
    if change == "goes on":
        folder.runs("pretrain", "run", "--train.steps", "5")
        says = "step-00000005 now, and the run took"
    else:
        shutil.rmtree(folder.path / "run")
        says = "is not there any more"
    said = folder.refuses("sft", "sft", *start)
    assert says in said
    pinned = "run/checkpoints/step-00000004"
    assert f"give --checkpoint.start {pinned} as it was" in said
    if change == "goes on":
        assert "resuming" in folder.runs("sft", "sft", "--checkpoint.start", pinned)
    assert 'start "", was' in folder.runs("sft", "sft", "--train.steps", "5")


@pytest.mark.parametrize("name", ["data.bin", "tokenizer/tokenizer.json"])
def test_data_and_tokenizer_of_other_content_are_refused(folder, name):
    path = folder.path / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    said = folder.refuses("pretrain", "run", "--train.steps", "6")
    assert "has another content now" in said
    assert name.split(".")[0].split("/")[0] in said


def test_a_checkpoint_that_does_not_say_its_run_goes_on(folder):
    """As those of before are: no stage, no config, no count of dropped steps."""
    from megalite.training.checkpoint.manifest import MANIFEST, read_manifest, write_manifest

    path, _ = newest_facts(folder.path / "run" / "checkpoints")
    facts, files = read_manifest(path)
    del facts["run"], facts["learners"]["model"]["dropped_steps"]
    (path / MANIFEST).unlink()
    write_manifest(path, facts, files)
    said = folder.refuses("pretrain", "run", "--model.num_layers", "1")
    assert "num_layers 1 (there 2)" in said
    said = folder.runs("pretrain", "run", "--train.steps", "6")
    assert "doesn't say what run it is of: only its model was compared" in said
    _, facts = newest_facts(folder.path / "run" / "checkpoints")
    assert facts["run"]["stage"] == "pretrain"


def test_metrics_without_a_checkpoint_begin_anew_and_that_is_said(folder):
    shutil.rmtree(folder.path / "run" / "checkpoints")
    said = folder.runs("pretrain", "run", "--train.steps", "1")
    assert "no checkpoint in" in said
    assert "its 4 steps begin anew" in said
    shutil.rmtree(folder.path / "run" / "checkpoints")
    said = folder.refuses("sft", "run")
    assert "has the metrics of a run of pretrain, this is sft" in said


@pytest.mark.parametrize("place", ["run", "run/checkpoints"])
def test_a_file_or_a_link_to_nothing_in_place_of_a_folder_is_refused_at_the_start(folder, place):
    path = folder.path / place
    shutil.rmtree(path)
    path.touch()
    assert f"run: {place} is a file: it must be a folder" in folder.refuses("pretrain", "run")
    path.unlink()
    path.symlink_to("disk/that/is/gone")
    said = folder.refuses("pretrain", "run")
    assert f"{place} is a link to disk/that/is/gone, which is not there" in said


def test_weights_alone_are_no_run_to_go_on_with(folder):
    from megalite.training.checkpoint.manifest import MANIFEST, read_manifest, write_manifest

    path, _ = newest_facts(folder.path / "run" / "checkpoints")
    facts, files = read_manifest(path)
    facts["learners"]["model"] = {}
    del facts["run"]
    (path / MANIFEST).unlink()
    write_manifest(path, facts, files)
    said = folder.refuses("pretrain", "run", "--train.steps", "6")
    assert "has no training state of model" in said


def test_a_step_without_finite_gradients_is_said_counted_and_survives_a_restart(folder):
    fault = ("--faults.kind", "nan", "--faults.phase", "reduce", "--faults.step")
    said = folder.runs("pretrain", "nan", *fault, "2", "--train.steps", "3")
    assert "step 2: its gradients were not finite: the parameters stay as they were (1 of" in said
    folder.runs("pretrain", "nan", *fault, "5", "--train.steps", "6")
    lines = (folder.path / "nan" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["grad_norm"] == "nan" for row in rows] == [False, True, False, False, True, False]
    assert [row.get("dropped_steps", 0) for row in rows] == [0, 1, 1, 1, 2, 2]


def test_a_signal_before_the_first_step_ends_with_3(folder):
    before = signal.getsignal(signal.SIGTERM)

    def stop() -> None:
        while signal.getsignal(signal.SIGTERM) == before:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    code = main(folder.words("pretrain", "stopped"))
    thread.join()
    assert code == 3
    assert "there is nothing to save" in folder.capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_in_a_thread_is_the_run(folder):
    codes = []
    words = folder.words("pretrain", "threaded")
    thread = threading.Thread(target=lambda: codes.append(main(words)))
    thread.start()
    thread.join()
    assert codes == [0]
    assert folder.rates("threaded") == folder.rates("run")


def test_two_runs_at_once_in_a_folder_are_refused(folder):
    lock = FolderLock(folder.path / "run")
    lock.acquire()
    lock.is_in_use = True
    try:
        assert "is writing there" in folder.refuses("pretrain", "run", "--train.steps", "6")
    finally:
        lock.release()
    assert "resuming from" in folder.runs("pretrain", "run", "--train.steps", "6")


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rm", "ppo"])
def test_no_two_stages_share_a_default_folder(stage):
    from megalite.cli import find_command, load_config

    command, _ = find_command([stage])
    for words in ([], ["--run.seed", "3"]):
        config, _ = load_config(command, words)
        assert config.run.folder == f"runs/{stage}"
