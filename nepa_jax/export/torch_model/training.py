"""Trains exported weights in PyTorch on one batch, as a run here would: what its step is timed against."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import get_ema_multi_avg_fn

Forward = Callable[..., Tensor]  # pixels -> loss
BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def open_loss(folder: Path, config: ConfigDict) -> nn.Module:
    """An exported ``nepa`` or ``mae`` folder as a module: normalised pixels [B, C, H, W] -> loss []."""
    if config.objective.name.endswith(".nepa"):
        return _Nepa(folder)
    from nepa_jax.export.torch_model.modeling_mae import MaskedAutoencoder

    model = MaskedAutoencoder(config)
    model.load_state_dict(
        {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}
    )  # fmt: skip
    return model


class _Nepa(nn.Module):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        from nepa_jax.export.torch_model.modeling_nepa import ViTNepaForPreTraining

        self.model = ViTNepaForPreTraining.from_pretrained(folder)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).loss


class Training:
    """One model, optimizer and average; forward passes in two forms, eager and compiled.

    A step: gradients over ``optim.accum_steps`` microbatches, clip, fused AdamW, average, at the peak
    learning rate. On a GPU bfloat16 by autocast where the config has it, and the attention that makes a
    step fastest; in float32 products are as exact there as XLA's, TF32.

    Args:
        folder: the exported weights, format ``nepa`` or ``mae``.
        config: of the run, resolved.
        pixels: float32 [B, C, H, W], normalised; on the device from here on.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, folder: Path, config: ConfigDict, pixels: Tensor, device: str) -> None:
        if device == "cuda":
            torch.set_float32_matmul_precision("high")
        self.config, self.device = config, torch.device(device)
        self.model = open_loss(folder, config).train().to(self.device)
        self.pixels = pixels.to(self.device)
        self.forms: dict[str, Forward] = {
            "eager": self.model,
            "compiled": torch.compile(self.model),
        }
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.trained, config)
        self.average: list[Tensor] | None = None  # from the first update on
        if config.optim.ema_decay is not None:
            self.follow = get_ema_multi_avg_fn(config.optim.ema_decay)
        self.attention = self._best_attention() if device == "cuda" else None

    def step(self, forward: Forward) -> Tensor:
        """One update; returns the loss before it, float32 []."""
        losses = [self._gradients(forward, rows) for rows in self.pixels.chunk(self._parts)]
        if self.config.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained, self.config.optim.clip_norm, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.config.optim.ema_decay is not None:
            self._average()
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _average(self) -> None:
        """Begins with a copy of the weights after the first update."""
        if self.average is None:
            self.average = [p.detach().clone() for p in self.trained]
        else:
            self.follow(self.average, self.trained, 1)

    @property
    def _parts(self) -> int:
        return self.config.optim.accum_steps

    def _gradients(self, forward: Forward, pixels: Tensor) -> Tensor:
        low = self.config.run.dtype == "bfloat16"
        chosen = nullcontext() if self.attention is None else sdpa_kernel(self.attention)
        with chosen:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                loss = forward(pixels) / self._parts
            loss.backward()
        return loss.detach()

    def run(self, form: str, seconds: float) -> float:
        """Steps one after the other for a while, waiting only at the end: seconds of a step."""
        steps, began = 0, time.perf_counter()
        while steps == 0 or time.perf_counter() - began < seconds:
            self.step(self.forms[form])
            steps += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps

    def _best_attention(self) -> SDPBackend:
        """Of PyTorch's kernels that work here, by the time of a few eager steps."""
        seconds = {}
        for self.attention in BACKENDS:
            try:
                self.run("eager", 0.0)
                seconds[self.attention] = self.run("eager", 1.0)
            except RuntimeError:  # no such kernel for this GPU, size or dtype
                self.optimizer.zero_grad(set_to_none=True)
        return min(seconds, key=seconds.__getitem__, default=SDPBackend.MATH)


def make_optimizer(trained: list[nn.Parameter], config: ConfigDict) -> torch.optim.AdamW:
    """AdamW at the peak learning rate; biases, norms and LayerScale, all of one axis, do not decay."""
    optim = config.optim
    flat, wide = ([p for p in trained if (p.ndim > 1) == is_wide] for is_wide in (False, True))
    groups = [{"params": wide}, {"params": flat, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, optim.lr, (optim.b1, optim.b2), optim.eps, optim.weight_decay, fused=True
    )
