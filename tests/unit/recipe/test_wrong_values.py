"""Recipes of every wrong form: one clear error each, at once, and nothing that a step finds wrong hours later."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_detox.errors import UsageError
from llm_detox.recipe.files import check_recipe, load_recipe, parse_yaml, resolve_recipe
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "recipes" / "smollm2-demo.yaml"
_SECONDS = 10  # of the processor; written out, the bombs below have billions of values


def bomb(levels: int = 12, width: int = 9) -> str:
    """Lists of aliases of lists of aliases: a few lines that stand for width ** levels values."""
    lines = ["a0: &a0 [1, 1, 1]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels)]
    return "\n".join(lines)


def merge_bomb(levels: int = 12, width: int = 9) -> str:
    """The same with merge keys."""
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * width)}]}}" for level in range(1, levels)]
    return "\n".join(lines)


TEXTS = {
    "aliases of aliases": (bomb(), "more than 10000 values, aliases counted"),
    "merges of merges": (merge_bomb(), "more than 10000 values, aliases counted"),
    "an alias of itself": ("a: &a [*a]", "or hold themselves"),
    "a mapping of itself": ("a: &a {b: *a}", "or hold themselves"),
    "40 levels": ("a: " + "[" * 40 + "]" * 40, "more than 30 levels deep"),
    "levels without end": ("a: " + "[" * 100_000, "more than 30 levels deep"),
    "too many values": ("\n".join(f"k{number}: 1" for number in range(5_001)), "more than 10000 values"),
    "too many characters": ("# " + "x" * 2**20, "more than 1048576"),
    "a key twice": ("a: 1\nb: 2\na: 3", "the key 'a' appears twice"),
    "a date that is none": ("name: 2024-99-99", "not valid YAML: month must be in 1..12"),
    "a number of thousands of digits": ("seed: 1" + "0" * 5000, "not valid YAML: Exceeds the limit"),
    "a control character": ("name: \x07", "not valid YAML: unacceptable character"),
    "two documents": ("name: a\n---\nname: b", "not valid YAML: but found another document"),
    "a key that is a list": ("? [a]\n: b", "not valid YAML: found unhashable key"),
    "an object of Python": ("name: !!python/object/apply:os.getpid []", "not valid YAML: could not determine"),
    "bytes that are none": ("name: !!binary '&&&'", "not valid YAML: failed to decode|the recipe is not valid"),
    "an alias of nothing": ("a: *b", "not valid YAML: found undefined alias"),
    "a list": ("[1, 2]", "a recipe is a mapping of keys to values"),
    "nothing": ("", "a recipe is a mapping of keys to values"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_is_no_recipe_is_refused_at_once(tmp_path: Path, text: str) -> None:
    content, message = TEXTS[text]
    (path := tmp_path / "recipe.yaml").write_text(content, "utf-8")
    started = time.process_time()
    for read in (lambda: load_recipe(path), lambda: resolve_recipe(content)):
        with pytest.raises(UsageError, match=message) as caught:
            read()
        assert caught.value.remedy
    assert time.process_time() - started < _SECONDS


def test_a_few_aliases_are_no_bomb() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: [*a, *a]", "here") == {
        "a": {"x": 1}, "b": {"x": 1}, "c": [{"x": 1}, {"x": 1}]}


def test_json_that_nests_without_end_is_refused() -> None:
    for depth in (500, 5_000):
        with pytest.raises(UsageError):
            resolve_recipe('{"data": ' + "[" * depth + "]" * depth + "}")


VALUES = {
    "training.sft.max_length=1": "training.sft.max_length: .*greater than or equal to 2, got 1",
    "training.dpo.max_length=1": "training.dpo.max_length: ",
    "rephraser_training.max_length=1": "rephraser_training.max_length: ",
    "training.sft.max_length=true": "training.sft.max_length: a number is needed, not a yes or no, got True",
    "training.sft.learning_rate=yes": "training.sft.learning_rate: a number is needed, not a yes or no",
    "training.sft.learning_rate=.inf": "training.sft.learning_rate: input should be a finite number, got inf",
    "training.sft.learning_rate=inf": "training.sft.learning_rate: input should be a finite number",
    "training.sft.learning_rate=1e999": "training.sft.learning_rate: ",
    "gate.max_perplexity_ratio=.nan": "gate.max_perplexity_ratio: input should be a finite number, got nan",
    "detoxify.causal.expert_weights=[.inf, true]": "expert_weights: a number is needed, not a yes or no",
    "detoxify.tmarco.weights=[.nan, 0.5]": "detoxify.tmarco.weights.0: input should be a finite number",
    "budget.scale=.inf": "budget.scale: ",
    "budget.scale=true": "budget.scale: a number is needed, not a yes or no",
    "data.texts.max_chars=false": "data.texts.max_chars: a number is needed, not a yes or no",
    "data.texts.count=100000000000": "data.texts.count: a number of at most 2147483647 is needed",
    "seed=-1": "seed: input should be greater than or equal to 0, got -1",
    "seed=4294967296": "seed: ",
    "seed=1.5": "seed: input should be a valid integer",
    "seed=[1]": "seed: input should be a valid integer",
    "seed=true": "seed: a number is needed, not a yes or no",
    "training.lora.target_modules=[]": "training.lora.target_modules: the names of layers are needed, or all-linear",
    "training.lora.target_modules=['']": "training.lora.target_modules: the names of layers are needed",
    "training.lora.target_modules=5": "target_modules: input should be a valid list, or input should be 'all-linear'",
    "rephraser_training.lora.target_modules=[]": "the names of layers are needed, or all-linear",
    "data.texts={source: a.csv, min_chars: 50, max_chars: 40}": "min_chars is 50, more than max_chars, 40",
    "training.dpo={max_length: 64, max_prompt_length: 64}": "leaves no room for an answer in max_length, 64",
    "training.sft={max_steps: 5, warmup_steps: 6}": "warmup_steps is 6, more than max_steps, 5",
    "judge.test_share=1": "judge.test_share: input should be less than 1",
    "deploy={rest_port: 8080, grpc_port: 8080}": "rest_port and grpc_port are both 8080",
    "training.job.node_selector={gpu: true}": "training.job.node_selector.gpu: input should be a valid string",
    "training.job.node_selector=[gpu]": "training.job.node_selector: input should be a valid dictionary",
    "deploy.kserve.node_selector={zone: 'a b'}": "deploy.kserve.node_selector: 'zone' with 'a b' is no label",
    "deploy.kserve.node_selector={'a b': x}": "deploy.kserve.node_selector: 'a b' with 'x' is no label",
    "cluster.s3_keys=['A B']": "cluster.s3_keys.0: ",
    "training.job.image=a b": "training.job.image: ",
    "training.job=5": "training.job: keys with values are needed, got 5",
    "cluster=5": "cluster: keys with values are needed, got 5",
    "training=[1]": r"training: keys with values are needed, got \[1\]",
    "data.texts.max_chars=x": "data.texts.max_chars: input should be a valid integer, .*, or input should be 'mean'",
    "model.source=' '": "model.source: a source is needed, not blanks",
    "model.source=\"a\\0b\"": "model.source: a text without control characters is needed",
    "model.source=\"a\\e[31mb\"": "model.source: a text without control characters is needed",
    "model.source=s4://bucket/key": "model.source: the scheme of 's4://bucket/key' is not known",
    "model.source=s3:/bucket/key": "model.source: the scheme of 's3:/bucket/key' is not known",
    "model.source=s3://Bucket/key": "model.source: not an S3 address: a bucket has 3 to 63 small letters",
    "model.source=package:///etc/passwd": "model.source: not a path inside a package",
    "model.source=package://pip//etc/passwd": "model.source: not a path inside a package",
    "data.texts.source=package://pip/../../etc/passwd": "data.texts.source: not a path inside a package",
    "description=!!binary aGVsbG8=": "description: text is needed, not bytes",
    f"{'k' * 5000}=1": r"k{120}\.\.\.: unknown key; allowed: ",
}


@pytest.mark.parametrize("override", VALUES)
def test_a_wrong_value_is_one_clear_line(override: str) -> None:
    with pytest.raises(UsageError, match=VALUES[override]) as caught:
        load_recipe(DEMO, [override])
    first, *lines = caught.value.message.splitlines()
    assert first == "the recipe is not valid:"
    assert len(lines) == 1
    assert len(lines[0]) < 500


def test_of_many_mistakes_the_first_are_listed_and_the_others_counted() -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(DEMO, [f"data.clean.sources=[{', '.join(['5'] * 500)}]"])
    lines = caught.value.message.splitlines()
    assert len(lines) == 22
    assert lines[-1] == "  and 480 more"


ODD: list[Any] = [True, False, math.inf, -math.inf, math.nan, 10**30, -1, 0, 1, 0.5, "", " ", "x", "1e400", [], [[]],
                  {}, {1: 2}, None, "\x1b[31m", "\0", "\ud800", b"x", "a\nb", "../x", "nan", "true", [None] * 3]


_EACH = 3  # of them at each place: all of them at all places take half a minute


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def test_whatever_stands_at_a_key_it_is_valid_or_a_message_and_numbers_are_numbers() -> None:
    values = load_recipe(DEMO).model_dump(mode="json")
    assert json.dumps(values)
    for number, path in enumerate(places(values)):
        for odd in (ODD[(_EACH * number + step) % len(ODD)] for step in range(_EACH)):
            try:
                recipe = check_recipe(put(values, path, odd), "here")
            except UsageError:
                continue
            json.dumps(recipe.model_dump(mode="json"), allow_nan=False)
            before = values
            for key in path:
                before = before[key]
            assert not (isinstance(odd, bool) and type(before) in (int, float)), path
