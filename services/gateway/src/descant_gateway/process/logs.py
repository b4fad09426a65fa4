"""JSON logs, one object a line on standard output. No prompt text, no key, no secret: nothing here is given any."""

import logging
import sys

import msgspec
import structlog
from structlog.typing import EventDict

_encoder = msgspec.json.Encoder(enc_hook=str)


def configure(level: str) -> None:
    """Call once, in main. `level`: debug, info, warning or error."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )

    logging.basicConfig(level=logging.WARNING, handlers=[_IntoStructlog()], force=True)


class _IntoStructlog(logging.Handler):
    """What libraries log through the standard library, in the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def _to_json(event: EventDict, **_: object) -> bytes:
    return _encoder.encode(event)
