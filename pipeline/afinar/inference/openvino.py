"""Networks on CPUs through OpenVINO, an optional dependency (`pip install 'afinar[openvino]'`).

OpenVINO's convolutions are faster than torch's: on one core, 16 pictures at a time, ResNet-18 takes
14 instead of 18 ms per picture in float32, and 7.5 instead of 9.8 in bfloat16. MobileNet V3 gains
from bfloat16 as well (0.6 instead of 1.1 ms), which torch's depthwise convolutions do not.

OpenVINO reports its import and each conversion to its makers unless its module for that is missing:
`_import_openvino` hides it. The frontend is called with a graph of torch's operators, which
`make_fx` records in 0.3 to 1 s; compiling it takes 0.1 to 0.3 s, so nothing is cached on disk.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from afinar.models.networks.cuts import TRACING
from afinar.models.networks.heads import pool_activations
from afinar.models.networks.network import Network

if TYPE_CHECKING:
    from openvino import CompiledModel, Core

_TELEMETRY: Final = "openvino_telemetry"

_BLOCKS: Final = (8, 16)
"""Numbers of pictures that graphs are made for, each when it is first needed.

A graph has fixed shapes, so a smaller batch is filled up: 11 pictures take as long as 16.
"""


def is_installed() -> bool:
    """Return True if OpenVINO can be imported. Does not import it."""
    return importlib.util.find_spec("openvino") is not None


def _import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry: instead of that it then imports a stub of its own."""
    if "openvino" not in sys.modules:
        modules: dict[str, Any] = sys.modules
        before = modules.get(_TELEMETRY)
        modules[_TELEMETRY] = None  # an import of it raises ImportError
        try:
            importlib.import_module("openvino")
        finally:
            del modules[_TELEMETRY]
            if before is not None:
                modules[_TELEMETRY] = before
    return sys.modules["openvino"]


@functools.cache
def _core() -> Core:
    """Return the one Core of this process, which stays until the process ends.

    With a second Core the process would crash later (OpenVINO 2026.4). The plugin of each Core
    gives the thread a signal stack of its own, and puts back the former one when it is destroyed.
    If Cores are not destroyed in reverse order, that one is memory which is no longer mapped, and
    the next signal with a handler ends the process with SIGSEGV.
    """
    core: Core = _import_openvino().Core()
    return core


class OpenVinoNetwork(Network):
    """A network whose backbone and pooling run in OpenVINO. The classifier stays in torch.

    `precision` is "f32" or "bf16", the format in which OpenVINO multiplies; inputs, features and
    logits are float32. It uses as many threads as torch does, in one stream. One thread at a time
    may call it. Raises what OpenVINO and torch raise for a network that cannot be converted.

    Torch computes a single picture. After the death of a worker its unit goes picture by picture: a
    crash in OpenVINO is not repeated there, and no picture is blamed for it.
    """

    def __init__(self, network: Network, input_size: int, precision: str) -> None:
        super().__init__(network.backbone, network.classifier, network.pool)
        self._input_size = input_size
        self.precision = precision
        self._compiled: dict[int, CompiledModel] = {}

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled activations at the cut, float32 [n, width]."""
        if len(images) == 1:
            return super().features(images)
        # Channels-last images are [n, h, w, 3] in memory already.
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        blocks = []
        for start in range(0, len(pixels), _BLOCKS[-1]):
            block = pixels[start : start + _BLOCKS[-1]]
            size = next(size for size in _BLOCKS if size >= len(block))
            if len(block) < size:
                filled = np.zeros((size, *block.shape[1:]), dtype=np.float32)
                filled[: len(block)] = block
                block = filled
            outputs = self._block(size)([block], share_inputs=True)
            blocks.append(torch.from_numpy(outputs[0][: len(pixels) - start]))
        return torch.cat(blocks)

    def _block(self, size: int) -> CompiledModel:
        """Return the compiled graph for `size` pictures."""
        if size not in self._compiled:
            self._compiled[size] = self._compile(size)
        return self._compiled[size]

    def _compile(self, size: int) -> CompiledModel:
        core = _core()
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
        from torch.fx.experimental.proxy_tensor import make_fx

        def pooled(pixels: Tensor) -> Tensor:
            return pool_activations(self.backbone(pixels.permute(0, 3, 1, 2)), self.pool)

        example = torch.zeros(size, self._input_size, self._input_size, 3)
        with TRACING, torch.inference_mode(False), torch.no_grad():
            graph = make_fx(pooled)(example)
        decoder = TorchFXPythonDecoder(
            graph, input_shapes=[example.shape], input_types=[example.dtype]
        )
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))

        compiled: CompiledModel = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self.precision,
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                # Pinned, all worker processes would run on the first core.
                "ENABLE_CPU_PINNING": False,
            },
        )
        return compiled
