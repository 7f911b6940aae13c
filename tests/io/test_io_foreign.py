"""fastgru.load of a file of another program names the reader for it."""

import pytest

import fastgru

pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")


@pytest.mark.parametrize(
    ("name", "data", "reader"),
    [
        ("a.pt", b"PK\3\4" + bytes(20), r"fastgru\.io\.from_torch"),
        ("a.keras", b"PK\3\4" + bytes(20), r"fastgru\.io\.from_keras"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(20), r"fastgru\.io\.from_keras"),
        ("old.pt", b"\x80\2\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", r"fastgru\.io\.from_torch"),
        ("a.onnx", b"\x08\x0a" + bytes(20), r"fastgru\.io\.from_onnx"),
        ("a.index.json", b'{"weight_map": {}}', r"fastgru\.io\.from_torch"),
        ("a.npy", b"\x93NUMPY" + bytes(20), r"fastgru\.io\.read_arrays"),
    ],
)
def test_files_of_other_programs_name_their_reader(tmp_path, name, data, reader):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=reader) as raised:
        fastgru.load(tmp_path / name)
    assert "expected a .safetensors file of fastgru.save" in str(raised.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="SavedModels"):
        fastgru.load(tmp_path / "folder")
