"""Using a model that has been trained: the text that it continues, and its loss on a text.

Shape letters: B sequences in a batch, T bytes in a sequence, V vocabulary (256 bytes).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from runtime.training.data import windows
from runtime.training.model import GPT

BATCH = 16


def continuation(
    model: GPT, prompt: bytes, n_bytes: int, temperature: float, generator: torch.Generator
) -> Iterator[bytes]:
    """Byte after byte of what the model makes of the prompt, drawn at this temperature; 0 takes the likeliest."""
    # A model has to be told something: the beginning of a line.
    tokens = list(prompt or b"\n")
    with torch.inference_mode():
        for _ in range(n_bytes):
            context_1T = torch.tensor([tokens[-model.shape.context :]])
            logits_V = model(context_1T)[0, -1].double()
            if temperature == 0:
                token = int(logits_V.argmax())
            else:
                # Of the smallest temperature there is no sign but the likeliest byte's.
                chances_V = torch.softmax((logits_V - logits_V.max()) / temperature, 0)
                token = int(torch.multinomial(chances_V, 1, generator=generator))
            tokens.append(token)
            yield bytes([token])


def loss_on(model: GPT, text: Tensor) -> float:
    """Mean cross entropy in nats a byte over all of ``text``, uint8 (N,), in windows as long as the model's context.

    Raises: ValueError if it is not longer than one.
    """
    context = model.shape.context
    if text.numel() <= context:
        raise ValueError(f"{text.numel()} bytes of text are too few for a context of {context}")
    # The last window lies at the end, over a part of the one before: no byte is left out.
    starts = sorted({*range(0, text.numel() - context, context), text.numel() - context - 1})
    total, n_windows = 0.0, 0
    with torch.inference_mode():
        for first in range(0, len(starts), BATCH):
            starts_B = torch.tensor(starts[first : first + BATCH])
            tokens_BT, targets_BT = windows(text, starts_B, context)
            total += float(model(tokens_BT, targets_BT)) * len(starts_B)
            n_windows += len(starts_B)
    return total / n_windows
