"""What the served model's chat template tells about its outputs, unless the operator knows better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from descant_engine.text import reasoning
from descant_engine.text.chat_template import ChatTemplateError, render_chat
from descant_engine.text.reasoning import ReasoningForm
from descant_engine.text.tokenizer import Tokenizer
from descant_engine.text.tool_calls import parsers
from descant_engine.text.tool_calls.parsers import ToolCallForm

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class ChatModel:
    """How this model writes calls, and how it thinks."""

    tokenizer: Tokenizer
    tools: ToolCallForm
    reasoning: ReasoningForm | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, tool_call_parser: str = AUTO, reasoning_parser: str = AUTO) -> "ChatModel":
        """The names are those of `parsers.FORMS` and `reasoning.FORMS`; "auto" looks at the chat template."""
        template = tokenizer.chat_template
        return cls(
            tokenizer,
            parsers.form_for(template) if tool_call_parser == AUTO else parsers.FORMS[tool_call_parser],
            reasoning.form_for(template) if reasoning_parser == AUTO else reasoning.FORMS[reasoning_parser],
        )

    def reasoning_of(self, template_kwargs: Mapping[str, Any]) -> tuple[ReasoningForm | None, bool]:
        """Whether an output of a chat is to be searched for reasoning, and whether it begins inside of it."""
        form = self.reasoning
        if form is None:
            return None, False
        try:
            prompt = render_chat(self.tokenizer, [{"role": "user", "content": "?"}], template_kwargs=template_kwargs)
        except ChatTemplateError:  # the chat itself will say so
            return form, form.always
        begins, ends = prompt.rfind(form.begin), prompt.rfind(form.end)
        if ends > begins >= 0:
            return None, False  # the prompt has closed it: this chat is to be answered without thinking
        return form, begins >= 0
