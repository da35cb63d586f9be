"""Makes the files in `fixtures/`: what tools that are not installed here write, by their documented layout.

No tool but torch took part: the dicts have the keys, types and order that each tool's own code gives them,
with the state_dicts of real torch objects inside. Run as a script, it writes them anew.
"""

import argparse
import enum
import sys
import types
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

FOLDER = Path(__file__).parent / "fixtures"


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.fc = torch.nn.Linear(3, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.head = torch.nn.Linear(3, 5)
        self.head.weight = self.embed.weight
        self.scale = torch.nn.Parameter(torch.tensor([0.5, 2.0]), requires_grad=False)

    def forward(self, x):
        return self.head(self.norm(self.fc(self.embed(x))))


def trained(groups):
    """A net after three steps of AdamW, with what stands around it, and its gradients."""
    torch.manual_seed(3)
    net = Net()
    optimizer = torch.optim.AdamW(groups(net), lr=0.02, betas=(0.8, 0.95), eps=1e-6)
    scheduler, average = StepLR(optimizer, 2, 0.5), AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.6))
    gradients = []
    for step in range(3):
        optimizer.zero_grad()
        net(torch.arange(4) + step % 2).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
        yield net, optimizer, scheduler, average, gradients
        optimizer.step()
        scheduler.step()
        average.update_parameters(net)
    yield net, optimizer, scheduler, average, gradients


def one_group(net):
    return [p for p in net.parameters() if p.requires_grad]


def scaler():
    return {
        "scale": 2048.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 17,
    }


def torchvision():
    *_, (net, optimizer, scheduler, average, _) = trained(one_group)
    return {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 4,
        "args": argparse.Namespace(model="net", lr=0.02, model_ema=True, data_path=Path("data")),
        "model_ema": average.state_dict(),
        "scaler": scaler(),
    }


def timm():
    *_, (net, optimizer, _, average, _) = trained(one_group)
    return {
        "epoch": 6,
        "arch": "net",
        "optimizer": optimizer.state_dict(),
        "version": 2,
        "args": argparse.Namespace(model="net", opt="adamw", smoothing=0.1),
        "amp_scaler": scaler(),
        "state_dict": net.state_dict(),
        "state_dict_ema": average.module.state_dict(),
        "metric": 71.25,
    }


def fairseq():
    *_, (net, optimizer, _, average, _) = trained(one_group)
    return {
        "args": None,
        "cfg": {"_name": None, "optimization": {"lr": [0.02]}, "model": {"_name": "net"}},
        "model": net.state_dict(),
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "CrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": 2.5},
                "num_updates": 3,
            }
        ],
        "task_state": {},
        "extra_state": {
            "train_iterator": {"version": 2, "epoch": 9, "iterations_in_epoch": 0, "shuffle": True},
            "val_loss": 2.5,
            "ema": average.module.state_dict(),
        },
        "last_optimizer_state": optimizer.state_dict(),
    }


RANKS = 2


def two_groups(net):
    decay = [net.embed.weight, net.fc.weight]
    rest = [net.fc.bias, net.norm.weight, net.norm.bias, net.head.bias]
    return [{"params": decay, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}]


NAMES = (("embed.weight", "fc.weight"), ("fc.bias", "norm.weight", "norm.bias", "head.bias"))


def flat(arrays, names):
    """What ZeRO makes of a group: all ends joined, and padding up to a multiple of twice the ranks."""
    joined = torch.cat([arrays[name].detach().reshape(-1) for name in names])
    return torch.nn.functional.pad(joined, (0, -len(joined) % (2 * RANKS)))


def deepspeed(folder):
    """The files of ZeRO-2 on two ranks, and what an optimizer of the whole parameters has."""
    first, *_, (net, optimizer, scheduler, _, gradients) = (snapshot(x) for x in trained(two_groups))
    padded = [flat(first[0], names) for names in NAMES]
    sizes = [sum(net[name].numel() for name in names) for names in NAMES]
    paddings = [len(row) - size for row, size in zip(padded, sizes, strict=True)]
    states = []
    for rank in range(RANKS):
        slices = [torch.nn.Parameter(row.chunk(RANKS)[rank].clone()) for row in padded]
        groups = [
            {"params": [row], "weight_decay": decay} for row, decay in zip(slices, (0.3, 0.0), strict=True)
        ]
        base = torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.95), eps=1e-6)
        schedule = StepLR(base, 2, 0.5)
        for gradient in gradients:
            for row, names in zip(slices, NAMES, strict=True):
                row.grad = flat(gradient, names).chunk(RANKS)[rank].clone()
            base.step()
            schedule.step()
        last = rank == RANKS - 1
        own = [padding if last else 0 for padding in paddings]
        lean = [row.detach()[: len(row) - padding].clone() for row, padding in zip(slices, own, strict=True)]
        states.append(
            {
                "optimizer_state_dict": {
                    "loss_scaler": None,
                    "dynamic_loss_scale": False,
                    "overflow": False,
                    "clip_grad": 0.0,
                    "base_optimizer_state": base.state_dict(),
                    "single_partition_of_fp32_groups": lean,
                    "zero_stage": ZeroStageEnum.gradients,
                    "group_paddings": own,
                    "partition_count": [RANKS, RANKS],
                    "ds_version": "0.16.4",
                    "param_slice_mappings": [OrderedDict(), OrderedDict()],
                },
                "ds_config": {"zero_optimization": {"stage": 2}},
                "ds_version": "0.16.4",
            }
        )
    model = {
        "module": OrderedDict((k, v.half() if v.is_floating_point() else v) for k, v in net.items()),
        "buffer_names": ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, net[name].shape) for name in names) for names in NAMES],
        "frozen_param_shapes": OrderedDict(scale=net["scale"].shape),
        "shared_params": {"head.weight": "embed.weight"},
        "frozen_param_fragments": OrderedDict(scale=net["scale"].half()),
        "lr_scheduler": scheduler,
        "data_sampler": None,
        "random_ltd": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 3,
        "global_samples": 12,
        "dp_world_size": RANKS,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.16.4",
        "epoch": 1,
    }
    (folder / "global_step3").mkdir(parents=True, exist_ok=True)
    (folder / "latest").write_text("global_step3")
    (folder / "zero_to_fp32.py").write_text("# DeepSpeed puts its tool here\n")
    torch.save(model, folder / "global_step3" / "mp_rank_00_model_states.pt")
    for rank, state in enumerate(states):
        torch.save(state, folder / "global_step3" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return net, optimizer


def snapshot(moment):
    net, optimizer, scheduler, average, gradients = moment
    weights = OrderedDict((name, value.clone()) for name, value in net.state_dict().items())
    return weights, optimizer.state_dict(), scheduler.state_dict(), average, gradients


STAGES = {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3}
CONFIG = "deepspeed.runtime.zero.config"
ZeroStageEnum = enum.Enum("ZeroStageEnum", STAGES, module=CONFIG)


@contextmanager
def importable_stages():
    """While it lasts, the enum is found under the name by which DeepSpeed's is pickled."""
    names = [CONFIG.rsplit(".", n)[0] for n in range(4)]
    sys.modules.update({name: types.ModuleType(name) for name in names})
    sys.modules[CONFIG].ZeroStageEnum = ZeroStageEnum
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def main():
    FOLDER.mkdir(exist_ok=True)
    torch.save(torchvision(), FOLDER / "torchvision.pth")
    torch.save(timm(), FOLDER / "timm.pth.tar")
    torch.save(fairseq(), FOLDER / "fairseq.pt")
    with importable_stages():
        net, optimizer = deepspeed(FOLDER / "deepspeed")
    torch.save({"model": net, "optimizer": optimizer}, FOLDER / "whole.pt")


if __name__ == "__main__":
    main()
