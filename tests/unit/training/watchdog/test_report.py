"""Who is at fault is told, whatever becomes of the files of it."""

import os

from megalite.training.watchdog.report import FaultFolder


def test_a_fault_is_told_where_its_files_cant_be_written(tmp_path, capfd):
    (tmp_path / "rank-00001.txt").symlink_to("/dev/full")
    (tmp_path / "report.txt").symlink_to("/dev/full")
    folder = FaultFolder(tmp_path, 1)
    folder.write_stacks()
    folder.write_error(RuntimeError("a bug"))
    folder.report("rank 1 is stuck", [], on_stderr=True)
    stacks, first, report = capfd.readouterr().err.splitlines()
    assert first == f"megalite: rank 1 is stuck; stacks are in {tmp_path}"
    full = f"can't be written: {os.strerror(28)}"
    assert stacks == f"megalite: {tmp_path}/rank-00001.txt: {full}"
    assert report == f"megalite: {tmp_path}/report.txt: {full}"
