"""The GPU's checks, rehearsed in part, and that one which goes wrong costs nothing but its time."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import MINUTES
from benchmarks.gpu.checks import CHECKS, FIRST, named
from benchmarks.gpu.driver import Budget, _ended, of_part, read_rows
from benchmarks.gpu.external import read_counters
from benchmarks.gpu.figures import markdown
from benchmarks.gpu.here import Here
from benchmarks.gpu.stages import NUM_STEPS
from megalite.ops.backends import available
from megalite.tools.demo import STAGES
from tests.e2e.conftest import ROOT, environment


@pytest.mark.skipif(not available("simt"), reason="the emulator is not built")
def test_a_rehearsal_of_a_check_tells_what_it_found_in_a_table_and_in_json(tmp_path):
    words = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--folder", str(tmp_path)]
    done = subprocess.run(
        [*words, "--only", "rows", "--minutes", "3"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [outcome["check"] for outcome in results] == ["import", "rows"]
    (row,) = results[1]["rows"]
    assert row["figures"]["cases"] == 45
    assert 0 < row["figures"]["worst_ratio"] <= 3
    assert "all is well" in done.stdout
    table = markdown([tmp_path / "results.json"])
    assert "## none: a rehearsal on the CPU" in table
    assert "| case | cases | failed | worst_ratio |" in table


def test_a_check_that_crashes_or_hangs_is_ended_and_what_it_found_is_kept(tmp_path):
    log, rows = tmp_path / "log", tmp_path / "rows"
    Here(1.0, rows, tmp_path).note("found before", seconds=1.5)
    with rows.open("a") as file:
        file.write('{"case": "cut sh')
    assert [row["case"] for row in read_rows(rows)] == ["found before"]
    code = "import os, sys; print('last words'); sys.stdout.flush(); os._exit(5)"
    assert _ended([sys.executable, "-c", code], log, 30) == "exit code 5: last words"
    started = time.monotonic()
    code = "import subprocess; subprocess.run(['sleep', '60'])"
    assert _ended([sys.executable, "-c", code], log, 0.5) == "no end after 0 s"
    assert time.monotonic() - started < 20
    assert _ended([sys.executable, "-c", "pass"], log, 30) == ""


def test_both_parts_fit_the_time_and_shares_grow_with_it():
    assert {check.part for check in CHECKS} == {1, 2}
    for part, minutes in MINUTES.items():
        shares = FIRST.seconds + sum(check.seconds for check in of_part(part))
        assert shares <= 60 * minutes
    checks = of_part(1)
    half, double = (Budget.of(minutes, checks) for minutes in (3.0, 12.0))
    assert half.share(checks[0]) == checks[0].seconds  # the first ones are whole, the last left out
    assert double.share(checks[0]) == pytest.approx(checks[0].seconds * double.scale)
    with pytest.raises(SystemExit, match="no check is called 'row'; there are operators, stages"):
        named("row")


def test_each_stage_of_the_demo_has_a_number_of_steps():
    assert set(NUM_STEPS) == set(STAGES)


def test_counters_are_read_behind_what_else_ncu_prints():
    head = (
        '"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"'
    )
    kernel = '"void megalite::sm80::attention_forward<megalite::sm80::ForwardTraits<x>>(Params)"'
    lines = [
        "==PROF== Connected to process 7",
        head,
        f'"0","7",{kernel},"","gpu__time_duration.sum","us","1,234.5"',
        f'"0","7",{kernel},"","launch__waves_per_multiprocessor","","2.4"',
        f'"0","7",{kernel},"","lts__t_sector_hit_rate.pct","%","n/a"',
        f'"0","7",{kernel},"","something else","%","1"',
    ]
    assert read_counters("\n".join(lines)) == {
        "attention_forward": {"time_us": 1234.5, "waves": 2.4}
    }
    assert read_counters("==ERROR== no counters") == {}


def test_results_of_two_cards_are_not_mixed(tmp_path):
    files = []
    for card in ("A", "B"):
        row = {"case": "this machine", "fault": "", "figures": {"card": card}}
        files.append(Path(tmp_path / card))
        files[-1].write_text(json.dumps([{"check": "import", "fault": "", "rows": [row]}]))
    with pytest.raises(SystemExit, match="one card at a time"):
        markdown(files)
