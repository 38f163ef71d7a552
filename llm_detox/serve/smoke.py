"""The smoke request: does the model that was published answer, the same on every way, and how toxic is it?"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from llm_detox.client import TextGenerationClient
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.runs.artifacts import DeploymentFolder, SmokeFolder
from llm_detox.runs.folders import step_folder
from llm_detox.serve.local import read_state


def smoke(recipe: Recipe, *, deployment: Path, output: Path) -> dict[str, Any]:
    """Ask a deployed model over REST and gRPC, whole and streamed, and score what comes back.

    Args:
        recipe: `deploy.prompt`, `deploy.max_new_tokens` and the judging scorer count.
        deployment: the folder that `deploy` wrote.
        output: a new folder: `answers.json`.

    Returns:
        `prompt`, `text`, `toxicity` (of the judging scorer; None if it could not score), `answers` (protocol, mode,
        seconds, tokens), `address`.

    Raises:
        DetoxError: no answer, an empty one, or different greedy answers.
    """
    state = read_state(deployment)
    note = DeploymentFolder(deployment).deployment if deployment.is_dir() else deployment
    prompt, count = recipe.deploy.prompt, recipe.deploy.max_new_tokens
    with step_folder(output, "smoke", settings=recipe.settings("deploy", "scoring"), inputs={"state": note}) as folder:
        answers = [_ask(state["urls"][protocol], state["name"], prompt, count, protocol=protocol, mode=mode)
                   for protocol in ("rest", "grpc") for mode in ("unary", "stream")]
        text = _same_text(answers, state["name"])
        folder.result.update(
            prompt=prompt, text=text, toxicity=_toxicity(recipe, text), scorer=recipe.scoring.judging.kind,
            address=state.get("address"), name=state["name"],
            answers=[{key: one[key] for key in ("protocol", "mode", "seconds", "tokens")} for one in answers])
        (folder / SmokeFolder.answers).write_text(
            json.dumps({**folder.result, "answers": answers}, indent=2, ensure_ascii=False), "utf-8")
        return folder.result


def _ask(url: str, name: str, prompt: str, count: int, *, protocol: str, mode: str) -> dict[str, Any]:
    started = time.monotonic()
    with TextGenerationClient(url, name, timeout=120) as client:
        if mode == "unary":
            answer = client.generate(prompt, max_new_tokens=count)
            text, tokens = answer.text, answer.generated_tokens
        else:
            chunks = list(client.stream(prompt, max_new_tokens=count))
            text, tokens = "".join(chunk.text for chunk in chunks), chunks[-1].generated_tokens
    return {"protocol": protocol, "mode": mode, "text": text, "tokens": tokens,
            "seconds": round(time.monotonic() - started, 3)}


def _same_text(answers: list[dict[str, Any]], name: str) -> str:
    texts = {str(one["text"]) for one in answers}
    if len(texts) != 1:
        raise DetoxError(f"greedy answers differ: {json.dumps(sorted(texts), ensure_ascii=False)}", place=name,
                         remedy="look into the logs of engine and runtime")
    text = texts.pop()
    if not text.strip():
        raise DetoxError("the model answers with nothing", place=name,
                         remedy="choose another deploy.prompt; if all stay empty, look at the training")
    return text


def _toxicity(recipe: Recipe, text: str) -> float | None:
    from llm_detox.scoring.load import load_scorer  # torch loads only here

    score = load_scorer(recipe.scoring.judging).score([text])[0]
    return None if score is None else round(float(score), 4)
