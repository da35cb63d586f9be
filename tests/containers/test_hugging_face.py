"""Folders that transformers, Accelerate and PEFT wrote a moment ago, read and resumed without them."""

import json
import shutil
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from flax import nnx
from resumed_mlp import INPUTS, TARGETS, Twin, assert_arrived, resumed
from safetensors.numpy import load_file

import jaxstate as js
from jaxstate.containers._load import FOLDERS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # these libraries' own, while they are imported
    import accelerate
    import peft
    import transformers

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{category}:{library}")
    for category in ("DeprecationWarning", "FutureWarning", "UserWarning")
    for library in (r"transformers\..*", r"accelerate\..*", r"peft\..*", r"huggingface_hub\..*", r"torch\..*")
]


class MLP(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)

    def forward(self, x, labels):
        out = self.fc2(torch.tanh(self.fc1(x)))
        return {"loss": (out - labels).square().mean(), "logits": out}


DATA = [{"x": torch.tensor(x), "labels": torch.tensor(y)} for x, y in zip(INPUTS, TARGETS, strict=True)]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """The Trainer's output folder after six steps, with checkpoints after three and six."""
    folder = tmp_path_factory.mktemp("trainer")
    torch.manual_seed(0)
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        max_steps=6,
        save_steps=3,
        learning_rate=0.03,
        weight_decay=0.2,
        adam_beta2=0.97,
        warmup_steps=2,
        max_grad_norm=0,
        optim="adamw_torch",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    transformers.Trainer(MLP(), arguments, train_dataset=DATA).train()
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A small GPT-2 as `save_pretrained` writes it, and with an adapter of PEFT."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "sharded", max_shard_size="2KB")
    expected = {key: value.detach().numpy().copy() for key, value in model.state_dict().items()}
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora)
    adapted.save_pretrained(folder / "adapter")
    return folder, expected


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


def test_one_tool_each(trainer, gpt2):
    folders = [trainer / "checkpoint-3", gpt2[0] / "whole", gpt2[0] / "sharded", gpt2[0] / "adapter"]
    for folder in folders:
        names = frozenset(path.name for path in folder.iterdir())
        assert len([tool for tool in FOLDERS if tool.evidence(names)]) == 1


def test_the_trainers_parts(trainer):
    folder = trainer / "checkpoint-3"
    ckpt = js.load_checkpoint(folder)
    assert ckpt.tool == ("Hugging Face's Trainer", "trainer_state.json")
    assert_same(ckpt.model, load_file(folder / "model.safetensors"))
    theirs = torch.load(folder / "optimizer.pt", weights_only=True)
    assert ckpt.optimizer["param_groups"] == theirs["param_groups"]
    assert_same(ckpt.optimizer["state"][2], {k: v.numpy() for k, v in theirs["state"][2].items()})
    assert ckpt.scheduler == torch.load(folder / "scheduler.pt", weights_only=True)
    state = json.loads((folder / "trainer_state.json").read_text())
    assert (ckpt.epoch, ckpt.step) == (state["epoch"], 3) and ckpt.extra["trainer_state.json"] == state
    assert set(ckpt.extra) == {"trainer_state.json", "rng_state.pth", "training_args.bin"}
    assert ckpt.extra["training_args.bin"].state["weight_decay"] == 0.2


def test_every_file_of_a_folder_is_in_one_part(trainer, gpt2):
    for folder in (trainer / "checkpoint-3", gpt2[0] / "whole", gpt2[0] / "adapter"):
        ckpt = js.load_checkpoint(folder)
        parts = [ckpt.places["model"], *ckpt.optimizers, *ckpt.schedulers, *ckpt.extra]
        assert sorted(parts) == sorted(path.name for path in folder.iterdir())


def test_the_trainers_files_under_fsdp_and_mixed_precision(trainer, tmp_path):
    """The names that Accelerate gives a whole state_dict under FSDP, and the scaler of a GPU."""
    folder = shutil.copytree(trainer / "checkpoint-3", tmp_path / "fsdp")
    torch.save(
        {k: torch.tensor(v) for k, v in load_file(folder / "model.safetensors").items()},
        folder / "pytorch_model_fsdp.bin",
    )
    (folder / "model.safetensors").unlink()
    (folder / "optimizer.pt").rename(folder / "optimizer.bin")
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    torch.save(scaler.state_dict(), folder / "scaler.pt")
    ckpt, before = js.load_checkpoint(folder), js.load_checkpoint(trainer / "checkpoint-3")
    assert_same(ckpt.model, before.model)
    assert ckpt.optimizer["param_groups"] == before.optimizer["param_groups"]
    assert ckpt.scaler == scaler.state_dict() and ckpt.scaler["scale"] == 128.0


def test_the_trainers_output_folder_names_its_checkpoints(trainer):
    with pytest.raises(
        js.CheckpointError, match='load one of the folders in it: "checkpoint-3", "checkpoint-6"'
    ):
        js.load_checkpoint(trainer)


def test_training_goes_on_from_the_trainers_folder(trainer):
    """The Trainer's sixth checkpoint is where JAX arrives from its third."""

    def linear_with_warmup(step):
        return step / 2 if step < 2 else (6 - step) / 4

    binding = js.bind(nnx.eval_shape(lambda: Twin(nnx.Rngs(0))))
    groups = [
        {"params": ["fc1.weight", "fc2.weight"], "weight_decay": 0.2},
        {"params": ["fc1.bias", "fc2.bias"], "weight_decay": 0.0},
    ]
    tx = js.optim.adamw(lr=0.03, betas=(0.9, 0.97), param_groups=groups, binding=binding)
    scheduler = js.optim.schedulers.LambdaLR(partial(linear_with_warmup))  # as transformers has it
    ours = resumed(js.load_checkpoint(trainer / "checkpoint-3"), binding, tx, scheduler, 3)
    assert_arrived(ours, js.load_checkpoint(trainer / "checkpoint-6"))


def test_what_save_pretrained_writes(gpt2):
    folder, expected = gpt2
    ckpt = js.load_checkpoint(folder / "whole")
    assert ckpt.tool == ("Hugging Face's save_pretrained", "model.safetensors and config.json")
    assert_same(ckpt.model, {key: expected[key] for key in expected if key != "lm_head.weight"})
    assert ckpt.extra["config.json"]["n_positions"] == 6 and "generation_config.json" in ckpt.extra


def test_shards_are_read_by_their_index(gpt2):
    folder, expected = gpt2
    try:
        js.load(folder / "sharded" / "model.safetensors.index.json")
    except js.FileError as error:
        if "JSON text" in str(error):
            pytest.skip("io does not read an index yet")
    ckpt = js.load_checkpoint(folder / "sharded")
    assert ckpt.places["model"] == "model.safetensors.index.json"
    assert_same(ckpt.model, {key: expected[key] for key in expected if key != "lm_head.weight"})
    assert not any("-of-" in name for name in ckpt.extra)


def test_an_adapter_and_its_configuration(gpt2):
    folder = gpt2[0] / "adapter"
    ckpt = js.load_checkpoint(folder)
    assert ckpt.tool == ("PEFT", "adapter_config.json")
    assert_same(ckpt.model, load_file(folder / "adapter_model.safetensors"))
    assert all(key.startswith("base_model.model.transformer.h.0.attn.c_attn.lora_") for key in ckpt.model)
    assert ckpt.extra["adapter_config.json"]["r"] == 2
    assert ckpt.extra["README.md"] == folder / "README.md"


def test_two_files_of_weights_are_not_chosen_from(gpt2, tmp_path):
    folder = shutil.copytree(gpt2[0] / "whole", tmp_path / "hub")
    torch.save({"wte.weight": torch.full((2, 3), 0.5)}, folder / "pytorch_model.bin")
    with pytest.raises(
        js.CheckpointError, match=r'model="model.safetensors": .*\n\t\tmodel="pytorch_model.bin"'
    ):
        js.load_checkpoint(folder)
    ckpt = js.load_checkpoint(folder, model="pytorch_model.bin")
    assert list(ckpt.model) == ["wte.weight"] and "model.safetensors" in ckpt.extra


def accelerated(folder, count=1, **options):
    """What Accelerate saves of some models; each with optimizer and scheduler, after a step."""
    accelerator = accelerate.Accelerator(cpu=True)
    torch.manual_seed(4)
    nets, optimizers, schedulers = [], [], []
    for i in range(count):
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2 + i))
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01 * (i + 1), weight_decay=0.3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        net, optimizer, scheduler = accelerator.prepare(net, optimizer, scheduler)
        net(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
        nets, optimizers, schedulers = [*nets, net], [*optimizers, optimizer], [*schedulers, scheduler]
    accelerator.save_state(str(folder), **options)
    return nets, optimizers, schedulers


@pytest.mark.parametrize("safe", [True, False])
def test_what_accelerate_saves(tmp_path, safe):
    [net], [optimizer], [scheduler] = accelerated(tmp_path / "state", safe_serialization=safe)
    ckpt = js.load_checkpoint(tmp_path / "state")
    assert ckpt.tool == ("Accelerate", "random_states_0.pkl")
    assert ckpt.places["model"] == ("model.safetensors" if safe else "pytorch_model.bin")
    assert_same(ckpt.model, {key: value.numpy() for key, value in net.state_dict().items()})
    assert ckpt.optimizer["param_groups"] == optimizer.state_dict()["param_groups"]
    assert ckpt.scheduler == scheduler.state_dict() and ckpt.step is None
    assert set(ckpt.extra) == {"random_states_0.pkl"}


def test_several_models_of_accelerate(tmp_path):
    nets, optimizers, _ = accelerated(tmp_path / "state", count=2)
    with pytest.raises(
        js.CheckpointError, match='model="model.safetensors": .*\n.*model="model_1.safetensors"'
    ):
        js.load_checkpoint(tmp_path / "state")
    ckpt = js.load_checkpoint(tmp_path / "state", model="model_1.safetensors")
    assert_same(ckpt.model, {key: value.numpy() for key, value in nets[1].state_dict().items()})
    assert list(ckpt.optimizers) == ["optimizer.bin", "optimizer_1.bin"]
    assert ckpt.optimizers["optimizer_1.bin"]["param_groups"][0]["lr"] == optimizers[1].param_groups[0]["lr"]
    assert list(ckpt.schedulers) == ["scheduler.bin", "scheduler_1.bin"]


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "{'a': 1}"])
def test_damaged_json_is_one_error(trainer, tmp_path, text):
    folder = shutil.copytree(trainer / "checkpoint-3", tmp_path / "damaged")
    (folder / "trainer_state.json").write_text(text)
    with pytest.raises(js.FileError, match="trainer_state.json: cannot be read as JSON"):
        js.load_checkpoint(folder)
