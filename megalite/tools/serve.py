"""``megalite serve``: a model behind OpenAI's API, for trying it from any client.

One process: a thread writes answers (:mod:`megalite.generation.desk`), the main thread serves HTTP.
"""

import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from megalite.distributed.launch import Launch
from megalite.errors import ConfigError, tell
from megalite.generation.desk import Desk
from megalite.generation.room import Room
from megalite.generation.sampling import SamplingConfig
from megalite.stages.samples import decode_with
from megalite.tools.service import STOPPING, LimitsConfig, Service
from megalite.tools.speaker import Speaker, SpeakerConfig, check_language_model, open_speaker

CONTEXT_TOKENS = 4096  # of a model that has more positions, where nothing says how many


class ServeConfig(SpeakerConfig):
    """A model, where it is served, and how its answers are drawn if a request doesn't say."""

    host: str = Field("127.0.0.1", description="address to listen at; 0.0.0.0: every one")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0: a free one")
    api_key: str = Field("", description="key that requests must have; empty: none")
    name: str = Field(
        "", description="the model's name in the API; empty: the last part of model's"
    )
    limits: LimitsConfig = LimitsConfig()
    sampling: SamplingConfig = SamplingConfig()


def run(config: ServeConfig, launch: Launch) -> int:
    """Serve until a signal ends it."""
    if launch.world_size > 1:
        raise ConfigError(
            f"megalite serve: is one process, came {launch.world_size}: start it without torchrun"
        )
    try:
        from megalite.tools import web  # its libraries are an extra
    except ImportError as error:
        raise ConfigError(
            f"megalite serve: needs {error.name}: pip install 'megalite[serve]'"
        ) from None
    with listening(config) as listener:
        speaker = open_speaker(config, launch, converses=True)
        check_language_model(speaker.model_config, config.model)
        ending = speaker.ending(config.stop)
        room = room_of(config, speaker)
        model = speaker.load_model()
        shape, number = speaker.model_config, speaker.number_bytes
        on_gpu = speaker.device.type == "cuda"
        tell(
            f"{config.model}: template {speaker.template}, {room.slots} answers of {room.most_keys}"
            f" tokens side by side, whose keys and values take up to "
            f"{room.size_bytes(shape, number) / 2**20:.1f} MiB, passes and draws up to "
            f"{room.working_bytes(shape, number, on_gpu=on_gpu) / 2**20:.1f} MiB"
        )
        desk = Desk(decode_with(model), room, ending, config.limits.queue, speaker.device)
        sampling, limits = config.sampling, config.limits
        service = Service(name_of(config), speaker, desk, room, sampling, limits, config.api_key)
        with model.gathered(), written(desk):
            web.serve(service, listener)
    return 0


def name_of(config: ServeConfig) -> str:
    """The model's name in the API."""
    named = Path(config.model.partition("@")[0]).name
    return config.name or named or config.model


def room_of(config: ServeConfig, speaker: Speaker) -> Room:
    """The memory of all slots.

    Raises:
        ConfigError: the model has fewer positions than are asked for.
    """
    model, wanted = speaker.model_config, config.limits.context_tokens
    if wanted > model.max_positions:
        raise ConfigError(
            f"--limits.context_tokens {wanted}: the model has {model.max_positions} positions: "
            "lower it"
        )
    tokens = wanted or min(model.max_positions, CONTEXT_TOKENS)
    read = tokens * model.is_encoder_decoder
    return Room.for_any(config.limits.slots, tokens, read, speaker.structure.is_prefix)


@contextmanager
def listening(config: ServeConfig) -> Iterator[socket.socket]:
    """A socket at the configured address.

    Raises:
        ConfigError: the port is taken, or there is no such address.
    """
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(found[0], socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host {config.host}: {error.strerror}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(found[4])
            listener.listen()
        except OSError as error:
            raise ConfigError(
                f"--port {config.port}: {config.host} can't be listened at: {error.strerror}; "
                "choose another, or 0 for a free one"
            ) from None
        _warn_if_open(config, listener)
        yield listener


def _warn_if_open(config: ServeConfig, listener: socket.socket) -> None:
    address = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
    if not address.is_loopback and not config.api_key:
        tell(
            f"--host {config.host}: every machine that reaches this one can use the model: give "
            "--api_key, or leave --host out"
        )


@contextmanager
def written(desk: Desk) -> Iterator[None]:
    """A thread that writes a desk's answers, while the block lasts."""
    thread = threading.Thread(target=desk.run, name="desk", daemon=True)
    thread.start()
    try:
        yield
    finally:
        desk.stop(STOPPING)
        thread.join()
