"""Run as a program: two ranks that save and load with torch.distributed.checkpoint, as training jobs do.

    python dcp_ranks.py FOLDER

Written are FOLDER/mesh and FOLDER/fsdp, and what they hold as whole tensors in FOLDER/*.pt; in FOLDER/own
tensors and values with metadata of each rank, and in FOLDER/own.<rank>.pt what it loads of these; and in
FOLDER/parts some tensors of the first, as each rank's safetensors. Where there is a FOLDER/ours, each rank
loads its shards of it, and FOLDER/ours.pt has them gathered.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

RANKS = 2
PLACEMENTS = {
    "rows": ((5, 3), Shard(0)),
    "columns": ((4, 6), Shard(1)),
    "middle": ((2, 3, 4), Shard(1)),
    "one": ((1,), Shard(0)),
    "none": ((0, 3), Shard(0)),
    "same": ((3, 2), Replicate()),
}


def tensors(mesh):
    generator = torch.Generator().manual_seed(11)
    whole = {name: torch.randn(shape, generator=generator) for name, (shape, _) in PLACEMENTS.items()}
    whole["half"] = torch.arange(10.0).bfloat16().reshape(5, 2)
    whole["complex32"] = torch.arange(20, dtype=torch.uint8).reshape(5, 4).view(torch.complex32)
    return {k: distribute_tensor(v, mesh, [PLACEMENTS.get(k, (0, Shard(0)))[1]]) for k, v in whole.items()}


def trained(mesh):
    torch.manual_seed(4)
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02, weight_decay=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(7, 3)).square().sum().backward()
        optimizer.step()
    return net, optimizer


def gathered(obj):
    if isinstance(obj, dict):
        return {key: gathered(value) for key, value in obj.items()}
    if isinstance(obj, list):
        return [gathered(value) for value in obj]
    return obj.full_tensor() if isinstance(obj, DTensor) else obj


def own(rank, mesh, folder):
    """Without collectives every rank writes all values, its own ones too, and loads those again."""
    rows = tensors(mesh)["rows"]
    obj = {"rows": rows, "epoch": 3, "texts": (set("abcdefgh"), float("nan"), torch.ones(2)), "mine": rank}
    obj |= {"both": torch.arange(6.0), "random": torch.arange(5.0) * (rank + 1)}
    dcp.save(obj, checkpoint_id=folder / "own", use_collectives=False)
    dist.barrier()
    found = {"rows": rows * 0, "epoch": None, "texts": None, "mine": None}
    found |= {"both": torch.zeros(6), "random": torch.zeros(5)}
    dcp.load(found, checkpoint_id=folder / "own")
    torch.save(gathered(found), folder / f"own.{rank}.pt")


def main(rank, folder):
    folder = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    mesh_state = {"m": tensors(mesh), "epoch": 3, "list": [torch.full((2,), 0.5), {"b": (1, 2)}]}
    model, optimizer = get_state_dict(*trained(mesh))
    found = {"mesh": mesh_state, "fsdp": {"model": model, "optim": optimizer}}
    for name, obj in found.items():
        dcp.save(obj, checkpoint_id=folder / name)
        whole = gathered(obj)
        if rank == 0:
            torch.save(whole, folder / f"{name}.pt")
    own(rank, mesh, folder)
    parts = {key: mesh_state["m"][key] for key in ("rows", "columns", "same", "half")}
    writer = HuggingFaceStorageWriter(
        str(folder / "parts"), fqn_to_index_mapping=dict.fromkeys(parts, 1), save_distributed=True
    )
    dcp.save(parts, storage_writer=writer)
    if (folder / "ours").exists():
        empty = {"m": {k: v * 0 for k, v in tensors(mesh).items() if k != "complex32"}}
        dcp.load(empty, checkpoint_id=folder / "ours")
        whole = gathered(empty)
        if rank == 0:
            torch.save(whole, folder / "ours.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(main, args=(sys.argv[1],), nprocs=RANKS)
