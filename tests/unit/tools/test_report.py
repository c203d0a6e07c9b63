import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from megalite.distributed.launch import Launch
from megalite.errors import DataError
from megalite.stages.ranked import Pairs, details_of
from megalite.tools.report.chart import Line, line_chart, round_ticks, smoothed, tick_text
from megalite.tools.report.page import CHARTS, ReportConfig, lines_of, names_of, page, run


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
    assert text.count("<figure>") == 4
    number = '<td class="number">'
    assert f"<td>ppo</td><td>reward</td>{number}0.5</td>{number}1.5</td>" in text
    assert text.count("def f(&lt;T&gt;):") == 1
    start = text.index("<tr><td data-of")
    row = ElementTree.fromstring(text[start : text.index("</tr>", start) + len("</tr>")])
    assert [cell.get("data-of") for cell in row] == ["prompt", "pretrain", "ppo"]
    assert ["".join(cell.itertext()) for cell in row][1:] == ["one", "two"]
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
    boxes = [f'id="run-{number}" checked> {name}/run<' for number, name in enumerate("ab")]
    assert [text.count(box) for box in boxes] == [1, 1]
    assert '<td>a/run</td><td>loss</td><td class="number">3</td>' in text
    assert '<td>b/run</td><td>loss</td><td class="number">4</td>' in text
    answers = [f'<td data-of="{name}/run"><pre>answer' for name in "ab"]
    assert [text.count(answer) for answer in answers] == [1, 1]


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


def test_runs_lie_over_each_other_and_a_loss_stands_under_its_right_name():
    metrics = {
        "sft": [{"step": 1, "loss": 2.0, "heldout_loss/code": 3.0, "heldout_loss/prose": 4.0}],
        "rm": [{"step": 1, "loss": 0.7, "ranking_loss": 0.7}],
        "ppo": [{"step": 1, "loss": 0.1, "policy_loss": 0.1}],
        "dpo": [{"step": 1, "loss": 0.6, "margin": 0.2}],
        "pretrain": [{"step": 1, "loss": 5.0}],
    }
    drawn = {
        chart.title: [(line.name, line.run) for line in lines_of(chart, metrics)]
        for charts in CHARTS.values()
        for chart in charts
    }
    assert drawn["Loss"] == [("sft: loss", 0), ("pretrain: loss", 4)]
    assert drawn["Held-out loss"] == [("sft: heldout_loss/code", 0), ("sft: heldout_loss/prose", 0)]
    assert drawn["Ranking loss"] == [("rm: ranking_loss", 1)]
    assert drawn["Policy loss"] == [("ppo: policy_loss", 2)]
    assert drawn["Preference loss"] == [("dpo: loss", 3)]


def _measured(step: int, **values: float) -> dict:
    return {"step": step, **{f"heldout_{key}": value for key, value in values.items()}}


def test_how_answers_moved_from_the_start_is_said_of_every_aligned_run(tmp_path):
    start = _measured(0, reward=0.5, reward_deviation=0.5, kl=0.0, ended=0.75, entropy=2.0)
    runs = (
        _run_folder(tmp_path / "sft", [{"step": 1, "loss": 2.0}]),
        _run_folder(
            tmp_path / "ppo",
            [start, {"step": 5, "kl": 3.0}, _measured(9, reward=1.25, kl=6.5, ended=1, entropy=1)],
        ),
        _run_folder(tmp_path / "dpo", [_measured(0, kl=0.0), _measured(9, kl=2.0)]),
    )
    text = page(ReportConfig(runs=runs))
    assert (
        "<li>ppo: reward +0.75 (+1.5 deviations), KL 6.5 nats an answer, entropy -50%</li>" in text
    )
    assert "<li>dpo: KL 2 nats an answer</li>" in text
    assert "<td>0.25 → 0</td>" in text  # answers without an end
    assert "<li>sft" not in text


def test_a_reward_models_page_has_accuracy_calibration_and_length(tmp_path):
    pairs = Pairs(torch.tensor([0.1, -0.1, 3.0]), torch.tensor([2, -1, -4]))
    details = details_of({name: float(value) for name, value in pairs.sums().items()})
    folder = _run_folder(tmp_path / "rm", [{"step": 1, "ranking_loss": 0.5}])
    file = tmp_path / "rm" / "rankings.json"
    file.write_text(json.dumps({"heldout": details, "more": details}))
    text = page(ReportConfig(runs=(folder,)))
    number = '<td class="number">'
    assert f"<td>0 to 2</td>{number}2</td><td>50.0%</td><td>52.5%</td>" in text
    assert f"<td>is shorter</td>{number}2</td><td>50.0%</td>" in text
    assert "the longer answer scores more in 66.7%, and is the better one in 33.3%" in text
    assert "<h3>rm, more</h3>" in text
    file.write_text("{")
    with pytest.raises(DataError, match=r"rankings.json: can't be read"):
        page(ReportConfig(runs=(folder,)))


def test_a_run_without_a_step_is_said(tmp_path):
    runs = (
        _run_folder(tmp_path / "a<b", []),
        _run_folder(tmp_path / "c", [{"step": 1, "loss": 1}]),
    )
    text = page(ReportConfig(runs=runs))
    assert "a&lt;b has no metrics yet" in text
    assert "c has no metrics" not in text


@pytest.mark.parametrize(
    "points", [[], [(1, 2)], [(0, 1), (1, float("nan")), (2, 3)], [(0, 5), (1, 5)], [(0, -1)]]
)
def test_a_chart_is_valid_xml_for_any_points(points):
    lines = [Line("one <", points, 0), Line("two", points, 1, 1)]
    root = ElementTree.fromstring(line_chart("a < b", "x & y", lines))
    assert "nan" not in ElementTree.tostring(root, encoding="unicode")


def _drawings(values):
    root = ElementTree.fromstring(line_chart("a", "", [Line("one", list(enumerate(values)))]))
    return {one.get("class"): one for one in root.iter("{http://www.w3.org/2000/svg}svg")}


def test_a_logarithmic_drawing_is_there_where_all_values_allow_it():
    assert set(_drawings([1.0, 10.0])) == {"linear", "log"}
    assert set(_drawings([0.0, 10.0])) == {"both"}
    line = next(one for one in _drawings([1, 10, 100])["log"].iter() if one.get("points"))
    ups = [float(point.split(",")[1]) for point in line.get("points").split()]
    assert ups[0] - ups[1] == pytest.approx(ups[1] - ups[2], abs=0.11)


def test_a_long_line_is_thinned_and_keeps_its_spikes():
    values = [1.0] * 5000 + [90.0] + [1.0] * 5000
    drawing = _drawings(values)["linear"]
    line = next(one for one in drawing.iter() if (one.get("class") or "").startswith("raw"))
    ups = [float(point.split(",")[1]) for point in line.get("points").split()]
    assert len(ups) <= 600
    assert min(ups) == 12.0  # the top of the chart


def test_smoothing_starts_without_bias_and_leaves_few_points():
    level = [(float(x), 3.0) for x in range(50)]
    assert [y for _, y in smoothed(level)] == pytest.approx([3.0] * 50)
    assert smoothed(level[:5]) == level[:5]


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_and_inside(low, width):
    high = low + width
    if high - low < 1e-9 * abs(low):
        return  # floats don't hold ticks between them
    ticks = round_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    slack = 1e-6 * (high - low)
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    step = ticks[1] - ticks[0]
    assert f"{step:.0e}"[0] in "125"


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
@example(738992838.0, 734991394.0)  # a logarithmic axis with no two powers of ten
@example(0.001953, 0.001953)
@example(-5.00001, -5.00002)
def test_ticks_fit_beside_the_axis(low, high):
    """At 12 pixels a character is 6 to 7 wide; the margin has room for 9."""
    for drawing in _drawings([low, high]).values():
        texts = [item.text for item in drawing.iter() if item.get("text-anchor") == "end"]
        assert len(texts) == len(set(texts)) >= 2
        assert max(map(len, texts)) <= 9
