"""Requests that Caikit stumbles over, or reads as something else, are refused with a reason; and logs stay short."""

from __future__ import annotations

import logging
import math
import sys
from typing import Any

_MAX_MODEL_ID = 253  # what Kubernetes allows for a name
_MAX_TIME_SECONDS = (2**32 - 1) / 1000  # the engine counts milliseconds in 32 bits
_MAX_WORD = 200  # of a parameter that is a word
_MAX_QUOTED = 200  # characters of what a request held, in an answer
_MAX_LOGGED = 1000  # the same in the log
_MAX_ITEMS = 20
_MAX_LINE = 8000
# In the engine's protocol 0 is a value that was not given: it would silently become the default.
_NOT_ZERO = {"max_new_tokens": "at least 1", "repetition_penalty": "more than 0", "temperature": "at least 0.05",
             "top_p": "more than 0"}
_CALLERS_MISTAKES = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "CANCELLED", "RESOURCE_EXHAUSTED",
                               "PERMISSION_DENIED"})


def complaint(parameters: dict[str, Any]) -> str | None:
    """What is wrong with generation parameters by their names in Caikit; None where they can be passed on."""
    for name, value in parameters.items():
        if isinstance(value, float) and not math.isfinite(value):  # Caikit's own checks let some of them pass
            return f"{name} must be a finite number"
        if name in _NOT_ZERO and value is not None and value == 0:
            return f"{name} must be {_NOT_ZERO[name]}; leave it out for the default"
        if name != "text" and isinstance(value, str) and len(value) > _MAX_WORD:
            return f"{name} has no value of {len(value)} characters"
    seconds = parameters.get("max_time")
    if seconds is not None and not 0 < seconds <= _MAX_TIME_SECONDS:
        return f"max_time must be more than 0 and at most {_MAX_TIME_SECONDS:.0f} seconds"
    return None


def check_requests() -> None:
    """Refuse parameters and model ids that no request may have, over REST and gRPC, before they go anywhere."""
    import grpc
    from caikit.runtime.http_server import http_server
    from caikit.runtime.servicers import global_predict_servicer
    from caikit.runtime.types.caikit_runtime_exception import CaikitRuntimeException

    def invalid(reason: str) -> CaikitRuntimeException:
        return CaikitRuntimeException(grpc.StatusCode.INVALID_ARGUMENT, reason)

    def bounded(model_id: str) -> str:
        if len(model_id) > _MAX_MODEL_ID:
            raise invalid(f"a model id has at most {_MAX_MODEL_ID} characters")
        return model_id

    servicer, rest = global_predict_servicer.GlobalPredictServicer, http_server.RuntimeHTTPServer
    plain_predict, plain_id, plain_metadata = (
        servicer.predict_model, rest._get_model_id, global_predict_servicer.get_metadata)

    def predict(self: Any, *args: Any, **options: Any) -> Any:
        reason = complaint(options)
        if reason:
            raise invalid(reason)
        return plain_predict(self, *args, **options)

    servicer.predict_model = predict
    rest._get_model_id = lambda self, request: bounded(plain_id(self, request))
    global_predict_servicer.get_metadata = lambda *args, **options: bounded(plain_metadata(*args, **options) or "")


def describe_and_refuse() -> None:
    """/openapi.json names all parameters, and a refusal may quote what is no JSON."""
    from caikit.runtime.http_server import http_server
    from fastapi.exceptions import HTTPException, RequestValidationError

    plain_patch, plain_read = http_server.RuntimeHTTPServer._patch_openapi_spec, http_server.pydantic_from_request

    def patch(self: Any) -> None:
        plain_patch(self)
        description = self.app.openapi_schema
        self.app.openapi = lambda: description  # newer releases of FastAPI make it anew, without what Caikit put in

    async def read(kind: Any, request: Any) -> Any:
        try:
            return await plain_read(kind, request)
        except RequestValidationError as error:
            raise RequestValidationError(sayable(error.errors())) from None
        except HTTPException:
            raise
        except Exception as error:
            if request.headers.get("content-type") == "application/json":
                raise
            raise HTTPException(400, f"the form cannot be read: {sayable(str(error))}") from None

    http_server.RuntimeHTTPServer._patch_openapi_spec, http_server.pydantic_from_request = patch, read


def sayable(value: Any, most: int = _MAX_QUOTED) -> Any:
    """The value with words for what JSON has none for, and the beginning of what is long."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value if len(value) <= most else f"{value[:most]}... ({len(value)} characters)"
    if isinstance(value, dict):
        return {sayable(str(name), most): sayable(one, most) for name, one in list(value.items())[:_MAX_ITEMS]}
    if isinstance(value, list | tuple):
        return type(value)(sayable(one, most) for one in value[:_MAX_ITEMS])
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class ShortLines(logging.Formatter):
    """A formatter's lines, of bounded length, and without tracebacks of what is the caller's mistake."""

    def __init__(self, plain: logging.Formatter) -> None:
        super().__init__()
        self._plain = plain

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, dict):  # Caikit's way
            record.msg = sayable(record.msg, _MAX_LOGGED)
        if _is_the_callers_mistake(sys.exc_info()[1]):
            record.exc_info = record.exc_text = None
            if isinstance(record.msg, dict):
                record.msg.pop("stack_trace", None)
        line = self._plain.format(record)
        return line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]}... ({len(line)} characters)"


def _is_the_callers_mistake(error: BaseException | None) -> bool:
    """Whether the error that is being handled now is one that its message says all about."""
    import grpc
    from caikit.core.exceptions.caikit_core_exception import CaikitCoreException
    from caikit.runtime.types.caikit_runtime_exception import CaikitRuntimeException
    from fastapi.exceptions import RequestValidationError

    if isinstance(error, RequestValidationError | ValueError):
        return True
    if not isinstance(error, CaikitRuntimeException | CaikitCoreException | grpc.Call):
        return False
    code = error.code() if isinstance(error, grpc.Call) else error.status_code
    return code.name in _CALLERS_MISTAKES


def cut_long_lines() -> None:
    """What requests hold is quoted in the log; a caller must not fill the disk with it."""
    from caikit.core.toolkit import logging as caikit_logging

    plain = caikit_logging.configure

    def configure(*args: Any, **options: Any) -> None:
        plain(*args, **options)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(ShortLines(handler.formatter or logging.Formatter()))

    caikit_logging.configure = configure
