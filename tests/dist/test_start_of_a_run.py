"""What processes must share is compared at the start; a full disk of one is told by all."""

from pathlib import Path

import numpy as np
import pytest

from megalite.cli import main
from megalite.data.corpus.store import StoreWriter
from tests.hub import serving

CONFIG = """
[model]
vocab_size = 64
hidden_size = 16
num_layers = 2
num_heads = 2
ffn_size = 16
[train]
steps = 2
max_grad_norm = { 0 = 1.0, "8 samples" = 2.0 }
[run]
trackers = []
device = "cpu"
threads = 1
[data]
sequence_length = 16
"""


@pytest.fixture
def words(tmp_path) -> list[str]:
    (tmp_path / "config.toml").write_text(CONFIG)
    for name in ("data", "other"):
        writer = StoreWriter(tmp_path / name, np.dtype(np.uint16))
        for number in range(20):
            writer.add((np.arange(30) * (number + len(name))) % 64)
        writer.close()
    data = ["--data.train", f'["{tmp_path}/data"]', "--parallel.timeout_s", "60"]
    return ["pretrain", str(tmp_path / "config.toml"), *data]


DIFFERENCES = {
    "learning rate": (["--optimizer.learning_rate", "0.5"], "--optimizer.learning_rate 0.5"),
    "seed": (["--run.seed", "7"], "--run.seed 7"),
    "steps": (["--train.steps", "9"], "--train.steps 9"),
    "batch": (["--train.global_batch_size", "16"], "--train.global_batch_size 16"),
    "length": (["--data.sequence_length", "8"], "--data.sequence_length 8"),
    "dropout": (["--model.dropout", "0.1"], "--model.dropout 0.1"),
    "clipping": (
        ["--train.max_grad_norm", "3"],
        'was told so, rank 0 {"0": 1.0, "8 samples": 2.0}',
    ),
    "layout": (["--parallel.tp", "2"], "--parallel.tp 2"),
    "data": (["--data.train", '["{}/other"]'], "/other"),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_processes_that_were_told_different_things_are_refused(
    cluster, words, tmp_path, difference
):
    more, says = DIFFERENCES[difference]
    run = tmp_path / "run"
    last = [word.format(tmp_path) for word in more]
    job = "tests.dist.start_jobs:refusal"
    found = cluster.run(2, job, words=[*words, "--run.folder", str(run)], last=last)
    assert found[0] == found[1]
    assert found[0].startswith("2 --")
    assert says in found[0]
    assert "rank 1 (" in found[0]
    assert not run.exists()


def test_other_libraries_of_a_process_are_refused(cluster, words, tmp_path):
    run = tmp_path / "run"
    options = {"words": [*words, "--run.folder", str(run)], "last": [], "python": "3.7.1"}
    for said in cluster.run(2, "tests.dist.start_jobs:refusal", **options):
        assert said.startswith("2 python 3.7.1: rank 1 (")
        assert "has it, rank 0 has 3." in said
    assert not run.exists()


def test_a_folder_that_is_not_one_for_all_processes_is_found_at_the_start(cluster, words, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    name = Path("run" + tmp_path.name)
    try:
        found = cluster.run(
            2,
            "tests.dist.start_jobs:refusal",
            words=[*words, "--run.folder", str(name)],
            last=[],
            folder=str(tmp_path / "elsewhere"),
        )
        assert found[0] == found[1]
        assert "rank 1 (" in found[0]
        assert f"doesn't see there, in {tmp_path}/elsewhere/{name}," in found[0]
    finally:
        for path in (name / ".lock", name):
            if path.exists():
                path.unlink() if path.is_file() else path.rmdir()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_of_one_process_is_told_as_that_by_all(cluster, tmp_path, rank):
    job = "tests.dist.start_jobs:save_on_small_disk"
    for said, left in cluster.run(2, job, folder=str(tmp_path), rank=rank):
        assert "a checkpoint could not be written: File too large" in said
        assert "earlier ones are intact, up to step-00000001: free some space" in said
        assert left[:2] == ["latest", "step-00000001"]


def test_one_process_fetches_what_a_name_on_the_hub_means_and_all_find_it(cluster, tmp_path):
    files = ["config.json", "model.safetensors", "tokenizer.json"]
    model = tmp_path / "hub" / "tiny" / "model"
    model.mkdir(parents=True)
    for name in files:
        (model / name).write_text(name)
    job = "tests.dist.start_jobs:name_on_hub"
    with serving(tmp_path / "hub") as hub:
        cache = str(tmp_path / "cache")
        found = cluster.run(4, job, url=hub.url, cache=cache, repo="tiny/model")
        fetched = hub.fetched()
        refused = cluster.run(4, job, url=hub.url, cache=cache, repo="tiny/none")
        expected = f"tiny/model@{hub.commit('tiny/model')}"
    assert found == [(expected, files)] * 4
    assert sorted(fetched) == files
    assert len({text for text, _ in refused}) == 1
    assert "has no such model" in refused[0][0]


def test_one_process_fetches_the_files_behind_a_url(cluster, tmp_path):
    (tmp_path / "rows").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "rows" / name).write_text("{}")
    job, caches = "tests.dist.start_jobs:files_behind_url", f"{tmp_path}/caches"
    found = cluster.run(4, job, url=f"file://{tmp_path}/rows", caches=caches)
    assert [count for count, _ in found] == [2, 0, 0, 0]
    assert "2 of 2 files fetched" in found[0][1][0]
    (refused,) = set(cluster.run(4, job, url=f"file://{tmp_path}/none", caches=caches))
    assert "there is no such file, folder or token store" in refused[1]


def test_each_file_of_a_checkpoint_is_read_by_one_process(cluster, tmp_path):
    job = "tests.dist.start_jobs:read_when_loading"
    found = cluster.run(4, job, folder=str(tmp_path / "whole"))
    names = [name for read, _ in found for name in read]
    assert len(names) == len(set(names)) == 5
    assert max(len(read) for read, _ in found) == 2
    assert {said for _, said in found} == {""}
    found = cluster.run(4, job, folder=str(tmp_path / "damaged"), damage="__2_0.distcp")
    said = {said for _, said in found}
    assert len(said) == 1
    assert "__2_0.distcp: must have" in said.pop()


def test_rows_are_read_and_tokenized_by_one_process_of_a_node(cluster, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "the red cat"}\n')
    words = ["tokenizer", "train", "--source", f'["{tmp_path}/texts.jsonl"]', "--vocab_size", "260"]
    assert main([*words, "--output", f"{tmp_path}/tokenizer"]) == 0
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "red {n}", "response": "cat"}}\n' for n in range(5)))
    job, told = "tests.dist.start_jobs:rows_once", {"folder": str(tmp_path)}
    cached, off = {**told, "cache": f"{tmp_path}/cache"}, {**told, "cache": "off"}
    found = cluster.run(3, job, **cached)
    again, alone = cluster.run(3, job, **cached), cluster.run(3, job, **off)
    assert [count for count, _, _ in found] == [5, 0, 0]
    assert [count for count, _, _ in again] == [0, 0, 0]
    assert [count for count, _, _ in alone] == [5, 5, 5]
    for one in (found, again):
        assert [count > 0 for _, count, _ in one] == [True, False, False]
    assert len({text for _, _, text in (*found, *again, *alone)}) == 1
    rows.write_text(rows.read_text() + "{}\n")
    (said,) = {text for _, _, text in cluster.run(3, job, **cached)}
    assert said.startswith(f"{rows}:6: key 'prompt' is missing")
