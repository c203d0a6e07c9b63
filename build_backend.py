"""Building under pip: against the PyTorch that is installed where the package goes.

pip builds in an environment of its own and hides the one that it installs into. A PyTorch fetched
for the build need not be the one that is installed, and operators compiled against one don't load
in the other. So the build sees the installed one; PyTorch is fetched only where there is none.
"""

import functools
import re
import sys
import sysconfig
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from setuptools import build_meta

ROOT = Path(__file__).parent
Settings = Mapping[str, str] | None
Hook = Callable[..., Any]


def installed() -> list[str]:
    """The folders of the environment's packages, where they hold PyTorch."""
    folders = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    found = next(distributions(name="torch", path=[*folders, *sys.path]), None)
    return folders if found is not None else []


def pytorch() -> str:
    """The requirement of PyTorch that the package has, as pyproject.toml writes it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (found,) = re.findall(r'^ *"(torch\W[^"]*)"', text, re.MULTILINE)  # no TOML in Python 3.10
    return found


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """PyTorch, unless it is installed or nothing is compiled."""
    sys.path.insert(0, str(ROOT))
    from setup import compiles  # when pip asks, setuptools is there and PyTorch need not be

    return [pytorch()] if compiles() and not installed() else []


def with_installed(build: Hook) -> Hook:
    """What setuptools does, with the installed PyTorch in sight."""

    @functools.wraps(build)
    def hook(*arguments: Any, **options: Any) -> Any:
        sys.path.extend(folder for folder in installed() if folder not in sys.path)
        return build(*arguments, **options)

    return hook


get_requires_for_build_editable = get_requires_for_build_wheel
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
build_sdist = build_meta.build_sdist
build_wheel = with_installed(build_meta.build_wheel)
build_editable = with_installed(build_meta.build_editable)
prepare_metadata_for_build_wheel = with_installed(build_meta.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = with_installed(build_meta.prepare_metadata_for_build_editable)
