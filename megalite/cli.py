"""The command line: finds the command, loads its config, runs it and gives the exit code.

Nothing heavy is imported before the command is known, so help is immediate. This is the only
module that reads the environment.
"""

import difflib
import errno
import importlib
import io
import os
import re
import select
import shutil
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from megalite.commands import COMMANDS, Command
from megalite.errors import ConfigError, MegaliteError, Stopped, write_error_file

if TYPE_CHECKING:
    from megalite.distributed.launch import Launch

EXIT_USER = 2
WIDTH = 100, 24  # of help where no terminal and no COLUMNS say
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a write failed; the system names no file
EXIT_INTERRUPTED = 130
LAUNCHED = "MEGALITE_LAUNCH"  # set for the processes of `megalite launch`
USAGE = "usage: megalite COMMAND [CONFIG.toml or recipe:NAME] [--section.key VALUE ...]"
OWN = {  # commands of this module, beside those of the table
    "launch ... COMMAND": "start a command on several processes, by torchrun",
    "config [COMMAND]": "print a command's commented config, with a file and overrides applied",
}
OWN_WORDS = [name.split()[0] for name in OWN]
HELP_END = """
options:
  --help               this text, or a command's
  --version            print the version
  --traceback          show where an error was raised

Any value of a config file is overridden as --section.key VALUE. On several processes or nodes:
  megalite launch --nproc-per-node 2 COMMAND ...
exit codes: 0 done, 1 failure, 2 wrong input, 3 stopped on request with the state saved"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    _mend_streams()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for PyTorch's CPU memory
    words = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in words
    if words[:1] != ["launch"]:  # whose processes show it
        words = [word for word in words if word != "--traceback"]
    try:
        return _dispatch(words)
    except MegaliteError as error:
        is_mistake = error.exit_code == EXIT_USER
        message = _line(str(error)) if is_mistake else str(error)
        _report(message, show_traceback, _says(error.speaks, is_mistake))
        return error.exit_code
    except KeyboardInterrupt:
        _report("interrupted", show_traceback)
        return EXIT_INTERRUPTED
    except OSError as error:
        if _has_lost_reader():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if error.filename is None and error.errno not in DISK:
            raise
        _report(f"{error.filename or 'a file'}: {error.strerror}", show_traceback, _says())
        return EXIT_USER
    except Exception:
        write_error_file(os.environ.get("TORCHELASTIC_ERROR_FILE", ""), traceback.format_exc())
        raise


def _mend_streams() -> None:
    """Make closed standard streams the null device, and escape what an encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - stays
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _has_lost_reader() -> bool:
    """Whether nobody reads what is printed any more, as behind ``| head``."""
    output = select.poll()
    try:
        output.register(sys.stdout.fileno(), 0)
    except OSError:  # it is no file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        _print_help(_help())
        return 0 if words else EXIT_USER
    if words[0] == "--version":
        from megalite import __version__

        _print(f"megalite {__version__}")
        return 0
    if words[0] == "config":
        return _print_config(words[1:])
    if words[0] == "launch":
        return _launch(words[1:])
    command, rest = find_command(words)
    if "--help" in rest or "-h" in rest:
        _print_help(_command_help(command))
        return 0
    from megalite.distributed.beginning import age_s
    from megalite.distributed.launch import Launch

    launch = Launch.from_environment(os.environ)
    launch.beginning.process_started(age_s())
    stops = launch.stop.caught(launch.rank, launch.world_size)
    with stops if command.is_stage else nullcontext():
        return _run(command, rest, launch)


def _run(command: Command, words: list[str], launch: "Launch") -> int:
    """Run a command and leave its process group, unless it failed: others may be in it still."""
    config, module = load_config(command, words)
    parallel = getattr(config, "parallel", None)
    if parallel is not None:
        from megalite.distributed.mesh import ParallelConfig

        if isinstance(parallel, ParallelConfig):  # before anything asks for a GPU
            for name, value in parallel.environment.items():
                os.environ.setdefault(name, value)
    try:
        exit_code = int(module.run(config, launch) or 0)
    except Stopped:
        _leave_process_group()
        raise
    _leave_process_group()
    return exit_code


def _leave_process_group() -> None:
    """Leave what the command has joined; without its module, and torch behind it, that is none."""
    mesh = sys.modules.get("megalite.distributed.mesh")
    if mesh is not None:
        mesh.leave_process_group()


def find_command(words: Sequence[str]) -> tuple[Command, list[str]]:
    """Find the command that ``words`` begin with, and the words after it.

    Raises:
        ConfigError: there is no such command; names the closest.
    """
    for length in (2, 1):
        for command in COMMANDS:
            if command.words == " ".join(words[:length]):
                return command, list(words[length:])
    names = [command.words for command in COMMANDS]
    parts = [name for name in names if name.split()[0] == words[0]]
    names += OWN_WORDS
    close = parts or difflib.get_close_matches(" ".join(words[:2]), names, n=1, cutoff=0.5)
    close = close or difflib.get_close_matches(words[0], names, n=1)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
    raise ConfigError(f"megalite {words[0]}: no such command; {hint}")


def load_config(command: Command, words: Sequence[str]) -> tuple[Any, Any]:
    """Load a command's config from an optional TOML file and overrides; give it and the module."""
    from megalite.config import load

    path = words[0] if words and not words[0].startswith("-") else None
    scale, words = _scale(words[0 if path is None else 1 :], path)
    change = None
    if scale:
        from megalite.tools.scaled import change_to

        change = change_to(scale)
    module_name, _, class_name = command.target.partition(":")
    module = importlib.import_module(module_name)
    return load(getattr(module, class_name), path, words, change), module


def _scale(words: Sequence[str], path: str | None) -> tuple[str, list[str]]:
    """The value of ``--scale`` behind a recipe's name, or none, and the other words."""
    from megalite.config.bases import is_recipe

    rest = list(words)
    if path is None or not is_recipe(path):
        return "", rest
    for number, word in enumerate(rest):
        name, has_value, value = word.partition("=")
        if name == "--scale":
            value = value if has_value else "".join(rest[number + 1 : number + 2])
            return value or "?", rest[:number] + rest[number + (1 if has_value else 2) :]
    return "", rest


def _launch(words: list[str]) -> int:
    from megalite.tools.launch import USAGE, launch

    if not words or words[0] in ("--help", "-h"):
        _print_help(USAGE)
        return 0 if words else EXIT_USER
    os.environ[LAUNCHED] = "1"
    return launch(words, os.environ)


def _print_config(words: list[str]) -> int:
    if "--help" in words or "-h" in words:
        _print_help("usage: megalite config [COMMAND] [CONFIG.toml] [--section.key VALUE ...]")
        return 0
    from megalite.config import describe

    if not words or words[0].startswith(("-", "recipe:")) or words[0].endswith(".toml"):
        words = ["pretrain", *words]
    if words[0] in OWN_WORDS:
        raise ConfigError(f"megalite config {words[0]}: it has no keys; see megalite {words[0]} -h")
    command, rest = find_command(words)
    if rest:
        from megalite.config import dump

        text = dump(load_config(command, rest)[0])
    else:
        module_name, _, class_name = command.target.partition(":")
        text = describe(getattr(importlib.import_module(module_name), class_name))
    _print(f"# megalite {command.words}\n{text}", end="")
    return 0


def _help() -> str:
    table = {command.words: command.summary for command in COMMANDS} | OWN
    width = max(map(len, table))
    lines = [f"  {words:<{width}}   {summary}" for words, summary in table.items()]
    return "\n".join([USAGE, "", "commands:", *lines]) + f"\n{HELP_END}"


def _command_help(command: Command) -> str:
    return (
        f"usage: megalite {command.words} [CONFIG.toml] [--section.key VALUE ...]\n\n"
        f"{command.summary}\n\nexample:\n  megalite {command.words} {command.example}\n\n"
        f"All keys with their meaning: megalite config {command.words}"
    )


def _print_help(text: str) -> None:
    """Print lines as wide as the terminal: texts behind a gap stay in their column."""
    width = shutil.get_terminal_size(WIDTH).columns
    _print("\n".join(_fitted(line, width) for line in text.splitlines()))


def _fitted(line: str, width: int) -> str:
    """A line as lines of at most ``width``; one that a shell reads goes on behind a backslash."""
    if len(line) <= width:
        return line
    if line.startswith("  megalite "):
        return _continued(re.findall(r"(?:'[^']*'|\S)+", line), width)
    gap = re.match(r"\s*\S.*?\s{3,}", line)
    indent = gap.end() if gap else 7 * line.startswith("usage:")
    indent = indent if 2 * indent < width else 4
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _continued(words: Sequence[str], width: int) -> str:
    """Words of a command line."""
    lines = [f"  {words[0]}"]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 > width:
            lines.append("   ")
        lines[-1] += f" {word}"
    return " \\\n".join(lines)


def _says(speaks: bool | None = None, is_mistake: bool = True) -> bool | None:
    """Whether this process says an error; a mistake is told once by ``megalite launch``."""
    is_launched = "TORCHELASTIC_ERROR_FILE" in os.environ and LAUNCHED in os.environ
    return False if is_launched and is_mistake else speaks


def _line(text: str) -> str:
    """A mistake as one line, whatever the name or value holds that it repeats."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


def _report(message: str, show_traceback: bool, speaks: bool | None = None) -> None:
    """Say an error once, on stderr, and on every rank in the file that torchrun reads.

    Args:
        message: the error.
        show_traceback: print where it was raised too.
        speaks: whether this process says it; None: if it is rank 0.
    """
    if show_traceback:
        traceback.print_exc()
    environment: Mapping[str, str] = os.environ
    if environment.get("RANK", "0") == "0" if speaks is None else speaks:
        sys.stderr.write(f"megalite: {message}\n")
    write_error_file(environment.get("TORCHELASTIC_ERROR_FILE", ""), message)


def _print(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()
