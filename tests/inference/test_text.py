"""Where texts end; text shown while streaming is final; a text that grows equals the decoding of all its ids."""

import random

import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_jax.data.tokenizer import END_OF_TEXT, TRUNCATE_BEFORE, BpeTokenizer, load_tokenizer, truncate
from codegen_jax.errors import UserError
from codegen_jax.inference.text import Stops, Text
from codegen_jax.weights.tokenizer_files import tokenizer_files
from tests.data.foreign import FOREIGN

SNIPPETS = ["def f():\n", "    return 1\n", "print(1)\n", "\n", "# a", "'''", "x", " ", "<|endoftext|>", '"""doc', "é"]


def texts(count=200):
    rng = random.Random(0)
    return ["".join(rng.choices(SNIPPETS, k=rng.randrange(1, 14))) for _ in range(count)]


@pytest.mark.parametrize(
    "stops",
    [
        Stops("\n\n", [], None),
        Stops("^#|x$", ["print", "return 1\n "], None),
        Stops(None, ["\n\n\n", "xx"], None),
        Stops(None, [], "codegen"),
        Stops("doc", ["é"], "codegen"),
    ],
)
def test_shown_text_is_final_and_within_the_completed_text(stops):
    ended = 0
    for text in texts():
        shown = ""
        for length in range(1, len(text) + 1):
            part = text[:length]
            end = stops.end(part)
            if end is not None:
                ended += 1
                assert part[:end].startswith(shown)
                break
            final = stops.final_length(part)
            assert part[:final].startswith(shown)
            shown = part[:final]
        else:
            assert text.startswith(shown)
    assert ended > 10


def test_the_codegen_rule_equals_the_authors_truncation():
    stops = Stops(None, [], "codegen")
    for text in texts():
        expected = truncate(text, TRUNCATE_BEFORE)
        end = stops.end(text)
        assert (text if end is None else text[:end]) == expected


def test_stop_strings_are_not_patterns():
    stops = Stops(None, ["a.b", "("], None)
    assert stops.end("axb") is None
    assert stops.end("xa.b(") == 1
    assert stops.end("f(a.b") == 1


def test_an_incomplete_character_is_not_shown():
    assert Stops(None, [], None).final_length("ab\ufffd") == 2


def test_an_incomplete_character_matches_nothing():
    assert Stops(r"[^\w\s]", [], None).end("x\ufffd") is None
    assert Stops(r"[^\w\s]", [], None).end("xé!\ufffd") == 2


def test_an_expression_keeps_its_flags_when_combined_with_strings():
    stops = Stops("(?i)end", ["STOP"], None)
    assert stops.end("an END") == 3 and stops.end("stop") is None and stops.end("STOP") == 0


def test_an_expression_that_matches_the_empty_string_ends_the_text_at_once():
    for pattern in ("a{e}", "x*"):
        assert Stops(pattern, [], None).end("xyz") is not None


def test_only_the_last_character_can_be_incomplete():
    assert Stops(None, ["\n"], None).end("a\ufffd\n") == 2
    assert Stops(None, ["x"], None).final_length("a\ufffd\n") == 3
    assert Stops(None, ["x"], None).final_length("a\ufffd") == 1


def test_a_stop_that_may_begin_with_the_incomplete_character_is_not_shown():
    assert Stops(None, ["abé"], None).final_length("xab\ufffd") == 1


# one for each way to decode: GPT-2's bytes, and sentencepiece models with and without leading spaces and byte pieces
OTHERS = ["whitespace tokens", "sentencepiece's defaults", "Llama's sentencepiece"]


def word_pieces():
    """A tokenizer whose decoder puts a space before the words that are not first, and not before ## and marks."""
    words = ["<unk>", END_OF_TEXT, "a", "##a", ".", "##.", "é", "##é", "n't", "\ufffd"]
    model = hf.models.WordPiece({word: id for id, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = hf.Tokenizer(model)
    tokenizer.decoder = hf.decoders.WordPiece()
    return BpeTokenizer(tokenizer.to_str())


@pytest.fixture(scope="module")
def tokenizers(texts, tokenizer, tmp_path_factory):
    """Tokenizers by name; "exported" is the sentencepiece model written for the `tokenizers` library."""
    folder = tmp_path_factory.mktemp("exported")
    for name, content in tokenizer_files(tokenizer, 2048).items():
        (folder / name).write_bytes(content)
    others = {name: FOREIGN[name](texts) for name in OTHERS}
    return {"sentencepiece": tokenizer, "exported": load_tokenizer(folder), "word pieces": word_pieces(), **others}


PIECES = ["def f():\n", "print(", "\n", "#", "'''", END_OF_TEXT, " ", "    ", "\t\t", "x", "é", "日本", "🙂", "\ufffd"]


@st.composite
def growing(draw, vocab_size, encode):
    """Ids as a list of calls. They repeat few parts, which are any ids, pieces of text or parts of a character."""
    some_ids = st.integers(0, vocab_size - 1).map(lambda id: [id])
    whole = st.sampled_from(PIECES).map(encode)
    cut = st.sampled_from([[id] for piece in "é日🙂\ufffd" for id in encode(piece)])
    parts = draw(st.lists(some_ids | whole | cut, min_size=1, max_size=5))
    ids = [id for part in draw(st.lists(st.sampled_from(parts), max_size=30)) for id in part]
    most, calls = draw(st.integers(1, 9)), []
    while ids:
        size = draw(st.integers(0, most))
        calls.append(ids[:size])
        ids = ids[size:]
    return calls


def calls_of(data, tokenizer):
    return data.draw(growing(tokenizer.vocab_size, tokenizer.encode))


# arguments of Stops, which a test must call itself: regex uses the `random` module, which strategies must not
stop_strings = st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=2).map("".join), max_size=2)
expressions = st.sampled_from([None, None, r"^\S", r"x$", r"(?<!\s)\n", r"é|\d\d", r"[^\x00-\x7f] "])
rules = st.tuples(expressions, stop_strings, st.sampled_from([None, "codegen"]))
enough = settings(deadline=None, database=None, max_examples=150)


def check_decoding(tokenizer, calls):
    text, ids = Text(tokenizer, Stops(None, [], None)), []
    for call in calls:
        ids += call
        assert not text.extend(call)
        assert (text.ids, text.text) == (ids, tokenizer.decode(ids))


@pytest.mark.parametrize("name", ["sentencepiece", "exported", "word pieces", *OTHERS])
@enough
@given(data=st.data())
def test_a_text_equals_the_decoding_of_all_its_ids_after_every_call(tokenizers, name, data):
    check_decoding(tokenizers[name], calls_of(data, tokenizers[name]))


def test_a_text_equals_the_decoding_even_if_a_token_changes_the_text_of_many_before(tokenizers):
    tokenizer = tokenizers["exported"]
    run = [[id] for id in tokenizer.encode("éééé")]
    assert tokenizer.decode([id for (id,) in run[:-1]]) == "\ufffd" * 7  # all bytes of an invalid run
    check_decoding(tokenizer, [*run, run[0], tokenizer.encode("x")])


def first_stop(tokenizer, stops, ids, min_tokens):
    """The ids up to the first token that completes a stop, and their text before it; None without a stop."""
    for count in range(max(1, min_tokens), len(ids) + 1):
        text = tokenizer.decode(ids[:count])
        if (end := stops.end(text)) is not None:
            return ids[:count], text[:end]
    return None


def check_stops(tokenizer, stops, calls, min_tokens=0):
    text, ids, shown = Text(tokenizer, stops, min_tokens), [], ""
    for call in calls:
        ids += call
        expected = first_stop(tokenizer, stops, ids, min_tokens)
        assert text.extend(call) == text.ended == (expected is not None)
        assert (text.ids, text.text) == (expected or (ids, tokenizer.decode(ids)))
        shown += text.new()
        assert text.text.startswith(shown)
    assert shown + text.new(ended=True) == text.text
    assert text.new(ended=True) == ""


@pytest.mark.parametrize("name", ["sentencepiece", *OTHERS])
@enough
@given(data=st.data(), rules=rules, min_tokens=st.integers(0, 20))
def test_the_first_token_that_completes_a_stop_ends_a_text_and_new_text_adds_up(
    tokenizers, name, data, rules, min_tokens
):
    check_stops(tokenizers[name], Stops(*rules), calls_of(data, tokenizers[name]), min_tokens)


def test_a_stop_within_the_minimum_ends_the_text_when_there_are_enough_tokens(tokenizer):
    calls = [[id] for id in tokenizer.encode("#1#2#3#4#5#6#7#8#9")]
    for stops in (Stops(None, ["#1"], None), Stops("#1", [], None)):
        check_stops(tokenizer, stops, calls, min_tokens=len(calls) - 1)


def test_an_expression_that_only_matches_in_the_middle_of_a_call_ends_the_text(tokenizer):
    check_stops(tokenizer, Stops("#$", [], None), [tokenizer.encode("1#2")])


def test_a_replacement_character_that_arrives_byte_by_byte_is_shown_once(tokenizer):
    first, second, third = tokenizer.encode(
        "\ufffd"
    )  # bytes: two of them are two replacement characters, three are one
    for call in ([first, second, third], [third]):
        for stops in (Stops(None, [], None), Stops(None, ["\ufffd"], None), Stops(None, ["x\ufffd"], None)):
            check_stops(tokenizer, stops, [*[[third]] * 2, [first], [second], call])
            check_stops(tokenizer, stops, [[*tokenizer.encode("x"), third, third, first, second, *call]])


class Counting:
    """A tokenizer that records how many ids it decodes at a time."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoded = tokenizer, []

    def decode(self, ids):
        self.decoded.append(len(ids))
        return self.tokenizer.decode(ids)


def test_only_the_last_tokens_are_decoded(texts, tokenizer):
    counting = Counting(tokenizer)
    text, ids = Text(counting, Stops(None, ["never"], "codegen")), tokenizer.encode("x = 1\n" * 500)
    for first in range(0, len(ids), 4):
        assert not text.extend(ids[first : first + 4])
    assert text.text == "x = 1\n" * 500 and max(counting.decoded) <= 12


def test_an_expression_that_backtracks_for_too_long_is_named(tokenizer):
    ids = tokenizer.encode("a" * 100 + "!")
    checked, shown = (Text(tokenizer, Stops("(a|aa)+b$", [], None), min_tokens) for min_tokens in (len(ids), 1000))
    assert not shown.extend(ids)  # with too few tokens for a stop, only `new` searches
    for search in (lambda: checked.extend(ids), shown.new):
        with pytest.raises(UserError) as raised:
            search()
        named = "stop: '(a|aa)+b$' took more than 1 second on a completion of 101 characters; simplify the expression"
        assert str(raised.value) == named
