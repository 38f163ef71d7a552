"""One repository of an image registry, by the OCI distribution API (version 1.1): blobs and manifests.

Logins come from the environment: LLM_DETOX_OCI_TOKEN, a bearer token that the registry itself takes, or
LLM_DETOX_OCI_USER and LLM_DETOX_OCI_PASSWORD, for basic authentication or the token service that the registry names.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.recipe.addresses import ImageName
from llm_detox.recipe.cluster import LOGIN_VARIABLES
from llm_detox.storage.patience import CONNECT_SECONDS, pause_seconds
from llm_detox.storage.web import CA_VARIABLES, is_untrusted, speaks_no_tls, trusted

TOKEN, USER, PASSWORD = LOGIN_VARIABLES
PLAIN_HTTP_VARIABLE = "LLM_DETOX_OCI_PLAIN_HTTP"
_ATTEMPTS = 5
_READ_SECONDS = 120.0  # a registry that puts its blobs into an object store answers when that has them
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_LARGEST_MANIFEST = 4 * 2**20
Content = Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class Login:
    """What a registry is shown; never shown to people."""

    token: str | None = field(default=None, repr=False)
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls) -> Login:
        """From the variables of this module.

        Raises:
            DetoxError: a user is given without a password, or the reverse.
        """
        token, user, password = (os.environ.get(name) or None for name in LOGIN_VARIABLES)
        if (user is None) != (password is None):
            raise DetoxError("half a login to the registry is given", place=f"{USER} and {PASSWORD}",
                             remedy="set both, or neither")
        return cls(token, user, password)

    @property
    def basic(self) -> httpx.BasicAuth | None:
        return httpx.BasicAuth(self.user, self.password or "") if self.user else None


class Registry:
    """A repository. Threads may share it.

    Args:
        name: an image of it.
        login: instead of that of the environment.
        push: whether something will be sent: a token is then asked for both directions.
    """

    def __init__(self, name: ImageName, login: Login | None = None, *, push: bool = False) -> None:
        self.name, self.push = name, push
        self.login = Login.from_environment() if login is None else login
        self._host = urlsplit(f"//{name.registry}").hostname or ""
        self._lock, self._authorization = threading.Lock(), ""
        if self.login.token:
            self._authorization = f"Bearer {self.login.token}"
        self._http = httpx.Client(verify=trusted(self._host), follow_redirects=False,
                                  timeout=httpx.Timeout(_READ_SECONDS, connect=CONNECT_SECONDS))
        self._root = ""

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def has_blob(self, digest: str) -> bool:
        """Whether it is there already."""
        return self._ask("HEAD", f"blobs/{digest}", {200, 404}).status_code == 200

    def send_blob(self, digest: str, size: int, content: Content, *, mount_from: str = "") -> bool:
        """Bring a blob into the repository.

        Args:
            digest: `sha256:...`; the registry compares it with what arrives.
            size: in bytes.
            content: gives the bytes, from the beginning each time it is called.
            mount_from: a repository of the same registry that has it.

        Returns:
            whether it was sent, and not taken from the other repository.

        Raises:
            DetoxError: the registry refuses, or fails time and again.
        """
        query = f"?mount={digest}&from={mount_from}" if mount_from else ""
        for attempt in range(1, _ATTEMPTS + 1):
            opened = self._ask("POST", f"blobs/uploads/{query}", {201, 202})
            if opened.status_code == 201:
                return False
            place = urljoin(str(opened.url), opened.headers.get("location", ""))
            end = f"{'&' if '?' in place else '?'}digest={digest}"
            headers = {"content-length": str(size), "content-type": "application/octet-stream"}
            try:
                # One attempt each: a session that broke off is not gone on with, another one is opened.
                self._ask("PUT", place + end, {201}, headers=headers, content=content, attempts=1)
                return True
            except _Passing:
                if attempt == _ATTEMPTS:
                    raise
                self._pause(attempt)
        raise AssertionError("unreachable")

    def require_push(self) -> None:
        """Begin an upload and give it up.

        Raises:
            DetoxError: this login may not push, or the registry does not answer.
        """
        opened = self._ask("POST", "blobs/uploads/", {202})
        # Registries need not know how to give one up; what is begun and not ended they clean up themselves.
        self._ask("DELETE", urljoin(str(opened.url), opened.headers.get("location", "")), {202, 204, 404, 405})

    @contextmanager
    def blob(self, digest: str) -> Iterator[Iterator[bytes]]:
        """The bytes of a blob, compared with the digest at their end.

        Raises:
            DetoxError: it is not there, or is another one.
        """
        with self._open("GET", f"blobs/{digest}", {200}, headers={"accept-encoding": "identity"}) as answer:
            yield self._checked(answer, digest)

    def manifest(self, reference: str, kinds: Iterable[str]) -> tuple[dict[str, Any], str]:
        """A manifest and its media type.

        Args:
            reference: a tag or a digest, which is then compared.
            kinds: the media types that can be used.

        Raises:
            DetoxError: there is none, or it is another one.
        """
        answer = self._ask("GET", f"manifests/{reference}", {200}, headers={"accept": ", ".join(kinds)})
        data = answer.content[:_LARGEST_MANIFEST]
        if ":" in reference and f"sha256:{sha256(data).hexdigest()}" != reference:
            raise DetoxError("the registry gave another manifest than the one of this digest", place=str(self.name),
                             remedy="look for a proxy that changes manifests, and at the registry's log")
        try:
            value = json.loads(data)
            return value, str(value.get("mediaType") or answer.headers.get("content-type", "").partition(";")[0])
        except (ValueError, AttributeError, RecursionError):
            raise DetoxError("the registry gave something else than a manifest", place=str(self.name),
                             remedy="check the address") from None

    def put_manifest(self, data: bytes, kind: str, reference: str) -> str:
        """Send a manifest, which makes the image visible; returns its digest."""
        digest = f"sha256:{sha256(data).hexdigest()}"
        headers = {"content-type": kind, "content-length": str(len(data))}
        answer = self._ask("PUT", f"manifests/{reference}", {201}, headers=headers, content=lambda: [data])
        if answer.headers.get("docker-content-digest", digest) != digest:
            raise DetoxError("the registry keeps another manifest than the one that was sent", place=str(self.name),
                             remedy="look for a registry's setting that converts manifests")
        return digest

    def _ask(self, method: str, path: str, good: set[int], *, headers: Mapping[str, str] | None = None,
             content: Content | None = None, attempts: int = _ATTEMPTS) -> httpx.Response:
        """A request whose answer is small."""
        with self._open(method, path, good, headers=headers, content=content, attempts=attempts) as answer:
            answer.read()
            return answer

    @contextmanager
    def _open(self, method: str, path: str, good: set[int], *, headers: Mapping[str, str] | None = None,
              content: Content | None = None, attempts: int = _ATTEMPTS) -> Iterator[httpx.Response]:
        answer = self._answer(method, path, good, headers or {}, content, attempts)
        try:
            yield answer
        except httpx.HTTPError as error:
            raise self._away(error) from error
        finally:
            answer.close()

    def _answer(self, method: str, path: str, good: set[int], headers: Mapping[str, str], content: Content | None,
                attempts: int) -> httpx.Response:
        """The answer with one of the good codes, not yet read; logs in where it is asked to, and tries again."""
        logged_in = False
        attempt = 1
        while True:
            try:
                answer = self._send(method, path, headers, content)
                if answer.status_code == 401 and not logged_in:
                    self._log_in(answer)
                    logged_in = True
                    continue
                if answer.status_code in good:
                    return answer
                failure = self._refusal(answer)
            except httpx.TransportError as error:
                failure = self._away(error)
            if not isinstance(failure, _Passing) or attempt >= attempts:
                raise failure
            self._pause(attempt)
            attempt += 1

    def _send(self, method: str, path: str, headers: Mapping[str, str], content: Content | None) -> httpx.Response:
        url = path if "://" in path else f"{self._base()}/v2/{self.name.repository}/{path}"
        for _ in range(_ATTEMPTS):
            own = urlsplit(url).netloc == urlsplit(self._base()).netloc
            # Blobs may lie in an object store: that is no business of the login.
            shown = {"authorization": self._authorization} if own and self._authorization else {}
            request = self._http.build_request(method, url, headers={**headers, **shown},
                                               content=content() if content else None)
            answer = self._http.send(request, stream=True)
            if method == "GET" and answer.is_redirect and "location" in answer.headers:
                answer.close()
                url = urljoin(url, answer.headers["location"])
                self._require_tls(url)
                continue
            return answer
        raise DetoxError("the registry sends the request on without end", place=str(self.name),
                         remedy="look at the registry's settings")

    def _log_in(self, refused: httpx.Response) -> None:
        """Do what a 401 asks for (RFC 7235, and the token authentication of the distribution project)."""
        refused.close()
        challenge = refused.headers.get("www-authenticate", "")
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and (basic := self.login.basic):
            header = next(basic.auth_flow(httpx.Request("GET", str(refused.url)))).headers["authorization"]
        elif kind.lower() == "bearer":
            header = f"Bearer {self._token(dict(_CHALLENGE.findall(rest)))}"
        else:
            raise self._no_login("it asks for a login" if not self.login.basic else f"it asks for {kind or 'nothing'}")
        with self._lock:
            self._authorization = header

    def _token(self, challenge: Mapping[str, str]) -> str:
        realm = challenge.get("realm", "")
        self._require_tls(realm)
        wanted = {"scope": f"repository:{self.name.repository}:pull{',push' if self.push else ''}"}
        wanted |= {"service": challenge["service"]} if "service" in challenge else {}
        answer = self._http.get(realm, params=wanted, auth=self.login.basic or httpx.USE_CLIENT_DEFAULT)
        if answer.status_code != 200:
            raise self._no_login(f"its token service says {answer.status_code}")
        try:
            value = answer.json()
            return str(value.get("token") or value["access_token"])
        except (ValueError, KeyError, AttributeError):
            raise self._no_login("its token service gives no token") from None

    def _base(self) -> str:
        """`https://registry`, or `http://` where that is allowed."""
        with self._lock:
            if not self._root:
                self._root = f"{self._scheme()}://{self.name.registry}"
            return self._root

    def _scheme(self) -> str:
        plain = (one.strip() for one in os.environ.get(PLAIN_HTTP_VARIABLE, "").split(","))
        if self.name.registry in plain:
            return "http"
        if _LOOPBACK.fullmatch(self._host):
            try:
                self._http.get(f"https://{self.name.registry}/v2/")
            except httpx.ConnectError as error:
                # Where a certificate is shown, it has to be the right one, on this machine, too.
                return "http" if speaks_no_tls(error) else "https"
            except httpx.HTTPError:
                pass
        return "https"

    def _require_tls(self, url: str) -> None:
        """A login, and what it opens, goes over TLS wherever the registry itself does."""
        parts = urlsplit(url)
        if parts.scheme == "https" or (parts.scheme == "http" and self._root.startswith("http://")):
            return
        raise DetoxError("the registry leads to an address without TLS", place=f"{parts.scheme}://{parts.netloc}",
                         remedy=f"its administrator corrects it; in a test, name the registry in {PLAIN_HTTP_VARIABLE}")

    def _checked(self, answer: httpx.Response, digest: str) -> Iterator[bytes]:
        total = sha256()
        for block in answer.iter_raw():
            total.update(block)
            yield block
        if f"sha256:{total.hexdigest()}" != digest:
            raise DetoxError("what the registry gave is not what the digest says", place=f"{self.name}, {digest}",
                             remedy="publish the model again; look at the registry's disk")

    def _pause(self, attempt: int) -> None:
        say(f"{self.name.registry} fails; trying again")
        time.sleep(pause_seconds(attempt))

    def _away(self, error: Exception) -> DetoxError:
        if is_untrusted(error):
            return DetoxError("the registry's TLS certificate is not trusted", place=self.name.registry,
                              remedy=f"set {CA_VARIABLES[0]} to the PEM file of the authority that signed it")
        if speaks_no_tls(error):
            return DetoxError("the registry speaks no TLS", place=self.name.registry,
                              remedy=f"for plain http, which shows models and logins to the network, name it in "
                                     f"{PLAIN_HTTP_VARIABLE}")
        return _Passing(f"the registry does not answer ({type(error).__name__})", place=self.name.registry,
                        remedy="check the address, the network and that the registry runs")

    def _refusal(self, answer: httpx.Response) -> DetoxError:
        try:
            answer.read()
            first = answer.json()["errors"][0]
            said = f"{first.get('code', '')}: {first.get('message', '')}"
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError, AttributeError):
            said = ""
        answer.close()
        status = answer.status_code
        if status in (401, 403):
            return self._no_login(said or f"HTTP {status}")
        if status == 404:
            return DetoxError(f"the registry does not have it ({said or 'HTTP 404'})", place=str(self.name),
                              remedy="check the address; some registries want the repository or its project made first")
        kind = _Passing if status in (408, 429) or status >= 500 else DetoxError
        return kind(f"the registry refuses: {said or f'HTTP {status}'}", place=str(self.name),
                    remedy="correct what it names; its log, disk and quota say more")

    def _no_login(self, why: str) -> DetoxError:
        verb = "push to" if self.push else "pull from"
        return DetoxError(f"no right to {verb} the repository ({why})", place=str(self.name),
                          remedy=f"set {TOKEN}, or {USER} and {PASSWORD}, of an account that has it")


class _Passing(DetoxError):
    """A failure that may be over at the next attempt."""
