"""Mathematics for the demo corpus: worked arithmetic and algebra, the same text for the same size on every machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from math import gcd

from podium.trainer.data.documents import Document

VERSION = 1
"""Raised when the text of the same size would be another one."""
SEED = 20_240_117
PROBLEMS = 6
"""Problems of one document."""

_NAMES = ("Ada", "Ben", "Chen", "Dina", "Emil", "Farah", "Goran", "Hana")
_THINGS = ("apples", "books", "coins", "stamps", "marbles", "tickets", "pencils", "shells")


def worksheets(size: int) -> Iterator[Document]:
    """Documents of about 1 kB with worked problems, until they have `size` bytes together."""
    draw = _Draw()
    made = number = 0
    while made < size:
        number += 1
        problems = (f"\nProblem {n + 1}. {_KINDS[draw.below(len(_KINDS))](draw)}\n" for n in range(PROBLEMS))
        document = Document(f"Worksheet {number}\n{''.join(problems)}", "math")
        made += document.bytes
        yield document


class _Draw:
    """Whole numbers. From `Random.random`, whose stream Python promises never to change."""

    def __init__(self) -> None:
        self._random = random.Random(SEED)  # noqa: S311  no secret

    def below(self, n: int) -> int:
        return int(self._random.random() * n)

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)


def _sum(draw: _Draw) -> str:
    a, b, c = draw.between(12, 999), draw.between(12, 999), draw.between(2, 99)
    return f"Compute {a} + {b} - {c}.\n{a} + {b} = {a + b}.\n{a + b} - {c} = {a + b - c}.\nAnswer: {a + b - c}."


def _product(draw: _Draw) -> str:
    a, b = draw.between(12, 99), draw.between(12, 99)
    tens, ones = b // 10 * 10, b % 10
    return (
        f"Compute {a} * {b}.\n{a} * {b} = {a} * {tens} + {a} * {ones}.\n{a} * {tens} = {a * tens}.\n"
        f"{a} * {ones} = {a * ones}.\n{a * tens} + {a * ones} = {a * b}.\nAnswer: {a * b}."
    )


def _division(draw: _Draw) -> str:
    b, q = draw.between(3, 29), draw.between(3, 60)
    r = draw.below(b)
    a = b * q + r
    return (
        f"Divide {a} by {b}, with remainder.\n{b} * {q} = {b * q}.\n{a} - {b * q} = {r}, which is less than {b}.\n"
        f"Answer: quotient {q}, remainder {r}."
    )


def _fraction(draw: _Draw) -> str:
    a, b, c, d = draw.between(1, 9), draw.between(2, 12), draw.between(1, 9), draw.between(2, 12)
    top, bottom = a * d + c * b, b * d
    divisor = gcd(top, bottom)
    return (
        f"Add the fractions {a}/{b} + {c}/{d}.\nThe common denominator is {b} * {d} = {bottom}.\n"
        f"{a}/{b} = {a * d}/{bottom} and {c}/{d} = {c * b}/{bottom}.\nThe sum is {top}/{bottom}.\n"
        f"Both parts divide by {divisor}.\nAnswer: {top // divisor}/{bottom // divisor}."
    )


def _linear(draw: _Draw) -> str:
    a, x, b = draw.between(2, 15), draw.between(-20, 20), draw.between(1, 60)
    right = a * x + b
    return (
        f"Solve {a}x + {b} = {right} for x.\nSubtract {b} on both sides: {a}x = {right - b}.\n"
        f"Divide both sides by {a}: x = {x}.\nCheck: {a} * {_signed(x)} + {b} = {right}.\nAnswer: x = {x}."
    )


def _system(draw: _Draw) -> str:
    x, y, a = draw.between(-9, 9), draw.between(-9, 9), draw.between(2, 6)
    first, second = x + y, a * x - y
    return (
        f"Solve x + y = {first} and {a}x - y = {second}.\nAdd the two equations: {a + 1}x = {first + second}.\n"
        f"So x = {x}.\nFrom x + y = {first} follows y = {first} - {_signed(x)} = {y}.\nAnswer: x = {x}, y = {y}."
    )


def _quadratic(draw: _Draw) -> str:
    p, q = draw.between(1, 9), draw.between(1, 9)
    return (
        f"Factor x^2 - {p + q}x + {p * q}.\nTwo numbers with sum {p + q} and product {p * q} are {p} and {q}.\n"
        f"So x^2 - {p + q}x + {p * q} = (x - {p})(x - {q}).\nAnswer: the roots are x = {p} and x = {q}."
    )


def _square(draw: _Draw) -> str:
    a, b = draw.between(2, 9), draw.between(1, 12)
    return (
        f"Expand ({a}x + {b})^2.\n({a}x)^2 = {a * a}x^2.\n2 * {a}x * {b} = {2 * a * b}x.\n{b}^2 = {b * b}.\n"
        f"Answer: {a * a}x^2 + {2 * a * b}x + {b * b}."
    )


def _percent(draw: _Draw) -> str:
    rate, base = 5 * draw.between(1, 19), 20 * draw.between(2, 60)
    part = rate * base // 100
    return (
        f"What is {rate} percent of {base}?\n1 percent of {base} is {base}/100.\n"
        f"{rate} * {base} / 100 = {rate * base} / 100 = {part}.\nAnswer: {part}."
    )


def _story(draw: _Draw) -> str:
    name, thing = _NAMES[draw.below(len(_NAMES))], _THINGS[draw.below(len(_THINGS))]
    boxes, each, given = draw.between(3, 15), draw.between(4, 25), draw.between(1, 11)
    total = boxes * each
    return (
        f"{name} has {boxes} boxes with {each} {thing} in each and gives {given} {thing} away. How many are left?\n"
        f"In all boxes there are {boxes} * {each} = {total} {thing}.\n{total} - {given} = {total - given}.\n"
        f"Answer: {total - given} {thing}."
    )


def _progression(draw: _Draw) -> str:
    first, step, n = draw.between(1, 20), draw.between(2, 9), draw.between(5, 20)
    last = first + (n - 1) * step
    return (
        f"Add the first {n} terms of {first}, {first + step}, {first + 2 * step}, ...\n"
        f"The last term is {first} + {n - 1} * {step} = {last}.\n"
        f"The sum is {n} * ({first} + {last}) / 2 = {n * (first + last)} / 2.\nAnswer: {n * (first + last) // 2}."
    )


def _signed(value: int) -> str:
    return str(value) if value >= 0 else f"({value})"


_KINDS: tuple[Callable[[_Draw], str], ...] = (
    _sum, _product, _division, _fraction, _linear, _system, _quadratic, _square, _percent, _story, _progression,
)  # fmt: skip
