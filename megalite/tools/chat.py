"""``megalite chat``: a conversation with a model in a terminal, or with lines of standard input."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from pydantic import Field

from megalite.config import load
from megalite.data.records import check_unicode
from megalite.distributed.launch import Launch
from megalite.errors import ConfigError, DataError, UserError, tell
from megalite.generation.sampling import SamplingConfig
from megalite.tools.speaker import SpeakerConfig, check_language_model, open_speaker
from megalite.tools.talk import Said, Talk

MARK = "> "  # before what the user says
HELP = """\
/reset            forget the conversation; the system message stays
/system TEXT      set the system message and forget the conversation; without a text: none
/NAME VALUE       set an option of the answers: {names}
/settings         show them
/help             this text
/exit             end, as Ctrl-D
//TEXT            say a text that begins with /
Ctrl-C stops an answer; what there is of it stays in the conversation."""


class ChatConfig(SpeakerConfig):
    """A model, and how its answers are drawn."""

    system: str = Field("", description="system message before the conversation; empty: none")
    sampling: SamplingConfig = SamplingConfig()


def run(config: ChatConfig, launch: Launch) -> int:
    """Talk until the input ends."""
    if launch.world_size > 1:
        raise ConfigError(
            f"megalite chat: is one process, came {launch.world_size}: start it without torchrun"
        )
    speaker = open_speaker(config, launch, converses=True)
    check_language_model(speaker.model_config, config.model)
    speaker.ending(config.stop)  # refuses what can't end an answer before the weights are read
    model = speaker.load_model()
    talk = Talk(speaker, model, config.sampling, config.stop, config.system)
    tell(
        f"{config.model}: template {speaker.template}, {speaker.model_config.max_positions} "
        f"positions, {speaker.device.type} {speaker.precision}; /help names the commands, Ctrl-C "
        "stops an answer, Ctrl-D ends"
    )
    with model.gathered():
        for line in _lines():
            if not line.strip():
                continue
            if line.startswith("/") and not line.startswith("//"):
                if not _obey(talk, line[1:]):
                    break
            else:
                _answer(talk, line.removeprefix("/") if line.startswith("//") else line)
    return 0


def _lines() -> Iterator[str]:
    """What the user says, line by line; in a terminal a Ctrl-C begins the line anew."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 - input() edits lines with it
    while True:
        try:
            line = input(MARK) if is_terminal else _piped_line()
        except EOFError:
            if is_terminal:
                sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            sys.stdout.write("\n")
            tell("Ctrl-D ends")
            continue
        except UnicodeDecodeError as error:
            raise DataError(f"standard input: not UTF-8 text at byte {error.start}") from None
        yield line


def _piped_line() -> str:
    """A line of a pipe or file, which is shown as it stands in a terminal."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    line = line.rstrip("\r\n")
    if line.strip():
        sys.stdout.write(f"{MARK}{line}\n")
    return line


def _answer(talk: Talk, question: str) -> None:
    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        check_unicode(question)
        said = talk.ask(question, show)
    except (DataError, ValueError) as error:
        tell(f"{error}; the conversation is as it was")
        return
    sys.stdout.write("\n\n")
    sys.stdout.flush()
    for note in notes_on(said):
        tell(note)


def notes_on(said: Said) -> list[str]:
    """What the user should know of an answer."""
    notes = []
    if said.left_out:
        notes.append(
            f"the conversation is longer than the model's positions: its first {said.left_out} "
            f"round{'s are' if said.left_out > 1 else ' is'} left out from here on"
        )
    if said.reason == "limit":
        notes.append(f"cut at {said.num_tokens} tokens: /max_new_tokens allows more")
    elif said.reason == "full":
        notes.append(f"cut at {said.num_tokens} tokens: the model's positions are full")
    elif said.reason == "stopped":
        notes.append(f"stopped after {said.num_tokens} tokens")
    if not said.text:
        notes.append("the answer is empty; the round is not kept")
    return notes


def _obey(talk: Talk, words: str) -> bool:
    """Carry out a command; False ends the conversation."""
    name, _, rest = words.partition(" ")
    name, rest = name.strip(), rest.strip()
    if name in ("exit", "quit"):
        return False
    commands: dict[str, Callable[[], str]] = {
        "help": lambda: HELP.format(names=", ".join(SamplingConfig.model_fields)),
        "reset": lambda: _reset(talk),
        "system": lambda: _set_system(talk, rest),
        "settings": lambda: _settings(talk),
        "": lambda: "a command follows /: /help names them",
    }
    try:
        tell(commands[name]() if name in commands else _set(talk, name, rest))
    except UserError as error:
        tell(str(error).replace("--", "/", 1))
    return True


def _reset(talk: Talk) -> str:
    talk.reset()
    return "the conversation begins anew"


def _set_system(talk: Talk, text: str) -> str:
    talk.system = text
    return f"the system message is {text!r}; {_reset(talk)}" if text else f"none; {_reset(talk)}"


def _settings(talk: Talk) -> str:
    values = talk.sampling.model_dump()
    own = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"{own}; system {talk.system!r}, {len(talk.rounds)} rounds"


def _set(talk: Talk, name: str, value: str) -> str:
    """Set an option of the sampling.

    Raises:
        ConfigError: there is none of this name, or it can't have the value.
    """
    if name not in SamplingConfig.model_fields:
        raise ConfigError(f"/{name}: no such command; /help names them")
    if not value:
        return f"{name} is {getattr(talk.sampling, name)}"
    told = getattr(load(SamplingConfig, None, [f"--{name}={value}"]), name)
    talk.sampling = talk.sampling.model_copy(update={name: told})
    return f"{name} is {told}"
