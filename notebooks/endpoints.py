"""The two models that the last notebook asks: at given addresses, or served on this machine until it ends."""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walkthrough import Walk

PROTOCOLS = ("REST", "gRPC")


@dataclass(frozen=True)
class Endpoint:
    """A served model: protocol -> address, the id under which it answers, and the deployment if it is ours."""

    urls: dict[str, str]
    model_id: str
    deployment: Path | None = None

    def client(self, protocol: str) -> Any:
        """A client for one of `PROTOCOLS`; a bearer token is read from LLM_DETOX_TOKEN."""
        from llm_detox.client import TextGenerationClient

        ca = os.environ.get("LLM_DETOX_CA")
        return TextGenerationClient(self.urls[protocol], self.model_id, token=os.environ.get("LLM_DETOX_TOKEN"),
                                    ca_file=Path(ca) if ca else None, timeout=120)

    def stop(self) -> list[str]:
        """End what was started for it; the names of the processes."""
        from llm_detox.serve.local import stop_local

        return stop_local(self.deployment) if self.deployment else []


def answers(endpoint: Endpoint, prompts: Sequence[str], scorer: Any, count: int, *,
            sample: bool = False) -> list[dict[str, Any]]:
    """The answers of a model over REST, each with its toxicity (None where it could not be scored).

    Args:
        scorer: of `llm_detox.scoring`.
        count: tokens of an answer, at most.
        sample: draw them, each prompt with a seed of its own that is the same for every model; else greedily.
    """
    how = {"decoding_method": "SAMPLING", "temperature": 1.0, "top_p": 0.9} if sample else {}
    with endpoint.client("REST") as client:
        texts = [client.generate(prompt, max_new_tokens=count, **how, **({"seed": number} if sample else {})).text
                 for number, prompt in enumerate(prompts, start=1)]
    return [{"text": text, "toxicity": toxicity} for text, toxicity in zip(texts, scorer.score(texts), strict=True)]


def given(prefix: str) -> Endpoint | None:
    """The endpoint that PREFIX_REST, PREFIX_GRPC and PREFIX_MODEL name; None where they name none.

    Raises:
        UsageError: one address is given without the other.
    """
    from llm_detox.errors import UsageError

    rest, grpc = os.environ.get(f"{prefix}_REST"), os.environ.get(f"{prefix}_GRPC")
    if not rest and not grpc:
        return None
    if not rest or not grpc:
        raise UsageError("one address is given without the other", place=f"{prefix}_REST, {prefix}_GRPC",
                         remedy="for example http://host:8080 and grpc://host:8085 (https:// and grpcs:// with TLS)")
    return Endpoint({"REST": rest, "gRPC": grpc}, os.environ.get(f"{prefix}_MODEL", "llm-detox"))


def serve_published(walk: Walk, address: str) -> Endpoint:
    """Fetch what `3-save_convert_model.ipynb` published, with checksums, and serve it on loopback."""
    from llm_detox.serve.local import deploy_local

    folder = _free(walk.folder / "serving" / "detoxified")
    with walk.store():
        deployed = deploy_local(address, name=walk.recipe.deploy.name, output=folder)
    return _ours(deployed.urls, deployed.model_id, folder)


def serve_base(walk: Walk) -> Endpoint:
    """Serve the untouched model in the same way, to compare with."""
    from llm_detox.export import convert
    from llm_detox.serve.local import serve_folder
    from llm_detox.serve.local_stack import Ports

    model = walk.step("base-model", convert, model=walk.recipe.model.source)
    folder = _free(walk.folder / "serving" / "base")
    folder.mkdir(parents=True)
    state = serve_folder(model.folder, name="base", ports=Ports.choose(), output=folder)
    return _ours(state.urls, "base", folder)


def _free(folder: Path) -> Path:
    """The folder of a deployment, of which nothing is left: neither processes nor files."""
    from llm_detox.serve.local import stop_local

    stop_local(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _ours(urls: Mapping[str, str], model_id: str, folder: Path) -> Endpoint:
    endpoint = Endpoint({"REST": urls["rest"], "gRPC": urls["grpc"]}, model_id, folder)
    atexit.register(endpoint.stop)  # where the kernel ends before the notebook's last cell
    return endpoint
