"""Recipes: every mistake is named with its place before any work starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.errors import UsageError
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import check_recipe, load_recipe, recipe_yaml
from tests.conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
DEMO = REPOSITORY / "recipes" / "smollm2-demo.yaml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_carries_its_file_name(path: Path) -> None:
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("path", [path for path in RECIPES if "smollm2" not in path.stem], ids=lambda path: path.stem)
def test_a_published_experiment_has_its_size_on_every_machine(path: Path) -> None:
    assert load_recipe(path).budget.scale == 1


@pytest.mark.parametrize("override", ["training.sft.lr_scheduler=cosin", "training.dpo.loss=sigmod"])
def test_a_name_that_no_trainer_knows_is_refused(override: str) -> None:
    with pytest.raises(UsageError, match=override.partition("=")[0]):
        load_recipe(DEMO, [override])


def test_an_unknown_key_is_refused_with_the_nearest_valid_name() -> None:
    with pytest.raises(UsageError, match=r"training\.sft\.learning_rat: unknown key; did you mean 'learning_rate'\?"):
        load_recipe(DEMO, ["training.sft.learning_rat=1e-4"])


def test_an_unknown_key_in_a_list_of_tables_is_found() -> None:
    with pytest.raises(UsageError, match=r"text_colum.*did you mean 'text_column'"):
        load_recipe(DEMO, ["data.clean.sources=[{source: a.jsonl, text_colum: x}]"])


def test_a_wrong_type_is_refused_with_path_and_value() -> None:
    with pytest.raises(UsageError, match=r"training\.sft\.epochs: .*number.*'three'"):
        load_recipe(DEMO, ["training.sft.epochs=three"])


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(DEMO, ["training.dpo.beta=-1", "gate.max_perplexity_ratio=x"])
    assert "training.dpo.beta" in str(caught.value)
    assert "gate.max_perplexity_ratio" in str(caught.value)


def test_secrets_that_a_recipe_of_before_names_under_its_job_are_those_of_the_cluster() -> None:
    recipe = load_recipe(DEMO, ["training.job.s3_secret=own-s3", "training.job.ca_config_map=own-ca"])
    assert (recipe.cluster.s3_secret, recipe.cluster.ca_config_map) == ("own-s3", "own-ca")
    assert recipe.cluster.hub_secret == load_recipe(DEMO).cluster.hub_secret
    assert load_recipe(DEMO, ["training.job.s3_secret=a", "cluster.s3_secret=a"]).cluster.s3_secret == "a"
    with pytest.raises(UsageError, match=r"keep cluster\.s3_secret"):
        load_recipe(DEMO, ["training.job.s3_secret=a", "cluster.s3_secret=b"])
    with pytest.raises(UsageError, match=r"cluster\.s3_secret"):
        load_recipe(DEMO, ["training.job.s3_secret=UPPER"])


def test_a_toleration_may_be_written_as_in_a_pod() -> None:
    short = load_recipe(DEMO, ["deploy.kserve.tolerations=['gpu=yes:NoExecute', spot]"])
    plain = load_recipe(DEMO, ["deploy.kserve.tolerations="
                               "[{key: gpu, operator: Equal, value: yes, effect: NoExecute}, {key: spot}]"
                               .replace("yes", "'yes'")])
    assert plain == short
    with pytest.raises(UsageError, match="tolerations"):
        load_recipe(DEMO, ["deploy.kserve.tolerations=[{key: gpu, tolerationSeconds: 3}]"])


def test_a_missing_required_key_is_named(tmp_path: Path) -> None:
    values = yaml.safe_load(DEMO.read_text("utf-8"))
    del values["model"]
    with pytest.raises(UsageError, match="model: this key is required"):
        check_recipe(values, "here")


def test_overrides_reach_nested_values_in_yaml_types() -> None:
    recipe = load_recipe(DEMO, ["training.sft.learning_rate=1e-4", "detoxify.methods=[delete]", "seed=7"])
    assert recipe.training.sft.learning_rate == pytest.approx(1e-4)
    assert recipe.detoxify.methods == ["delete"]
    assert recipe.seed == 7


@pytest.mark.parametrize("override", ["training.sft", "=3", "a..b=1", "name.x=1"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(UsageError):
        load_recipe(DEMO, [override])


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(DEMO.read_text("utf-8") + "\nname: again\n", "utf-8")
    with pytest.raises(UsageError, match="'name' appears twice"):
        load_recipe(path)


def test_broken_yaml_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: x\ndata: [1,\n", "utf-8")
    with pytest.raises(UsageError, match=r"broken\.yaml, line \d"):
        load_recipe(path)


def test_yaml_tags_run_no_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []\n", "utf-8")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_recipe(path)


def test_the_judge_must_differ_from_the_training_scorer() -> None:
    with pytest.raises(UsageError, match="must differ"):
        load_recipe(DEMO, ["scoring.judging={kind: bilstm}", "scoring.training={kind: bilstm}"])


def test_shown_recipe_reads_back_as_the_same_value() -> None:
    recipe = load_recipe(DEMO)
    assert check_recipe(yaml.safe_load(recipe_yaml(recipe)), "shown") == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@given(st.text(min_size=1, max_size=30))
def test_no_override_text_escapes_as_another_error(text: str) -> None:
    try:
        load_recipe(DEMO, [text])
    except UsageError:
        pass
    else:
        assert "=" in text
