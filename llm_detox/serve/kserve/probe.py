"""Where a model in a cluster answers, and whether it does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from llm_detox.client import TextGenerationClient
from llm_detox.client.credentials import credentials_for
from llm_detox.cluster.objects import InferenceService
from llm_detox.errors import DetoxError
from llm_detox.recipe.deploy import DeploySection, KserveSection

_ANSWER_SECONDS = 180.0
_GRPC_PORT = 8085


def addresses(service: InferenceService, kserve: KserveSection) -> dict[str, str]:
    """Where the model answers: what the recipe says, else the status, else KServe's naming rule.

    Args:
        service: as the cluster has it; another than the recipe's own (a canary) is not where the recipe says.
        kserve: the recipe's section.

    Returns:
        Protocol (see `serve.deployment.PROTOCOLS`) -> address. A model that asks for tokens has no gRPC: nothing in
        front of that port asks for one, so it is shut.
    """
    inside = f"http://{service.name}-predictor.{service.namespace}.svc.cluster.local"
    url = (kserve.rest_url or service.url or inside).rstrip("/")
    if kserve.serving == "vllm":
        return {"openai": f"openai+{url}"}
    if kserve.grpc_url:
        return {"rest": url, "grpc": kserve.grpc_url}
    if service.is_protected:
        return {"rest": url}
    parts = urlsplit(url)
    return {"rest": url, "grpc": f"{'grpcs' if parts.scheme == 'https' else 'grpc'}://{parts.hostname}:{_GRPC_PORT}"}


def require_answers(urls: Mapping[str, str], name: str, settings: DeploySection) -> None:
    """Ask the model over each of its protocols; a server that has only just begun is asked again.

    Raises:
        DetoxError: no answer, or an empty one.
    """
    until = time.monotonic() + _ANSWER_SECONDS
    for url in urls.values():
        while True:
            try:
                with TextGenerationClient(url, name, timeout=60, **credentials_for(url).options()) as client:
                    text = client.generate(settings.prompt, max_new_tokens=settings.max_new_tokens).text
                break
            except DetoxError as error:
                if time.monotonic() >= until:
                    raise DetoxError(f"ready, but it does not answer: {error.message}", place=url,
                                     remedy="read the logs of its containers; from outside the cluster set "
                                            "deploy.kserve.rest_url and grpc_url") from None
            time.sleep(2)
        if not text.strip():
            raise DetoxError("the model's answer is empty", place=url,
                             remedy="choose another deploy.prompt; if all stay empty, look at the training")
