"""GET /v1/models and /v1/models/{id}: the base model and its adapters."""

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response.base import ASGIResponse
from msgspec import json

from descant_server.bodies import json_answer
from descant_server.service import Service
from descant_wire.errors import model_not_found
from descant_wire.models import ModelList


@get("/v1/models", sync_to_thread=False)
def list_models(service: NamedDependency[Service]) -> ASGIResponse:
    return json_answer(json.encode(ModelList(data=service.model_cards())))


@get("/v1/models/{model:path}", sync_to_thread=False)
def show_model(model: FromPath[str], service: NamedDependency[Service]) -> ASGIResponse:
    # A path, since hub ids have a slash in them; Litestar gives it with one in front.
    name = model.removeprefix("/")
    for card in service.model_cards():
        if card.id == name:
            return json_answer(json.encode(card))
    raise model_not_found(name)
