"""The examples of Keras' own pages, with `fastgru` in the place of `keras.layers`: same numbers."""

import doctest
from types import SimpleNamespace

import numpy as np
import pytest

import fastgru

# https://keras.io/api/layers/recurrent_layers/gru/ and .../gru_cell/, and
# https://www.tensorflow.org/versions/r2.4/api_docs/python/tf/keras/layers/GRU; of each the last
# layer's name.
PAGES = {
    "GRU of Keras 3": (
        """
        >>> inputs = np.random.random((32, 10, 8))
        >>> gru = keras.layers.GRU(4)
        >>> output = gru(inputs)
        >>> output.shape
        (32, 4)
        >>> gru = keras.layers.GRU(4, return_sequences=True, return_state=True)
        >>> whole_sequence_output, final_state = gru(inputs)
        >>> whole_sequence_output.shape
        (32, 10, 4)
        >>> final_state.shape
        (32, 4)
        """,
        "gru",
    ),
    "GRUCell of Keras 3": (
        """
        >>> inputs = np.random.random((32, 10, 8))
        >>> rnn = keras.layers.RNN(keras.layers.GRUCell(4))
        >>> output = rnn(inputs)
        >>> output.shape
        (32, 4)
        >>> rnn = keras.layers.RNN(
        ...    keras.layers.GRUCell(4),
        ...    return_sequences=True,
        ...    return_state=True)
        >>> whole_sequence_output, final_state = rnn(inputs)
        >>> whole_sequence_output.shape
        (32, 10, 4)
        >>> final_state.shape
        (32, 4)
        """,
        "rnn",
    ),
    "GRU of TensorFlow 2.4": (
        """
        >>> inputs = tf.random.normal([32, 10, 8])
        >>> gru = tf.keras.layers.GRU(4)
        >>> output = gru(inputs)
        >>> print(output.shape)
        (32, 4)
        >>> gru = tf.keras.layers.GRU(4, return_sequences=True, return_state=True)
        >>> whole_sequence_output, final_state = gru(inputs)
        >>> print(whole_sequence_output.shape)
        (32, 10, 4)
        >>> print(final_state.shape)
        (32, 4)
        """,
        "gru",
    ),
}


def normal(shape):
    return np.random.default_rng(3).normal(size=shape).astype("float32")


def run(text, layers, page):
    """Run a page's example, which must print what the page says; return its names."""
    package = SimpleNamespace(layers=layers)
    tf = SimpleNamespace(keras=package, random=SimpleNamespace(normal=normal))
    names = {"np": np, "keras": package, "tf": tf}
    example = doctest.DocTestParser().get_doctest(text, names, page, page, 0)
    assert len(example.examples) >= 8
    said = []
    doctest.DocTestRunner().run(example, out=said.append, clear_globs=False)
    assert not said, "".join(said)
    return example.globs


@pytest.mark.parametrize("page", PAGES)
def test_an_example_gives_the_numbers_of_keras(page):
    keras = pytest.importorskip("keras", reason="it says what the numbers are")
    text, name = PAGES[page]
    ours, theirs = run(text, fastgru, page), run(text, keras.layers, page)
    theirs[name].set_weights(ours[name].get_weights())
    expected = theirs[name](ours["inputs"])
    for mine, other in zip(
        (ours["whole_sequence_output"], ours["final_state"]), expected, strict=True
    ):
        assert mine.dtype == "float32"
        np.testing.assert_allclose(mine, np.asarray(other), atol=1e-6)
