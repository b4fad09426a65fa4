"""Every endpoint that is relayed can be opened by a scope of its own."""

from uuid import uuid4

import pytest

from descant_cli.admin.keys import SCOPES
from descant_gateway.catalogue.snapshot import Key, Team
from descant_gateway.endpoints import ENDPOINTS
from descant_gateway.identity.authenticate import Caller, permitted_endpoint
from descant_gateway.identity.scopes import Scope, scope_of
from descant_wire.errors import ApiError


def caller_with(*scopes: Scope) -> Caller:
    team = Team(id=uuid4(), organization_id=uuid4(), name="team")
    key = Key(
        id=uuid4(),
        public_id="a" * 12,
        team_id=team.id,
        secret_hmacs=(),
        name="key",
        scopes=frozenset(scopes),
    )
    return Caller(key, team)


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_every_endpoint_has_a_scope_that_opens_it(path: str) -> None:
    scope = scope_of(path)
    assert scope is not None
    permitted_endpoint(caller_with(scope), path)
    others = set(Scope) - {scope}
    with pytest.raises(ApiError, match=f"needs the scope '{scope}'"):
        permitted_endpoint(caller_with(*others), path)


@pytest.mark.parametrize(("path", "scope"), [("/v1/rerank", "rerank"), ("/rerank", "rerank"), ("/score", "score")])
def test_ranking_and_scoring_have_their_own(path: str, scope: str) -> None:
    assert scope_of(path) == scope


def test_the_shell_knows_them_all() -> None:
    assert set(SCOPES) == set(Scope)
