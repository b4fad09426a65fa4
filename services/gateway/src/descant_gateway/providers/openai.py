"""A backend that speaks OpenAI's API: an engine of ours, vLLM, llama.cpp, a cloud. Nothing is translated."""

from yarl import URL

from descant_gateway.catalogue.snapshot import Backend
from descant_gateway.providers.upstream_request import rewrite_body, url_of
from descant_gateway.request import InferenceRequest


class OpenAIProvider:
    def url(self, backend: Backend, request: InferenceRequest) -> URL:
        return url_of(backend.base_url, request.endpoint)

    def headers(self, backend: Backend) -> dict[str, str]:
        if backend.api_key is None:
            return {"content-type": "application/json"}
        return {"content-type": "application/json", "authorization": f"Bearer {backend.api_key}"}

    def body(self, request: InferenceRequest, upstream_name: str) -> bytes:
        return rewrite_body(request, upstream_name)

    def whole_reply(self, body: bytes, request: InferenceRequest) -> bytes:
        return body

    def error_reply(self, body: bytes) -> bytes:
        return body

    def stream(self, request: InferenceRequest) -> None:
        return None
