"""The byte-level GPT that is trained, and its parameters as one flat vector.

Shape letters: B sequences in a batch, T bytes in a sequence, D model width, H heads of d elements,
F elements between the two feed-forward matrices, V vocabulary (256 bytes),
P elements of all parameters together.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.errors import ConfigError

VOCABULARY = 256


@dataclass(frozen=True)
class ModelShape:
    width: int
    layers: int
    heads: int
    context: int
    """Longest sequence, in bytes."""

    @property
    def n_parameters(self) -> int:
        """Of all parameters together, without building them: ``GPT`` below, counted by hand."""
        block = 12 * self.width**2 + 9 * self.width
        return self.layers * block + 2 * self.width + (2 * VOCABULARY + self.context) * self.width


# A vocabulary of 256 bytes makes the embeddings nearly free: at GPT-2 small's 768 x 12 only 86 million parameters
# are left of its 124 million, so that "large" is wider.
PRESETS = {
    "toy": ModelShape(width=64, layers=2, heads=4, context=64),  # 136,448 parameters
    "small": ModelShape(width=192, layers=4, heads=6, context=256),  # 1.9 million
    "medium": ModelShape(width=320, layers=8, heads=5, context=512),  # 10 million
    "large": ModelShape(width=960, layers=11, heads=15, context=1024),  # 123 million
    "xl": ModelShape(width=2048, layers=22, heads=32, context=1024),  # 1.11 billion, as deep and wide as TinyLlama
}


class Block(nn.Module):
    """One pre-norm transformer layer. Biases are in the layer norms and the feed-forward part only."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.qkv(self.norm_attention(x_BTD)).view(B, T, 3, self.heads, D // self.heads)
        q_BHTd, k_BHTd, v_BHTd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, is_causal=True)
        x_BTD = x_BTD + self.attention_out(mixed_BHTd.transpose(1, 2).reshape(B, T, D))
        hidden_BTF = F.gelu(self.mlp_in(self.norm_mlp(x_BTD)))
        output_BTD: Tensor = x_BTD + self.mlp_out(hidden_BTF)
        return output_BTD


class GPT(nn.Module):
    """A causal transformer over bytes; the head is not tied to the embedding."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embedding = nn.Embedding(VOCABULARY, shape.width)
        self.position_embedding = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm_out = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, VOCABULARY, bias=False)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """The mean cross entropy in nats per byte, float32 (); without targets the logits (B, T, V).

        ``tokens_BT`` and ``targets_BT`` are int64 with T at most the context.
        """
        T = tokens_BT.shape[1]
        x_BTD = self.token_embedding(tokens_BT) + self.position_embedding.weight[:T]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV: Tensor = self.head(self.norm_out(x_BTD))
        if targets_BT is None:
            return logits_BTV
        return F.cross_entropy(logits_BTV.float().view(-1, VOCABULARY), targets_BT.reshape(-1))


def build_model(preset: str, seed: int) -> GPT:
    """A model on the CPU in float32 whose weights depend on ``seed`` alone; the global generator is not touched.

    Raises: ConfigError for a preset that does not exist.
    """
    if preset not in PRESETS:
        raise ConfigError(f"Unknown model preset {preset!r}: choose one of {', '.join(PRESETS)}.")
    # Made on "meta", since the constructors of torch.nn draw from the global generator.
    with torch.device("meta"):
        model = GPT(PRESETS[preset])
    model.to_empty(device="cpu")
    _initialise(model, torch.Generator().manual_seed(seed))
    return model


def _initialise(model: GPT, generator: torch.Generator) -> None:
    """GPT-2's: normal with deviation 0.02, in the projections into the residual stream 0.02 / sqrt(2 layers)."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 1:
            nn.init.ones_(parameter)
        else:
            into_residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
            std = 0.02 / math.sqrt(2 * model.shape.layers) if into_residual else 0.02
            nn.init.normal_(parameter, std=std, generator=generator)


def host_vector(n_elements: int, device: torch.device) -> Tensor:
    """Memory for a float32 (P,) on the CPU; what is in it is anything.

    With CUDA it is page-locked: a copy from or to the device is then thirty times as fast.
    """
    return torch.empty(n_elements, dtype=torch.float32, pin_memory=device.type == "cuda")


def flatten(parameters: Iterable[Tensor], out_P: Tensor | None = None) -> Tensor:
    """All parameters one after the other, float32 (P,) on the CPU: in ``out_P``, or else in a vector of their own."""
    tensors = list(parameters)
    n_elements = sum(tensor.numel() for tensor in tensors)
    flat_P = torch.empty(n_elements, dtype=torch.float32) if out_P is None else out_P
    start = 0
    for tensor in tensors:
        flat_P[start : start + tensor.numel()].copy_(tensor.detach().reshape(-1))
        start += tensor.numel()
    return flat_P


def unflatten_into(parameters: Iterable[Tensor], flat_P: Tensor) -> None:
    """Copy ``flat_P`` back into the parameters, in place, whatever their device: the inverse of ``flatten``.

    Raises: ValueError if the number of elements differs; the parameters are unchanged then.
    """
    tensors = list(parameters)
    n_elements = sum(tensor.numel() for tensor in tensors)
    if flat_P.shape != (n_elements,):
        raise ValueError(f"a flat vector of shape {tuple(flat_P.shape)} for {n_elements} elements")
    start = 0
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(flat_P[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()


def digest(*tensors: Tensor) -> bytes:
    """sha256 (32 bytes) over the little-endian float32 bytes of the tensors, one after the other."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            raise ValueError(f"a digest is over float32, this is {tensor.dtype}")
        sha256.update(tensor.detach().cpu().reshape(-1).numpy().astype("<f4", copy=False).data)
    return sha256.digest()
