"""The deploy step: one call, whatever the target is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_detox.recipe import Recipe


def deploy(recipe: Recipe, *, address: str, output: Path, run: str = "") -> dict[str, Any]:
    """Serve a published model as the recipe's `deploy` section says.

    Args:
        recipe: its `deploy` section counts.
        address: what `publish` returned.
        output: a new folder that describes the deployment.
        run: the pipeline run that deploys: what it leaves behind can be told from what others made.

    Raises:
        DetoxError: the model does not get ready.
    """
    settings = recipe.deploy
    if settings.target == "local":
        from llm_detox.serve.local import deploy_local

        return deploy_local(address, name=settings.name, output=output, rest_port=settings.rest_port,
                            grpc_port=settings.grpc_port)
    from llm_detox.serve.kserve.deploy import deploy_kserve

    return deploy_kserve(recipe, address=address, output=output, run=run)
