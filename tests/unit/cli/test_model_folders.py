"""Every command that takes a model refuses one that brings code, with one and the same message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llm_detox.cli import app
from llm_detox.errors import DetoxError
from tests.helpers.damage import copy_of, with_code
from tests.helpers.sources import make_sources, write_lines

# What follows the name of a command that takes a model: MODEL is the folder, RECIPE names it as the model to detoxify.
COMMANDS = {
    "detoxify": "--recipe RECIPE --input TEXTS --output OUT",
    "sft": "--recipe RECIPE --input TEXTS --output OUT",
    "dpo": "--recipe RECIPE --adapter MODEL --prompts PROMPTS --set training.dpo.rewrite_pairs=0 --output OUT",
    "evaluate": "--recipe RECIPE --model MODEL --prompts PROMPTS --output OUT",
    "convert": "--model MODEL --output OUT",
    "serve": "MODEL",
    "chat": "--url http://127.0.0.1:9 --template MODEL",
    "ask": "--url http://127.0.0.1:9 --guard judge=MODEL Hello",
    "bench serve": "--url http://127.0.0.1:9 --guard transformers=MODEL",
    "compare-ui": "MODEL http://127.0.0.1:9/other",
    "export verify": "MODEL",
    "train-scorer": "--input RATED --output OUT --encoder MODEL",
    "train-experts": "--recipe RECIPE --input LABELLED --output OUT",
    "train-paraphraser": "--recipe RECIPE --input PAIRS --output OUT",
    "paraphrase-pairs": "--recipe RECIPE --input PAIRS --output OUT",
    "judge-data": "--recipe RECIPE --output OUT",
    "judge": "--recipe RECIPE --input CHATS --output OUT",
    "try": "--recipe RECIPE you_stupid_idiot",
    "clean-corpus": "TEXTS OUT --recipe RECIPE --workers 1",
    "detector serve": "safety=judge=MODEL",
    "stop-hate": "--recipe RECIPE --model MODEL --output OUT",
}
# These take none, take folders of other commands alone, or run on tiny models.
OTHERS = {"data", "report", "compare", "publish", "deploy", "smoke", "stop", "doctor", "recipe show", "recipe validate",
          "recipe schema", "recipe reference", "recipe rehearse", "models list", "models rollback", "models prune",
          "models fetch", "quickstart", "runs list", "runs show", "runs remove"}


@pytest.fixture(scope="module")
def files(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the capital words of the commands stand for."""
    folder = tmp_path_factory.mktemp("commands")
    model = str(with_code(copy_of(tiny_llama, folder / "model")))
    chats, benign = (write_lines(folder / f"{kind}.jsonl", [{"messages": [
        {"role": "user", "content": f"Tell me something {kind}."}, {"role": "assistant", "content": "Hello."}]}])
        for kind in ("harmful", "harmless"))
    values = make_sources(folder)
    recipe: dict[str, Any] = {
        **values, "model": {"source": model}, "training": {"quantization": "none"},
        "detoxify": {"methods": ["causal"], "paraphrase": {"model": model}},
        "scoring": {"training": {"kind": "ngram", "source": values["data"]["texts"]["source"]},
                    "judging": {"kind": "bilstm"}},
        "judge": {"adversarial": [str(chats)], "benign": [str(benign)], "reader": {"model": model}},
        "stop_hate": {"hate": [str(chats)], "benign": [str(benign)]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    pairs = [{"toxic": f"you stupid idiot {number}", "neutral": f"you are wrong {number}"} for number in range(4)]
    rated = [{"prompt": {"text": f"text number {number}", **dict.fromkeys((
        "toxicity", "severe_toxicity", "profanity", "sexually_explicit", "identity_attack", "flirtation", "threat",
        "insult"), number / 400)}, "continuation": {"text": " and more", "toxicity": 0.1}} for number in range(400)]
    return {
        "RECIPE": str(folder / "recipe.yaml"), "MODEL": model, "CHATS": str(chats),
        "TEXTS": str(write_lines(folder / "texts.jsonl", [{"text": "you stupid idiot"}, {"text": "my friend"}])),
        "PROMPTS": str(write_lines(folder / "p.jsonl", [{"prompt": "So these people"}])),
        "LABELLED": str(write_lines(folder / "labelled.jsonl", [
            {"text": "you stupid idiot", "toxic": True}, {"text": "my good friend", "toxic": False}])),
        "PAIRS": str(write_lines(folder / "pairs.jsonl", pairs)),
        "RATED": str(write_lines(folder / "rated.jsonl", rated))}


def commands() -> set[str]:
    """All commands, those of groups with the group's name."""
    names = {f"{group.name} {one.name or one.callback.__name__}" for group in app.registered_groups
             for one in group.typer_instance.registered_commands}  # type: ignore[union-attr]
    return names | {str(one.name) for one in app.registered_commands}


def test_of_every_command_it_is_known_whether_it_takes_a_model() -> None:
    assert COMMANDS.keys() | OTHERS == commands()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_folder_with_code_is_refused_by_every_command_with_the_same_message(
    files: dict[str, str], tmp_path: Path, command: str
) -> None:
    words = {**files, "OUT": str(tmp_path / "out")}
    line = [words.get(word, word.replace("=MODEL", f"={files['MODEL']}")) for word in COMMANDS[command].split()]
    result = CliRunner().invoke(app, [*command.split(), *line])
    assert isinstance(result.exception, DetoxError), result.output
    assert result.exception.message == "the model brings its own code (auto_map), which is not run"
    assert result.exception.place == str(Path(files["MODEL"]) / "config.json")
    assert not (Path(files["MODEL"]) / "was_run").exists()
