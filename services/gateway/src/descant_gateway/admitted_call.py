"""A call that may run: all that the stages after admission share of it."""

from dataclasses import dataclass, field

from descant_gateway.call import Call
from descant_gateway.catalogue.snapshot import ModelRoute
from descant_gateway.identity.authenticate import Caller
from descant_gateway.identity.internal_channel import TeamIdentity
from descant_gateway.limits.admit import Ticket
from descant_gateway.request import InferenceRequest
from descant_gateway.usage.meter import Meter
from descant_gateway.usage.tags import Tags


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedCall:
    """Made once by the pipeline, read by `relay` and `settle`. The relay writes to `meter` and answers `call`."""

    call: Call
    caller: Caller
    request: InferenceRequest
    model: ModelRoute
    ticket: Ticket
    identity: TeamIdentity
    tags: Tags | None = None
    meter: Meter = field(default_factory=Meter)

    @property
    def tenant(self) -> str:
        """An engine shares prefix blocks among the requests of one tenant only."""
        return self.identity.tenant
