import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from megalite.cli import main
from megalite.commands import COMMANDS
from megalite.config import Section, describe, dump, load
from megalite.errors import ConfigError


class Source(Section):
    path: str = Field(description="token store")
    weight: float = Field(1.0, gt=0)


class Model(Section):
    num_layers: int = Field(2, ge=1, description="blocks")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of elements dropped")
    norm: Literal["rms", "layer"] = Field("rms", description="kind of normalisation")
    tie: bool = False
    window_tokens: int | None = Field(None, description="sliding window")


class Data(Section):
    folder: Path = Path("data")
    sources: tuple[Source, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    files: tuple[str, ...] = ()
    names: dict[str, float] = Field(default_factory=dict)


class Config(Section):
    title: str = Field("run", description="name of the run")
    seed: int = 0
    model: Model = Model()
    data: Data = Data()

    @model_validator(mode="after")
    def _combination(self) -> "Config":
        if self.model.tie and self.model.num_layers == 13:
            raise ConfigError("--model.num_layers 13: tied models have another number: use 12")
        return self


def load_text(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return load(Config, path, overrides)


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(Config, None, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_override_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    text = "seed = 5\n[model]\nnum_layers = 3\ndropout = 0\n"
    config = load_text(tmp_path, text, "--model.num_layers", "7", "--model.tie")
    assert (config.seed, config.model.num_layers, config.model.dropout) == (5, 7, 0.0)
    assert config.model.tie and config.model.norm == "rms"


def test_text_keys_keep_what_looks_like_a_number_and_hyphens_are_underscores() -> None:
    config = load(Config, None, ["--title=17", "--model.num-layers", "4", "--data.folder", "1e3"])
    assert (config.title, config.model.num_layers, config.data.folder) == ("17", 4, Path("1e3"))


def test_negative_numbers_lists_and_none_are_values() -> None:
    overrides = ["--seed", "-3", "--data.sizes", "[4, 5]", "--model.window_tokens", "none"]
    config = load(Config, None, overrides)
    assert (config.seed, config.data.sizes, config.model.window_tokens) == (-3, (4, 5), None)


@pytest.mark.parametrize(
    ("word", "files"),
    [
        ("a.jsonl", ("a.jsonl",)),
        ("a b,c", ("a b,c",)),
        ("7", ("7",)),
        ('["a", "b"]', ("a", "b")),
        ("[]", ()),
    ],
)
def test_one_text_stands_for_a_list_of_it(word: str, files: tuple[str, ...]) -> None:
    assert load(Config, None, ["--data.files", word]).data.files == files


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model.dropout", "nan"), "--model.dropout = nan: must be a finite number"),
        (("--data.names", "{ a = -inf }"), "--data.names.a = -inf: must be a finite number"),
        (("--seed", str(2**63)), f"--seed = {2**63}: must be a whole number of at most 64 bits"),
        (("--data.sizes", f"[1, {-(2**70)}]"), "at most 64 bits"),
    ],
)
def test_numbers_are_finite_and_fit_64_bits(words: tuple[str, str], says: str) -> None:
    assert says in message(*words)
    assert load(Config, None, ["--seed", str(2**63 - 1)]).seed == 2**63 - 1


def test_a_list_whose_quotes_the_shell_took_is_shown_with_them() -> None:
    assert message("--data.files", "[a.jsonl,b c]").endswith("""such as '["a.jsonl", "b c"]'""")
    assert message("--data.sizes", "2,3").endswith("such as '[2, 3]'")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert load_text(tmp_path, "\ufeff[model]\nnum_layers = 5\n").model.num_layers == 5


@pytest.mark.parametrize("word", ["", "[a", "[3]"])
def test_what_is_no_list_of_texts_is_refused(word: str) -> None:
    assert "--data.files" in message("--data.files", word)


def test_unknown_key_names_the_closest() -> None:
    assert message("--model.num_layer", "3") == (
        "--model.num_layer: no such key; did you mean model.num_layers?"
    )
    assert message("--dropout", "0.1") == "--dropout: no such key; did you mean model.dropout?"
    assert "title, seed, model, data" in message("--zzzz", "1")


def test_wrong_type_and_range_say_what_would_be_right() -> None:
    assert message("--model.num_layers", "two") == (
        "--model.num_layers = 'two': must be an integer"
    )
    assert "greater than or equal to 1" in message("--model.num_layers", "0")
    assert "did you mean 'layer'?" in message("--model.norm", "layr")
    assert "true or false" in message("--model.tie", "yes")
    assert "integer" in message("--model.window_tokens", "wide")
    assert "is a section with the keys num_layers" in message("--model", "3")


def test_strict_types_are_not_converted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c.toml: model.num_layers = '3'"):
        load_text(tmp_path, "[model]\nnum_layers = '3'\n")


def test_missing_value_of_an_item_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.sources.path must be set: token store"):
        load_text(tmp_path, "[[data.sources]]\nweight = 1.0\n")


def test_without_a_file_a_missing_value_is_an_option_of_the_command() -> None:
    class Named(Section):
        model: str = Field(description="a run")

    with pytest.raises(ConfigError, match="^--model must be set: a run$"):
        load(Named)


def test_what_is_no_config_in_its_place_says_how_it_is_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"is a folder.* such as --model {tmp_path}"):
        load(Config, tmp_path)
    for content in (b'{"prompt": "a"}', b"\xff\xfe"):
        (rows := tmp_path / "rows.jsonl").write_bytes(content)
        with pytest.raises(ConfigError, match=f"is no TOML file.* such as --model {rows} or"):
            load(Config, rows)


def test_validator_of_a_combination_passes_its_own_message() -> None:
    assert message("--model.num_layers", "13", "--model.tie").endswith("use 12")


def test_words_that_are_not_overrides_are_refused() -> None:
    assert "expected --section.key value" in message("model.num_layers", "3")
    assert "a value must follow" in message("--seed")
    assert "is a value, not a section" in message("--seed", "3", "--seed.x", "1")


def test_bad_files_name_the_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load(Config, tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"c.toml: not valid TOML.*line 2"):
        load_text(tmp_path, "seed = 1\nseed == 2\n")
    with pytest.raises(
        ConfigError, match="seed = .*: must be text, a number, .* came datetime.date$"
    ):
        load_text(tmp_path, "seed = 2020-01-01\n")
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(Config, tmp_path / "c.toml")


def test_description_carries_comments_and_required_keys() -> None:
    assert "# blocks\nnum_layers = 2" in describe(Config)
    assert "# token store\n# path =   (must be set)" in describe(Source)


@given(
    title=st.text(st.characters(exclude_categories=["Cs"])),
    dropout=st.floats(0, 0.99),
    window=st.none() | st.integers(0, 10**12),
    sizes=st.lists(st.integers(-5, 5)),
    paths=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
)
def test_a_dumped_config_loads_back_equal(tmp_path_factory, title, dropout, window, sizes, paths):
    config = Config(
        title=title,
        model=Model(dropout=dropout, window_tokens=window, tie=True),
        data=Data(
            sizes=tuple(sizes),
            sources=tuple(Source(path=path, weight=0.1) for path in paths),
            names={"a b": 1.5},
        ),
    )
    path = tmp_path_factory.mktemp("dump") / "config.toml"
    path.write_text(dump(config), encoding="utf-8", newline="")
    assert load(Config, path) == config


def fields_of(section: type[Section], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of a section and of those in it, by its key on the command line."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields_of(field.annotation, f"{path}{name}.")
        else:
            yield path + name, field


@pytest.mark.parametrize("command", COMMANDS, ids=[command.words for command in COMMANDS])
def test_every_key_is_described_and_every_choice_says_what_its_values_are(command):
    module, name = command.target.split(":")
    for key, field in fields_of(getattr(importlib.import_module(module), name)):
        text = field.description or ""
        assert text and not text.endswith("."), key
        if get_origin(field.annotation) is Literal:
            missing = [v for v in get_args(field.annotation) if str(v) not in text]
            assert not missing, f"{key}: {text!r} doesn't name {missing}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("ppo --pretraining.weights [0.0]", "--pretraining.weights [0.0]: must be positive"),
        (
            "ppo --pretraining.split 0.5 --pretraining.heldout ['x']",
            "--pretraining.split 0.5: holds out samples of pretraining.train",
        ),
        (
            "pretrain --schedule.phases [{begin=0.5},{begin=0.7,kind='constant',power=2.0}]",
            "--schedule.phases.1.power 2.0: kind constant has no such thing",
        ),
        ("pretrain --schedule.kind constant --schedule.power 2", "--schedule.power 2.0: kind"),
    ],
)
def test_a_section_that_stands_elsewhere_is_refused_in_that_name(words, says, capsys):
    assert main(["config", *words.split()]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("rm --z_loss 1e-4", "--z_loss: is of a softmax over the vocabulary"),
        ("rm --max_z_loss 1e-4", "--max_z_loss: is of a softmax over the vocabulary"),
        ("rm --label_smoothing 0.1", "--label_smoothing: is of a softmax over the vocabulary"),
        ("dpo --z_loss 1e-4", "--z_loss: holds the softmax of a model that learns each next"),
        ("dpo --max_z_loss 1e-4", "--max_z_loss: holds the softmax"),
        ("dpo --label_smoothing 0.1", "loss.label_smoothing is the share of those"),
    ],
)
def test_what_a_stage_can_not_have_is_refused_with_the_reason(words, says, capsys):
    assert main(["config", *words.split()]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
