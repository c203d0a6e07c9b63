"""Asks a GPU whether megalite is right on it and how fast, in nine minutes.

    python -m benchmarks.gpu [--part 1|2] [--minutes M] [--only NAME,NAME] [--folder FOLDER]
    python -m benchmarks.gpu --rehearse
    python -m benchmarks.gpu --figures runs/gpu/results-1.json runs/gpu/results-2.json

Part 1 asks whether it is right, part 2 how fast; each takes its share of the time alone. Results
are printed, and written into FOLDER as JSON after each check. --rehearse runs the same on a CPU,
tiny: the CUDA kernels on the emulator, the rest on the CPU backend. --figures prints tables.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.gpu.checks import named
from benchmarks.gpu.driver import Driver, of_part
from benchmarks.gpu.figures import markdown

MINUTES = {0: 9.0, 1: 5.25, 2: 4.5}  # of a part, or of both
REHEARSAL_MINUTES = 60.0  # at most: emulated, all takes longer, and a busy CPU longer still
FOLDER = Path("runs/gpu")


def parser() -> argparse.ArgumentParser:
    """The options; those without help are the driver's own."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--part", type=int, default=0, choices=(1, 2), help="one of the two parts")
    found.add_argument(
        "--minutes", type=float, help="for all; 9, or 5.25 and 4.5 for a part; 60 on the CPU"
    )
    found.add_argument("--only", default="", help="names of checks, with commas between them")
    found.add_argument("--folder", type=Path, default=FOLDER, help="of results; runs/gpu")
    found.add_argument("--rehearse", action="store_true", help="on the CPU, tiny")
    found.add_argument("--figures", type=Path, nargs="+", metavar="RESULTS", help="print tables")
    for name in ("--check", "--rows"):
        found.add_argument(name, help=argparse.SUPPRESS)
    found.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    found.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    return found


def run_check(options: argparse.Namespace) -> int:
    """Be the process of one check."""
    from benchmarks.gpu.here import Here

    folder = options.folder.resolve()
    here = Here(options.seconds, Path(options.rows), folder, options.rehearse, options.small)
    named(options.check).run(here)
    return 0


def main() -> int:
    """Run the checks."""
    options = parser().parse_args()
    if options.figures:
        print(markdown(options.figures), end="")
        return 0
    if options.check:
        return run_check(options)
    checks = of_part(options.part)
    if options.only:
        checks = [named(name.strip()) for name in options.only.split(",")]
    most = REHEARSAL_MINUTES if options.rehearse else MINUTES[options.part]
    minutes = options.minutes or most
    driver = Driver(options.folder.resolve(), options.rehearse, options.part)
    is_well = driver.run(checks, minutes)
    print(f"{'all is well' if is_well else 'something is wrong'}: {driver.file}")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
