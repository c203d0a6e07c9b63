"""``megalite launch``: the processes of a node by torchrun, whose last word is one line.

torchrun is the program that PyTorch documents. Where a process of it fails it ends with its own
traceback and a report that repeats the message of each rank, which no process that it starts can
keep it from. Here its agent runs in this process, so that this process says what came of it.
"""

import contextlib
import io
import logging
from argparse import Namespace
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

from megalite.errors import ConfigError, MegaliteError, UserError, first_line

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

USAGE = """usage: megalite launch [torchrun's options] COMMAND [the command's words]

start a command on several processes, by torchrun; a user's mistake is one line

example:
  megalite launch --nproc-per-node 2 pretrain configs/small.toml --parallel.shard 2

All of torchrun's options: torchrun --help"""


class Ended(MegaliteError):
    """The processes ended other than with 0."""

    speaks = True

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def launch(words: Sequence[str], environment: MutableMapping[str, str]) -> int:
    """Start the processes and wait for them.

    Args:
        words: torchrun's options, then a command and its words.
        environment: of this process, which the others inherit.

    Raises:
        ConfigError: torchrun refuses its options.
        UserError: a process refused the user's input; the message is the process's own.
        Ended: the processes don't meet, one failed, or a signal ended the launcher; the exit code
            is the process's, or 128 + the signal.
    """
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    options = options_of(words)
    _quiet(has_restarts=options.max_restarts > 0)
    if options.nproc_per_node != "1":  # as torchrun does, and says in five lines
        environment.setdefault("OMP_NUM_THREADS", "1")
    try:
        run.run(options)
    except ChildFailedError as error:
        raise told(error.failures) from None
    except (ValueError, AssertionError) as error:  # of an option's value
        raise _refused(first_line(error)) from None
    except (RendezvousError, DistError) as error:
        place = options.rdzv_endpoint or f"{options.master_addr}:{options.master_port}"
        raise Ended(f"launch: no rendezvous at {place}: {first_line(error)}", 1) from None
    except SignalException as error:
        raise Ended(f"launch: ended by {error.sigval.name}", 128 + error.sigval) from None
    return 0


def options_of(words: Sequence[str]) -> Namespace:
    """The options for torchrun of a command line; what it starts is megalite and the other words.

    Raises:
        ConfigError: torchrun refuses them, in its words.
    """
    from torch.distributed import run

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = run.parse_args(["-m", *words])
    except SystemExit:
        reason = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise _refused(reason) from None
    if options.nproc_per_node.lstrip("-").isdigit() and int(options.nproc_per_node) < 1:
        raise _refused(f"--nproc-per-node {options.nproc_per_node}: must be at least 1")
    options.training_script_args = [options.training_script, *options.training_script_args]
    options.training_script = "megalite"
    return options


def _refused(reason: str) -> ConfigError:
    return ConfigError(
        f"megalite launch: {reason}: give torchrun's options, a command and its words; "
        "`megalite launch --help` has an example"
    )


def _quiet(has_restarts: bool) -> None:
    """Keep torchrun from telling what this process tells too; it tells of each restart's reason."""
    logger = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    logger.setLevel(logging.ERROR if has_restarts else logging.CRITICAL)


def told(failures: Mapping[int, "ProcessFailure"]) -> MegaliteError:
    """The failure that the others follow from: a mistake, else a process's own, else a signal.

    Args:
        failures: by rank.
    """

    def weight(rank: int) -> tuple[bool, bool, int]:
        code = failures[rank].exitcode
        return code != UserError.exit_code, code < 0, failures[rank].timestamp

    rank = min(failures, key=weight)
    failure = failures[rank]
    text = failure.message
    if isinstance(text, dict):
        text = str(text.get("message", ""))
    line = (text.strip().splitlines() or ["no reason was written"])[-1]
    if failure.exitcode == UserError.exit_code:
        return UserError(line)
    code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    how = f"exit code {code}" if failure.exitcode > 0 else failure.signal_name()
    return Ended(f"launch: rank {rank} (process {failure.pid}) ended with {how}: {line}", code)
