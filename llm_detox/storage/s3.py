"""The connection to an S3 store, and its failures in words that help."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llm_detox.errors import DetoxError, UsageError
from llm_detox.recipe.addresses import ENDPOINTS, OCI, check_store, split_s3
from llm_detox.storage import patience
from llm_detox.storage.patience import Patience, error_code

_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "Forbidden", "403", "401", "Unauthorized",
            "InvalidToken", "InvalidClientTokenId"}
_REDIRECTS = {"PermanentRedirect", "TemporaryRedirect", "Redirect", "301", "302", "303", "307", "308"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}


@dataclass(frozen=True)
class Place:
    """A bucket and a key or prefix in it, without a slash at the end."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, url: str) -> Place:
        """From `s3://bucket/key`.

        Raises:
            UsageError: it has another form, or is an image.
        """
        if url.startswith(OCI):
            raise UsageError("an image has no pointer and no list of versions: this needs a place in S3", place=url,
                             remedy="deploy the image by its digest; publish to s3://bucket/prefix for versions, going "
                                    "back to one, cleaning up and following")
        try:
            return cls(*split_s3(url))
        except ValueError as error:
            raise UsageError(str(error), place=url, remedy="write it as s3://bucket/prefix") from None

    def __truediv__(self, name: str) -> Place:
        return Place(self.bucket, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}" if self.key else f"s3://{self.bucket}"


def endpoint_of(env: Mapping[str, str] | None = None) -> str | None:
    """The store's address; None for AWS itself."""
    env = os.environ if env is None else env
    return next((env[name] for name in ENDPOINTS if env.get(name)), None)


def connect(env: Mapping[str, str] | None = None, **config: Any) -> Any:
    """A boto3 S3 client from the environment.

    TLS is verified, with AWS_CA_BUNDLE where it is set. Own endpoints are addressed by path, unless
    AWS_S3_ADDRESSING_STYLE says `virtual`. Checksum headers are sent only where the store asks for them: many
    on-premises stores do not know the newer ones. The client has a `patience` (see `llm_detox.storage.patience`).

    Args:
        env: instead of `os.environ`.
        config: overrides for `botocore.config.Config`.

    Raises:
        DetoxError: a variable has the wrong form, or boto3 is missing.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise DetoxError("boto3 is not installed", remedy="pip install 'llm-detox[storage]'") from None
    given = os.environ if env is None else env
    try:
        check_store(given)
    except ValueError as error:
        raise DetoxError(str(error), place="the store's environment variables",
                         remedy="correct them; docs/troubleshooting.md lists all that are read") from None
    endpoint = endpoint_of(given)
    settings: dict[str, Any] = {
        "connect_timeout": patience.CONNECT_SECONDS, "read_timeout": patience.READ_SECONDS,
        "max_pool_connections": 64, "retries": {"mode": "standard", "total_max_attempts": 1},
        "request_checksum_calculation": "when_required", "response_checksum_validation": "when_required",
        "s3": {"addressing_style": given.get("AWS_S3_ADDRESSING_STYLE") or ("path" if endpoint else "auto")},
    }
    ca_bundle = given.get("AWS_CA_BUNDLE")
    if ca_bundle and not os.path.isfile(ca_bundle):
        raise DetoxError("the CA bundle named by AWS_CA_BUNDLE does not exist", place=ca_bundle,
                         remedy="point AWS_CA_BUNDLE to a PEM file, or unset it")
    with clear_errors("the store"):
        client = boto3.session.Session().client(
            "s3", endpoint_url=endpoint, verify=ca_bundle or None,
            region_name=given.get("AWS_DEFAULT_REGION") or given.get("AWS_REGION") or "us-east-1",
            aws_access_key_id=given.get("AWS_ACCESS_KEY_ID"), aws_secret_access_key=given.get("AWS_SECRET_ACCESS_KEY"),
            aws_session_token=given.get("AWS_SESSION_TOKEN"), config=Config(**(settings | config)))
    client.patience = Patience(endpoint or "AWS S3")
    client.patience.attend(client)
    if endpoint:
        client.meta.events.register("before-call.s3", _stay_here)
    return client


def _stay_here(context: dict[str, Any], **_: Any) -> None:
    """A store of one's own has no other regions; where it redirects, botocore would ask it for them without end."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def is_missing(error: BaseException) -> bool:
    return error_code(error) in {"404", "NoSuchKey", "NotFound"}


def is_redirect(error: BaseException) -> bool:
    return error_code(error) in _REDIRECTS


@contextmanager
def clear_errors(place: Place | str) -> Iterator[None]:
    """Turn boto3's failures into one `DetoxError` that names endpoint and place, and never a secret."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise _explain(error, f"{place} at {endpoint_of() or 'AWS S3'}") from error


def _explain(error: Exception, place: str) -> DetoxError:
    from botocore import exceptions as boto

    code = error_code(error) or next(
        (name for name in (*_EXPIRED, *_REFUSED, "NoSuchBucket") if f"({name})" in str(error)), "")
    if code in _EXPIRED:
        return DetoxError("the store's credentials have expired", place=place,
                          remedy="get fresh ones (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) and run "
                                 "it again: what was sent stays and is not sent twice")
    if code == "RequestTimeTooSkewed":
        return DetoxError("the store refuses the request: this machine's clock is wrong", place=place,
                          remedy="set the clock (NTP)")
    if code in _REFUSED:
        return DetoxError(f"the store refuses the access key ({code})", place=place,
                          remedy="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what that key may do there")
    if isinstance(error, boto.ClientError) and is_redirect(error):
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        target = headers.get("location") or error.response.get("Error", {}).get("Endpoint") or "another address"
        return DetoxError(f"the store sends the request on to {target} ({code})", place=place,
                          remedy="set AWS_S3_ENDPOINT to the address that answers itself (https:// in place of "
                                 "http://, for example), and AWS_DEFAULT_REGION to the bucket's region")
    if code == "NoSuchBucket":
        return DetoxError("the bucket does not exist", place=place, remedy="create it, or correct the address")
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return DetoxError("no credentials for the store", place=place,
                          remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, boto.SSLError):
        return DetoxError("the store's TLS certificate is not trusted", place=place,
                          remedy="set AWS_CA_BUNDLE to the PEM file of the authority that signed it")
    if isinstance(error, (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError)):
        return DetoxError(f"the store does not answer ({type(error).__name__})", place=place,
                          remedy="check AWS_S3_ENDPOINT, the network and that the store runs")
    return DetoxError(f"the store failed: {code or type(error).__name__}", place=place,
                      remedy="try again; if that does not help, read the store's log: its disk may be full")
