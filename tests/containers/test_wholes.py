"""Modules, optimizers, schedulers that were pickled whole: their state_dicts, as torch gives them."""

import torch

import jaxstate as js


def trained():
    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.03)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.3)
    net(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    return net, optimizer, scheduler


def same(found, expected):
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert torch.equal(torch.from_numpy(found[key].copy()), tensor), key


def test_a_file_that_is_a_module(tmp_path):
    net, *_ = trained()
    torch.save(net, tmp_path / "net.pt")
    same(js.load_checkpoint(tmp_path / "net.pt").model, net.state_dict())


def test_a_training_of_wholes(tmp_path):
    net, optimizer, scheduler = trained()
    wholes = {"model": net, "optimizer": optimizer, "scheduler": scheduler, "epoch": 4}
    torch.save(wholes, tmp_path / "train.pt")
    found = js.load_checkpoint(tmp_path / "train.pt")
    same(found.model, net.state_dict())
    expected = optimizer.state_dict()
    assert found.optimizer["param_groups"] == expected["param_groups"]
    for number, entries in expected["state"].items():
        same(found.optimizer["state"][number], entries)
    assert found.scheduler["last_epoch"] == 1 and found.scheduler["gamma"] == 0.3
    assert found.epoch == 4 and not found.extra


def test_the_attributes_of_a_state_dict_are_kept(tmp_path):
    net, *_ = trained()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    assert js.load_checkpoint(tmp_path / "net.pt").model._metadata == net.state_dict()._metadata
