"""Weight files as they lie about: every container and dtype, cut, mistaken, hostile or of another kind."""

import gzip
import json
import pickle
import struct
import sys
import threading
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from nepa_jax.base.errors import UserError
from nepa_jax.config import to_json
from nepa_jax.formats import files
from nepa_jax.formats.reading import read_model
from nepa_jax.formats.sources import open_source
from nepa_jax.formats.tables import FORMATS
from nepa_jax.loading import load

OWN = "nepa_jax.model_config"
HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


@pytest.fixture(scope="module")
def arrays(kit):
    """A MAE under the official names."""
    return kit.export_arrays(kit.make_model(kit.make_config("mae")), FORMATS["mae"])


@pytest.fixture(scope="module")
def header(kit):
    """What our own export says of itself, as far as reading goes."""
    return {"nepa_jax.format": "mae", OWN: to_json(kit.make_config("mae"))}


def read(path, name="mae"):
    """All parameters of a file, by our names."""
    source = open_source(str(path), name)
    model, report = read_model(source)
    assert report.complete
    model = jax.tree.map(np.asarray, model)
    return np.asarray(model.vit.cls_token[...]), np.asarray(model.vit.blocks.attn.qkv.kernel[...])


def refused(path, *words, name="mae"):
    """One line that has all the words and names the file."""
    with pytest.raises(UserError) as caught:
        read_model(open_source(str(path), name))
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    for word in words:
        assert word in text, text
    return text


def safetensors_of(path, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


# Every container holds every float


def write_npz(path, arrays):
    np.savez(path, **arrays)  # which saves bfloat16 as void


def write_compressed(path, arrays):
    np.savez_compressed(path, **arrays)


def write_pth(path, arrays):
    torch = pytest.importorskip("torch")
    torch.save({"model": tensors(torch, arrays)}, path)


def write_old_pth(path, arrays):
    torch = pytest.importorskip("torch")
    torch.save(tensors(torch, arrays), path, _use_new_zipfile_serialization=False)


def tensors(torch, arrays):
    """bfloat16 goes by way of float32, which holds it exactly."""
    return {
        name: torch.from_numpy(np.asarray(a, np.float32)).to(getattr(torch, str(a.dtype)))
        for name, a in arrays.items()
    }


WRITERS = {
    "w.safetensors": lambda path, arrays: save_file(arrays, path),
    "w.npz": write_npz, "packed.npz": write_compressed,
    "w.pth": write_pth, "old.pt": write_old_pth, "pytorch_model.bin": write_pth,
}  # fmt: skip


@pytest.mark.trial
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("file", WRITERS)
def test_a_container_of_another_float(arrays, tmp_path, file, dtype):
    stored = {name: array.astype(HALVES[dtype]) for name, array in arrays.items()}
    WRITERS[file](tmp_path / file, stored)
    token, _ = read(tmp_path / file)
    assert token.dtype == np.float32
    np.testing.assert_array_equal(token, stored["cls_token"].reshape(-1).astype(np.float32))


@pytest.mark.trial
def test_a_pth_where_pytorch_is_not_installed_is_one_line(arrays, tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(tmp_path / "w.pth", "reading .pth files needs PyTorch; pip install torch")


@pytest.mark.trial
def test_arrays_in_the_order_of_fortran(arrays, tmp_path):
    np.savez(tmp_path / "w.npz", **{k: np.asfortranarray(v) for k, v in arrays.items()})
    save_file(arrays, tmp_path / "w.safetensors")
    for ours, theirs in zip(
        read(tmp_path / "w.npz"), read(tmp_path / "w.safetensors"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.trial
@pytest.mark.parametrize(
    ("dtype", "size", "name"),
    [("F8_E4M3", 1, "F8_E4M3"), ("F8_E5M2", 1, "F8_E5M2"), ("I8", 1, "I8"), ("BOOL", 1, "BOOL"),
     ("I64", 8, "I64"), ("U16", 2, "U16")],
)  # fmt: skip
def test_a_dtype_that_is_no_weights_is_named(arrays, tmp_path, dtype, size, name):
    save_file(arrays, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    end = 0
    for info in header.values():
        count = int(np.prod(info["shape"])) * size
        info["dtype"], info["data_offsets"], end = dtype, [end, end + count], end + count
    safetensors_of(tmp_path / "w.safetensors", header, bytes(end))
    refused(tmp_path / "w.safetensors", f"are of dtype {name}, and weights must be float64")


@pytest.mark.trial
@pytest.mark.parametrize("kind", [np.bool_, np.int16, np.int64])
def test_a_buffer_of_another_dtype_is_only_unexpected(arrays, tmp_path, kind):
    save_file(arrays | {"attn_mask": np.zeros(4, kind)}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", "unexpected attn_mask")
    _, report = read_model(open_source(str(tmp_path / "w.safetensors"), "mae"), allow_partial=True)
    assert report.unexpected == ["attn_mask"]


# Damage


@pytest.mark.trial
@pytest.mark.parametrize(
    "change",
    [
        lambda d: b"",
        lambda d: b"abc",
        lambda d: d[:100],
        lambda d: d[:-50],
        lambda d: d + b"more",
        lambda d: bytes(len(d)),
        lambda d: struct.pack("<Q", 2**63) + d[8:],
        lambda d: b"<!DOCTYPE html><html>not found</html>" * 9,
        lambda d: gzip.compress(d),
        lambda d: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    ],
)
@pytest.mark.parametrize("file", ["w.safetensors", "w.npz", "w.pth", "pytorch_model.bin"])
def test_a_damaged_file_is_one_line(arrays, tmp_path, capfd, file, change):
    WRITERS[file](tmp_path / file, arrays)
    sound, path = (tmp_path / file).read_bytes(), tmp_path / file
    path.write_bytes(change(sound))
    if change(sound) == sound + b"more" and file != "w.safetensors":
        return  # zip files may be followed by anything
    refused(path)
    assert capfd.readouterr().err == ""  # no library's own warnings


def offsets(start, end, shape=(4,)):
    return {"a": {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}}


@pytest.mark.trial
@pytest.mark.parametrize(
    "header",
    [
        offsets(-16, 0), offsets(16, 0), offsets(0, 10**18), offsets(0, 16, (-4,)),
        offsets(0, 16, (2**40, 2**40)), offsets(4, 20), offsets(0.5, 16), offsets("0", 16),
        offsets(0, 16) | {"b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}},
        {"a": 1}, {"a": []}, [1], 5, "x", None, {"a": {"dtype": "F32"}},
        {"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}},
        {"__metadata__": 5, **offsets(0, 16)}, {"__metadata__": {"a": 1}, **offsets(0, 16)},
        b"[" * 100_000, b"\xff\xfe", b'{"a": NaN}', b"",
    ],
)  # fmt: skip
def test_a_header_that_is_wrong_is_one_line(tmp_path, header):
    safetensors_of(tmp_path / "w.safetensors", header, bytes(16))
    refused(tmp_path / "w.safetensors", "is no safetensors file, or it is damaged")


@pytest.mark.trial
def test_objects_in_an_npz_are_never_unpickled(arrays, tmp_path):
    changed = arrays | {"cls_token": np.array([print], object)}
    np.savez(tmp_path / "w.npz", **changed)
    refused(tmp_path / "w.npz", "cls_token")


@pytest.mark.trial
@pytest.mark.parametrize(
    "text", [b"x" * 20, b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\xff\x00" + b"(" * 255]
)
def test_a_member_that_is_no_array_is_one_line(tmp_path, text):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("cls_token.npy", text)
    refused(tmp_path / "w.npz", "is no .npz file, or it is damaged")


@pytest.mark.trial
def test_a_flipped_byte_in_an_npz_is_one_line(arrays, tmp_path):
    np.savez(tmp_path / "w.npz", **arrays)
    data = bytearray((tmp_path / "w.npz").read_bytes())
    place = bytes(data).find(arrays["norm.bias"].tobytes())
    data[place] ^= 1
    (tmp_path / "w.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"damaged .*norm\.bias\.npy"):
        np.asarray(open_source(str(tmp_path / "w.npz"), "mae").arrays["norm.bias"])


@pytest.mark.trial
def test_an_npz_is_read_by_threads_at_once(arrays, tmp_path):
    """NumPy's parser of headers, of Python 3.11, breaks when two threads are in it."""
    np.savez(tmp_path / "w.npz", **arrays)
    stored = files.read_npz(tmp_path / "w.npz").arrays
    interval, failures = sys.getswitchinterval(), []
    parse = np.lib.format.read_array_header_1_0

    def work():
        try:
            for array in stored.values():
                np.asarray(array)
        except Exception as error:
            failures.append(error)

    def never(*_, **__):
        raise AssertionError("a header is parsed in a thread")

    sys.setswitchinterval(1e-6)
    np.lib.format.read_array_header_1_0 = never
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
    finally:
        sys.setswitchinterval(interval)
        np.lib.format.read_array_header_1_0 = parse
    assert not failures


class Malicious:
    def __reduce__(self):
        return print, ("the pickle ran",)


@pytest.mark.trial
@pytest.mark.parametrize("file", ["w.pth", "pytorch_model.bin", "w.ckpt"])
def test_code_in_a_pickle_never_runs(tmp_path, capfd, file):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": Malicious()}, tmp_path / file)
    refused(tmp_path / file, "could run code")
    (tmp_path / file).write_bytes(pickle.dumps(Malicious()))
    refused(tmp_path / file)
    out, err = capfd.readouterr()
    assert "the pickle ran" not in out and err == ""


@pytest.mark.trial
@pytest.mark.parametrize("value", [5, "text", None, [1, 2], {}, {"model": {}}, {"epoch": 3}])
def test_a_pth_without_tensors_is_one_line(tmp_path, value):
    torch = pytest.importorskip("torch")
    torch.save(value, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "holds no named tensors")


@pytest.mark.trial
def test_tensors_of_every_kind_in_a_pth(arrays, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.nn.Parameter(torch.from_numpy(a)) for name, a in arrays.items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "w.pth")
    np.testing.assert_array_equal(read(tmp_path / "w.pth")[0], arrays["cls_token"].reshape(-1))
    bias = torch.from_numpy(arrays["norm.bias"])
    for other in (bias.to_sparse(), bias.to(torch.int8), bias.to(torch.complex64)):
        torch.save({"model": state | {"norm.bias": other}}, tmp_path / "other.pth")
        refused(tmp_path / "other.pth", "norm.bias, are of dtype")


# Folders and parts


@pytest.mark.trial
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "is not JSON"), ("[1]", "holds a JSON list"), ("[" * 100_000, "nested too deep"),
        ("{}", "weight_map"), ('{"weight_map": 5}', "weight_map = 5"),
        ('{"weight_map": {"a": 5}}', "a = 5"), ('{"weight_map": {"a": "../../etc/x"}}', "a = "),
        ('{"weight_map": {"a": "no.safetensors"}}', "not there; get all parts"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "name of a weight file"),
        ('{"weight_map": {"a": ""}}', "a = "),
    ],
)  # fmt: skip
def test_an_index_that_is_wrong_is_one_line(tmp_path, text, word):
    (tmp_path / files.INDEX).write_text(text)
    refused(tmp_path / files.INDEX, word)


@pytest.mark.trial
def test_parts_of_bin_files(arrays, tmp_path):
    torch = pytest.importorskip("torch")
    names, weight_map = sorted(arrays), {}
    for i, part in enumerate((names[:10], names[10:])):
        file = f"pytorch_model-{i + 1:05}-of-00002.bin"
        torch.save({name: torch.from_numpy(arrays[name]) for name in part}, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(read(tmp_path)[0], arrays["cls_token"].reshape(-1))


@pytest.mark.trial
def test_a_folder_of_several_files_asks_which(arrays, tmp_path):
    (tmp_path / "d").mkdir()
    save_file(arrays, tmp_path / "d" / "a.safetensors")
    read(tmp_path / "d")
    save_file(arrays, tmp_path / "d" / "b.safetensors")
    with pytest.raises(
        UserError, match=r"holds 2 weight files: a.safetensors, b.safetensors; give"
    ):
        read(tmp_path / "d")
    save_file(arrays, tmp_path / "d" / files.SAFETENSORS)
    read(tmp_path / "d")


@pytest.mark.trial
@pytest.mark.parametrize("name", ["w.h5", "w.msgpack", "w", "w.onnx", "w.npy", "w.zip"])
def test_a_file_of_another_kind_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    refused(tmp_path / name, "weights come as .safetensors, .npz or .pth")


# Configs out of headers


def with_config(header, change):
    config = json.loads(header[OWN])
    changed = change(config)
    return header | {OWN: json.dumps(config if changed is None else changed)}


def put(key, value):
    section, _, name = key.partition(".")

    def change(config):
        if name:
            config[section][name] = value
        else:
            config[section] = value

    return change


@pytest.mark.trial
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.mlp", "evil", ["model.mlp = evil", "not a choice"]),
        ("model.norm_eps", 1e400, ["model.norm_eps = inf"]),
        ("model.norm_eps", "1e400", ["model.norm_eps = 1e400", "wrong type"]),
        ("model.embed_dim", 10**9, ["model.embed_dim"]),
        ("model.embed_dim", 60_000, ["model.embed_dim"]),
        ("model.embed_dim", "x", ["model.embed_dim = x"]),
        ("model.embed_dim", None, ["model.embed_dim"]),
        ("model.image_size", 10**6, ["model.image_size"]),
        ("model.image_size", [4, 4, 4], ["model.image_size"]),
        ("model.patch_size", 0, ["model.patch_size = 0"]),
        ("model.depth", 10**6, ["model.depth"]), ("model.depth", 900, ["model.depth = 900"]),
        ("model.depth", -1, ["model.depth = -1"]), ("model.num_heads", 0, ["model.num_heads"]),
        ("model.pixel_std", ["a", "b", "c"], ["model.pixel_std"]),
        ("model.surprise", 1, ["model.surprise"]), ("model", 5, ["model"]),
        ("data", None, ["data = None"]), ("run", [], ["run"]), ("objective", 5, ["objective"]),
        ("objective.name", "evil_weights", ["evil_weights"]),
        ("objective.name", "", ["objective.name"]), ("objective.name", "..x", ["objective.name"]),
        ("objective.name", 5, ["objective.name"]), ("objective.name", None, ["objective.name"]),
        ("objective.name", "nepa_jax.objectives.nepa", ["include_cls"]),
        ("objective.name", "nepa_jax.cli", ["nepa_jax.cli"]),
        ("objective.decoder_depth", 10**6, ["objective.decoder_depth"]),
        ("objective.decoder_depth", 700, ["objective.decoder_depth"]),
        ("objective.decoder_embed_dim", "x", ["objective.decoder_embed_dim"]),
        ("objective.mask_ratio", 2, ["objective.mask_ratio"]),
    ],
)  # fmt: skip
def test_a_config_that_no_model_has_is_told_at_once(arrays, header, tmp_path, key, value, words):
    path = tmp_path / "w.safetensors"
    save_file(arrays, path, with_config(header, put(key, value)))
    with pytest.raises(UserError) as caught:
        load(str(path))
    text = str(caught.value)
    assert str(path) in text and text.count("\n") < 7
    for word in words:
        assert word in text, text


@pytest.mark.trial
@pytest.mark.parametrize("text", ["", "{", "5", "[]", "null", "[" * 100_000, '{"model": {}}'])
def test_a_config_that_is_none_is_one_line(arrays, header, tmp_path, text):
    save_file(arrays, tmp_path / "w.safetensors", header | {OWN: text})
    refused(tmp_path / "w.safetensors", OWN)


@pytest.mark.trial
def test_a_format_without_a_config_is_one_line(arrays, header, tmp_path):
    save_file(arrays, tmp_path / "w.safetensors", {k: v for k, v in header.items() if k != OWN})
    refused(tmp_path / "w.safetensors", "no nepa_jax.model_config")
    save_file(arrays, tmp_path / "w.safetensors", header | {"nepa_jax.format": "keras"})
    with pytest.raises(UserError, match="--format=keras: there is no such format"):
        load(str(tmp_path / "w.safetensors"))


def test_configs_saved_before_a_key_came_are_read_as_they_were_meant(arrays, header, tmp_path):
    def older(config):
        del config["model"]["qkv_bias"], config["model"]["qk_norm_bias"]
        del config["objective"]["decoder_mlp_ratio"]

    save_file(arrays, tmp_path / "w.safetensors", with_config(header, older))
    assert load(str(tmp_path / "w.safetensors")).config.objective.decoder_mlp_ratio == 4.0


# Writing


def test_a_stream_in_another_order_is_never_written_under_wrong_names(tmp_path):
    shapes = {"a": (2,), "b": (2,)}
    stream = [("b", np.zeros(2, np.float32)), ("a", np.ones(2, np.float32))]
    with pytest.raises(RuntimeError, match=r"b \(2,\) came in place of a"):
        files.write_safetensors(tmp_path, shapes, stream, {}, 10**9)
