"""GET /v1/models: what the caller's key may use, adapters with their parent."""

import time
from typing import Final

from litestar import Request, get
from litestar.datastructures import State
from litestar.params import FromPath

from descant_gateway.catalogue.snapshot import ModelRoute
from descant_gateway.identity.authenticate import Caller, permitted_model
from descant_gateway.pipeline import Gateway
from descant_gateway.routes.access import LIMIT, OPT, Access, Rate
from descant_wire.models import ModelCard, ModelList

_KEY_ONLY: Final = {OPT: Access.KEY, LIMIT: Rate(per_minute=1200)}
_CREATED: Final = int(time.time())
"""OpenAI's shape demands a time; the catalogue keeps none, so it is the gateway's start."""


@get("/v1/models", opt=_KEY_ONLY, sync_to_thread=False)
def list_models(request: Request[object, object, State]) -> ModelList:
    """Base models first: many a program takes the first of the list."""
    gateway: Gateway = request.app.state.gateway
    caller: Caller = request.state.caller
    models = sorted(gateway.feed.current.models.values(), key=lambda model: (model.parent is not None, model.name))
    return ModelList(data=[_card(model) for model in models if caller.may_use(model)])


@get("/v1/models/{model:path}", opt=_KEY_ONLY, sync_to_thread=False)
def show_model(request: Request[object, object, State], model: FromPath[str]) -> ModelCard:
    """404 for an unknown model, 403 for one that the caller may not use."""
    gateway: Gateway = request.app.state.gateway
    return _card(permitted_model(request.state.caller, model.removeprefix("/"), gateway.feed.current))


def _card(model: ModelRoute) -> ModelCard:
    return ModelCard(id=model.name, created=_CREATED, root=model.parent or model.name, parent=model.parent)
