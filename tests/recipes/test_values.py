"""Each recipe has the published values, and its curves are the published ones."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import tomllib

from megalite.cli import find_command, load_config
from megalite.config.amount import in_samples
from megalite.config.bases import FOLDER, Based, recipe_names
from megalite.config.load import read_based
from megalite.stages.length import in_steps
from megalite.tools.scaled import scaled
from megalite.training.folder.record import flat
from megalite.training.schedule import Clock
from tests.recipes.published import Published, table

TABLE = table()
NAMES = recipe_names()
STAGES = {name: read_based(f"recipe:{name}").recipe["stage"] for name in NAMES}
PRETRAINED = [name for name in NAMES if STAGES[name] == "pretrain"]
POINTS = 20


@cache
def config_of(name: str, *more: str):
    return load_config(*find_command([STAGES[name], f"recipe:{name}", *more]))[0]


def whole(name: str) -> dict[str, str]:
    """A recipe's values of the table, with those of the recipe that it builds on."""
    base = tomllib.loads((FOLDER / f"{name}.toml").read_text()).get("base", "")
    return (whole(base.removeprefix("recipe:")) if base else {}) | TABLE[name]


def parsed(text: str):
    """A value of the table as TOML has it; text that is none is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def as_tuples(value):
    """Lists as a config has them."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def test_the_table_has_the_recipes():
    assert sorted(TABLE) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_that_of_the_table(name):
    config = config_of(name)
    for key, text in whole(name).items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        assert value == as_tuples(parsed(text)), key


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_file_has_its_source(name):
    values = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    told = {key for key, _ in flat({k: v for k, v in values.items() if k != "recipe"})}
    tables = r"(train\.batch_ramp\.sizes|kl\.coefficient).*"
    told = {re.sub(tables, r"\1", key) for key in told} - {"base"}
    assert told == set(TABLE[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is(name):
    table, config = read_based(f"recipe:{name}").recipe, config_of(name)
    assert set(table) == {"system", "structure", "stage", "length", "devices", "source"}
    assert (table["structure"] == "encoder-decoder") == config.model.is_encoder_decoder


@pytest.mark.parametrize("name", PRETRAINED)
def test_rate_and_batch_are_the_published_functions(name):
    config, published = config_of(name), Published(whole(name))
    settled, _ = in_steps(config, 0, config.data.sequence_length)
    ramp, total = settled.train.ramp, settled.train.ramp.after(settled.train.steps)
    assert total == pytest.approx(published.total(), rel=1e-4)
    clock = Clock(settled.schedule, settled.optimizer.learning_rate, total)
    seen = [total * point / POINTS**1.5 for point in range(POINTS // 2)]  # the ramp's part
    seen += [total * point / POINTS * 2 for point in range(1, POINTS // 2 + 1)]
    peak = settled.optimizer.learning_rate
    steps = 0
    for samples in map(round, seen):
        assert clock.learning_rate(samples) == pytest.approx(
            published.rate(samples), rel=2e-3, abs=1e-3 * peak
        )
        steps = ramp.steps_to(samples)
        if not any(0 <= first - samples < 2 for first in ramp.firsts):  # not at a border
            assert ramp.at(samples) == published.batch_at(samples, steps)
    assert in_samples(settled.schedule.warmup, total) == pytest.approx(
        published.samples(published.value("schedule.warmup")), abs=1
    )


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_scaled_recipe_is_at_the_same_places_of_its_curves(name):
    """Within what a step is of so short a run."""
    large, small = config_of(name), config_of(name, "--scale", "0.002")
    clocks, totals = [], []
    for config in (large, small):
        settled, _ = in_steps(config, 0, config.data.sequence_length)
        totals.append(settled.train.ramp.after(settled.train.steps))
        peak = settled.optimizer.learning_rate
        clocks.append((Clock(settled.schedule, peak, totals[-1]), settled.train.ramp))
        sizes = settled.train.ramp.sizes
        assert config is large or max(sizes) <= 16
    for point in range(1, POINTS):
        shares, sizes = [], []
        for (clock, ramp), total in zip(clocks, totals, strict=True):
            samples = round(total * point / POINTS)
            shares.append(clock.learning_rate(samples) / clock.peak)
            sizes.append(ramp.at(samples) / ramp.sizes[-1])
        assert shares[1] == pytest.approx(shares[0], abs=0.03)
        assert sizes[1] == pytest.approx(sizes[0], abs=0.15)
    assert small.parallel == type(small.parallel)()
    for key in ("norm", "position", "activation", "gated", "parallel_block"):
        assert getattr(small.model, key) == getattr(large.model, key)


def test_a_scaled_model_rotates_the_same_share_of_a_head():
    small, large = (config_of("moss-moon-003-sft", *w).model for w in ((), ("--scale", "0.1")))
    assert small.rotary / small.head_dim == large.rotary / large.head_dim == 0.25


def test_a_scaled_ppo_changes_at_the_same_shares_of_fewer_steps():
    small = config_of("baichuan2-chat-ppo", "--scale", "0.1")
    assert small.train.steps == 35
    assert small.update.critic_alone == "2 steps"
    assert small.kl.coefficient == {"0": 0.2, "to 35 steps": 0.005}
    assert small.train.global_batch_size == 16 and small.rollout.max_new_tokens == 16


def test_a_scaled_skip_is_at_the_same_steps():
    told = {"train": {"skip": [["400 steps", "500 steps"], [1000, 2000]], "global_batch_size": 16}}
    made = scaled(Based(told, {"stage": "pretrain"}), 0.01)
    assert made["train"]["skip"] == [("4 steps", "5 steps"), (10, 20)]
    less = scaled(Based(told, {"stage": "pretrain"}), 0.001)
    assert less["train"]["skip"] == [("1 steps", "2 steps"), (1, 2)]


BAD = {
    "recipe:bloom-167b": "recipe:bloom-167b: no such recipe; did you mean recipe:bloom-176b?",
    "recipe:alpaca-7b": "is of the stage sft: use megalite sft recipe:alpaca-7b",
    "recipe:gpt3-125m --scale 0": "--scale 0: must be a number above 0",
    "recipe:gpt3-125m --scale": "--scale ?: must be a number above 0",
    "recipe:bloom-176b --train.batch_ramp.start 190": "--train.batch_ramp.start 190: with an "
    "increment of 16 must reach train.global_batch_size 2048: use 176 or 192",
    "recipe:bloom-176b --train.batch_ramp.over 5furlongs": "--train.batch_ramp.over: '5furlongs': "
    "must be a share of the run such as 0.01, or a number of steps, samples",
    "recipe:bloom-176b --schedule.warmup 2000steppes": "--schedule.warmup: '2000steppes': must be",
    "--schedule.kind wsd --schedule.warmup 0.9 --schedule.decay 0.5": "--schedule.decay 0.5: must "
    "be at most 0.1, what schedule.warmup 0.9 leaves of the run",
    "--optimizer.kind sgd": "--optimizer.kind = 'sgd': must be 'adamw', ",
}


@pytest.mark.parametrize("words", BAD)
def test_a_wrong_word_is_answered_in_one_line(words, capsys):
    from megalite.cli import main

    assert main(["pretrain", *shlex.split(words)]) == 2
    said = capsys.readouterr().err
    assert BAD[words] in said and said.count("\n") == 1


def test_a_base_of_itself_is_refused(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('base = "b.toml"\n')
    Path(tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(Exception, match="builds on itself"):
        load_config(*find_command(["pretrain", str(path)]))
