from __future__ import annotations

from podium.trainer.trial.yaml_text import dump_yaml, parse_yaml


def test_plain_scalars_are_read_as_a_person_means_them() -> None:
    text = "a: 5e-5\nb: no\nc: 010\nd: 1:30\ne: 2024-01-01\nf: ~\ng: 1_000\nh: '5e-5'\n"
    expected = {"a": 5e-5, "b": "no", "c": 10, "d": "1:30", "e": "2024-01-01", "f": None, "g": 1000, "h": "5e-5"}
    assert parse_yaml(text, "t") == expected
    assert parse_yaml(dump_yaml(expected), "t") == expected
