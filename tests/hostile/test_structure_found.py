"""Kinds of valid files that the fuzzers by structure found to cost too much: now in the bounds."""

import json
import random
import sys
import warnings
import zipfile

import pytest

if sys.platform != "linux":
    pytest.skip("memory is measured by Linux' /proc", allow_module_level=True)

import structure_fuzz
import structure_tensorflow as tensorflow
from hdf5_writer import Group, Strings, hdf5
from savedmodel_support import GRAPH, entry, field, masked, node, write_bundle, write_layers
from structure_configs import ROLES, SHARED, H, inspect

from fastgru import GRU, Bidirectional
from fastgru.io import from_keras, load_keras_weights, read_arrays

pytestmark = pytest.mark.alone  # they measure time and memory
LAYER = {"class_name": "GRU", "config": {"units": H}}


def cell():
    """Return the group of a cell in Keras 3's files."""
    return Group(vars=Group(**{str(i): array for i, array in enumerate(SHARED)}))


class Unwatched:
    on = False


def check(reader, path):
    """Read or refuse a file within the bounds; return the message of a refusal."""
    said = []

    def noted(path):
        try:
            return reader(path)
        except ValueError as error:
            said.append(str(error))
            raise

    size = structure_fuzz.size_of(path if path.is_dir() else path.parent)
    seconds, most = structure_fuzz.allowed_seconds(size), structure_fuzz.allowed_bytes(size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            end, took, peak = structure_fuzz.read(noted, path, Unwatched(), seconds)
        except structure_fuzz.TooLongError:
            pytest.fail(f"more than {2 * seconds:.0f} s for {size} bytes", pytrace=False)
    assert took <= seconds, f"{took:.1f} s for {size} bytes, {end}: {said}"
    assert peak <= most, f"{peak >> 20} MB for {size} bytes, {end}: {said}"
    return said[0] if said else ""


def load(path):
    load_keras_weights(GRU(H, name="gru"), path)


def layers(parts, **more):
    return {"class_name": "Functional", "config": {"name": "m", "layers": parts, **more}}


def keras(folder, config, root=None):
    """Write a deflated ``.keras`` file."""
    root = root or Group(layers=Group(gru=Group(cell=cell())))
    path = folder / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", '{"keras_version": "3.1.0"}')
        archive.writestr("model.weights.h5", hdf5(root))
    return path


def named(name, **config):
    return {"name": name, "class_name": "GRU", "config": {"name": name, "units": H, **config}}


# ---- configs -------------------------------------------------------------------------------------


def joined_masks(folder):
    """Each layer joins the masks of the two before it: texts that double."""
    parts = [
        {"name": f"e{i}", "class_name": "Embedding", "config": {"mask_zero": True}} for i in (0, 1)
    ]
    for i in range(40):
        nodes = [[[part["name"], 0, 0, {}] for part in parts[-2:]]]
        parts.append({"name": f"j{i}", "class_name": "Add", "config": {}, "inbound_nodes": nodes})
    nodes = [[[parts[-1]["name"], 0, 0, {}]]]
    return keras(folder, layers([*parts, {**named("gru"), "inbound_nodes": nodes}]))


def many_inputs(folder):
    """A list of inputs that is searched for each layer."""
    parts = [{"name": f"x{i}", "class_name": "D", "config": {}} for i in range(20_000)]
    parts.append({**named("gru"), "inbound_nodes": []})
    return keras(folder, layers(parts, input_layers=[[f"y{i}", 0, 0] for i in range(40_000)]))


def long_wrapper(folder):
    inner = {"class_name": "W" * 300_000, "config": {"a": [LAYER] * 500}}
    return keras(folder, layers([{"class_name": "V", "config": {"layer": inner}}]), wide_root())


def long_model(folder):
    inner = layers([named(f"g{i}") for i in range(500)])
    inner["config"]["name"] = "n" * 300_000
    return keras(folder, layers([inner]), wide_root())


def wide_root():
    """Weights that are large enough for 500 GRUs, by their size."""
    root = Group(layers=Group(gru=Group(cell=cell())))
    root.links["more"] = Group(**{f"n{i}": Group() for i in range(200)})
    return root


def nested_stack(folder):
    """Cells that are counted again for each layer around them."""
    cells = [{"class_name": "Own", "config": {}}] * 30_000
    inner = {"class_name": "RNN", "config": {"cell": cells}}
    for _ in range(80):
        inner = {"class_name": "Bidirectional", "config": {"layer": inner}}
    return keras(folder, layers([inner, named("gru")]))


def deflated_json(folder):
    """A member that was unpacked at twice its size."""
    path = keras(folder, layers([named("gru")]))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("again.npy", b"")
    path.unlink()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("config.json", json.dumps(layers([named("gru")])) + " " * 60_000_000)
        archive.writestr("model.weights.h5", hdf5(Group(layers=Group(gru=Group(cell=cell())))))
    return path


# ---- HDF5 ----------------------------------------------------------------------------------------


def legacy(folder, names, repeated=1):
    group = Group(**{f"{role}:0": array for role, array in zip(ROLES, SHARED, strict=True)})
    for i in range(0, len(names), 3000):
        group.attributes[f"weight_names{i // 3000}"] = Strings(names[i : i + 3000])
    root = Group(gru=group)
    for i in range(-(-repeated // 3000)):
        root.attributes[f"layer_names{i}"] = Strings(["gru"] * min(repeated, 3000))
    path = folder / "m.h5"
    path.write_bytes(hdf5(root))
    return path


def repeated_layer(folder):
    """One layer's name a thousand times: its list of names was read each time."""
    return legacy(folder, [f"a{i}/bias:0" for i in range(5000)], 3000)


def wide_strings(folder):
    """Texts that share an object of a heap, each character of which takes four bytes."""
    return legacy(folder, ["a" * 1_000_000 + "😀"] * 30)


def many_attributes(folder):
    root = Group(layers=Group(gru=Group(cell=cell())))
    for part in range(8):
        group = root.at("p" * 200 + str(part))
        group.attributes = {f"a{i}": [""] for i in range(12_000)}
    path = folder / "m.weights.h5"
    path.write_bytes(hdf5(root))
    return path


def long_group(folder):
    """A long name around many groups, whose paths have it."""
    inner = Group(**{f"n{i}": Group() for i in range(900)})
    root = Group(**{"n" * 60_000: inner, "layers": Group(gru=Group(cell=cell()))})
    path = folder / "m.weights.h5"
    path.write_bytes(hdf5(root))
    return path


def wide_variables(folder):
    """Many groups that share one list of variables, which is long."""
    one = Group(**{f"v{i}": SHARED[0] for i in range(40_000)})
    root = Group(layers=Group(gru=Group(cell=cell())))
    root.links["more"] = Group(**{f"n{i}": Group(vars=one) for i in range(6000)})
    path = folder / "m.weights.h5"
    path.write_bytes(hdf5(root))
    return path


def wide_shards(folder):
    """The same in an index of files, whose groups are joined."""
    name = wide_variables(folder).name
    (folder / f"2_{name}").write_bytes(hdf5(Group(more=Group(n0=cell()))))
    path = folder / "m.weights.json"
    path.write_text(json.dumps({"weight_map": {"a": [name, f"2_{name}"]}}))
    return path


def many_shards(folder):
    """What is in none of many files was looked for in all of them."""
    root = Group(layers=Group(gru=Group(cell=cell())))
    root.links["more"] = Group(**{f"n{i}": Group() for i in range(3000)})
    (folder / "m_0.weights.h5").write_bytes(hdf5(root))
    small = hdf5(Group())
    for i in range(1, 900):
        (folder / f"m_{i}.weights.h5").write_bytes(small)
    names = {"a": [f"m_{i}.weights.h5" for i in range(900)]}
    path = folder / "m.weights.json"
    path.write_text(json.dumps({"weight_map": names}))
    return path


# ---- TensorFlow.js -------------------------------------------------------------------------------


def tfjs(folder, configs, weights, data):
    path = folder / "model.json"
    whole = {
        "modelTopology": {"model_config": layers(configs), "keras_version": "2.4.0"},
        "weightsManifest": [{"paths": ["w.bin"], "weights": weights}],
    }
    path.write_text(json.dumps(whole))
    (folder / "w.bin").write_bytes(data)
    return path


def weights_of(place):
    names = [f"{place}/{role}" for role in ROLES]
    return [
        {"name": name, "shape": list(array.shape), "dtype": "float32"}
        for name, array in zip(names, SHARED, strict=True)
    ]


DATA = b"".join(array.tobytes() for array in SHARED)


def many_js_layers(folder):
    """Each layer's names were compared with those of all others."""
    count = 2500
    weights = [w for i in range(count) for w in weights_of(f"g{i}/gru_cell")]
    return tfjs(folder, [named(f"g{i}") for i in range(count)], weights, DATA * count)


def equal_js_layers(folder):
    """Layers that are equal, one of which has the weights: each looks at all others."""
    configs = [named("same")] * 3000
    inner = [{"name": f"m{i}", **layers([one])} for i, one in enumerate(configs)]
    for i, one in enumerate(inner):
        one["config"]["name"] = f"m{i}"
    place = "layers/functional_99/layers/gru/cell/vars"
    return tfjs(folder, inner, weights_place(place), DATA)


def weights_place(place):
    made = weights_of(place)
    for i, one in enumerate(made):
        one["name"] = f"{place}/{i}"
    return made


def deep_js_names(folder):
    """Weights whose names have a hundred groups each."""
    parts = "/".join("p" * 200)
    more = [{"name": f"w{i}/{parts}/vars/0", "shape": [0], "dtype": "bool"} for i in range(2500)]
    return tfjs(folder, [named("gru")], [*weights_place("layers/gru/cell/vars"), *more], DATA)


# ---- checkpoints and SavedModels -----------------------------------------------------------------


def checkpoint(folder, nodes, tensors, **more):
    tensors = {**tensors, GRAPH: b"".join(field(1, n) for n in nodes)}
    write_bundle(folder, tensors, **more)
    return folder / "variables" / "variables"


def many_cells(folder, count, extra=b"", wide=0, share_cell=False, **more):
    """Layers whose cells have the same variables; ``extra`` stands before a variable's value."""
    tensors = {f"k/{role}": array for role, array in zip(ROLES, SHARED, strict=True)}
    roles = {role: 1 + i for i, role in enumerate(ROLES)}
    nodes = [extra + node(variable=(f"g/{role}", f"k/{role}")) for role in ROLES]
    names = {**roles, **{f"c{i}": 1 for i in range(wide)}}
    cells = 1 if share_cell else count
    cell_at = [4 + (0 if share_cell else i) for i in range(count)]
    objects = [node(names)] * cells + [node({"cell": at}) for at in cell_at]
    root = node({f"l{i}": 4 + cells + i for i in range(count)})
    return checkpoint(folder, [root, *nodes, *objects], tensors, **more)


def shared_cell(folder):
    """One cell with many objects, which many layers have."""
    return many_cells(folder, 5000, wide=5000, share_cell=True)


def wide_variable(folder):
    """Variables that many cells have, each with many attributes before its value."""
    return many_cells(folder, 3000, extra=field(2, field(1, "other")) * 2000)


def equal_cells(folder):
    """Cells that are counted by the names of their variables, which are all the same."""
    return many_cells(folder, 20_000)


def wide_entry(folder):
    """An entry of the index with many fields, which the variables of many cells name."""
    kernel = SHARED[0]
    more = field(9, 1) * 450
    wide = entry(1, kernel.shape, 0, kernel.nbytes, masked(kernel.tobytes()), more=more)
    return many_cells(folder, 3000, entries={b"k/kernel": wide})


def long_variable_names(folder):
    """Cells that are known by names which are long, and the same."""
    tensors = {f"k/{role}": array for role, array in zip(ROLES, SHARED, strict=True)}
    place = "n" * 300_000
    nodes = [node(variable=(f"{place}/{role}", f"k/{role}")) for role in ROLES]
    cells = [node({role: 1 + i for i, role in enumerate(ROLES)})] * 600
    root = node({f"l{i}": 4 + i for i in range(600)})
    return checkpoint(folder, [root, *nodes, *cells], tensors)


def empty_blocks(folder):
    """An index of blocks without an entry, each with its checksum."""
    checkpoint(folder, [node()], {})
    path = folder / "variables" / "variables.index"
    path.write_bytes(tensorflow.table([tensorflow.block([])] * 60_000))
    return path


def many_scalars(folder):
    tensors = tensorflow.Tensors(random.Random(1))
    tensors.shards = [bytearray()]
    one = SHARED[0][0, :1].copy()
    for i in range(30_000):
        tensors.add(f"{i:05d}", one)
    tensors.write(folder, "m")
    return folder / "m"


def unused_layers(folder):
    """Layers that are described, and have no weights."""
    described = {f"l{i}": json.dumps(LAYER) for i in range(30_000)}
    write_layers(folder, SHARED, ["gru", "l0"], {"gru": json.dumps(named("gru"))})
    kind, text = field(4, "_tf_keras_layer"), field(5, json.dumps(LAYER))
    nodes = [field(1, field(3, "root.gru.cell.kernel") + kind + text)] * len(described)
    with (folder / "keras_metadata.pb").open("ab") as file:
        file.write(b"".join(nodes))
    return folder


def long_path(folder):
    """A path of names that is split into millions of them."""
    write_layers(folder, SHARED, ["gru"], {"gru": json.dumps(named("gru"))})
    kind = field(4, "_tf_keras_layer") + field(5, json.dumps(LAYER))
    with (folder / "keras_metadata.pb").open("ab") as file:
        file.write(field(1, field(3, "root" + ".ab" * 5_000_000) + kind))
    return folder


def long_parent(folder):
    """A model with a long name around many layers."""
    paths = [f"m.l{i}" for i in range(1000)]
    described = {"m": json.dumps({"class_name": "Model", "config": {"name": "n" * 400_000}})}
    for i, path in enumerate(paths):
        described[path] = json.dumps(named(f"g{i}"))
    return write_layers(folder, SHARED, paths, described)


# ---- the tests -----------------------------------------------------------------------------------

CASES = [
    (joined_masks, from_keras),
    (many_inputs, from_keras),
    (long_wrapper, from_keras),
    (long_model, from_keras),
    (nested_stack, from_keras),
    (deflated_json, from_keras),
    (repeated_layer, load),
    (wide_strings, load),
    (many_attributes, read_arrays),
    (long_group, load),
    (wide_variables, load),
    (wide_shards, load),
    (many_shards, load),
    (many_js_layers, from_keras),
    (equal_js_layers, from_keras),
    (deep_js_names, from_keras),
    (shared_cell, load),
    (wide_variable, from_keras),
    (equal_cells, from_keras),
    (wide_entry, from_keras),
    (long_variable_names, load),
    (empty_blocks, read_arrays),
    (many_scalars, read_arrays),
    (unused_layers, from_keras),
    (long_path, from_keras),
    (long_parent, from_keras),
]


@pytest.mark.parametrize(("make", "reader"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_valid_files_that_cost_too_much(make, reader, tmp_path):
    path = make(tmp_path)
    said = check(reader, path)
    assert len(said) <= structure_fuzz.LONGEST_MESSAGE


def test_recurrent_layers_nested_deeper_than_any_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at most 8 recurrent layers and cells in each other"):
        from_keras(nested_stack(tmp_path))


def test_a_long_name_does_not_widen_all_lines(tmp_path):
    layer = GRU(H, name="n" * 1000)
    layer.build((None, None, 3))
    found = [named("n" * 1000), *(named(f"g{i}") for i in range(20))]
    root = Group(layers=Group())
    for i in range(21):
        root.at("layers").links[f"gru_{i}" if i else "gru"] = Group(cell=cell())
    text = inspect(keras(tmp_path, layers(found), root))
    assert len(text) < 8000 + 21 * len(str(tmp_path))


@pytest.mark.parametrize("shape", [[0, 2**40, 2**40], [2**70, 0], [0] * 40])
def test_shapes_that_no_array_has(shape, tmp_path):
    """Without elements they need no bytes, and NumPy's own error names no place."""
    if len(shape) < 9:
        weights = [{"name": "w", "shape": shape, "dtype": "float32"}]
        path = tfjs(tmp_path, [], weights, b"")
        with pytest.raises(ValueError, match=r"model\.json: w: expected at most 32 axes"):
            read_arrays(path)
    if max(shape) < 2**64:
        write_bundle(tmp_path, {"w": SHARED[0]}, entries={b"e": entry(1, shape, 0, 0, 0)})
        with pytest.raises(ValueError, match=r"variables\.index: e: expected at most"):
            read_arrays(tmp_path / "variables" / "variables")


def test_a_layer_of_other_cells_is_told(tmp_path):
    """The error was zip's own."""
    path = tfjs(tmp_path, [named("gru")], weights_place("layers/gru/cell/vars"), DATA)
    with pytest.raises(ValueError, match=r"weights of|weights at|expected"):
        load_keras_weights(Bidirectional(GRU(H), name="gru"), path)
