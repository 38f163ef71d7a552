"""Serving: on this machine or in a cluster. `deploy` is one call, whatever the target is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_detox.recipe import Recipe
    from llm_detox.serve.deployment import KserveDeployment, LocalDeployment


def deploy(recipe: Recipe, *, address: str, output: Path, run: str = "") -> LocalDeployment | KserveDeployment:
    """Serve a published model as the recipe says.

    Args:
        recipe: its sections `deploy` and `cluster` count.
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

    return deploy_kserve(settings, recipe.cluster, address=address, output=output, run=run)
