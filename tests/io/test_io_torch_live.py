"""from_torch and to_torch against PyTorch itself, where it is installed."""

import numpy as np
import pytest

import fastgru
from fastgru import io

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install torch")

B, T, I, H = 3, 7, 5, 4
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def module(cls=torch.nn.GRU, *arguments, dtype=torch.float32, **options):
    torch.manual_seed(1)
    made = cls(*(arguments or (I, H)), **options).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.6)
    return made


def check(layer, gru, dtype=torch.float32):
    """Compare outputs and the last layer's states with torch's."""
    x = torch.randn(B, T, I, dtype=dtype)
    with torch.no_grad():
        y, h = gru.to(dtype)(x)
    got, *states = layer(x.numpy())
    assert got.dtype == y.numpy().dtype
    np.testing.assert_allclose(got, y, rtol=0, atol=TOLERANCE[dtype])
    assert len(states) == 1 + gru.bidirectional
    np.testing.assert_allclose(states, h[-len(states) :], rtol=0, atol=TOLERANCE[dtype])


def sources(gru, folder):
    """The same weights in every form that from_torch reads."""
    torch.save(gru.state_dict(), folder / "gru.pt")
    yield "pt", folder / "gru.pt"
    safetensors = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    safetensors.save_file(gru.state_dict(), folder / "gru.safetensors")
    yield "safetensors", str(folder / "gru.safetensors")
    yield "state dict", gru.state_dict()
    yield "parameters", dict(gru.named_parameters())
    yield "module", gru
    if next(gru.parameters()).dtype != torch.bfloat16:
        yield "arrays", {key: w.numpy() for key, w in gru.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_states_are_torchs(tmp_path, dtype, layers, bidirectional, bias):
    gru = module(
        num_layers=layers, bidirectional=bidirectional, bias=bias, batch_first=True, dtype=dtype
    )
    read = {name: io.from_torch(source) for name, source in sources(gru, tmp_path)}
    assert len(read) >= 5
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    for layer in read.values():
        check(layer, gru, computed)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_loads_what_to_torch_gives(layers, bidirectional, bias, dtype):
    made = []
    for k in range(layers):
        options = {"return_sequences": True, "return_state": k == layers - 1, "use_bias": bias}
        layer = fastgru.GRU(H, dtype=dtype, bias_initializer="random_normal", **options)
        made.append(fastgru.Bidirectional(layer) if bidirectional else layer)
    layer = fastgru.Sequential(made)
    layer.build((None, None, I))
    gru = torch.nn.GRU(
        I,
        H,
        layers,
        bias=bias,
        bidirectional=bidirectional,
        batch_first=True,
        dtype=getattr(torch, dtype),
    )
    weights = {key: torch.from_numpy(w) for key, w in io.to_torch(layer).items()}
    gru.load_state_dict(weights, strict=True)
    check(layer, gru, getattr(torch, dtype))


def test_a_cell_both_ways():
    cell = module(torch.nn.GRUCell)
    ours = io.from_torch(cell).cell
    x, h = torch.randn(B, I), torch.randn(B, H)
    with torch.no_grad():
        expected = cell(x, h)
    np.testing.assert_allclose(ours(x.numpy(), h.numpy())[0], expected, rtol=0, atol=1e-6)
    other = torch.nn.GRUCell(I, H)
    other.load_state_dict({key: torch.from_numpy(w) for key, w in io.to_torch(ours).items()})
    with torch.no_grad():
        assert torch.equal(other(x, h), expected)


def test_initial_states_are_torchs():
    gru = module(bidirectional=True, batch_first=True)
    x, h0 = torch.randn(B, T, I), torch.randn(2, B, H)
    with torch.no_grad():
        y, h = gru(x, h0)
    got, *states = io.from_torch(gru)(x.numpy(), initial_state=list(h0.numpy()))
    np.testing.assert_allclose(got, y, rtol=0, atol=1e-5)
    np.testing.assert_allclose(states, h, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", [torch.nn.LSTM, torch.nn.RNN, torch.nn.LSTMCell, torch.nn.RNNCell])
def test_other_recurrent_modules_are_refused(cls):
    with pytest.raises(ValueError, match=r"LSTM|RNN"):
        io.from_torch(module(cls))


def test_a_gru_deep_in_a_model(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, I), torch.nn.ModuleDict({"g": module()}))
    torch.save({"model": model.state_dict(), "epoch": 2}, tmp_path / "checkpoint.pt")
    model[1]["g"].batch_first = True
    for source in (model, tmp_path / "checkpoint.pt"):
        check(io.from_torch(source), model[1]["g"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle(tmp_path, protocol):
    gru = module(batch_first=True)
    torch.save(gru.state_dict(), tmp_path / "gru.pt", pickle_protocol=protocol)
    check(io.from_torch(tmp_path / "gru.pt"), gru)


def test_views_of_storages(tmp_path):
    """Tensors that begin inside a storage, transposed, and several in one."""
    gru = module(batch_first=True)
    weights = dict(gru.state_dict())
    both = torch.cat([torch.zeros(3), weights["bias_ih_l0"], weights["bias_hh_l0"]])
    weights["bias_ih_l0"], weights["bias_hh_l0"] = both[3 : 3 + 3 * H], both[3 + 3 * H :]
    weights["weight_ih_l0"] = weights["weight_ih_l0"].t().contiguous().t()
    wide = torch.randn(6 * H, 2 * H)
    wide[::2, 1::2] = weights["weight_hh_l0"]
    weights["weight_hh_l0"] = wide[::2, 1::2]
    torch.save(weights, tmp_path / "views.pt")
    check(io.from_torch(tmp_path / "views.pt"), gru)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_take_the_place_of_packing(layers, bidirectional):
    """Steps beyond a sequence's end are zeros, as pad_packed_sequence gives them."""
    gru = module(num_layers=layers, bidirectional=bidirectional, batch_first=True)
    x, lengths = torch.randn(B, T, I), torch.tensor([4, 7, 1])
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x, lengths, batch_first=True, enforce_sorted=False
    )
    with torch.no_grad():
        y, h = gru(packed)
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
    got, *states = io.from_torch(gru)(x.numpy(), lengths=lengths.numpy())
    np.testing.assert_allclose(got, y, rtol=0, atol=TOLERANCE[torch.float32])
    np.testing.assert_allclose(states, h[-len(states) :], rtol=0, atol=TOLERANCE[torch.float32])
    # The last output alone is that of the last valid step, not a zero.
    layer = io.from_torch(gru, return_sequences=False, return_state=False)
    last = torch.cat(list(h[-len(states) :]), dim=-1)
    np.testing.assert_allclose(
        layer(x.numpy(), lengths=lengths.numpy()), last, rtol=0, atol=TOLERANCE[torch.float32]
    )
