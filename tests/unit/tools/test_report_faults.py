"""The page about runs tells their faults, what they cost, and what the log says of them."""

import json
import time
from pathlib import Path

from megalite.tools.report.page import ReportConfig, page
from megalite.training.folder.history import DONE, STOPPED, History, read_history
from megalite.training.folder.starts import TIME

NUMBER = '<td class="number">'
LOG = """step 8: a spike: loss 9 is above 5; the steps before have 4
step 8: going back before the spike; samples 24-39 of the run's order are never learned
step 10: rank 1 (node2) is slower than the others, 20 steps: a step takes it 1 s <more>
step 12: computed again (by schedule): another result: a transient fault
resuming from step-00000004
"""


def run_of(folder: Path, rows: list[dict], notes: list[dict], log: str = "") -> str:
    folder.mkdir()
    files = {"metrics.jsonl": rows, "history.jsonl": notes}
    for name, lines in files.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "log.txt").write_text(log)
    return str(folder)


def test_faults_lost_steps_goodput_and_verdicts_are_told(tmp_path):
    rows = [{"step": n, "loss": 1.0, "step_s": 60.0, "own_s": 1.0} for n in range(1, 31)]
    rows[3] |= {"recheck": 0.0}
    rows[11] |= {"recheck": 2.0, "dropped_steps": 3, "slowest_own_s": 2.0}
    began = time.mktime(time.strptime("2026-11-01 10:00:00", TIME))
    notes = [
        {"began_s": began, "step": 0, "restart": 0},
        {"began_s": began + 1200, "step": 4, "restart": 1},
        {"ended_s": began + 3600, "reached": 30, "how": DONE},
    ]
    folder = run_of(tmp_path / "run", rows, notes, LOG)
    report = tmp_path / "run" / "faults" / "restart-0" / "report.txt"
    report.parent.mkdir(parents=True)
    fault = "rank 1 (node2, process 7) in step 9, reduce was killed or crashed"
    report.write_text(
        f"2026-11-01 10:10:00 {fault}\nrank 0 (node1, process 6) in step 9: running\n"
    )
    text = page(ReportConfig(runs=(folder,)))
    cells = ["2", "1", "4", "1"]  # starts, faults, steps lost, hours
    numbers = "".join(f"{NUMBER}{cell}</td>" for cell in cells)
    assert f"<td>run</td>{numbers}<td>50.0%</td><td>1 right, 1 transient</td>{NUMBER}3</td>" in text
    assert f"<td>2026-11-01 10:10:00</td>{NUMBER}9</td><td>{fault}</td>" in text
    kinds = ("<td>spike</td>", "<td>straggler</td>", "<td>recheck</td>")
    assert [text.count(kind) for kind in kinds] == [2, 1, 1]
    assert "1 s &lt;more&gt;" in text
    assert "own time for a step" in text


def test_a_run_without_faults_has_no_section(tmp_path):
    notes = [
        {"began_s": 1.0, "step": 0, "restart": 0},
        {"ended_s": 2.0, "reached": 1, "how": STOPPED},
    ]
    folder = run_of(tmp_path / "run", [{"step": 1, "loss": 1.0}], notes)
    assert "Faults" not in page(ReportConfig(runs=(folder,)))


def test_the_time_to_the_first_step_of_each_start_is_told_by_part(tmp_path):
    notes = [
        {"began_s": 1.0, "step": 0, "restart": 0},
        {"first_step": {"imports": 3.0, "step": 1.5}},
        {"began_s": 9.0, "step": 1, "restart": 1},
    ]
    folder = run_of(tmp_path / "run", [{"step": 1, "loss": 1.0}], notes)
    text = page(ReportConfig(runs=(folder,)))
    cells = ["4.5", "3.0", *["0.0"] * 5, "1.5"]
    assert "".join(f"{NUMBER}{cell}</td>" for cell in cells) in text
    assert text.count("<th>imports</th>") == 1
    start, second = read_history(tmp_path / "run")
    assert (start.first_step["step"], second.first_step) == (1.5, {})


def test_a_history_survives_a_line_that_was_cut_off(tmp_path):
    history = History(tmp_path)
    history.begin(3, 1)
    with open(tmp_path / "history.jsonl", "a") as file:
        file.write('{"ended_s": 12\n')
    history.end(9, "a fault")
    (start,) = read_history(tmp_path)
    assert (start.step, start.restart, start.reached, start.how) == (3, 1, 9, "a fault")
    assert start.is_fault
    assert read_history(tmp_path / "not there") == []
