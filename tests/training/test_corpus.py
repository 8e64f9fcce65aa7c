"""The store of generated text, and every filter with a case on both sides of its limit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from draftwood.errors import FormatError
from draftwood.training.corpus import (
    HELD_OUT_ONE_IN,
    Corpus,
    CorpusWriter,
    clean,
    degenerate,
    held_out,
    loop_start,
    manifest,
    source_hash,
    user_turn,
)
from draftwood.training.overlap import RunIndex
from draftwood.training.prompts.scripts import Script

STOP, OTHER_STOP = 2, 0
STOPS = {STOP, OTHER_STOP}
RANDOM = np.random.default_rng(5)

Sequence = tuple[list[int], list[int]]


def words(count: int) -> list[int]:
    """Different ids that are no stops."""
    return (RANDOM.choice(40000, count, replace=False, shuffle=False) + 100).tolist()


def chat(*answers: list[int], user: list[int] | None = None) -> Sequence:
    """System block, then turns; the last answer ends with a stop token."""
    tokens, roles = [1, 50, STOP], [0, 0, 0]
    for answer in answers:
        written = words(20) if user is None else user
        tokens += [10, *written, STOP, 11, *answer, STOP]
        roles += [0] + [1] * (len(written) + 1) + [0] + [2] * (len(answer) + 1)
    return tokens, roles


def corpus_of(*sequences: Sequence, part: str = "chat", source: str = "s", vocabulary: int = 49152) -> Corpus:
    writer = CorpusWriter(vocabulary)
    for number, (tokens, roles) in enumerate(sequences):
        writer.add(Script((1,), part, f"{source} {number}", number % 2 == 0, 640), tokens, roles)
    return writer.corpus()


def cleaned(*sequences: Sequence, benchmark: RunIndex | None = None, seed: int = 1) -> tuple[Corpus, dict[str, int]]:
    return clean(corpus_of(*sequences), benchmark, STOPS, seed)


def answer_of(corpus: Corpus, index: int) -> list[int]:
    tokens, roles = corpus.sequence(index)
    return tokens[roles == 2].tolist()


def assert_equal(one: Corpus, other: Corpus) -> None:
    for entry in dataclasses.fields(Corpus):
        mine, theirs = getattr(one, entry.name), getattr(other, entry.name)
        if entry.name == "parts":
            assert mine == theirs
        else:
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


# -- the store ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary", "kind"), [(49152, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_ids_are_stored_as_narrow_as_they_fit(vocabulary: int, kind: type) -> None:
    corpus = corpus_of(([vocabulary - 1, 3], [0, 2]), vocabulary=vocabulary)
    assert corpus.tokens.dtype == kind
    assert corpus.sequence(0)[0].tolist() == [vocabulary - 1, 3]


def test_it_comes_back_from_a_file(tmp_path: Path) -> None:
    corpus = Corpus.concat([corpus_of(chat(words(30)), chat(words(40))), corpus_of(chat(words(30)), part="code")])
    corpus.save(tmp_path / "c.npz")
    back = Corpus.load(tmp_path / "c.npz")
    assert_equal(back, corpus)
    assert back.sha256() == corpus.sha256()


def test_another_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", tokens=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive", encoding="utf-8")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(FormatError, match="does not hold generated text"):
            Corpus.load(tmp_path / name)


def test_select_takes_sequences() -> None:
    sequences = [chat(words(30 + number)) for number in range(4)]
    corpus = corpus_of(*sequences)
    some = corpus.select(np.array([False, True, False, True]))
    assert len(some) == 2
    for index, number in enumerate((1, 3)):
        tokens, roles = some.sequence(index)
        assert (tokens.tolist(), roles.tolist()) == sequences[number]
        assert some.source[index] == source_hash(f"s {number}")
    assert len(corpus.select(np.zeros(4, bool))) == 0


def test_concat_keeps_the_names_of_parts() -> None:
    code, talk = corpus_of(chat(words(30)), part="code"), corpus_of(chat(words(31)), part="chat")
    joined = Corpus.concat([code, Corpus.concat([talk, code])])
    assert [joined.parts[number] for number in joined.part] == ["code", "chat", "code"]
    assert joined.sequence(2)[0].tolist() == code.sequence(0)[0].tolist()
    assert joined.offsets.tolist() == np.cumsum([0, *(len(joined.sequence(i)[0]) for i in range(3))]).tolist()


def test_the_hash_sees_every_array() -> None:
    corpus = corpus_of(chat(words(30)), chat(words(30)))
    digests = {corpus.sha256()}
    for name in ("tokens", "roles", "part", "source", "greedy", "looping", "held_out"):
        array = getattr(corpus, name).copy()
        array[-1] = 1 - min(int(array[-1]), 1)
        digests.add(dataclasses.replace(corpus, **{name: array}).sha256())
    digests.add(dataclasses.replace(corpus, parts=("talk",)).sha256())
    assert len(digests) == 9


# -- the filters -------------------------------------------------------------------------------------------


def test_good_text_goes_through_unchanged() -> None:
    sequences = [chat(words(30)), chat(words(300), words(200)), ([*words(90)], [0] * 40 + [2] * 50)]
    corpus, counts = cleaned(*sequences)
    assert [(tokens.tolist(), roles.tolist()) for tokens, roles in map(corpus.sequence, range(3))] == sequences
    assert counts["sequences"] == counts["kept"] == 3
    assert sum(counts.values()) == 6
    assert corpus.greedy.tolist() == [True, False, True]


def test_short_answers_are_not_learnt() -> None:
    corpus, counts = cleaned(chat(words(22)), chat(words(23)), chat(words(10), words(60)), chat(words(60), words(10)))
    assert counts["short"] == 3 and counts["without_answer"] == 1 and len(corpus) == 3
    # 23 words and the end token.
    assert len(answer_of(corpus, 0)) == 24
    # The short first answer stays as context, the short last one goes with the turn before it.
    assert len(answer_of(corpus, 1)) == 61 and len(corpus.sequence(1)[0]) == 3 + 34 + 84
    assert len(answer_of(corpus, 2)) == 61 and len(corpus.sequence(2)[0]) == 3 + 84


@pytest.mark.parametrize("period", [1, 7, 16, 23, 100])
def test_a_loop_is_found_after_its_first_round(period: int) -> None:
    start, body = words(60), words(period)
    answer = np.array(start + body * (200 // period + 3), np.uint16)
    found = loop_start(answer)
    assert found is not None
    # What is kept has the whole first round of 16 tokens or more, and nothing of the second.
    assert 60 + period <= found <= 60 + period + 1
    assert loop_start(answer[: found + 47]) is None
    assert loop_start(answer[: found + 48]) == found


def test_a_short_repetition_is_no_loop() -> None:
    line = words(47)
    assert loop_start(np.array(words(50) + line + words(5) + line + words(5) + line, np.uint16)) is None
    assert loop_start(np.array(words(20), np.uint16)) is None
    assert loop_start(np.array(words(600), np.uint16)) is None


def test_everything_behind_a_loop_goes() -> None:
    body = words(20)
    corpus, counts = cleaned(chat(words(40) + body * 9, words(60)))
    assert counts["loops_cut"] == 1 and counts["kept"] == 1
    assert len(answer_of(corpus, 0)) == 60
    assert corpus.sequence(0)[1][-1] == 2
    assert not corpus.looping.any()


def test_a_loop_from_the_start_leaves_nothing() -> None:
    corpus, counts = cleaned(chat([7] * 200), chat(words(50), [7] * 200))
    assert counts["loops_cut"] == 2 and counts["short"] == 2 and counts["without_answer"] == 1
    assert len(answer_of(corpus, 0)) == 51


def test_some_loops_are_left_and_marked() -> None:
    corpus, counts = cleaned(*(chat(words(40) + words(20) * 9, words(60)) for _ in range(600)))
    assert 6 <= counts["loops_left"] <= 32
    assert counts["loops_left"] + counts["loops_cut"] == counts["kept"] == 600
    assert corpus.looping.sum() == counts["loops_left"]
    lengths = [len(answer_of(corpus, index)) for index in range(600)]
    assert {length for length, loops in zip(lengths, corpus.looping, strict=True) if loops} == {221}
    assert {length for length, loops in zip(lengths, corpus.looping, strict=True) if not loops} == {60}


def test_repetitive_answers() -> None:
    def mixed(distinct: int, ones: int, length: int = 256) -> np.ndarray:
        ids = words(distinct - 1)
        rest = [ids[i % len(ids)] for i in range(length - ones)]
        return RANDOM.permutation(np.array([7] * ones + rest, np.uint16))

    assert degenerate(mixed(150, 102)) is None
    assert degenerate(mixed(150, 103)) == "repetitive"
    assert degenerate(mixed(77, 3)) is None
    assert degenerate(mixed(76, 3)) == "repetitive"
    # Only the beginning is judged.
    assert degenerate(np.concatenate((np.array(words(256), np.uint16), mixed(3, 50)))) is None


def test_compressible_answers() -> None:
    # Lines that differ in a word: no run of 16 occurs twice, yet little is said.
    line = words(12)
    same = [[*line[:6], new, *line[6:]] for new in words(60)]
    answer = np.array(words(80) + [token for row in same for token in row], np.uint16)
    assert loop_start(answer) is None
    assert degenerate(answer) == "compressible"
    assert degenerate(np.array(words(800), np.uint16)) is None


def test_a_degenerate_answer_takes_what_follows_with_it() -> None:
    dull = RANDOM.permutation(np.array([7] * 60 + words(60))).tolist()
    corpus, counts = cleaned(chat(words(50), dull, words(50)), chat(dull, words(50)))
    assert counts["repetitive"] == 2 and counts["without_answer"] == 1
    assert len(corpus) == 1 and len(answer_of(corpus, 0)) == 51
    assert len(corpus.sequence(0)[0]) == 3 + 74


def test_the_user_turn_is_found() -> None:
    stops = np.array(sorted(STOPS))
    tokens, roles = chat(words(30))
    answer = roles.index(2)
    assert user_turn(np.array(tokens), answer, stops).tolist() == tokens[3:answer]
    assert user_turn(np.array(tokens[3:]), answer - 3, stops).tolist() == tokens[3:answer]
    assert user_turn(np.array(tokens[:answer]), 3, np.array([], np.int64)).tolist() == tokens[:3]


def test_the_same_user_turn_is_kept_once() -> None:
    asked, long = words(20), words(90)
    other_end = [*long[:63], *words(27)]
    corpus, counts = cleaned(
        chat(words(30), user=asked),
        chat(words(30), user=asked),
        chat(words(30), user=asked[:-1]),
        chat(words(30), user=long),
        chat(words(30), user=other_end),
    )
    assert counts["same_user"] == 2
    assert corpus.source.tolist() == [source_hash(f"s {number}") for number in (0, 2, 3)]


def test_the_same_continuation_is_kept_once() -> None:
    code = words(80)
    raw = [([*code[:60], *words(40)], [0] * 60 + [2] * 40) for _ in range(2)]
    assert cleaned(*raw)[1]["same_user"] == 1


def test_the_same_answer_is_kept_three_times() -> None:
    begin = words(32)
    corpus, counts = cleaned(*(chat(begin + words(20)) for _ in range(5)), chat(begin[:31] + words(20)))
    assert counts["same_answer"] == 2 and len(corpus) == 4
    # An answer that ends there is another one.
    assert cleaned(*(chat(begin[:24]) for _ in range(2)), *(chat(begin + words(9)) for _ in range(3)))[1]["kept"] == 5


def test_benchmark_text_is_dropped() -> None:
    secret = words(40)
    sequences = [
        chat(words(30), user=words(5) + secret[3:16] + words(5)),
        chat(words(30) + secret[20:33]),
        chat(words(30) + secret[20:32]),
        chat(words(50), words(30) + secret[5:25]),
    ]
    corpus, counts = cleaned(*sequences, benchmark=RunIndex([secret]))
    assert counts["benchmark"] == 3 and len(corpus) == 1
    assert corpus.source[0] == source_hash("s 2")
    assert cleaned(*sequences)[1]["benchmark"] == 0


# -- held-out text and the manifest ------------------------------------------------------------------------


def test_no_source_is_on_both_sides() -> None:
    writer = CorpusWriter(49152)
    for number in range(3000):
        tokens, roles = chat(words(24))
        writer.add(Script((1,), "chat", f"source {number % 600}", True, 640), tokens, roles)
    raw = writer.corpus()
    for seed in (1, 2):
        corpus, _ = clean(raw, None, STOPS, seed)
        assert len(corpus) == 3000
        held, learnt = (set(corpus.source[mask].tolist()) for mask in (corpus.held_out, ~corpus.held_out))
        assert not held & learnt
        assert len(held | learnt) == 600
        assert 3 <= len(held) <= 30
        # Cleaning a part alone decides the same.
        half, _ = clean(raw.select(np.arange(3000) < 900), None, STOPS, seed)
        np.testing.assert_array_equal(half.held_out, corpus.held_out[:900])


def test_seeds_hold_out_other_sources() -> None:
    sources = np.array([source_hash(f"source {number}") for number in range(20000)], np.uint64)
    one, other = held_out(sources, 1), held_out(sources, 2)
    for mask in (one, other):
        assert mask.mean() == pytest.approx(1 / HELD_OUT_ONE_IN, rel=0.2)
    assert (one & other).sum() < one.sum() / 5


def test_manifest_counts() -> None:
    corpus, counts = clean(
        Corpus.concat(
            [corpus_of(chat(words(39)), chat(words(59))), corpus_of(chat(words(99)), part="code", source="c")]
        ),
        None,
        STOPS,
        1,
    )
    facts = manifest(corpus, counts)
    assert (facts["sequences"], facts["answer_tokens"], facts["sources"]) == (3, 200, 3)
    assert facts["tokens"] == len(corpus.tokens)
    assert facts["greedy_share"] == 0.7
    assert facts["parts"]["chat"]["answer_tokens"] == 100 and facts["parts"]["code"]["sequences"] == 1
    assert facts["filters"] == counts and facts["sha256"] == corpus.sha256()
    assert facts["looping"]["sequences"] == 0 and facts["looping"]["greedy_share"] == 0.0


def test_an_empty_corpus() -> None:
    empty, counts = clean(CorpusWriter(49152).corpus(), None, STOPS, 1)
    assert len(empty) == 0 and counts["kept"] == 0
    assert manifest(empty, counts)["sequences"] == 0
