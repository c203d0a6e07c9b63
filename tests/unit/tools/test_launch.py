"""What ``megalite launch`` makes of torchrun's options, and of what its processes ended with."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from megalite.cli import main
from megalite.errors import ConfigError, UserError, write_error_file
from megalite.tools.launch import options_of, told


def failure(folder: Path, rank: int, code: int, said: str = "") -> ProcessFailure:
    path = folder / f"{rank}.json"
    if said:
        write_error_file(str(path), said)
    return ProcessFailure(local_rank=rank, pid=100 + rank, exitcode=code, error_file=str(path))


def test_options_before_the_command_are_torchruns():
    options = options_of(["--nproc-per-node=2", "--max-restarts", "3", "sft", "a.toml", "--x", "1"])
    assert (options.nproc_per_node, options.max_restarts, options.module) == ("2", 3, True)
    assert options.training_script == "megalite"
    assert options.training_script_args == ["sft", "a.toml", "--x", "1"]


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--nprocs", "2", "sft"], "--nprocs"), (["--nproc-per-node", "2"], "training_script")],
)
def test_an_option_that_torchrun_refuses_is_one_line(words, says):
    with pytest.raises(ConfigError, match=says) as refused:
        options_of(words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--nproc-per-node two", "Unsupported nproc_per_node value: two"),
        ("--nproc-per-node 0", "--nproc-per-node 0: must be at least 1"),
        ("--nnodes 2:1", "min_nodes=2, max_nodes=1"),
        ("--max-restarts -1", "max_restarts must be >= 0"),
        ("--rdzv-backend nonsense", "'nonsense' is not registered"),
    ],
)
def test_a_value_that_torchrun_refuses_is_one_line(words, says, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MEGALITE_LAUNCH", "1")
    assert main(["launch", *words.split(), "pretrain"]) == 2
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said


def test_a_mistake_is_told_before_what_it_did_to_the_others(tmp_path):
    error = told({0: failure(tmp_path, 0, -15, "other"), 1: failure(tmp_path, 1, 2, "--a: wrong")})
    assert (type(error), str(error)) == (UserError, "--a: wrong")


def test_a_failure_keeps_its_exit_code_and_names_the_process(tmp_path):
    error = told(
        {0: failure(tmp_path, 0, -15), 1: failure(tmp_path, 1, 5, "trace\nValueError: no")}
    )
    assert error.exit_code == 5
    assert str(error) == "launch: rank 1 (process 101) ended with exit code 5: ValueError: no"


def test_a_killed_process_is_named(tmp_path):
    error = told({3: failure(tmp_path, 3, -9)})
    assert error.exit_code == 137
    assert "rank 3 (process 103) ended with SIGKILL" in str(error)


def test_a_process_of_the_launcher_only_writes_its_mistake(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEGALITE_LAUNCH", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert main(["pretrian"]) == 2
    assert capsys.readouterr().err == ""
    written = json.loads((tmp_path / "error.json").read_text())
    assert re.search("pretrian.*did you mean pretrain", written["message"]["message"])


def test_a_mistake_of_several_processes_is_one_line():
    command = [sys.executable, "-m", "megalite", "launch", "--nproc-per-node", "2", "pretrian"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "megalite: megalite pretrian: no such command; did you mean pretrain?\n"
