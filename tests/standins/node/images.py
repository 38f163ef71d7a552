"""Images as programs of this machine: which folders their PATH has, what they start, and as whom.

Users and entry points are as the images' own build files have them (ours in `images/`; the others read upstream).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.serve.local_stack import CAIKIT_PYTHON_VARIABLE, caikit_python
from tests.conftest import REPOSITORY

Object = dict[str, Any]
_PROGRAMS = REPOSITORY / "tests" / "standins" / "images"
_SYSTEM = "/usr/local/bin:/usr/bin:/bin"
_WORKBENCH = Path(sys.executable).parent
_RECORDED_WITHOUT_NAME = "quay.io/opendatahub/placeholder"


@dataclass(frozen=True)
class Image:
    """What an image brings.

    Args:
        user: a number, or a name, which a kubelet cannot tell from root.
        path: its PATH.
        entrypoint: what runs where the container has no command.
        environment: its own variables.
    """

    user: str
    path: str
    entrypoint: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def variables(self) -> dict[str, str]:
        """All that a process of the image sees before the container adds its own. Two cores: a thread is enough."""
        return {"PATH": self.path, "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **self.environment}


def image_of(container: Object) -> Image | None:
    """The image that a container names; None where no registry has it."""
    name = container["image"]
    if name.startswith(f"{_RECORDED_WITHOUT_NAME}:"):
        name = f"recorded/{container['name']}"
    repository = name.partition("@")[0].rpartition(":")[0] or name
    return _images().get(repository.rpartition("/")[2])


def caikit_is_missing() -> str | None:
    """Why there is no Caikit here; None where it is."""
    try:
        caikit_python()
    except DetoxError as error:
        return str(error)
    return None


def _images() -> dict[str, Image]:
    ours = {"PYTHONPATH": str(REPOSITORY), CAIKIT_PYTHON_VARIABLE: os.environ.get(CAIKIT_PYTHON_VARIABLE, "")}
    workbench = f"{_WORKBENCH}:{_SYSTEM}"
    helpers = Image("0", workbench, (), ours)
    engine = Image("1001", workbench, ("python", "-m", "serving.engine"), {
        **ours, "HF_HUB_OFFLINE": "1", "BIND_HOST": "0.0.0.0", "PORT": "3000", "GRPC_PORT": "8033"})  # noqa: S104
    images = {
        "text-generation-inference": Image("tgis", f"{_PROGRAMS / 'tgis'}:{workbench}", (), ours),
        "engine": engine,
        "vllm": Image("2000", workbench, (), {"PYTHONPATH": f"{_PROGRAMS / 'vllm'}:{REPOSITORY}"}),
        "storage-initializer": _program("storage_initializer", helpers, user="1000"),
        "kube-rbac-proxy": _program("kube_rbac_proxy", helpers, user="65532"),
    }
    if caikit_is_missing() is None:
        images["caikit-tgis-serving"] = Image("caikit", f"{Path(caikit_python()).parent}:{_SYSTEM}", (), {})
    return images


def _program(name: str, like: Image, *, user: str) -> Image:
    return Image(user, like.path, ("python", str(_PROGRAMS / f"{name}.py")), like.environment)
