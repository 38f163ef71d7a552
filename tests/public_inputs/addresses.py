"""Public reports about addresses: the store's endpoint, buckets and keys, its secrets, URLs of servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llm_detox.errors import DetoxError
from llm_detox.recipe.addresses import check_url
from llm_detox.storage.s3 import Place, connect
from tests.public_inputs.case import Case, Refused, of

_KEYS = {"AWS_ACCESS_KEY_ID": "abc", "AWS_SECRET_ACCESS_KEY": "def", "AWS_DEFAULT_REGION": "us-east-1"}


def store(**variables: str) -> Callable[[Path], object]:
    """Makes a client of the store from the environment; says where it would ask."""
    def read(_: Path) -> object:
        environment = {**_KEYS, "AWS_S3_ENDPOINT": "https://store:9000", **variables}
        return connect(environment).meta.endpoint_url

    return read


def place(url: str) -> Callable[[Path], object]:
    """Bucket and key of an address."""
    def read(_: Path) -> object:
        found = Place.parse(url)
        return found.bucket, found.key

    return read


def server(url: str) -> Callable[[Path], object]:
    """The address of a server."""
    def check() -> str:
        try:
            return check_url(url, ("http", "https"))
        except ValueError as error:
            raise DetoxError(str(error), place="the address", remedy="correct it") from None

    return of(check)


ENDPOINTS = (
    Case("boto/boto3#4283", "a host with an underscore", store(AWS_S3_ENDPOINT="http://reports_locals:9324"),
         Refused("AWS_S3_ENDPOINT: .*underscore")),
    Case("aws/aws-cli#899", "a host alone",
         store(AWS_S3_ENDPOINT="example.com"), Refused("AWS_S3_ENDPOINT: .*not a URL")),
    Case("IBM/ibm-cos-sdk-python#22", "a long host alone",
         store(AWS_S3_ENDPOINT="s3.us-east.cloud-object-storage.appdomain.cloud"), Refused("https://host:port")),
    Case("airbytehq/airbyte#84885", "a host alone, in another variable",
         store(AWS_S3_ENDPOINT="", AWS_ENDPOINT_URL="my-s3-endpoint.com"), Refused("AWS_ENDPOINT_URL: ")),
    Case("ibm-cloud-docs/cloud-object-storage#51", "the address of a list of endpoints",
         store(AWS_S3_ENDPOINT="https://control.cloud-object-storage.cloud.ibm.com/v2/endpoints"),
         Refused("something follows the host and the port")),
    Case("aws/aws-sdk-js-v3#4570", "the bucket in the endpoint's path",
         store(AWS_S3_ENDPOINT="https://store:9000/bucket"),
         Refused("something follows the host and the port")),
    Case("vectordotdev/vector#20773", "a slash at the end", store(AWS_S3_ENDPOINT="https://endpoint.com/"),
         "https://endpoint.com/"),
    Case("boto/boto3#3258", "a store of another provider", store(AWS_S3_ENDPOINT="https://s3.gra.cloud.ovh.net"),
         "https://s3.gra.cloud.ovh.net"),
)

BUCKETS = (
    Case("boto/boto#2833", "capitals in a bucket", place("s3://4652-5751-2377-XyzAbc/m"),
         Refused("small letters, .*not '4652-5751-2377-XyzAbc'")),
    Case("samoconnor/AWSLambda.jl#7", "an underscore in a bucket", place("s3://com.me.jl_lambda/m"),
         Refused("not 'com.me.jl_lambda'")),
    Case("ansible/ansible#25996", "dots in a bucket",
         place("s3://randomtestbucket.com/m"), ("randomtestbucket.com", "m")),
    Case("BD2KGenomics/s3am#11", "many dots in a bucket", place("s3://public-artifacts.cghub.ucsc.edu/a.tar.gz"),
         ("public-artifacts.cghub.ucsc.edu", "a.tar.gz")),
    Case("datopian/giftless#185", "a variable that nobody filled in", place("s3://${GIFTLESS_S3_BUCKET}/m"),
         Refused("a bucket has 3 to 63")),
    Case("boto/boto#82", "a key that begins with a slash", place("s3://models//page.html"),
         Refused("the key has a part that is empty")),
    Case("aws/aws-cli#421", "two slashes in a key", place("s3://models/foo//bar"),
         Refused("the key has a part that is empty")),
    Case("boto/boto#1387", "four slashes in a key", place("s3://models/folder////image.jpg"),
         Refused("the key has a part that is empty")),
    Case("boto/boto3#730", "a blank in a key", place("s3://models/Real Estate/a.csv"), ("models", "Real Estate/a.csv")),
    Case("boto/boto3#2655", "a tab in a key", place("s3://models/Real\tEstate"), Refused("control character")),
    Case("bcgov/gwells#1801", "a plus sign in a key", place("s3://models/a+b"), ("models", "a+b")),
)

SECRETS = (
    Case("boto/botocore#2001", "the line end of Windows behind a key", store(AWS_ACCESS_KEY_ID="abc\r"),
         Refused("AWS_ACCESS_KEY_ID: a blank or a line end is in the value")),
    Case("argoproj/argo-workflows#981", "a line end behind a secret", store(AWS_SECRET_ACCESS_KEY="def\n"),
         Refused("AWS_SECRET_ACCESS_KEY: a blank or a line end")),
    Case("boto/boto3#2280", "a blank before a key", store(AWS_ACCESS_KEY_ID=" AKIA"),
         Refused("AWS_ACCESS_KEY_ID: a blank or a line end")),
    Case("boto/boto3#908", "slash and plus in a secret",
         store(AWS_SECRET_ACCESS_KEY="abc/123+4"), "https://store:9000"),
    Case("boto/botocore#3180", "a backslash in a secret", store(AWS_SECRET_ACCESS_KEY="7+pj\\h"), "https://store:9000"),
)

URLS = (
    Case("aio-libs/yarl#168", "a colon in the wrong place", server("//https:www.twitter.com/Bard Tony"),
         Refused("a blank, line end or control character is in it")),
    Case("validatorjs/validator.js#278", "a port beyond 65535", server("http://127.0.0.1:99999"),
         Refused("the port or the brackets are wrong")),
    Case("python-hyper/hyperlink#198", "a negative port", server("http://ex.com:-1"), Refused("the port")),
    Case("github/spec-kit#3804", "a port that is a word", server("https://example.invalid:notaport"),
         Refused("the port or the brackets are wrong")),
    Case("flop-labs/technocore-chat#736", "port 0",
         server("http://host:0"), Refused("the host or the port is missing")),
    Case("python-validators/validators#69", "a quote where a user name would be",
         server('http://example.com/">user@example.com'), 'http://example.com/">user@example.com'),
    Case("johnmaguire/Cardinal#177", "a line end in a URL", server("http://tiny.cc/\nx"),
         Refused("a blank, line end or control character")),
)

CASES = ENDPOINTS + BUCKETS + SECRETS + URLS
