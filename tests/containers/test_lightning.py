"""Checkpoints that Lightning wrote a moment ago, read and resumed without it."""

import logging
import warnings

import numpy as np
import pytest
import torch
from flax import nnx
from resumed_mlp import INPUTS, TARGETS, Twin, assert_arrived, resumed

import jaxstate as js

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Lightning's own, while it is imported
    import lightning
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
    from lightning.pytorch.plugins.precision import MixedPrecision

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{category}:{library}")
    for category in ("DeprecationWarning", "FutureWarning", "UserWarning")
    for library in (r"lightning\..*", r"torch\..*")
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class LitMLP(lightning.LightningModule):
    def __init__(self, width=5, notes=("a", 0.5)):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.ModuleDict({"fc1": torch.nn.Linear(3, width), "fc2": torch.nn.Linear(width, 2)})

    def training_step(self, batch, index):
        out = self.net["fc2"](torch.tanh(self.net["fc1"](batch[0])))
        return (out - batch[1]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.04, weight_decay=0.2, betas=(0.8, 0.97))
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


def fitted(folder, epochs, callbacks=()):
    """Training of one step an epoch, with a checkpoint after each."""
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.tensor(INPUTS), torch.tensor(TARGETS))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=[*callbacks, ModelCheckpoint(str(folder), "{epoch}", save_top_k=-1, every_n_epochs=1)],
    )
    trainer.fit(LitMLP(), torch.utils.data.DataLoader(data, batch_size=4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lightning")
    fitted(folder, 5)
    return folder


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    assert all(np.array_equal(ours[key], theirs[key].numpy()) for key in theirs)


def test_the_parts_are_lightnings(folder):
    ckpt = js.load_checkpoint(folder / "epoch=1.ckpt")
    theirs = torch.load(folder / "epoch=1.ckpt", weights_only=False)
    assert ckpt.tool == ("Lightning", f"pytorch-lightning_version {lightning.__version__!r}")
    assert_same(ckpt.model, theirs["state_dict"])
    assert list(ckpt.optimizers) == ["optimizer_states[0]"] and list(ckpt.schedulers) == ["lr_schedulers[0]"]
    assert ckpt.optimizer["param_groups"] == theirs["optimizer_states"][0]["param_groups"]
    for number, entry in theirs["optimizer_states"][0]["state"].items():
        assert_same(ckpt.optimizer["state"][number], entry)
    assert ckpt.scheduler == theirs["lr_schedulers"][0]
    assert (ckpt.epoch, ckpt.step) == (theirs["epoch"], theirs["global_step"]) == (1, 2)
    read = {"state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"}
    assert set(ckpt.extra) == set(theirs) - read
    assert ckpt.extra["hyper_parameters"] == {"width": 5, "notes": ("a", 0.5)}
    assert ckpt.extra["loops"] == theirs["loops"]


def test_training_goes_on_from_a_ckpt(folder):
    """Lightning's fifth epoch is where JAX arrives from its second."""
    binding = js.bind(nnx.eval_shape(lambda: Twin(nnx.Rngs(0))))
    tx = js.optim.adamw(lr=0.04, weight_decay=0.2, betas=(0.8, 0.97), binding=binding)
    scheduler = js.optim.schedulers.StepLR(2, 0.5)
    ckpt = js.load_checkpoint(folder / "epoch=1.ckpt")
    ours = resumed(ckpt, binding, tx, scheduler, 3, prefix="net.")
    assert_arrived(ours, js.load_checkpoint(folder / "epoch=4.ckpt"))


def test_with_weight_averaging_the_trained_model_is_another(tmp_path):
    fitted(tmp_path, 3, [EMAWeightAveraging(decay=0.5)])
    theirs = torch.load(tmp_path / "epoch=1.ckpt", weights_only=False)
    ckpt = js.load_checkpoint(tmp_path / "epoch=1.ckpt")
    assert_same(ckpt.model, theirs["current_model_state"])
    assert_same(ckpt.ema, theirs["state_dict"])
    assert not np.array_equal(ckpt.model["net.fc1.weight"], ckpt.ema["net.fc1.weight"])
    assert int(ckpt.extra["averaging_state"]["n_averaged"]) > 0
    ckpt = js.load_checkpoint(tmp_path / "epoch=1.ckpt", model="state_dict")
    assert_same(ckpt.model, theirs["state_dict"])


def test_the_scaler_of_mixed_precision(tmp_path, folder):
    """Its plugin needs a GPU to train, and none to write its scaler where Lightning looks for it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=9)
    scaler.scale(torch.ones(()))
    plugin = MixedPrecision("16-mixed", "cuda", scaler)
    theirs = torch.load(folder / "epoch=0.ckpt", weights_only=False)
    theirs[type(plugin).__qualname__] = plugin.state_dict()
    torch.save(theirs, tmp_path / "mixed.ckpt")
    ckpt = js.load_checkpoint(tmp_path / "mixed.ckpt")
    assert ckpt.scaler == scaler.state_dict() and ckpt.scaler["scale"] == 256.0


def test_compiled_parts_are_unwrapped(tmp_path, folder):
    theirs = torch.load(folder / "epoch=0.ckpt", weights_only=False)
    bare = theirs["state_dict"]
    theirs["state_dict"] = {key.replace("net.", "net._orig_mod."): value for key, value in bare.items()}
    torch.save(theirs, tmp_path / "compiled.ckpt")
    ckpt = js.load_checkpoint(tmp_path / "compiled.ckpt")
    assert_same(ckpt.model, bare)
    assert ckpt.wrappers["state_dict"].at == (("net", ("_orig_mod",)),) and ckpt.prefix == ""
