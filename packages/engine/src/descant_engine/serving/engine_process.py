"""The engine in a process of its own: `python -m descant_engine.serving.engine_process FD`, started by `engine_client`.

FD is one end of a socket pair; the front holds the other. One thread takes the front's messages, steps the engine and
sends what came of it, and never waits for a slow front. A second thread only watches the socket: a front that is gone,
however it went, takes this process with it, even in the middle of a step or of loading the model.
"""

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from descant_engine.grammar.spec import GrammarRefused
from descant_engine.scheduler.admission import QueueFull
from descant_engine.serving.messages import (
    Abort,
    AdapterAnswer,
    Configure,
    Deltas,
    Fatal,
    Ready,
    Refusal,
    RegisterAdapter,
    RemoveAdapter,
    Shutdown,
    Stats,
    Submit,
    SubmitRefused,
    ToEngine,
    ToFront,
    UseVocabulary,
    engine_reader,
    frame,
)
from descant_engine.steady_heap import imports_settled, settle_heap

if TYPE_CHECKING:
    from descant_engine.engine import Engine

RECEIVE_BYTES = 1 << 18
STATS_SECONDS = 0.25
SWITCH_SECONDS = 0.0005
LAST_WORDS_SECONDS = 5.0
EXIT_FAILED = 1
EXIT_FRONT_GONE = 3

logger = logging.getLogger(__name__)


class FrontGone(Exception):
    """The other end of the socket is closed."""


class Channel:
    """The engine's end of the socket. What a slow front has not read yet waits here; it is bounded by the output of
    the requests that the front has under way."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._poll = select.poll()
        self._poll.register(connection)
        self._reader = engine_reader()
        self._outbox = bytearray()

    def receive(self, timeout: float | None) -> list[ToEngine]:
        """What has come. Waits `timeout` seconds for something, forever if None, not at all if 0.

        Raises:
            FrontGone: and what was received before it is of no use any more.
        """
        if timeout != 0:
            events = select.POLLIN | select.POLLOUT if self._outbox else select.POLLIN
            self._poll.modify(self._socket, events)
            self._poll.poll(None if timeout is None else timeout * 1000)
        self._flush()
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except ConnectionError as error:
            raise FrontGone from error
        if not data:
            raise FrontGone
        return list(self._reader.feed(data))

    def send(self, message: ToFront) -> None:
        self._outbox += frame(message)
        self._flush()

    def send_last(self, message: ToFront) -> None:
        """Waits until it is sent, a few seconds at most: this process is about to end."""
        self._socket.settimeout(LAST_WORDS_SECONDS)
        try:
            self._socket.sendall(self._outbox + frame(message))
        except OSError:
            logger.error("the front did not take the engine's last message: %s", message)

    def watch(self) -> None:
        """Ends this process as soon as the front is gone. To be run in a thread."""
        hangup = select.poll()
        hangup.register(self._socket, 0)
        hangup.poll()
        os._exit(EXIT_FRONT_GONE)

    def _flush(self) -> None:
        try:
            while self._outbox:
                del self._outbox[: self._socket.send(self._outbox)]
        except BlockingIOError:
            pass
        except ConnectionError as error:
            raise FrontGone from error


def start(channel: Channel) -> "Engine":
    """Waits for the front's Configure, loads the model and reports Ready."""
    # torch takes seconds to import, and a front that dies meanwhile must be noticed: `main` has to come first.
    with imports_settled():
        from descant_engine.checkpoint.model_config import resolve
        from descant_engine.engine import Engine

    (message,) = channel.receive(None)
    if not isinstance(message, Configure):
        raise TypeError(f"the first message must be Configure, not {type(message).__name__}")
    config = resolve(message.config)
    engine = Engine(config)
    settle_heap()
    channel.send(Ready(config, engine.num_blocks, engine.stats()))
    return engine


def serve(engine: "Engine", channel: Channel) -> None:
    """Until the front says Shutdown. Raises FrontGone, and whatever a step raises: that is the engine's end."""
    stats_due: float | None = None
    prepares = True
    while True:
        for message in channel.receive(0 if prepares and not engine.has_work else _patience(engine, stats_due)):
            if isinstance(message, Shutdown):
                return
            apply(engine, channel, message)
            prepares = prepares or isinstance(message, UseVocabulary)
            stats_due = stats_due or time.monotonic() + STATS_SECONDS
        if engine.has_work:
            if engine.seconds_to_spare():
                continue
            if deltas := engine.step():
                channel.send(Deltas(deltas))
            for request_id, error in engine.take_refusals():
                channel.send(refusal(request_id, error))
            stats_due = stats_due or time.monotonic() + STATS_SECONDS
        elif prepares:
            prepares = engine.prepare()
        if stats_due is not None and time.monotonic() >= stats_due:
            channel.send(Stats(engine.stats()))
            stats_due = None


def _patience(engine: "Engine", stats_due: float | None) -> float | None:
    """How long to wait for messages, in seconds; None is forever."""
    if engine.has_work:
        return engine.seconds_to_spare()
    return None if stats_due is None else max(0.0, stats_due - time.monotonic())


def apply(engine: "Engine", channel: Channel, message: ToEngine) -> None:
    """A request or an adapter that the engine refuses is answered, and costs nobody else anything."""
    match message:
        case Submit(request):
            try:
                engine.submit(request)
            except ValueError as error:
                channel.send(refusal(request.request_id, error))
        case UseVocabulary(tokens):
            engine.use_vocabulary(tokens)
        case Abort(request_id):
            engine.abort(request_id)
        case RegisterAdapter(manifest):
            try:
                engine.register_adapter(manifest)
            except ValueError as error:
                channel.send(AdapterAnswer(manifest.digest, str(error)))
            else:
                channel.send(AdapterAnswer(manifest.digest, None))
        case RemoveAdapter(digest):
            engine.remove_adapter(digest)
        case _:
            raise TypeError(f"{type(message).__name__} is not for a running engine")


def refusal(request_id: str, error: BaseException) -> SubmitRefused:
    match error:
        case QueueFull():
            return SubmitRefused(request_id, Refusal.QUEUE_FULL, str(error))
        case GrammarRefused():
            return SubmitRefused(request_id, Refusal.GRAMMAR, str(error))
        case ValueError():
            return SubmitRefused(request_id, Refusal.NEVER_FITS, str(error))
        case _:
            logger.error("a request could not be taken", exc_info=error)
            return SubmitRefused(request_id, Refusal.FAILED, str(error))


def run(channel: Channel) -> int:
    """The process's exit status."""
    try:
        engine = start(channel)
    except Exception as error:
        # A ValueError is about what the user asked for, and its message says what to do; any other needs its traceback.
        level = logging.DEBUG if isinstance(error, ValueError) else logging.ERROR
        logger.log(level, "the engine could not start", exc_info=error)
        channel.send_last(Fatal(_reason(error)))
        return EXIT_FAILED
    try:
        serve(engine, channel)
    except FrontGone:
        return EXIT_FRONT_GONE
    except Exception as error:
        logger.exception("the engine failed")
        channel.send_last(Fatal(_reason(error)))
        return EXIT_FAILED
    finally:
        engine.close()
    return 0


def _reason(error: Exception) -> str:
    """One line or a few, for whoever started the engine. ValueError and OSError are ours, or explain themselves."""
    if isinstance(error, MemoryError):
        return f"not enough memory {error}".strip()
    return str(error) if isinstance(error, (ValueError, OSError)) and str(error) else f"{type(error).__name__}: {error}"


def main() -> int:
    # Ctrl-C reaches every process of the terminal; when to end is for the front to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # A thread that reads an adapter must not hold the interpreter for longer than a step can spare.
    sys.setswitchinterval(SWITCH_SECONDS)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    threading.Thread(target=channel.watch, name="watch-front", daemon=True).start()
    return run(channel)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Taking the interpreter down would only tidy up memory, for up to two seconds.
    os._exit(status)
