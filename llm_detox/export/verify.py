"""Does every reader see the same model? The greedy tokens of several interpreters, compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from llm_detox.errors import DetoxError
from llm_detox.generation.checks import check_model

_PROBE = Path(__file__).with_name("probe.py")
PROMPTS = ("The best thing about my neighbours is", "Once upon a time, in 1984,", "naïve café 東京 🙂 means")


class Answer(TypedDict):
    """Greedy tokens behind one prompt, and their text."""

    prompt_ids: list[int]
    new_ids: list[int]
    text: str


class PromptedAnswer(Answer):
    """An answer with its prompt."""

    prompt: str


class ProbedModel(TypedDict, total=False):
    """What one interpreter makes of one model: its answers and its chat template, or the error."""

    answers: list[Answer]
    chat_template: str | None
    error: str


class Release(TypedDict):
    """The libraries of an interpreter."""

    transformers: str
    tokenizers: str


class Probe(Release):
    """What one interpreter makes of the models, as `probe.py` prints it."""

    models: list[ProbedModel]


class Verification(TypedDict):
    """Readers by interpreter, and what all of them answer."""

    readers: dict[str, Release]
    answers: list[PromptedAnswer]


def verify(folder: Path, pythons: Sequence[str] = (), *, prompts: Sequence[str] = PROMPTS, max_new_tokens: int = 16,
           timeout_seconds: float = 600) -> Verification:
    """Load the folder in this interpreter and in others, and compare tokens and chat template.

    Args:
        folder: what `convert` wrote, or a Hugging Face folder.
        pythons: interpreters, such as that of the Caikit environment.
        prompts: texts to continue greedily.
        max_new_tokens: for each of them.
        timeout_seconds: for each interpreter.

    Returns:
        `readers`: the releases seen, by interpreter; `answers`: prompt, continuation and tokens.

    Raises:
        DetoxError: an interpreter cannot load the model, or it makes other tokens.
    """
    return verify_all([folder], pythons, prompts=prompts, max_new_tokens=max_new_tokens,
                      timeout_seconds=timeout_seconds)[0]


def verify_all(folders: Sequence[Path], pythons: Sequence[str] = (), *, prompts: Sequence[str] = PROMPTS,
               max_new_tokens: int = 16, timeout_seconds: float = 600) -> list[Verification]:
    """`verify` for several folders, with each interpreter started once."""
    models = [folder / "artifacts" if (folder / "artifacts").is_dir() else folder for folder in folders]
    for model in models:
        check_model(model)
    interpreters = list(dict.fromkeys([sys.executable, *pythons]))
    with ThreadPoolExecutor(len(interpreters)) as pool:
        found = pool.map(lambda python: _probe(python, models, prompts, max_new_tokens, timeout_seconds), interpreters)
        seen = dict(zip(interpreters, found, strict=True))
    readers: dict[str, Release] = {python: {"transformers": one["transformers"], "tokenizers": one["tokenizers"]}
               for python, one in seen.items()}
    for number, model in enumerate(models):
        for python, one in seen.items():
            _compare(model, seen[sys.executable], one, number, prompts, python)
    return [{"readers": readers, "answers": [
        {"prompt": prompt, **answer} for prompt, answer in zip(prompts, one["answers"], strict=True)]}
        for one in seen[sys.executable]["models"]]


def _compare(model: Path, reference: Probe, other: Probe, number: int, prompts: Sequence[str],
             python: str) -> None:
    ours, theirs = reference["models"][number], other["models"][number]
    if "error" in theirs:
        raise DetoxError(f"transformers {other['transformers']} cannot use the model: {theirs['error']}",
                         place=str(model), remedy=f"convert the model for this reader ({python})")
    if theirs != ours:
        raise DetoxError(
            f"transformers {other['transformers']} reads another model than {reference['transformers']}: "
            f"{_difference(ours, theirs, prompts)}", place=str(model),
            remedy=f"convert the model again; {python} was compared with {sys.executable}")


def _probe(python: str, models: Sequence[Path], prompts: Sequence[str], count: int, timeout: float) -> Probe:
    # The other environment must not see this one's packages.
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    env.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    try:
        done = subprocess.run(
            [python, str(_PROBE), *map(str, models)], capture_output=True, text=True, timeout=timeout, env=env,
            input=json.dumps({"prompts": list(prompts), "max_new_tokens": count}), check=False)
    except OSError as error:
        raise DetoxError(f"the interpreter cannot be started: {error.strerror}", place=python,
                         remedy="install that environment, or name another") from None
    except subprocess.TimeoutExpired:
        raise DetoxError(f"the model did not answer within {timeout:.0f} s", place=python,
                         remedy="allow more time") from None
    if done.returncode != 0:
        end = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise DetoxError(f"this interpreter cannot run the check:\n{end}", place=python,
                         remedy="it needs torch and transformers")
    answer: Probe = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _difference(one: ProbedModel, other: ProbedModel, prompts: Sequence[str]) -> str:
    for prompt, a, b in zip(prompts, one["answers"], other["answers"], strict=True):
        if a != b:
            return f"{prompt!r} -> {a['text']!r} against {b['text']!r}"
    return "the chat templates differ"
