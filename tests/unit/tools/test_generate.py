"""What ``megalite generate`` refuses before it reads a model."""

import pytest

from megalite.config import load
from megalite.errors import ConfigError
from megalite.tools.generate import GenerateConfig


def test_an_unknown_template_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="--template = 'vicun': must be .*did you mean 'vicuna'"):
        load(GenerateConfig, None, ["--model", "x", "--template", "vicun"])
