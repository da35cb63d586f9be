"""What FSDP writes: whole, sharded over processes, and as a folder of torch.distributed.checkpoint."""

import io
import warnings
from contextlib import redirect_stderr

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import jaxstate as js

pytestmark = pytest.mark.filterwarnings("ignore:::torch.distributed")


@pytest.fixture(scope="module")
def trained():
    """A model of one process under FSDP, after a step; the names are the bare model's."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.3, weight_decay=0.2)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    yield net, optimizer
    torch.distributed.destroy_process_group()


def whole(state_dict):
    return {key: value.full_tensor() for key, value in state_dict.items()}


def test_a_full_state_dict_is_a_plain_one(trained, tmp_path):
    from torch.distributed.checkpoint import state_dict as dcp

    options = dcp.StateDictOptions(full_state_dict=True)
    model, osd = dcp.get_state_dict(*trained, options=options)
    torch.save({"model": model, "optimizer": osd}, tmp_path / "full.pt")
    ckpt = js.load_checkpoint(tmp_path / "full.pt")
    assert list(ckpt.model) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert all(np.array_equal(ckpt.model[key], value.numpy()) for key, value in model.items())
    assert ckpt.optimizer["param_groups"][0]["params"] == list(ckpt.model)


def test_one_process_of_a_sharded_one_is_refused(trained, tmp_path):
    net, _ = trained
    message = r"tensors in it are sharded .*torch.distributed.checkpoint.*full_state_dict=True"
    for obj in (net.state_dict(), {"model": net.state_dict(), "epoch": 1}):
        torch.save(obj, tmp_path / "rank0.pt")
        with pytest.raises(js.CheckpointError, match=message):
            js.load_checkpoint(tmp_path / "rank0.pt")


def test_a_folder_of_distributed_checkpoint(trained, tmp_path):
    net, optimizer = trained
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7}
        torch.distributed.checkpoint.save(state, checkpoint_id=tmp_path / "dcp")
    try:
        js.load(tmp_path / "dcp")
    except js.FileError as error:
        if "a folder; load one of the files" in str(error):
            pytest.skip("io does not read these folders yet")
    (tmp_path / "dcp" / "meta.pt").write_bytes(b"of another tool")
    ckpt = js.load_checkpoint(tmp_path / "dcp")
    assert ckpt.tool.name == "torch.distributed.checkpoint"
    assert ckpt.extra == {"meta.pt": tmp_path / "dcp" / "meta.pt"}
    assert ckpt.epoch == 7 and set(ckpt.model) == set(net.state_dict())
    for key, value in whole(net.state_dict()).items():
        np.testing.assert_array_equal(np.asarray(ckpt.model[key]), value.numpy())
    assert ckpt.optimizer["param_groups"][0]["lr"] == 0.3
