"""Chat templates: conversations as text, in which the assistant's turns are marked by {% generation %}.

The templates are those of transformers (https://huggingface.co/docs/transformers/chat_templating), which also uses
{% generation %} to tell which tokens are the assistant's.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from codegen_jax.data.parts import Part
from codegen_jax.data.tokenizer import END_OF_TEXT, Tokenizer
from codegen_jax.data.tokenizer_metadata import CONFIG, TEMPLATE_FILE, parse, special_tokens
from codegen_jax.errors import UserError, require
from codegen_jax.mistaken_paths import decode

DEFAULT = """\
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{- '# Assistant:\\n' -}}
        {%- generation -%}{{- message.content + eos_token -}}{%- endgeneration -%}
    {%- else -%}
        {{- '# ' + message.role | capitalize + ':\\n' + message.content + '\\n\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '# Assistant:\\n' -}}
{%- endif -%}
"""

# Noncharacters of Unicode mark places in the rendered text: the beginning and end of a turn, and special tokens. Those
# in a template's own text are special; the same text in a message is text.
BEGIN, STOP, *MARKS = map(chr, range(0xFDD0, 0xFDF0))
RESERVED = re.compile(f"[{BEGIN}-{MARKS[-1]}]")


class ChatTemplate:
    """A template that turns messages into parts, of which the assistant's turns are trained.

    >>> template = ChatTemplate(DEFAULT)
    >>> template.parts([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}])[1:]
    [Part(text='4', trained=True, special=False), Part(text='<|endoftext|>', trained=True, special=True)]

    Args:
        source: a Jinja template.
        name: where it comes from, for error messages.
        eos_token: the special token that the template's eos_token stands for.
        bos_token: the same for bos_token.
        special_tokens: further special tokens, if they occur in the template's own text.

    Raises:
        UserError: if it can't be parsed, marks no turn of the assistant, or marks turns that do not end with a special
            token: a model trained on these would never stop.
    """

    def __init__(
        self,
        source: str,
        name: str = "template",
        eos_token: str = END_OF_TEXT,
        bos_token: str = END_OF_TEXT,
        special_tokens: Sequence[str] = (),
    ):
        self.source, self.name = source, name
        self.eos_token, self.bos_token = eos_token, bos_token
        self.special_tokens = [token for token in special_tokens if token in source]
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        trained = [part for part in self.parts(messages) if part.trained and part.text.strip()]
        remedy = "put {% generation %} and {% endgeneration %} around the assistant's content and eos_token"
        require(bool(trained), f"{name}: does not mark the assistant's turns; {remedy}")
        has_end = trained[-1].special
        require(has_end, f"{name}: the assistant's turns do not end with eos_token, so models never stop; {remedy}")

    def __reduce__(self) -> Any:  # Jinja's compiled templates can't be pickled
        return ChatTemplate, (self.source, self.name, self.eos_token, self.bos_token, self.special_tokens)

    @cached_property
    def _marks(self) -> dict[str, str]:
        """The mark of each special token."""
        tokens = dict.fromkeys([self.eos_token, self.bos_token, END_OF_TEXT, *self.special_tokens])
        require(len(tokens) <= len(MARKS), f"{self.name}: has more than {len(MARKS)} special tokens")
        return dict(zip(tokens, MARKS))

    @cached_property
    def _compiled(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        source = self.source
        for token in sorted(self._marks, key=len, reverse=True):
            source = source.replace(token, self._marks[token])
        return environment.from_string(source)

    def parts(self, messages: Sequence[Mapping[str, str]]) -> list[Part]:
        """The conversation as parts.

        Raises:
            UserError: if the template rejects the messages.
        """
        marks = self._marks
        variables = {"eos_token": marks[self.eos_token], "bos_token": marks[self.bos_token]}
        absent = {"add_generation_prompt": False, "tools": None, "documents": None}  # as transformers passes them
        try:
            text = self._compiled.render(messages=messages, **variables, **absent)
        except Exception as error:  # a template may divide by zero or recurse for ever
            raise UserError(f"{self.name}: {error or type(error).__name__}") from error
        tokens = {mark: token for token, mark in marks.items()}
        parts, trained = [], False
        for piece in re.split(f"({RESERVED.pattern})", text):
            if piece in (BEGIN, STOP):
                trained = piece == BEGIN
            elif piece in tokens:
                parts.append(Part(tokens[piece], trained, special=True))
            elif piece:
                parts.append(Part(piece, trained))
        return parts


def chat_template_of(tokenizer: Tokenizer, source: str | None = None) -> ChatTemplate:
    """A template for a tokenizer: `source`, else the one that accompanies the tokenizer, else the default one.

    Raises:
        UserError: see `ChatTemplate`.
    """
    name = "template"
    if source is None:
        source = parse(tokenizer.metadata, CONFIG).get("chat_template")
        if TEMPLATE_FILE in tokenizer.metadata:
            source = decode(f"the tokenizer's {TEMPLATE_FILE}", tokenizer.metadata[TEMPLATE_FILE])
        require(isinstance(source, str | None), "template: the tokenizer has several; choose one with --template")
        name = "template" if source is None else "the tokenizer's chat template (replace it with --template)"
    named = special_tokens(tokenizer.metadata)
    ends = {role: named.get(role, END_OF_TEXT) for role in ("eos_token", "bos_token")}
    return ChatTemplate(DEFAULT if source is None else source, name, **ends, special_tokens=tokenizer.special_tokens)


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}"""

    tags: ClassVar = {"generation"}  # pyright: ignore[reportIncompatibleVariableOverride]

    def parse(self, parser: Any) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark = lambda text: nodes.Output([nodes.TemplateData(text)], lineno=line)
        return [mark(BEGIN), nodes.Scope(body, lineno=line), mark(STOP)]


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """JSON without the HTML escapes of Jinja's own filter, as in transformers."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
