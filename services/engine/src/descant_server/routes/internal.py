"""GET /internal/...: what a gateway asks beside OpenAI's API. Behind the API key, as all that is not public."""

from typing import Final

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from litestar.response.base import ASGIResponse
from msgspec import json

from descant_server.bodies import json_answer
from descant_server.service import Service
from descant_wire.errors import not_found, service_unavailable
from descant_wire.load import LOAD_PATH, USAGE_PATH

END_WITHIN_S: Final = 1.5
"""A client's leaving is noticed within milliseconds; a call that goes on for longer has a client."""


@get(LOAD_PATH, sync_to_thread=False)
def show_load(service: NamedDependency[Service], known: FromQuery[int | None] = None) -> ASGIResponse:
    return json_answer(
        service.load_report.render(service.engine, known, verifies_identity=service.config.internal_key is not None)
    )


@get(USAGE_PATH + "/{charge:str}")
async def show_usage(charge: FromPath[str], service: NamedDependency[Service]) -> ASGIResponse:
    """What a call came to, as soon as it has ended; 503 while it runs."""
    try:
        usage = await service.usage_book.ended(charge, within_s=END_WITHIN_S)
    except TimeoutError:
        raise service_unavailable(f"The call {charge!r} still runs.", retry_after_s=1, code="call_runs") from None
    if usage is None:
        raise not_found(f"No call was made under the name {charge!r}.", code="unknown_charge")
    return json_answer(json.encode(usage))
