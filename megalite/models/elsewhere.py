"""Models, runs and tokenizers behind URLs: which of their files are fetched."""

from contextlib import suppress
from functools import partial

from megalite.distributed.launch import Launch
from megalite.errors import CheckpointError, UserError
from megalite.files.fetch import Read, fetch_together
from megalite.files.urls import place_of
from megalite.models.files import TOKENIZER_FILES, Wanted, chosen, parts_of

CHECKPOINTS, LATEST, POINTERS = "checkpoints/", "latest", ("latest", "best")
MANIFEST, RUN_CONFIG = "manifest.json", "config.toml"


def fetch_model(launch: Launch, key: str, url: str, wanted: Wanted) -> list[str]:
    """Make the copy of a model whole on every node; all processes call this.

    Of a run it is the latest checkpoint, of a checkpoint also what its run was told.

    Args:
        launch: this process among the run's.
        key: that names it.
        url: of a run's folder, a checkpoint, a pointer to one, a published folder or a tokenizer.
        wanted: which of its files.

    Returns:
        What the first process should say.

    Raises:
        CheckpointError: it isn't there or can't be fetched.

    Comm: a text through the store, perhaps more.
    """
    try:
        return _fetched(launch, key, url, wanted)
    except UserError as error:
        raise CheckpointError(str(error)) from None


def _fetched(launch: Launch, key: str, url: str, wanted: Wanted) -> list[str]:
    choose = partial(_wanted_of, wanted=wanted)
    said = fetch_together(launch, [(key, url)], choose)
    place = place_of(url)
    if place.name in POINTERS and place.is_file():
        name = place.read_text(encoding="utf-8").strip()
        beside = f"{url.rpartition('/')[0]}/{name}"
        said += fetch_together(launch, [(key, beside)], choose)
    run, found, _ = url.partition(f"/{CHECKPOINTS}")
    if found:
        with suppress(UserError):  # a checkpoint may lie there without its run
            said += fetch_together(launch, [(key, f"{run}/{RUN_CONFIG}")])
    return said


def _wanted_of(names: list[str], read: Read, wanted: Wanted) -> list[str]:
    """Which files of a folder are wanted, by their names from there."""
    parts = parts_of(names)
    if "config.json" in names:
        return chosen(parts, wanted)
    folder = CHECKPOINTS if f"{CHECKPOINTS}{LATEST}" in names else ""
    if f"{folder}{LATEST}" not in names:
        return names  # a checkpoint, or a tokenizer
    step = f"{folder}{read(f'{folder}{LATEST}').strip()}/"
    of_step = [name for name in names if name.startswith(step)]
    if wanted == "config":
        of_step = [f"{step}{MANIFEST}"]
    own = [name for name in names if name == RUN_CONFIG or name.startswith(TOKENIZER_FILES)]
    return [f"{folder}{LATEST}", *of_step, *own]
