"""Text: loading, splitting and streams."""

import jax
import numpy as np
import pytest

from jaxrnn.tasks import text


@pytest.fixture
def content():
    return text.from_string("the quick brown fox jumps over the lazy dog\n" * 40)


def test_split_is_in_order_and_loses_nothing(content):
    tokens = np.concatenate([content.train, content.validation])
    assert "".join(content.vocabulary[t] for t in tokens) == "the quick brown fox jumps over the lazy dog\n" * 40
    assert len(content.train) == int(0.9 * len(tokens))


def test_characters_unseen_in_training_are_counted_and_become_the_unknown_token():
    loaded = text.from_string("a" * 90 + "bcbccccccc")
    assert loaded.unseen == 10
    assert set(loaded.validation) == {len(loaded.vocabulary) - 1}
    assert loaded.vocabulary == "a" + text.UNKNOWN


def test_baselines_of_a_text_that_is_known():
    loaded = text.from_string("ab" * 5000)
    baselines = loaded.baselines()
    assert baselines["uniform"] == pytest.approx(np.log2(3))
    assert baselines["unigram"] == pytest.approx(1, abs=1e-3)
    assert baselines["bz2, after the training text"] < baselines["bz2"] < 1


def test_a_folder_is_read_in_order_without_binary_and_hidden_files(tmp_path):
    (tmp_path / "b.txt").write_text("second " * 20)
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("first " * 20)
    (tmp_path / "sub" / "c.txt").write_text("third " * 20)
    (tmp_path / "image.bin").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / ".hidden").write_text("hidden " * 20)
    loaded = text.load(tmp_path)
    decoded = "".join(loaded.vocabulary[t] for t in [*loaded.train, *loaded.validation])
    expected = "\n".join(word * 20 for word in ("first ", "second ", "third "))
    cut = len(loaded.train)
    assert decoded[:cut] == expected[:cut]
    assert "3 of 4 files are text" in loaded.source


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "missing.txt", "no file or folder"),
        (lambda path: _written(path / "empty.txt", b""), "0 characters"),
        (lambda path: _written(path / "short.txt", b"too short"), "9 characters"),
        (lambda path: _written(path / "latin.txt", "é".encode("latin-1") * 200), "not UTF-8"),
        (lambda path: _written(path / "zeros.bin", b"\0" * 200), "not UTF-8"),
        (lambda path: path, "no file of UTF-8 text"),
    ],
)
def test_what_is_not_text_is_told(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        text.load(make(tmp_path))


def _written(path, content):
    path.write_bytes(content)
    return path


def test_streams_continue_from_batch_to_batch(content):
    streams = text.Streams(content.train, T=7, B=4, key=jax.random.key(0))
    first, second = streams.batch(0), streams.batch(1)
    assert first.fresh
    assert not second.fresh
    np.testing.assert_array_equal(first.targets[:-1], first.inputs[1:])
    np.testing.assert_array_equal(second.inputs[0], first.targets[-1])


def test_an_epoch_visits_each_character_at_most_once_and_nearly_all(content):
    tokens = np.arange(1000)
    streams = text.Streams(tokens, T=7, B=4, key=jax.random.key(3))
    seen = np.concatenate([streams.batch(i).inputs.ravel() for i in range(streams.chunks)])
    assert len(set(seen)) == len(seen) == 7 * 4 * streams.chunks > 970
    assert streams.batch(streams.chunks).fresh
    later = np.concatenate([streams.batch(streams.chunks + i).inputs.ravel() for i in range(streams.chunks)])
    assert not np.array_equal(seen, later)


def test_streams_are_a_function_of_key_and_position(content):
    one, other = (text.Streams(content.train, T=7, B=4, key=jax.random.key(5)) for _ in range(2))
    for step in (3, 200, 3):
        np.testing.assert_array_equal(one.batch(step).inputs, other.batch(step).inputs)


def test_more_than_the_text_holds_is_told(content):
    with pytest.raises(ValueError, match=r"chunk x batch is 500 x 4 = 2000, but the training text has only 1584"):
        text.Streams(content.train, T=500, B=4, key=jax.random.key(0))


def test_validation_covers_all_but_the_last_characters():
    batches = list(text.validation_batches(np.arange(1003), B=4, T=100))
    seen = np.concatenate([b.inputs.ravel() for b in batches])
    assert sorted(seen) == list(range(1000))
    assert [b.fresh for b in batches] == [True, False, False]
    assert batches[-1].targets[-1, -1] == 1000


def test_the_task_is_the_text_in_nats(tmp_path):
    (tmp_path / "data.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    task = text.NextCharacter(4, chunk=7, data=str(tmp_path / "data.txt"))
    assert task.inputs == task.outputs == len(task.vocabulary)
    assert task.baselines["uniform"] == pytest.approx(np.log(len(task.vocabulary)))
    assert task.folder == "data"
    assert text.NextCharacter(4).folder == "topics"
    assert text.NextCharacter(4).published == []
    (tmp_path / "long.txt").write_text("a line\n" * 159_342)  # as many characters as tiny Shakespeare
    assert [each.figure for each in text.NextCharacter(4, data=str(tmp_path / "long.txt")).published] == [1.88, 1.4697]
    assert "1,584 characters to train on, 176 to validate" in task.describe()[1]
    np.testing.assert_array_equal(task.batch(0).inputs[1:], task.batch(0).targets[:-1])
    pieces = task.excerpt(9, 5, seed=1)
    assert pieces.inputs.shape == pieces.targets.shape == (9, 5)
    assert all("".join(task.vocabulary[t] for t in piece) in "the quick brown fox jumps over the lazy dog\n" * 2
               for piece in pieces.inputs.T)  # fmt: skip
    with pytest.raises(ValueError, match="steps must be less than the 176 characters"):
        task.excerpt(175, 5, seed=1)
