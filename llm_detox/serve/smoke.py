"""The smoke request: does the model that was published answer, the same on every way, and how toxic is it?"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llm_detox.client import TextGenerationClient
from llm_detox.client.credentials import credentials_for
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.recipe.scorers import ScorerSection
from llm_detox.runs.artifacts import DeploymentFolder, SmokeFolder
from llm_detox.runs.folders import step_folder
from llm_detox.serve.deployment import PROTOCOLS, read_state


@dataclass(frozen=True)
class Answer:
    """One answer: its protocol, "unary" or "stream", its text, the number of its tokens, and the seconds."""

    protocol: str
    mode: str
    text: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class AnswerFigures:
    """An answer without its text, which is the same for all."""

    protocol: str
    mode: str
    seconds: float
    tokens: int


@dataclass(frozen=True)
class SmokeResult:
    """What came of the request.

    Args:
        prompt, text: what was asked, and the answer.
        toxicity: of the judging scorer; None if it could not score.
        scorer: its kind.
        address: of the published version; None where it was not published.
        name: the model's id.
        answers: one of each protocol and mode.
    """

    prompt: str
    text: str
    toxicity: float | None
    scorer: str
    address: str | None
    name: str
    answers: tuple[AnswerFigures, ...]


def smoke(recipe: Recipe, *, deployment: Path, output: Path) -> SmokeResult:
    """Ask a deployed model over all protocols that it speaks, whole and streamed, and score what comes back.

    Args:
        recipe: `deploy.prompt`, `deploy.max_new_tokens` and the judging scorer count.
        deployment: the folder that `deploy` wrote.
        output: a new folder: `answers.json`.

    Raises:
        DetoxError: no answer, an empty one, or different greedy answers.
    """
    state = read_state(deployment)
    note = DeploymentFolder(deployment).deployment if deployment.is_dir() else deployment
    prompt, count, scorer = recipe.deploy.prompt, recipe.deploy.max_new_tokens, recipe.scoring.judging
    with step_folder(output, "smoke", settings=recipe.settings("deploy", "scoring"), inputs={"state": note}) as folder:
        answers = [_ask(state.urls[protocol], state.name, prompt, count, protocol=protocol, mode=mode)
                   for protocol in PROTOCOLS if protocol in state.urls for mode in ("unary", "stream")]
        text = _same_text(answers, state.name)
        figures = tuple(AnswerFigures(one.protocol, one.mode, one.seconds, one.tokens) for one in answers)
        result = SmokeResult(prompt, text, _toxicity(scorer, text), scorer.kind, state.address, state.name, figures)
        folder.finish(result)
        (folder / SmokeFolder.answers).write_text(json.dumps(
            {**asdict(result), "answers": [asdict(one) for one in answers]}, indent=2, ensure_ascii=False), "utf-8")
    return result


def _ask(url: str, name: str, prompt: str, count: int, *, protocol: str, mode: str) -> Answer:
    started = time.monotonic()
    with TextGenerationClient(url, name, timeout=120, **credentials_for(url).options()) as client:
        if mode == "unary":
            answer = client.generate(prompt, max_new_tokens=count)
            text, tokens = answer.text, answer.generated_tokens
        else:
            chunks = list(client.stream(prompt, max_new_tokens=count))
            text, tokens = "".join(chunk.text for chunk in chunks), chunks[-1].generated_tokens
    return Answer(protocol, mode, text, tokens, round(time.monotonic() - started, 3))


def _same_text(answers: Sequence[Answer], name: str) -> str:
    texts = {one.text for one in answers}
    if len(texts) != 1:
        raise DetoxError(f"greedy answers differ: {json.dumps(sorted(texts), ensure_ascii=False)}", place=name,
                         remedy="read the logs of engine and runtime")
    text = texts.pop()
    if not text.strip():
        raise DetoxError("the model's answer is empty", place=name,
                         remedy="choose another deploy.prompt; if all stay empty, look at the training")
    return text


def _toxicity(scorer: ScorerSection, text: str) -> float | None:
    from llm_detox.scoring.load import load_scorer  # torch loads only here

    score = load_scorer(scorer).score([text])[0]
    return None if score is None else round(float(score), 4)
