"""The messages of `fmaas.GenerationService`, from the .proto file that the package caikit-tgis-backend ships.

The file is found without importing that package (which would import all of Caikit) and compiled in memory into a
descriptor pool of its own, so it cannot clash with a copy that another library registers in the same process.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from llm_detox.errors import DetoxError

SERVICE = "fmaas.GenerationService"
_PACKAGE, _FILE = "caikit_tgis_backend", "generation.proto"
_MESSAGES = (
    "BatchedGenerationRequest", "SingleGenerationRequest", "BatchedGenerationResponse", "GenerationRequest",
    "GenerationResponse", "Parameters", "SamplingParameters", "StoppingCriteria", "ResponseOptions",
    "DecodingParameters", "TokenInfo", "BatchedTokenizeRequest", "BatchedTokenizeResponse", "TokenizeRequest",
    "TokenizeResponse", "ModelInfoRequest", "ModelInfoResponse",
)


def proto_file() -> Path:
    """Where generation.proto lies.

    Raises:
        DetoxError: the package is not installed, or does not hold the file.
    """
    found = importlib.util.find_spec(_PACKAGE)
    folders = list(found.submodule_search_locations or []) if found else []
    for folder in folders:
        path = Path(folder) / _FILE
        if path.exists():
            return path
    raise DetoxError(f"the package caikit-tgis-backend, which holds {_FILE}, is not installed", place="serving engine",
                     remedy="pip install --no-deps caikit-tgis-backend")


@functools.cache
def descriptors() -> Any:
    """A descriptor pool that holds the compiled file."""
    from grpc_tools import protoc

    source = proto_file()
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "generation.pb"
        status = protoc.main(["protoc", f"-I{source.parent}", f"--descriptor_set_out={compiled}", str(source)])
        if status != 0:
            raise DetoxError("protoc could not compile the file", place=str(source),
                             remedy="install the caikit-tgis-backend release that requirements name")
        files = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


@functools.cache
def messages() -> Any:
    """The message classes by their short names, and the enums `DecodingMethod`, `StopReason` as `{name: number}`."""
    pool = descriptors()
    found: dict[str, Any] = {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"fmaas.{name}")) for name in _MESSAGES
    }
    for name in ("DecodingMethod", "StopReason"):
        enum = pool.FindEnumTypeByName(f"fmaas.{name}")
        found[name] = {value.name: value.number for value in enum.values}
    return SimpleNamespace(**found)
