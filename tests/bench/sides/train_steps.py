"""Timed steps of training: the loop of the job on a dataset, or a loop on one batch in memory.

A hook on the optimizer times both: in every epoch but the first, from the end of step number SKIP
to the end of the last step. The pictures that enter the network are counted too, with their
precision and layout, so that a loop that trains on something else (cached features, for example)
is refused.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from afinar.config.train import TrainConfig
from afinar.models.networks.architecture import Architecture
from afinar.models.networks.backbones import build_backbone
from afinar.models.networks.cuts import resolve_cut
from afinar.models.networks.network import apply_input_view, build_network
from afinar.pictures.preprocessing import InputView
from afinar.training.distributed import Group
from afinar.training.task import plan_training
from afinar.training.worker import train

SKIP = 2
VIEW = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Watch:
    """Seconds of steps within epochs, and the pictures that passed the first convolution."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._per_epoch, self._batch = request["steps"], request["batch"]
        self._device = torch.device(request["device"])
        self._count, self._started = 0, 0.0
        self.seconds, self.steps, self.pictures = 0.0, 0, 0
        self.dtypes: set[str] = set()
        self.layouts: set[str] = set()

    def stepped(self, *_: object) -> None:
        """Count a step of the optimizer; called after it."""
        self._count += 1
        epoch, within = divmod(self._count - 1, self._per_epoch)
        if epoch == 0 or within + 1 not in {SKIP, self._per_epoch}:
            return
        if self._device.type == "cuda":
            # Work that was queued before this end of the window belongs to it.
            torch.cuda.synchronize(self._device)
        if within + 1 == SKIP:
            self._started = time.perf_counter()
        else:
            self.seconds += time.perf_counter() - self._started
            self.steps += self._per_epoch - SKIP
            self._started = 0.0

    def passed(self, given: Tensor, made: Tensor) -> None:
        """Count the pictures of a batch; called after the first convolution."""
        if self._started:
            self.pictures += len(made)
            self.dtypes.add(str(made.dtype).removeprefix("torch."))
            last = given.is_contiguous(memory_format=torch.channels_last)
            self.layouts.add("channels last" if last else "default")

    def answer(self) -> dict[str, Any]:
        """Return the rate and what was observed.

        Raises AssertionError unless every timed step passed its whole batch through the network.
        """
        assert self.steps, f"{self._count} steps were taken, too few to time any"
        assert self.pictures == self.steps * self._batch, (
            f"{self.pictures} pictures went through the network in {self.steps} steps of "
            f"{self._batch}"
        )
        return {
            "rate": self.steps / self.seconds, "steps": self.steps, "dtypes": sorted(self.dtypes),
            "layouts": sorted(self.layouts), "device": device_name(self._device),
        }  # fmt: skip


def watch(request: dict[str, Any]) -> Watch:
    """Register the hooks on every optimizer and on convolutions of three channels."""
    watched = Watch(request)
    register_optimizer_step_post_hook(watched.stepped)
    convolve = nn.Conv2d.forward

    def forward(self: nn.Conv2d, images: Tensor) -> Tensor:
        made = convolve(self, images)
        if self.in_channels == 3:
            watched.passed(images, made)
        return made

    nn.Conv2d.forward = forward  # type: ignore[method-assign,assignment]
    return watched


def train_on_dataset(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the job and return the history of its run, a row for each epoch.

    The window is too small for the features of the frozen regime. So pictures pass the network in
    every epoch, as they do with augmentation.
    """
    run = f"bench-{time.time_ns()}"
    models = Path(request["models"], run)  # a new folder: in another one the last run is resumed
    config = TrainConfig(
        dataset=request["dataset"], models=str(models), backbone=request["backbone"],
        weights=_weights(request), regime=request["regime"], input_size=request["size"],
        epochs=request["epochs"], batch_size=request["batch"], augment="none",
        precision=request["precision"], window_mb=request.get("window_mb", 1),
    )  # fmt: skip
    train(plan_training(config, run), Group(request["device"]))
    lines = (models / "runs" / run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _weights(request: dict[str, Any]) -> str:
    """Return a file of random weights, which the frozen regime requires."""
    file = Path(request["models"], f"{request['backbone']}.safetensors")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(build_backbone(request["backbone"], request["size"]).state_dict(), file)
    return str(file)


def waited(history: list[dict[str, Any]]) -> float | None:
    """Return the fraction of the time, without the first epoch, that was not spent computing.

    It is None if the history has no timings.
    """
    timings = [row["ledger"] for row in history[1:] if "ledger" in row]
    if not timings:
        return None
    compute_s, seconds = (sum(epoch[key] for epoch in timings) for key in ("compute_s", "seconds"))
    return float(1 - compute_s / seconds)


def make_step(request: dict[str, Any]) -> Callable[[], Tensor]:
    """Return a function that takes a step of the same network on one uint8 batch in memory.

    A step is normalization, forward and backward pass, and AdamW.
    """
    size, device = request["size"], torch.device(request["device"])
    cut = resolve_cut(request["backbone"], "auto", size)
    network, _ = build_network(
        Architecture(
            backbone=request["backbone"], cut=cut, head="linear", input_size=size, classes=2
        )
    )
    last = request.get("layout", "channels last") == "channels last"
    layout = torch.channels_last if last else torch.contiguous_format
    network.to(device, memory_format=layout)  # type: ignore[call-overload]
    frozen = request["regime"] == "frozen"
    trained = (network.eval().classifier if frozen else network).train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4, fused=True)
    images = torch.randint(
        0, 256, (request["batch"], size, size, 3), dtype=torch.uint8, device=device
    )
    targets = torch.randint(0, 2, (request["batch"],), device=device)
    view, dtype = (
        InputView(input_size=size, mean=VIEW["mean"], std=VIEW["std"]),
        _DTYPES[request["precision"]],
    )

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            given = apply_input_view(images, view).contiguous(memory_format=layout)
            with torch.set_grad_enabled(not frozen):
                features = network.features(given)
            logits = network.classifier(features)
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def device_name(device: torch.device) -> str:
    """Return the name of the device's model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Return steps per second and what was observed of them."""
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    watched = watch(request)
    if not request["synthetic"]:
        if "cache" in request:
            tempfile.tempdir = f"{request['cache']}-{time.time_ns()}"  # without notes
            Path(tempfile.tempdir).mkdir()
        history = train_on_dataset(request)
        epochs = [row["ledger"] for row in history if "ledger" in row]
        return watched.answer() | {
            "waited": waited(history), "loss": history[-1]["train"]["loss"],
            "first_batch_s": epochs[0]["first_batch_s"],
        }  # fmt: skip
    step = make_step(request)
    for _ in range(request["epochs"] * request["steps"]):
        loss = step()
    return watched.answer() | {"waited": 0.0, "loss": float(loss)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
