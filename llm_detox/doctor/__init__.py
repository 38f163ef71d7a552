"""Is everything there that a run needs? Each check says what it saw and, where something is missing, what helps."""

from __future__ import annotations

from llm_detox.doctor.finding import Examination
from llm_detox.recipe import Recipe
from llm_detox.recipe.addresses import OCI


def examine(recipe: Recipe) -> Examination:
    """All checks for the recipe's target, and for its store in a cluster (a local run brings its own)."""
    if recipe.deploy.target == "local":
        from llm_detox.doctor.machine import examine_machine

        return Examination.of(examine_machine(recipe.name))
    from llm_detox.doctor.cluster import examine_cluster
    from llm_detox.doctor.machine import examine_registry, examine_store

    is_image = recipe.publish.url.startswith(OCI)
    return Examination.of((
        *examine_cluster(recipe.deploy, recipe.cluster, training_nodes=recipe.training.job.nodes),
        *(examine_registry if is_image else examine_store)(recipe.publish.url)))
