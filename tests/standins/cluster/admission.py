"""KServe's webhooks over https, as the API server calls them; and the admission plugin that the test server is without.

One server for a session: a namespace gets the webhooks of a platform by the label `PLATFORM_LABEL`.
"""

from __future__ import annotations

import json
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.standins import Unmeasured
from tests.standins.cluster.api import Api
from tests.standins.cluster.certificates import Authority
from tests.standins.kserve.platform import FLAVOURS, SERVICE_LABEL, Flavour, Refused
from tests.standins.kserve.pods import mutate_pod
from tests.standins.kserve.webhooks import VALIDATOR, admit_service
from tests.standins.kubernetes import add_token

Object = dict[str, Any]
PLATFORM_LABEL = "llm-detox.test/platform"
_VERSION = "admissionregistration.k8s.io/v1"
_SERVICES = {"apiGroups": ["serving.kserve.io"], "apiVersions": ["v1beta1"], "resources": ["inferenceservices"],
             "operations": ["CREATE", "UPDATE"]}
_PODS = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
_HAS_MODEL = {"matchExpressions": [{"key": SERVICE_LABEL, "operator": "Exists"}]}


class Webhooks:
    """Serves the webhooks of both platforms and registers them, until the block ends.

    Args:
        api: the administrator's; pods' webhooks read accounts and Secrets with it.
        authority: signs the server's certificate.
    """

    def __init__(self, api: Api, authority: Authority) -> None:
        self._api, self._bundle = api, b64encode(authority.pem()).decode()
        pair = authority.sign("localhost", "IP:127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)

        class Handler(_Handler):
            answer = staticmethod(self._answer)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, name="webhooks", daemon=True)

    def __enter__(self) -> Webhooks:
        self._thread.start()
        for flavour in FLAVOURS:
            self._api.apply(self._configuration("Mutating", flavour, [
                ("inferenceservice.kserve-webhook-server.defaulter", "mutate-service", _SERVICES, {}),
                ("inferenceservice.kserve-webhook-server.pod-mutator", "mutate-pod", _PODS, _HAS_MODEL)]))
            self._api.apply(self._configuration("Validating", flavour, [
                (VALIDATOR, "validate-service", _SERVICES, {})]))
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _configuration(self, kind: str, flavour: Flavour, hooks: list[tuple[str, str, Object, Object]]) -> Object:
        base = f"https://127.0.0.1:{self._server.server_address[1]}/{flavour.name}"
        return {"apiVersion": _VERSION, "kind": f"{kind}WebhookConfiguration", "metadata": {"name": flavour.name},
                "webhooks": [{
                    "name": name, "clientConfig": {"url": f"{base}/{path}", "caBundle": self._bundle},
                    "rules": [rule], "admissionReviewVersions": ["v1"], "sideEffects": "None",
                    "namespaceSelector": {"matchLabels": {PLATFORM_LABEL: flavour.name}}, "objectSelector": selector,
                } for name, path, rule, selector in hooks]}

    def _answer(self, path: str, request: Object) -> Object:
        name, _, hook = path.strip("/").partition("/")
        flavour = next(one for one in FLAVOURS if one.name == name)
        act: Callable[[Object, str, Flavour], Object] = {
            "mutate-service": _with_defaults, "validate-service": _validated, "mutate-pod": self._pod}[hook]
        try:
            changed = act(request["object"], request["namespace"], flavour)
        except Refused as refusal:
            return {"allowed": False, "status": {"message": str(refusal).partition(" denied the request: ")[2]}}
        except Unmeasured as unmeasured:
            return {"allowed": False, "status": {"message": f"nobody has measured {unmeasured}"}}
        operations = [{"op": "add", "path": f"/{path}", "value": value} for path, value in _parts(changed)]
        return {"allowed": True, **({"patchType": "JSONPatch", "patch": b64encode(
            json.dumps(operations).encode()).decode()} if hook.startswith("mutate") else {})}

    def _pod(self, pod: Object, namespace: str, flavour: Flavour) -> Object:
        pod["metadata"]["namespace"] = namespace
        others = [one for kind in ("ServiceAccount", "Secret") for one in self._api.list(kind, namespace)]
        add_token(pod)
        return mutate_pod(pod, others, flavour)


def _with_defaults(service: Object, _: str, __: Flavour) -> Object:
    try:
        return admit_service(service)
    except Refused:
        return service  # the validating webhook, which comes later, says so


def _validated(service: Object, _: str, __: Flavour) -> Object:
    return admit_service(service)


def _parts(changed: Object) -> list[tuple[str, Any]]:
    """What webhooks change: annotations and spec. (Finalizers are the controller's, the generation the server's.)"""
    annotations = changed["metadata"].get("annotations")
    return [("spec", changed["spec"]), *([("metadata/annotations", annotations)] if annotations else ())]


class _Handler(BaseHTTPRequestHandler):
    answer: Callable[[str, Object], Object]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        response = {"uid": review["request"]["uid"], **self.answer(self.path.partition("?")[0], review["request"])}
        body = json.dumps({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The API server logs what fails."""
