"""The code in README.md and docstrings; examples/pronounce.py on small and on the real weights."""

import doctest
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest

import fastgru

SCRIPT = Path(__file__).parents[2] / "examples" / "pronounce.py"
LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
WORDS = ["gru", "Activationist", "x", "it's"]


@pytest.fixture(scope="module")
def pronounce():
    spec = importlib.util.spec_from_file_location("pronounce", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def torch_step(checkpoint, part, x, h):
    """One step of torch.nn.GRU, one row, gates r, z, n."""
    w_ih, w_hh, b_ih, b_hh = (checkpoint[f"{part}_{k}"] for k in ("w_ih", "w_hh", "b_ih", "b_hh"))
    ir, iz, i_n = np.split(w_ih @ x + b_ih, 3)
    hr, hz, hn = np.split(w_hh @ h + b_hh, 3)
    z = sigmoid(iz + hz)
    return (1 - z) * np.tanh(i_n + sigmoid(ir + hr) * hn) + z * h


def by_hand(checkpoint, word):
    """Numbers of the sounds of one word, and the smallest lead of a chosen sound over the next."""
    h = np.zeros(checkpoint["fc_w"].shape[1], np.float32)
    for letter in [*word.lower(), "</s>"]:
        number = LETTERS.index(letter) if letter in LETTERS else 1
        h = torch_step(checkpoint, "enc", checkpoint["enc_emb"][number], h)
    sound, said, lead = 2, [], np.inf
    for _ in range(20):
        h = torch_step(checkpoint, "dec", checkpoint["dec_emb"][sound], h)
        scores = checkpoint["fc_w"] @ h + checkpoint["fc_b"]
        second, first = np.sort(scores)[-2:]
        lead = min(lead, first - second)
        sound = scores.argmax()
        if sound == 3:
            break
        said.append(sound)
    return said, lead


@pytest.fixture(scope="module")
def checkpoint():
    """Small weights in the real layout, drawn so that words differ in sounds and in length."""
    rng = np.random.default_rng(7)
    shapes = {"fc_w": (74, 7), "fc_b": (74,)}
    for part, vocabulary, width in (("enc", 29, 5), ("dec", 74, 6)):
        shapes[f"{part}_emb"] = (vocabulary, width)
        shapes[f"{part}_w_ih"], shapes[f"{part}_w_hh"] = (21, width), (21, 7)
        shapes[f"{part}_b_ih"] = shapes[f"{part}_b_hh"] = (21,)
    drawn = {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
    drawn["fc_b"][3] += 2  # else hardly any word would end
    return drawn


def test_a_batch_of_words_is_what_pytorchs_formula_says(pronounce, checkpoint):
    expected = []
    for word in WORDS:
        said, lead = by_hand(checkpoint, word)
        assert lead > 1e-3, "a choice this close proves nothing: draw other weights"
        expected.append([pronounce.SOUNDS[i] for i in said] + ["..."] * (len(said) == 20))
    assert len({tuple(sounds) for sounds in expected}) == len(WORDS)
    assert len({len(sounds) for sounds in expected}) > 1
    pronouncer = pronounce.Pronouncer(checkpoint)
    assert pronouncer(WORDS) == expected
    assert [pronouncer([word])[0] for word in WORDS] == expected


def run(*words, path=None):
    """Run the script with the fastgru under test and, in front of it, the folder `path`."""
    places = [path, Path(fastgru.__file__).parents[1], os.environ.get("PYTHONPATH")]
    return subprocess.run(
        [sys.executable, SCRIPT, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(p) for p in places if p)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_g2p_en_it_says_how_to_get_it(pronounce, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(pronounce, "distribution", absent)
    command = f"{sys.executable} -m pip install --no-deps g2p-en==2.1.0"
    with pytest.raises(SystemExit, match="not installed") as stopped:
        pronounce.load_checkpoint()
    assert stopped.value.code.endswith(command)


def test_as_a_script_on_an_installed_checkpoint(tmp_path, checkpoint, pronounce):
    """A folder that looks like an installed g2p-en; importing it would fail."""
    package = tmp_path / "g2p_en"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('never import g2p_en')")
    np.savez(package / "checkpoint20.npz", **checkpoint)
    info = tmp_path / "g2p_en-2.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: g2p-en\nVersion: 2.1.0\n")

    done = run(*WORDS, path=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = pronounce.Pronouncer(checkpoint)(WORDS)
    lines = [f"{word}: {' '.join(sounds)}" for word, sounds in zip(WORDS, answers, strict=True)]
    *said, remark = done.stdout.splitlines()
    assert said == lines
    assert re.fullmatch(r"4 words in one batch, [\d.]+ ms, encoder on the \w+ backend", remark)


def test_help():
    done = run("--help")
    assert done.returncode == 0
    assert "WORD" in done.stdout


def g2p_en_version():
    try:
        return version("g2p-en")
    except PackageNotFoundError:
        return None


@pytest.mark.skipif(
    g2p_en_version() != "2.1.0",
    reason="the trained weights: pip install --no-deps g2p-en==2.1.0 (README command one)",
)
def test_the_trained_network_says_activationist():
    done = run("activationist")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "AE2 K T IH0 V EY1 SH AH0 N IH0 S T"


def test_the_code_in_the_readme_runs():
    readme = (SCRIPT.parents[1] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- code: runs as a test -->\n```python\n(.*?)```", readme, re.DOTALL)[1]
    names = {}
    exec(code, names)
    assert names["y"].shape == (4, 32)
    assert len(names["grads"].weights) == 6


def modules_with_examples():
    package = Path(fastgru.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if ">>>" in path.read_text(encoding="utf-8"):
            yield ".".join(path.relative_to(package.parent).with_suffix("").parts)


# What stands there needs another's model, or engine.
EXPLAINED = ("fastgru.gates", "fastgru.distributed.spark")


@pytest.mark.parametrize("module", [*modules_with_examples()])
def test_the_examples_in_docstrings_run(module):
    if module == "fastgru.distributed.dask":
        pytest.importorskip("dask", reason="needs dask")
    result = doctest.testmod(importlib.import_module(module))
    assert not result.failed, "see what doctest printed"
    assert result.attempted or module.startswith("fastgru.io.") or module in EXPLAINED
