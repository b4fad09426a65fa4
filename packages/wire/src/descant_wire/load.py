"""What an engine of ours tells a gateway, beside OpenAI's API: how busy it is, which adapters it holds, what a request
came to that nobody waited for.

`version` rises with a change that an older reader would misunderstand; fields may be added without.
"""

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

LOAD_PATH: Final = "/internal/load"
USAGE_PATH: Final = "/internal/usage"
CHARGE_HEADER: Final = "x-descant-charge"
"""The gateway's name for a request, unique, under which its usage can be asked for afterwards."""
LOAD_VERSION: Final = 1

Tier = Literal["gpu", "host"]


class EngineLoad(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """GET /internal/load?known=<residency>: a snapshot, at most about a quarter of a second old."""

    version: int = LOAD_VERSION
    num_running: int
    num_waiting: int
    num_below_default: int = 0
    """Of both, those of lower priority than the default: batches, which nobody waits for."""
    max_running: int
    """Requests that the engine runs at once; more than these wait."""
    num_queued_tokens: int
    """Prompt tokens that are still to be computed."""
    kv_usage: float
    """Share of the block pool that is held, 0 to 1."""
    residency: int
    """Names a state of `adapters`: it changes whenever they do."""
    verifies_identity: bool = False
    """It has an internal key: tenants are kept apart, see `internal`."""
    adapters: Mapping[str, Tier] | None = None
    """By the name that requests say; an adapter that is served and not named here is registered only. None, if the
    asker knows this `residency` already."""


class EndedUsage(Struct, frozen=True, kw_only=True):
    """GET /internal/usage/<charge>: what one API call came to, all its prompts together. 404 for one never seen."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
