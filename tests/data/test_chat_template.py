"""Chat templates render as in transformers, which finds the same turns of the assistant; unusable ones are refused."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from codegen_jax.data.chat_template import DEFAULT, RESERVED, ChatTemplate, chat_template_of
from codegen_jax.data.parts import END, Part
from codegen_jax.data.tokenizer import END_OF_TEXT
from codegen_jax.errors import UserError

BLOCKS = """{% for message in messages %}
    {% if message['role'] == 'assistant' %}
<|assistant|>
{% generation %}
{{ message['content'] | trim }}{{ eos_token }}
{% endgeneration %}
    {% elif message['role'] == 'system' and not loop.first %}{{ raise_exception('the system message must be first') }}
    {% else %}
<|{{ message['role'] }}|>
{{ message | tojson }}
        {% if loop.index > 9 %}{% break %}{% endif %}
    {% endif %}
{% endfor %}
"""
text = st.text(st.characters(codec="utf-8").filter(lambda c: not RESERVED.match(c)), max_size=20)
conversations = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": text}), max_size=6
)


@pytest.mark.parametrize("source", [DEFAULT, BLOCKS])
@settings(deadline=None, derandomize=True, database=None)
@given(messages=conversations)
def test_text_and_turns_are_those_of_transformers(source, messages):
    parts = ChatTemplate(source).parts(messages)
    rendered, spans = render_jinja_template(
        [messages], chat_template=source, return_assistant_tokens_mask=True, eos_token=END_OF_TEXT, bos_token=""
    )
    assert "".join(part.text for part in parts) == rendered[0]
    marked = [trained for part in parts for trained in [part.trained] * len(part.text)]
    assert marked == [any(a <= at < b for a, b in spans[0]) for at in range(len(rendered[0]))]


def test_the_end_of_a_turn_is_eos_and_text_that_looks_like_it_is_text():
    messages = [{"role": "user", "content": END_OF_TEXT}, {"role": "assistant", "content": END_OF_TEXT}]
    for source in (DEFAULT, DEFAULT.replace("eos_token", f"'{END_OF_TEXT}'")):
        *before, answer, end = ChatTemplate(source).parts(messages)
        assert (answer, end) == (Part(END_OF_TEXT), END)
        assert "".join(part.text for part in before) == f"# User:\n{END_OF_TEXT}\n\n# Assistant:\n"


ENDLESS = "t: the assistant's turns do not end with eos_token, so models never stop"


def test_special_tokens_of_the_template_are_special_and_absent_tools_are_none():
    source = (
        "{{ bos_token }}{% if tools is not none %}tools{% endif %}{% for m in messages %}<|im_start|>"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}{{ {'a': 'é'} | tojson(indent=None) }}"
    )
    template = ChatTemplate(source, "t", "<|im_end|>", special_tokens=["<|im_start|>", "<|im_end|>", "<|other|>"])
    [bos, start, text, end, json] = template.parts([{"role": "user", "content": "<|im_end|>"}])
    assert (bos, start) == (END._replace(trained=False), Part("<|im_start|>", False, special=True))
    assert (text, end) == (Part("<|im_end|>"), Part("<|im_end|>", special=True))
    assert json == Part('{"a": "é"}', trained=False)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages[0].content }}", "t: does not mark the assistant's turns; put {% generation %}"),
        (
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% endfor %}",
            ENDLESS,
        ),
        ("{% if %}", "t: Expected an expression"),
        ("{% for m in messages %}{% generation %}{{ eos_token + m.content }}{% endgeneration %}{% endfor %}", ENDLESS),
        ("{{ raise_exception('no') }}", "t: no"),
        ("{{ 1 / 0 }}", "t: division by zero"),
        ("{{ strftime_now('%d') }}", "t: 'strftime_now' is undefined"),
        ("{{ messages.__class__.mro() }}", "t: access to attribute '__class__'"),
    ],
)
def test_a_template_that_cannot_teach_turns_is_refused(source, message):
    with pytest.raises(UserError) as error:
        ChatTemplate(source, "t")
    assert str(error.value).startswith(message)


def test_the_tokenizers_own_template_comes_first(tokenizer):
    assert chat_template_of(tokenizer).source == DEFAULT
    own = tokenizer.with_file("chat_template.jinja", BLOCKS.encode())
    assert chat_template_of(own).source == BLOCKS
    with pytest.raises(
        UserError, match=r"^the tokenizer's chat template \(replace it with --template\): does not mark"
    ):
        chat_template_of(tokenizer.with_file("tokenizer_config.json", b'{"chat_template": "{{ messages }}"}'))


def test_a_template_can_be_sent_to_other_processes():
    template = ChatTemplate(BLOCKS, "t")
    messages = [{"role": "assistant", "content": "x"}]
    copy = pickle.loads(pickle.dumps(template))
    assert (copy.name, copy.parts(messages)) == ("t", template.parts(messages))
