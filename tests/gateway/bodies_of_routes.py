"""A body with every field for each route that stores one. {team_id} and such stand for ids of things that are there."""

from typing import Any, Final

Json = dict[str, Any]
POLICY: Final = {
    "fallbacks": [{"model": "m", "on": ["5xx"]}],
    "canary": {"model": "m", "percent": 1.5},
    "shadow": {"model": "m", "percent": 2},
    "time_limits": {"first_byte_s": 1.5, "idle_s": 2, "total_s": 3},
}
RATES: Final = {"requests_per_minute": 9, "tokens_per_minute": 9}
ALLOWED: Final = {"allowed_models": ["m"], "allowed_adapters": ["m"]}
KEY: Final = {"name": "k", "scopes": ["chat"], "ip_ranges": ["::/0"], "expires_at": "2090-01-01T00:00:00Z"}
PASSWORD: Final = "a password of the tests"

BODIES: Final[dict[str, Json]] = {
    "POST /v1/batches": {
        "input_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"name": "value"},
    },
    "POST /admin/v1/organizations": {"name": "o", **ALLOWED},
    "PATCH /admin/v1/organizations/{name}": ALLOWED,
    "POST /admin/v1/teams": {"name": "t", "organization": "default", **RATES, **ALLOWED},
    "PATCH /admin/v1/teams/{team_id}": {
        **RATES,
        **ALLOWED,
        "allows_external": False,
        "prompt_log_days": 9,
        "response_cache_s": 9,
    },
    "POST /admin/v1/projects": {"team_id": "{team_id}", "name": "p", **ALLOWED},
    "PATCH /admin/v1/projects/{project_id}": ALLOWED,
    "POST /admin/v1/keys": {
        "team_id": "{team_id}",
        "project_id": "{project_id}",
        "service_account_id": "{account_id}",
        "role": "viewer",
        **KEY,
        **RATES,
        **ALLOWED,
    },
    "PATCH /admin/v1/keys/{key}": {**KEY, **RATES, **ALLOWED},
    "POST /admin/v1/keys/{key}/rotate": {"grace_s": 9},
    "POST /admin/v1/service-accounts": {
        "name": "s",
        "role": "viewer",
        "organization": "default",
        "team_id": "{team_id}",
    },
    "POST /admin/v1/people": {"email": "a@b.example", "name": "a", "password": PASSWORD},
    "PUT /admin/v1/people/{person}/password": {"password": PASSWORD},
    "POST /admin/v1/people/{person}/memberships": {"role": "viewer", "organization": "default", "team_id": "{team_id}"},
    "POST /admin/v1/sign-in/password": {"email": "a@b.example", "password": PASSWORD},
    "PUT /admin/v1/backends": {
        "name": "spare",
        "base_url": "http://127.0.0.1:9/v1",
        "api_key": "k",
        "protocol": "openai",
        "external": False,
    },
    "PUT /admin/v1/models": {
        "name": "n",
        "upstream_name": "n",
        "parent": "m",
        "alias_of": "m",
        "backends": ["engine-0"],
        "weights": [1],
        "policy": POLICY,
        "max_output_tokens": 9,
    },
    "PUT /admin/v1/limits": {
        "level": "team",
        "owner_id": "{team_id}",
        "kind": "requests_per_minute",
        "capacity": 10**6,
        "model": "m",
        "is_shadow": True,
        "warn_at": [50],
    },
    "PUT /admin/v1/webhooks/{organization_id}": {"url": "http://127.0.0.1:9/hook"},
    "PUT /admin/v1/fair-shares/{team_id}": {"priority": 0, "weight": 1},
    "PUT /admin/v1/capacities": {"backend": "engine-0", "max_in_flight": 9},
    "PUT /admin/v1/prices": {
        "model": "m",
        "input": 1,
        "cached": 1,
        "output": 1,
        "valid_from": "2090-01-01T00:00:00Z",
    },
}
