"""`promote`: serve a version that is published already, such as an older one, or one that a person has looked at."""

from kfp import dsl

from components.deploy.component import deploy
from components.smoke.component import smoke


@dsl.pipeline(name="promote", description="Serve a published version, and ask it over REST and gRPC.")
def promote(recipe: str, address: str) -> None:
    """Serve a published version.

    Args:
        recipe: the recipe as JSON; its `deploy` section says where and how (`rollout: canary` tries it first).
        address: what `publish` returned: s3://bucket/prefix/version.
    """
    deployed = deploy(recipe=recipe, address=address).set_caching_options(False)
    smoke(recipe=recipe, deployment=deployed.outputs["deployment"]).set_caching_options(False)
