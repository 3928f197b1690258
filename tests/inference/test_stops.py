"""Where texts end; text shown while streaming is final."""

import random

import pytest

from codegen_jax.data.tokenizer import TRUNCATE_BEFORE, truncate
from codegen_jax.inference.stops import Stops

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
