"""A conversation: what was said, and what a line that the user typed means."""

from collections.abc import Callable
from contextlib import closing

from descant_cli.chat.client import ChatClient, ChatProblem, Message

HELP = """\
/model         show the models and adapters
/model NAME    talk to another one; the conversation goes on
/system TEXT   set the system prompt; without TEXT, none
/reset         forget the conversation
/quit          leave (so does Ctrl-D)"""


class Conversation:
    """`write` takes pieces of text for the user; `note` takes lines about the conversation."""

    def __init__(
        self, client: ChatClient, model: str, write: Callable[[str], object], note: Callable[[str], object]
    ) -> None:
        self.model = model
        self.system: str | None = None
        self.messages: list[Message] = []
        self.has_failed = False
        """Whether the server refused anything, or could not be reached."""
        self._client = client
        self._write = write
        self._note = note

    def take(self, line: str) -> bool:
        """Does what the line says; False if it says to leave."""
        text = line.strip()
        if not text.startswith("/"):
            if text:
                self.say(text)
            return True
        command, _, argument = text.partition(" ")
        argument = argument.strip()
        match command:
            case "/quit" | "/exit":
                return False
            case "/model":
                self._switch(argument)
            case "/system":
                self.system = argument or None
                self._note("system prompt set" if argument else "no system prompt")
            case "/reset":
                self.messages.clear()
                self._note("conversation forgotten")
            case "/help":
                self._note(HELP)
            case _:
                self._note(f"no command {command}; there are:\n{HELP}")
        return True

    def say(self, text: str) -> None:
        """One turn. What fails leaves no trace in the conversation; an answer that is interrupted stays as it is."""
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            self._stream(pieces)
        except ChatProblem as problem:
            self._fail(str(problem))
        except KeyboardInterrupt:
            self._note("interrupted")
        if pieces:
            self.messages.append({"role": "assistant", "content": "".join(pieces)})
        else:
            self.messages.pop()

    def _stream(self, pieces: list[str]) -> None:
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        with closing(self._client.answer(self.model, [*system, *self.messages])) as answer:
            try:
                for piece in answer:
                    pieces.append(piece)
                    self._write(piece)
            finally:
                self._write("\n")

    def _switch(self, name: str) -> None:
        try:
            models = self._client.models()
        except ChatProblem as problem:
            self._fail(str(problem))
            return
        if not name:
            self._note("\n".join(f"{'*' if model == self.model else ' '} {model}" for model in models))
        elif name in models:
            self.model = name
            self._note(f"now talking to {name}")
        else:
            self._fail(f"there is no model {name!r}; there are: {', '.join(models)}")

    def _fail(self, why: str) -> None:
        self.has_failed = True
        self._note(f"error: {why}")
