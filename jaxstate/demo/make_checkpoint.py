"""Write `net.pt`: the checkpoint that the demo resumes. Needs torch 2.13; run as `python make_checkpoint.py`.

The network is that of PyTorch's recipe "What is a state_dict". It is trained for some steps on small images
of ten kinds, saved as a training loop saves, and trained on; the losses of those further steps and the
weights behind them go into the same file, as what anyone who resumes has to arrive at.
"""

from pathlib import Path

import torch
from torch import nn, optim

EPOCHS, STEPS, AFTER, BATCH = 13, 40, 30, 8


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def batches(patterns, steps):
    """Images of ten kinds, each a pattern of its own under noise; bytes, as cameras give them."""
    labels = torch.randint(10, (steps, BATCH))
    images = 0.7 * patterns[labels] + 0.3 * torch.rand(steps, BATCH, 3, 32, 32)
    return (images * 255).to(torch.uint8), labels


def train(net, optimizer, images, labels):
    losses = []
    for image, label in zip(images, labels, strict=True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(image.float() / 127.5 - 1), label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main():
    torch.manual_seed(0)
    net = Net()
    optimizer = optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    patterns = torch.rand(10, 3, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for _ in range(EPOCHS):
        losses = train(net, optimizer, *batches(patterns, STEPS))
    images, labels = batches(patterns, AFTER)
    checkpoint = {
        "epoch": EPOCHS,
        "model_state_dict": {key: value.clone() for key, value in net.state_dict().items()},
        "optimizer_state_dict": optimizer.state_dict(),
        "loss": losses[-1],
        "next": {"images": images, "labels": labels},
    }
    path = Path(__file__).with_name("net.pt")
    torch.save(checkpoint, path)  # as it is now: the state's tensors change in place below
    checkpoint = torch.load(path)
    checkpoint["model_state_dict"] = type(net.state_dict())(checkpoint["model_state_dict"])
    checkpoint["model_state_dict"]._metadata = net.state_dict()._metadata  # pyright: ignore
    checkpoint["next"]["losses"] = train(net, optimizer, images, labels)
    checkpoint["next"]["model_state_dict"] = net.state_dict()
    torch.save(checkpoint, path)


if __name__ == "__main__":
    main()
