"""The admin API's client. Whatever goes wrong becomes one line and exit code 1."""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Final, Self

import click
import httpx

Fields = Mapping[str, object]
"""A JSON object of the admin API, as sent or received."""

TIMEOUT_S: Final = 30.0


class AdminClient:
    """Speaks to /admin/v1 of one gateway. Every method raises click.ClickException with a line for the user."""

    def __init__(self, url: str, admin_key: str | None) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._admin_key = admin_key
        # Reading the certificates takes longer than most commands; plain http needs none.
        self._http = httpx.Client(timeout=TIMEOUT_S, verify=not self._url.startswith("http:"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Fields:
        return _object(self._send("GET", path, query=query))

    def get_text(self, path: str, query: Mapping[str, str]) -> str:
        return self._send("GET", path, query=query).text

    def rows(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[Fields]:
        """Every row of a listing, page after page."""
        page_query = dict(query or {})
        while True:
            page = self.get(path, page_query)
            data = page.get("data")
            yield from data if isinstance(data, list) else ()
            if not isinstance(after := page.get("next"), str):
                return
            page_query["after"] = after

    def post(self, path: str, body: Fields | None = None) -> Fields:
        return _object(self._send("POST", path, body={} if body is None else body))

    def put(self, path: str, body: Fields) -> Fields:
        return _object(self._send("PUT", path, body=body))

    def patch(self, path: str, body: Fields) -> Fields:
        return _object(self._send("PATCH", path, body=body))

    def put_nothing_back(self, path: str, body: Fields) -> None:
        self._send("PUT", path, body=body)

    def post_nothing_back(self, path: str) -> None:
        self._send("POST", path, body={})

    def sign_in(self, body: Fields) -> Fields:
        """The one call that needs no key: it gets one."""
        return _object(self._request("POST", "/sign-in/password", body=body, headers={}))

    def delete(self, path: str) -> None:
        self._send("DELETE", path)

    def _send(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Fields | None = None
    ) -> httpx.Response:
        if not self._admin_key:
            raise click.ClickException("The admin key is missing: set DESCANT_ADMIN_KEY, or give --admin-key.")
        return self._request(
            method, path, query=query, body=body, headers={"Authorization": f"Bearer {self._admin_key}"}
        )

    def _request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
        body: Fields | None = None,
    ) -> httpx.Response:
        try:
            reply = self._http.request(method, f"{self._url}/admin/v1{path}", params=query, json=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeEncodeError) as error:
            raise click.ClickException(f"Cannot reach the gateway at {self._url}: {error}") from None
        if not reply.is_success:
            raise click.ClickException(_refusal(reply, self._url))
        return reply


def _object(reply: httpx.Response) -> Fields:
    try:
        decoded = reply.json()
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        raise click.ClickException(f"{reply.url} does not answer like a Descant gateway.")
    return decoded


def _refusal(reply: httpx.Response, url: str) -> str:
    """The error's own message, in the shape that all of Descant answers with."""
    try:
        message = reply.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return f"{url} answered {reply.status_code} and not like a Descant gateway. Is the URL right?"
    return str(message)
