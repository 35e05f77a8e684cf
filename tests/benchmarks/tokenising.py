"""How fast text becomes tokens: ours beside `encode_batch` of the tokenizers library, on the same text and processors.

Prints a table and, last, one JSON line. Rounds are paired: each measures every method once, in turns, so that what else
the machine does hits all alike; medians and the median of the paired ratios are reported. Ids are checked to be equal.
The library's methods end with its own objects, ours with an array of ids, ready to be written.

    python tests/benchmarks/tokenising.py --cpus 2 --megabytes 32
    python tests/benchmarks/tokenising.py --text ../shared/data/wikitext-2/valid.txt --megabytes 8
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

MEGABYTE = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text file; by default the library of this Python")
    parser.add_argument("--megabytes", type=float, default=16, help="text to tokenise; the text is repeated to this")
    parser.add_argument("--vocab-size", type=int, default=16_000)
    parser.add_argument("--cpus", type=int, default=2, help="processors for all methods")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cpus])
    os.environ["RAYON_NUM_THREADS"] = str(options.cpus)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"

    from tokenizers import Encoding

    from podium.trainer.builtin.data.encode import Encoder, encode_batches
    from podium.trainer.builtin.data.tokenizer import end_of_text, train_tokenizer

    texts = documents(options.text)
    tokenizer = train_tokenizer(texts, options.vocab_size)
    end = end_of_text(tokenizer)
    size = sum(len(text.encode()) for text in texts)
    texts *= max(1, round(options.megabytes * MEGABYTE / size))
    size = sum(len(text.encode()) for text in texts)
    batches = in_batches(texts)

    def library() -> list[Encoding]:
        return tokenizer.encode_batch(texts, add_special_tokens=False)

    def library_fast() -> list[Encoding]:
        return tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    def one_process() -> np.ndarray:
        encoder = Encoder(tokenizer, end)
        return np.concatenate([encoder.encode(batch) for batch in batches])

    def pool() -> np.ndarray:
        return np.concatenate(list(encode_batches(tokenizer, end, batches, workers=options.cpus)))

    def plain(found: np.ndarray | list[Encoding]) -> np.ndarray:
        if isinstance(found, np.ndarray):
            return found
        return np.fromiter((token for encoding in found for token in (*encoding.ids, end)), dtype=np.uint16)

    methods: dict[str, Callable[[], np.ndarray | list[Encoding]]] = {
        "encode_batch": library,
        "encode_batch_fast": library_fast,
        "ours, one process": one_process,
        f"ours, {options.cpus} processes": pool,
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    wanted = plain(library())
    for round_ in range(options.rounds):
        order = list(methods)
        for name in order[round_ % len(order) :] + order[: round_ % len(order)]:
            begin = time.perf_counter()
            found = methods[name]()
            seconds[name].append(time.perf_counter() - begin)
            if not np.array_equal(plain(found), wanted):
                raise SystemExit(f"{name}: other ids than encode_batch")
    report(seconds, size, options.cpus)


def documents(path: Path | None) -> list[str]:
    from podium.trainer.builtin.data.corpus import CorpusConfig, open_corpus, parse_corpus

    config = parse_corpus(str(path)) if path else CorpusConfig(source="builtin")
    return [document.text for _, document in open_corpus(config).documents()]


def in_batches(texts: list[str]) -> list[list[str]]:
    batches: list[list[str]] = [[]]
    size = 0
    for text in texts:
        batches[-1].append(text)
        size += len(text)
        if size >= MEGABYTE:
            batches.append([])
            size = 0
    return [batch for batch in batches if batch]


def report(seconds: dict[str, list[float]], size: int, cpus: int) -> None:
    base = seconds["encode_batch"]
    print(
        f"{size / MEGABYTE:.1f} MB of text, {cpus} processors, {len(base)} paired rounds, start of processes included"
    )
    print(f"{'method':<22}{'MB/s (median)':>15}{'times encode_batch':>21}")
    result = {}
    for name, times in seconds.items():
        speed = size / MEGABYTE / statistics.median(times)
        ratio = statistics.median(theirs / ours for theirs, ours in zip(base, times, strict=True))
        result[name] = {"megabytes_per_second": round(speed, 2), "ratio_to_encode_batch": round(ratio, 3)}
        print(f"{name:<22}{speed:>15.2f}{ratio:>21.2f}")
    print(json.dumps({"benchmark": "tokenising", "bytes": size, "cpus": cpus, "rounds": len(base), "methods": result}))


if __name__ == "__main__":
    main()
