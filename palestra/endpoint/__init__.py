"""OpenAI-compatible endpoints: requests with retries, limits, a cache and a count of the cost."""

from palestra.endpoint.cache import ReplyCache
from palestra.endpoint.client import Endpoint
from palestra.endpoint.exchange import EndpointError, Reply, Request
from palestra.endpoint.usage import Meter, Price, Usage

__all__ = ["Endpoint", "EndpointError", "Meter", "Price", "Reply", "ReplyCache", "Request", "Usage"]
