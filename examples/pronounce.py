"""Print the pronunciation of English words, with a trained encoder-decoder GRU on NumPy arrays.

The weights are those of the package g2p-en 2.1.0 (Apache-2.0, Kyubyong Park and Jongseok Kim), in
PyTorch's layout. This program reads only its checkpoint file. It does not import the package,
because importing it downloads corpora.

    pip install --no-deps g2p-en==2.1.0
    python examples/pronounce.py activationist
"""

from __future__ import annotations

import argparse
import string
import sys
import time
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np

from fastgru import io

# The checkpoint's numbers of letters and sounds, in order. Letters: padding, unknown, end, a to z.
# Sounds: padding, unknown, start, end, then ARPAbet in alphabetical order, vowels with their stress
# (0 none, 1 primary, 2 secondary), and one UW without stress.
LETTER = {letter: i for i, letter in enumerate(string.ascii_lowercase, start=3)}
UNKNOWN, END_OF_WORD = 1, 2
START, END_OF_SOUNDS = 2, 3
VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
PLAIN = "B CH D DH F G HH JH K L M N NG P R S SH T TH UW V W Y Z ZH"
STRESSED = [vowel + stress for vowel in VOWELS.split() for stress in "012"]
SOUNDS = ["<pad>", "<unk>", "<s>", "</s>", *sorted([*PLAIN.split(), *STRESSED])]
TORCH_NAMES = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
LONGEST = 20  # sounds, the limit of g2p-en too; the network may never give the end


class Pronouncer:
    """The encoder reads letters into a state, the decoder turns the state into sounds.

    Parameters
    ----------
    checkpoint : mapping of str to ndarray
        ``enc_`` and ``dec_`` + ``emb, w_ih, w_hh, b_ih, b_hh`` as ``torch.nn.GRU`` holds them, and
        the output layer ``fc_w, fc_b``; float32.
    """

    def __init__(self, checkpoint):
        self.letters, self.sounds = checkpoint["enc_emb"], checkpoint["dec_emb"]
        self.output_kernel, self.output_bias = checkpoint["fc_w"].T, checkpoint["fc_b"]
        weights = {
            f"{part}.{torch_name}_l0": checkpoint[f"{part}_{name}"]
            for part in ("enc", "dec")
            for name, torch_name in TORCH_NAMES.items()
        }
        self.encoder = io.from_torch(weights, "enc", return_sequences=False, return_state=False)
        self.decoder = io.from_torch(weights, "dec").cell

    def spell(self, words):
        """Return letter vectors (B, T, I), rows padded at the end, and the lengths (B,)."""
        rows = [[LETTER.get(c, UNKNOWN) for c in word.lower()] + [END_OF_WORD] for word in words]
        lengths = np.array([len(row) for row in rows])
        numbers = np.zeros((len(rows), lengths.max()), dtype=int)
        for padded, row in zip(numbers, rows, strict=True):
            padded[: len(row)] = row
        return self.letters[numbers], lengths

    def __call__(self, words):
        """Return a list of sounds for each word; one that ends in "..." was cut at `LONGEST`."""
        x, lengths = self.spell(words)
        state = self.encoder(x, lengths=lengths)
        said = np.full((len(words), LONGEST), UNKNOWN)
        sound = np.full(len(words), START)
        for step in range(LONGEST):
            state, _ = self.decoder(self.sounds[sound], [state])
            sound = (state @ self.output_kernel + self.output_bias).argmax(axis=1)
            said[:, step] = sound
            if (said == END_OF_SOUNDS).any(axis=1).all():
                break
        return [self._read(row) for row in said]

    @staticmethod
    def _read(row):
        ends = np.flatnonzero(row == END_OF_SOUNDS)
        if ends.size:
            return [SOUNDS[i] for i in row[: ends[0]]]
        return [SOUNDS[i] for i in row] + ["..."]


def load_checkpoint():
    """Read the arrays out of the installed g2p-en, without importing it."""
    try:
        path = distribution("g2p-en").locate_file("g2p_en/checkpoint20.npz")
    except PackageNotFoundError:
        sys.exit(
            "The trained weights are in the package g2p-en, which is not installed. Install it:\n"
            f"    {sys.executable} -m pip install --no-deps g2p-en==2.1.0"
        )
    with np.load(path) as checkpoint:
        return dict(checkpoint)


def main():
    """Pronounce the words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="+", metavar="WORD", help="an English word, letters a to z")
    words = parser.parse_args().words

    pronouncer = Pronouncer(load_checkpoint())
    x, lengths = pronouncer.spell(words)
    backend = pronouncer.encoder.explain(x, lengths=lengths).backend  # loads it before the timing
    start = time.perf_counter()
    answers = pronouncer(words)
    took = time.perf_counter() - start

    for word, sounds in zip(words, answers, strict=True):
        print(f"{word}: " if len(words) > 1 else "", " ".join(sounds), sep="")
    count = "1 word" if len(words) == 1 else f"{len(words)} words in one batch"
    print(f"{count}, {1e3 * took:.1f} ms, encoder on the {backend} backend")


if __name__ == "__main__":
    main()
