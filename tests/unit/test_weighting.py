import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.families.weighting import BREAK, MAX_WEIGHT, Part, parse, plain


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a cat", [("a cat", 1.0)]),
        ("a (red) cat", [("a ", 1.0), ("red", 1.1), (" cat", 1.0)]),
        ("a (red:1.5) cat", [("a ", 1.0), ("red", 1.5), (" cat", 1.0)]),
        ("(red: 0.5 )", [("red", 0.5)]),
        ("[red]", [("red", 1 / 1.1)]),
        ("((red))", [("red", 1.21)]),
        ("([red])", [("red", 1.0)]),
        ("(a (b:2) c:3)", [("a ", 3.0), ("b", 6.0), (" c", 3.0)]),
        (r"\(red\) \[x\] \\", [(r"(red) [x] " + "\\", 1.0)]),
        ("(open", [("open", 1.1)]),
        ("[open", [("open", 1 / 1.1)]),
        ("closed) here]", [("closed) here]", 1.0)]),
        ("time 10:30", [("time 10:30", 1.0)]),
        ("(10:30)", [("10", 30.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(x:-1)", [("x", -1.0)]),
        ("(x:1e9)", [("x:1e9", 1.1)]),
        ("(x:999999)", [("x", MAX_WEIGHT)]),
        ("a BREAK b", [("a ", 1.0), (BREAK, 1.0), (" b", 1.0)]),
        ("(a BREAK b:2)", [("a ", 2.0), (BREAK, 1.0), (" b", 2.0)]),
        ("BREAKFAST", [("BREAKFAST", 1.0)]),
        ("trailing \\", [("trailing \\", 1.0)]),
    ],
)
def test_a_weighted_prompt_means(text: str, parts: list[Part]) -> None:
    found = parse(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


def test_the_plain_syntax_weighs_nothing() -> None:
    assert plain("a (red:1.5) BREAK") == [("a (red:1.5) BREAK", 1.0)]


@given(st.text(alphabet="ab ()[]\\:.15-BREAK", max_size=40))
def test_any_text_is_parsed_and_nothing_but_marks_is_lost(text: str) -> None:
    parts = parse(text)
    assert all(abs(weight) <= MAX_WEIGHT for _, weight in parts)
    letters = "".join(piece for piece, _ in parts if piece is not None).replace(" ", "")
    assert letters.count("a") == text.count("a")
    assert letters.count("b") == text.count("b")


@pytest.mark.parametrize("text", ["(" * 10_000, "(a" * 5000, "[:" * 5000, "(:" + "1" * 9990, "([a)b]" * 1600])
def test_any_prompt_is_parsed_at_once(text: str) -> None:
    """Its model's other sessions wait meanwhile. It took half a minute."""
    started = time.perf_counter()
    assert all(abs(weight) <= MAX_WEIGHT for _, weight in parse(text))
    assert time.perf_counter() - started < 2
