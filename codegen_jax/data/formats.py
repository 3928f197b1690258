"""The formats of raw data: what a JSON object or row of a shard contributes to a document."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from codegen_jax.data.chat_template import RESERVED, ChatTemplate
from codegen_jax.data.parts import Part
from codegen_jax.errors import UserError, require

# Stanford Alpaca's prompts, with and without an input (train.py of tatsu-lab/stanford_alpaca)
ALPACA = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n{}### Response:"
)
ALPACA_INPUT = ", paired with an input that provides further context"


class Unusable(Exception):
    """The record contains no document; the message is the reason."""


@dataclass(frozen=True)
class Text:
    """A document in one field.

    Attributes:
        text: name of the field.
    """

    text: str = "text"

    option = "text_field"  # what to change if the fields do not exist

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields that a record must have."""
        return (self.text,)

    optional = ()  # fields that it may have

    def read(self, record: Mapping[str, Any]) -> tuple[str, list[Part]]:
        """The record's own text, which filters and deduplication look at, and the parts of its document.

        Raises:
            Unusable: if it contains no document.
        """
        text = _nonempty(record, self.text, "text")
        return text, [Part(text)]


@dataclass(frozen=True)
class Pairs:
    """A prompt and its completion.

    Attributes:
        prompt: name of the field with the prompt, which may be empty.
        completion: name of the field with the completion.
    """

    prompt: str = "prompt"
    completion: str = "completion"

    option = "fields"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.prompt, self.completion)

    optional = ()

    def read(self, record: Mapping[str, Any]) -> tuple[str, list[Part]]:
        prompt, completion = _string(record, self.prompt), _nonempty(record, self.completion, "completion")
        return prompt + completion, [Part(prompt, trained=False), Part(completion)]


@dataclass(frozen=True)
class Alpaca:
    """An instruction, possibly with an input, and the response to it, in Stanford Alpaca's prompt.

    Attributes:
        instruction: name of the field with the instruction.
        input: name of the field with its input, which may be missing, null or empty.
        output: name of the field with the response.
    """

    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"

    option = "fields"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.instruction, self.output)

    @property
    def optional(self) -> tuple[str, ...]:
        return (self.input,)

    def read(self, record: Mapping[str, Any]) -> tuple[str, list[Part]]:
        given = "" if record.get(self.input) is None else _string(record, self.input)
        middle = f"### Input:\n{given}\n\n" if given else ""
        instruction = _nonempty(record, self.instruction, "instruction")
        output = _nonempty(record, self.output, "output")
        prompt = ALPACA.format(ALPACA_INPUT if given else "", instruction, middle)
        return "\n".join([instruction, given, output]), [Part(prompt, trained=False), Part(output)]


@dataclass(frozen=True)
class Messages:
    """A conversation as a list of {"role", "content"}; the messages of role "assistant" are completions.

    Attributes:
        template: the template that turns messages into text.
        messages: name of the field.
    """

    template: ChatTemplate
    messages: str = "messages"

    option = "fields"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.messages,)

    @property
    def optional(self) -> tuple[str, ...]:
        return ("tools",)

    def read(self, record: Mapping[str, Any]) -> tuple[str, list[Part]]:
        if self.messages not in record:
            raise Unusable(f"no field {self.messages}")
        if record.get("tools"):
            raise Unusable("tools, which are not supported")
        messages = record[self.messages]
        if not isinstance(messages, list) or not messages:
            raise Unusable(f"field {self.messages} is {json_type(messages) if messages != [] else 'an empty list'}")
        try:
            everything = json.dumps(messages, ensure_ascii=False, default=str)  # a template may use other fields, too
        except RecursionError as error:
            raise Unusable("messages nested too deeply") from error
        _check_text(everything)
        if RESERVED.search(everything):
            raise Unusable("a character from U+FDD0 to U+FDEF, which are reserved")
        contents = []
        for number, message in enumerate(messages, 1):
            if not isinstance(message, dict):
                raise Unusable(f"message {number} is {json_type(message)}, not an object")
            try:
                role, content = (_string(message, field) for field in ("role", "content"))
            except Unusable as error:
                raise Unusable(f"{error} in message {number}") from error
            if role == "assistant" and not content:
                raise Unusable(f"empty content in message {number}, the assistant's")
            contents.append(content)
        try:
            parts = self.template.parts(messages)
        except UserError as error:
            raise Unusable(str(error)) from error
        while parts and not (parts[-1].trained and parts[-1].special):  # nothing is learned after the last turn's end
            parts.pop()
        if not parts:
            raise Unusable("no message of role assistant")
        return "\n".join(contents), parts


Format = Text | Pairs | Alpaca | Messages


def make_format(
    name: str, named: Mapping[str, str], template: ChatTemplate | None = None, text_field: str = "text"
) -> Format:
    """The format of this name.

    >>> make_format("pairs", {"completion": "answer"})
    Pairs(prompt='prompt', completion='answer')

    Args:
        name: text, pairs, messages or alpaca.
        named: the data's names for the format's fields, where they differ.
        template: the template for messages.
        text_field: the field of text.

    Raises:
        UserError: if the format has no such field.
    """
    if name == "text":
        require(not named, "fields: not for --format text; name its field with --text-field")
        return Text(text_field)
    require(text_field == "text", f"text_field: not for --format {name}; name its fields with --fields")
    kind = {"pairs": Pairs, "alpaca": Alpaca, "messages": Messages}[name]
    known = [field.name for field in fields(kind) if field.name != "template"]
    for field in named:
        require(field in known, f"fields: --format {name} has no field {field}; its fields are {', '.join(known)}")
    return kind(**named) if template is None else kind(template=template, **named)


def json_type(value: Any) -> str:
    """The type of a JSON value, in words."""
    types = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a string",
    }
    return "null" if value is None else types.get(type(value), type(value).__name__)


def _string(record: Mapping[str, Any], field: str) -> str:
    if field not in record:
        raise Unusable(f"no field {field}")
    if not isinstance(text := record[field], str):
        raise Unusable(f"field {field} is {json_type(text)}")
    _check_text(text)
    return text


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable("lone surrogate in the text") from error


def _nonempty(record: Mapping[str, Any], field: str, what: str) -> str:
    text = _string(record, field)
    if not text:
        raise Unusable(f"empty {what}")
    return text
