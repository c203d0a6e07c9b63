import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalite.distributed.launch import Launch
from megalite.errors import DataError
from megalite.tools.report.chart import line_chart, tick_text
from megalite.tools.report.page import ReportConfig, names_of, page, run


def _run_folder(path, rows, samples=()):
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if samples:
        (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return str(path)


def test_a_report_holds_every_runs_curves_and_the_samples_side_by_side(tmp_path):
    rows = [{"step": step, "loss": 4.0 - step, "grad_norm": 1.0} for step in range(3)]
    answer = {"prompt": "def f(<T>):", "answer": "one"}
    first = _run_folder(tmp_path / "pretrain", rows, [{**answer, "answer": "old"}, answer])
    tuned = [{"step": 1, "reward": 0.5, "kl": 2.0}, {"step": 2, "reward": 1.5, "kl": 3.0}]
    second = _run_folder(tmp_path / "ppo", tuned, [{**answer, "answer": "two"}])
    output = tmp_path / "report.html"
    assert run(ReportConfig(runs=(first, second), output=str(output)), Launch()) == 0
    text = output.read_text()
    assert text.count("<svg") == 4
    assert "<td>ppo</td><td>reward</td><td>0.5</td><td>1.5</td>" in text
    assert text.count("def f(&lt;T&gt;):") == 1
    assert "<pre>one</pre></td><td><pre>two</pre>" in text
    assert "old" not in text


def test_runs_of_one_last_name_are_told_apart_and_the_pages_folder_is_made(tmp_path):
    paths = [tmp_path / name / "run" for name in ("a", "b")]
    folders = []
    for number, path in enumerate(paths):
        path.parent.mkdir()
        answer = {"prompt": "p", "answer": f"answer {number}"}
        folders.append(_run_folder(path, [{"step": 1, "loss": 3.0 + number}], [answer]))
    output = tmp_path / "not" / "there" / "report.html"
    run(ReportConfig(runs=(*folders, folders[0]), output=str(output)), Launch())
    text = output.read_text()
    assert [text.count(f"<h2>{name}/run</h2>") for name in "ab"] == [1, 1]
    assert "<td>a/run</td><td>loss</td><td>3</td>" in text
    assert "<td>b/run</td><td>loss</td><td>4</td>" in text
    assert "<pre>answer 0</pre></td><td><pre>answer 1</pre>" in text


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4), min_size=1, max_size=5))
def test_every_run_has_a_name_of_its_own(paths):
    folders = [Path("/", *parts) for parts in paths]
    named = names_of(folders)
    assert sorted(set(folders)) == sorted(named.values())
    assert all(str(folder).endswith(name) for name, folder in named.items())


def test_a_broken_line_is_named(tmp_path):
    folder = _run_folder(tmp_path / "sft", [{"step": 1}])
    (tmp_path / "sft" / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(DataError, match=r"metrics.jsonl:2: not JSON"):
        page(ReportConfig(runs=(folder,)))


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file; give the folder of a run"):
        page(ReportConfig(runs=(str(tmp_path / "none"),)))


@pytest.mark.parametrize(
    "points", [[], [(1, 2)], [(0, 1), (1, float("nan")), (2, 3)], [(0, 5), (1, 5)]]
)
def test_a_chart_is_valid_xml_for_any_points(points):
    root = ElementTree.fromstring(line_chart("a < b", "x & y", {"one": points, "two": points}))
    assert "nan" not in ElementTree.tostring(root, encoding="unicode")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3e-4, "3.0e-4"),
        (0.0123, "0.0123"),
        (12345.6, "12.3k"),
        (-2.5e6, "-2.5M"),
        (225, "225"),
    ],
)
def test_ticks_are_short(value, text):
    assert tick_text(value) == text


@given(*[st.floats(-1e9, 1e9).map(lambda value: round(value, 6))] * 2)
def test_ticks_fit_beside_the_axis(low, high):
    """At 11 pixels a character is 6 wide; the margin has room for 8."""
    root = ElementTree.fromstring(line_chart("a", "", {"one": [(0, low), (1, high)]}))
    texts = [item.text for item in root.iter() if item.get("text-anchor") == "end"]
    assert len(texts) == 5
    assert max(map(len, texts)) <= 8
