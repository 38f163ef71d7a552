"""What addresses look like: places in an S3 store, images, files of packages, URLs of servers, a store's settings.

All of it is checked where it is written down, before any work starts: a model that cannot be published after hours of
training was wrong from the first second.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

S3, PACKAGE, OCI = "s3://", "package://", "oci://"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_SCHEMES = re.compile(r"s3|package|https?|grpcs?|fmaass?|openai\+https?")
_BUCKET = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()=+:@,&$-]+")  # of a part of a prefix that models are published below
_DIST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_REGION = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_REPOSITORY = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*")  # a part of it, as the OCI distribution spec has it
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_IMAGE_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST_REPOSITORY = 255
_UNSEEN = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff]")
_SHORTEST_BUCKET, _LONGEST_BUCKET = 3, 63
_LONGEST_PREFIX = 512  # of the 1024 bytes that a key may have: the digest and the files' names come after it
ENDPOINTS = ("AWS_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the first that is set counts
_REGIONS = ("AWS_DEFAULT_REGION", "AWS_REGION")
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_STYLES = ("path", "virtual", "auto")


def split_s3(url: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`, the key without a slash at its end.

    Raises:
        ValueError: it has another form.
    """
    bucket, _, key = url.removeprefix(S3).partition("/")
    key = key.removesuffix("/")
    if not url.startswith(S3) or not bucket:
        raise ValueError("not an S3 address: it begins with s3://bucket/")
    if not _SHORTEST_BUCKET <= len(bucket) <= _LONGEST_BUCKET or not _BUCKET.fullmatch(bucket) or _is_ip(bucket):
        raise ValueError(f"not an S3 address: a bucket has {_SHORTEST_BUCKET} to {_LONGEST_BUCKET} small letters, "
                         f"digits, hyphens and single dots, not {bucket!r:.80}")
    if key and any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError("not an S3 address: the key has a part that is empty, . or ..")
    if any(ord(character) < 32 or character == "\x7f" for character in key):
        raise ValueError("not an S3 address: the key has a control character")
    return bucket, key


@dataclass(frozen=True)
class ImageName:
    """`oci://registry[:port]/repository[:tag][@sha256:digest]`."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, address: str) -> ImageName:
        """Read an address.

        Raises:
            ValueError: it has another form.
        """
        name, at, digest = address.removeprefix(OCI).partition("@")
        registry, _, path = name.partition("/")
        repository, colon, tag = path.partition(":")
        if not address.startswith(OCI) or not repository:
            raise ValueError("not the address of an image: write it as oci://registry[:port]/repository[:tag]")
        check_url(f"https://{registry}", ("https",), path=False)
        parts = repository.split("/")
        if len(repository) > _LONGEST_REPOSITORY or not all(_REPOSITORY.fullmatch(one) for one in parts):
            raise ValueError("not the address of an image: a repository has small letters, digits and single . _ - / "
                             f"between them, not {repository!r:.80}")
        if colon and not _TAG.fullmatch(tag):
            raise ValueError(f"not the address of an image: {tag!r:.80} is no tag")
        if at and not _IMAGE_DIGEST.fullmatch(digest):
            raise ValueError(f"not the address of an image: {digest!r:.80} is not sha256: and 64 hex digits")
        return cls(registry, repository, tag, digest)

    @property
    def reference(self) -> str:
        """What a registry is asked for: the digest, else the tag."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        end = f"@{self.digest}" if self.digest else f":{self.tag}" if self.tag else ""
        return f"{OCI}{self.registry}/{self.repository}{end}"


def check_image(address: str) -> str:
    """The address of an image, as it is.

    Raises:
        ValueError: it has another form.
    """
    ImageName.parse(address)
    return address


def check_publish_url(url: str) -> str:
    """The place that models are published to, as it is: below a prefix in S3, or as images of a repository.

    Raises:
        ValueError: it is no such address, or servers that are given it as a URI could read another one.
    """
    if url.startswith(OCI):
        if ImageName.parse(url).digest:
            raise ValueError("an image is published under a tag; its digest follows from its content")
        return url
    _, key = split_s3(url)
    for part in key.split("/") if key else ():
        if not _PREFIX.fullmatch(part):
            raise ValueError(f"a prefix has letters, digits and !_.*'()=+:@,&$- alone, not {part!r:.80}")
    if len(key) > _LONGEST_PREFIX:
        raise ValueError(f"the prefix has {len(key)} characters, more than {_LONGEST_PREFIX}")
    return url


def split_package(source: str) -> tuple[str, str]:
    """Distribution and path inside of `package://dist/path`.

    Raises:
        ValueError: it has another form, or leads out of the packages.
    """
    dist, _, inner = source.removeprefix(PACKAGE).partition("/")
    parts = inner.split("/")
    if not _DIST.fullmatch(dist) or any(part in ("", ".", "..") for part in parts) or "\\" in inner or "\0" in inner:
        raise ValueError("not a path inside a package: write package://dist/path, without empty parts, . or ..")
    return dist, inner


def check_source(source: str) -> str:
    """A source of a model or data, as it is.

    Raises:
        ValueError: it is blank, of an unknown scheme, or an S3 or package address of the wrong form.
    """
    if not source.strip():
        raise ValueError("a source is needed, not blanks")
    if source.startswith(S3):
        split_s3(source)
    elif source.startswith(PACKAGE):
        split_package(source)
    elif (scheme := _SCHEME.match(source)) and not (_SCHEMES.fullmatch(scheme[1]) and "://" in source):
        raise ValueError(f"the scheme of {source!r:.80} is not known: give a path, package://dist/path, "
                         "s3://bucket/key or a hub id")
    return source


def check_url(url: str, schemes: Collection[str], *, path: bool = True) -> str:
    """The address of a server, as it is.

    Args:
        url: the address.
        schemes: that it may have.
        path: whether more than host and port may follow.

    Raises:
        ValueError: it has another form; the message does not repeat the address, which may hold a password.
    """
    wanted = " or ".join(f"{scheme}://host:port" for scheme in schemes)
    if _UNSEEN.search(url):
        raise ValueError(f"a blank, line end or control character is in it; write it as {wanted}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"the port or the brackets are wrong; write it as {wanted}") from None
    if parts.scheme not in schemes or not url.startswith(f"{parts.scheme}://"):
        raise ValueError(f"not a URL; write it as {wanted}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"user names and passwords do not belong into it; write it as {wanted}")
    if not parts.hostname or not _is_host(parts.hostname) or port == 0 or parts.netloc.endswith(":"):
        raise ValueError(f"the host or the port is missing or wrong; write it as {wanted}")
    if parts.query or parts.fragment or "?" in url or "#" in url or not (path or parts.path in ("", "/")):
        raise ValueError(f"something follows the host and the port; write it as {wanted}")
    return url


def check_store(environment: Mapping[str, str] | None = None) -> None:
    """Look whether the settings of the S3 store have the right form, without a connection.

    Args:
        environment: instead of `os.environ`.

    Raises:
        ValueError: one has not; the message names the variable, and no value that may be secret.
    """
    given = os.environ if environment is None else environment
    for name in ENDPOINTS:
        if given.get(name):
            try:
                check_url(given[name], ("https", "http"), path=False)
                if "_" in (urlsplit(given[name]).hostname or ""):  # botocore refuses it with less to go by
                    raise ValueError("an underscore is in the host's name; name it otherwise, or by its number")
            except ValueError as error:
                raise ValueError(f"{name}: the store's address is wrong: {error}") from None
    for name in _REGIONS:
        if given.get(name) and not _REGION.fullmatch(given[name]):
            raise ValueError(f"{name}: a region has small letters, digits and hyphens alone, not {given[name]!r:.80}")
    for name in _KEYS:
        if given.get(name) and _UNSEEN.search(given[name]):
            raise ValueError(f"{name}: a blank or a line end is in the value, perhaps at its end")
    if (style := given.get("AWS_S3_ADDRESSING_STYLE")) and style not in _STYLES:
        raise ValueError(f"AWS_S3_ADDRESSING_STYLE: {' or '.join(_STYLES)} is needed, not {style!r:.80}")


def _is_host(name: str) -> bool:
    return _is_ip(name) or (len(name) <= 253 and all(_LABEL.fullmatch(part) for part in name.split(".")))


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
