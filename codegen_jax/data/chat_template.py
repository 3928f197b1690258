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

from codegen_jax.data.parts import END, Part
from codegen_jax.data.tokenizer import END_OF_TEXT, Tokenizer
from codegen_jax.data.tokenizer_metadata import CONFIG, parse
from codegen_jax.errors import UserError, require

TEMPLATE_FILE = "chat_template.jinja"
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

# noncharacters of Unicode, which mark places in the rendered text: a turn's begin and end, and eos
BEGIN, STOP, EOS = "\ufdd0", "\ufdd1", "\ufdd2"
RESERVED = re.compile(f"[{BEGIN}{STOP}{EOS}]")


class ChatTemplate:
    """A template that turns messages into parts, of which the assistant's turns are trained.

    >>> template = ChatTemplate(DEFAULT)
    >>> template.parts([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}])[1:]
    [Part(text='4', trained=True, special=False), Part(text='<|endoftext|>', trained=True, special=True)]

    Args:
        source: a Jinja template. Its eos_token, and <|endoftext|> in its own text, are the tokenizer's eos.
        name: where it comes from, for error messages.

    Raises:
        UserError: if it can't be parsed, marks no turn of the assistant, or marks turns without eos: a model trained on
            these would never stop.
    """

    def __init__(self, source: str, name: str = "template"):
        self.source, self.name = source, name
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        parts = self.parts(messages)
        remedy = "put {% generation %} and {% endgeneration %} around the assistant's content and eos_token"
        require(any(part.trained for part in parts), f"{name}: does not mark the assistant's turns; {remedy}")
        has_end = any(part.special for part in parts if part.trained)
        require(has_end, f"{name}: the assistant's turns do not end with eos_token, so models never stop; {remedy}")

    def __reduce__(self) -> Any:  # Jinja's compiled templates can't be pickled
        return ChatTemplate, (self.source, self.name)

    @cached_property
    def _compiled(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _raise
        return environment.from_string(self.source.replace(END_OF_TEXT, EOS))

    def parts(self, messages: Sequence[Mapping[str, str]]) -> list[Part]:
        """The conversation as parts.

        Raises:
            UserError: if the template rejects the messages.
        """
        try:
            text = self._compiled.render(messages=messages, eos_token=EOS, bos_token="", add_generation_prompt=False)
        except (TemplateError, TypeError) as error:
            raise UserError(f"{self.name}: {error}") from error
        parts, trained = [], False
        for piece in re.split(f"({RESERVED.pattern})", text):
            if piece in (BEGIN, STOP):
                trained = piece == BEGIN
            elif piece == EOS:
                parts.append(END._replace(trained=trained))
            elif piece:
                parts.append(Part(piece, trained))
        return parts


def chat_template_of(tokenizer: Tokenizer) -> ChatTemplate:
    """The template that accompanies a tokenizer, else the default one.

    Raises:
        UserError: see `ChatTemplate`.
    """
    config = parse(tokenizer.metadata, CONFIG).get("chat_template")
    source = tokenizer.metadata[TEMPLATE_FILE].decode() if TEMPLATE_FILE in tokenizer.metadata else config
    if source is None:
        return ChatTemplate(DEFAULT)
    require(isinstance(source, str), "template: the tokenizer has several chat templates; choose one with --template")
    return ChatTemplate(source, "the tokenizer's chat template (replace it with --template)")


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
