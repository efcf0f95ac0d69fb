import io
import struct
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import ppo1
import run_mujoco
from common.checkpoint import CheckpointError
from tests.test_saved_policy import SPACES, mlp


def zipped(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return out.getvalue()


def saved_by(save):
    out = io.BytesIO()
    save(out)
    return out.getvalue()


STATE = nn.Linear(2, 2).state_dict()
TABLE = b"\0" * 48 + struct.pack("<Q", 0xDB4775248B80FB57)
FILES = {
    "model.ckpt-1000.index": (TABLE, "a TensorFlow checkpoint", "tf_util.save_variables"),
    "model.ckpt-1000.data-00000-of-00001": (b"\0" * 99, "a TensorFlow checkpoint", "numpy.savez"),
    "model.ckpt-1000.meta": (b"\n\x05", "a TensorFlow checkpoint", "numpy.savez"),
    "checkpoint": (b'model_checkpoint_path: "model"', "a TensorFlow checkpoint", "numpy.savez"),
    "saved_model.pb": (b"\x08\x01", "a TensorFlow SavedModel", "numpy.savez"),
    "ppo.zip": (zipped("data", "pytorch_variables.pth", "policy.pth", "policy.optimizer.pth"),
                "a Stable-Baselines3 model", "pi.load_variables()"),
    "ppo2.zip": (zipped("data", "parameter_list", "parameters"),
                 "a Stable-Baselines model", "pi.load_variables()"),
    "model.pt": (saved_by(lambda out: torch.save(STATE, out)),
                 "what torch.save wrote", "pi.load_state_dict(torch.load(path"),
    "old.pt": (saved_by(lambda out: torch.save(STATE, out, _use_new_zipfile_serialization=False)),
               "what torch.save wrote", "then ppo1.save_policy"),
    "script.pt": (zipped("script/data.pkl", "script/code/__torch__.py", "script/constants.pkl"),
                  "a TorchScript network", "give the policy file"),
    "model.pt2": (zipped("model/archive_format", "model/models/model.json"),
                  "a network of torch.export", "give the policy file"),
    "model.onnx": (b"\x08\n\x12\x07pytorch\x1a\n2.13.0", "an ONNX network", "the run's folder"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "a Keras model", "model.get_weights()"),
    "model.keras": (zipped("config.json", "model.weights.h5"), "a Keras model", "get_weights"),
    "model.safetensors": (struct.pack("<Q", 9) + b'{"a":1}  ', "a safetensors file", "load_file"),
    "array.npy": (saved_by(lambda out: np.save(out, np.zeros(3))),
                  "a single NumPy array", "numpy.savez(path"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_what_it_is_and_how_to_bring_it_over(name, tmp_path, capsys):
    data, what, remedy = FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    for load in (ppo1.load_policy, ppo1.load_variables):
        with pytest.raises(CheckpointError) as refused:
            load(path)
        assert str(refused.value).startswith(f"{path} is {what}, ")
        assert remedy in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(["--load-path", str(path), "--evaluate", "1"])
    assert leave.value.code == 2
    err = capsys.readouterr().err
    assert f"error: {path} is {what}, " in err and err.count("\n") == 1


def test_tensorflows_folder_and_the_name_of_its_files(tmp_path):
    for name in ("checkpoint", "model.ckpt-1000.index", "model.ckpt-1000.data-00000-of-00001"):
        (tmp_path / name).write_bytes(FILES[name][0])
    for path in (tmp_path, tmp_path / "model.ckpt-1000"):
        with pytest.raises(CheckpointError, match=f"{path} is a TensorFlow checkpoint, "):
            ppo1.load_policy(path)
    with pytest.raises(CheckpointError, match="cannot read policy .*other: No such file"):
        ppo1.load_policy(tmp_path / "other")


def test_what_torch_wrote_comes_over_as_the_sentence_says(tmp_path):
    pi, again = mlp(SPACES[3]), mlp(SPACES[3])
    torch.save(pi.state_dict(), tmp_path / "model.pt")
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    ppo1.save_policy(tmp_path / "policy", again)
    loaded = ppo1.load_policy(tmp_path / "policy")
    for name, value in pi.variables().items():
        if not name.startswith("obfilter/"):
            np.testing.assert_array_equal(loaded.variables()[name], value)
