"""A word-level language model: embedding, LSTM, and a linear layer on the last step; and its streaming generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pykernels.nn import LSTM
from pykernels.ops._arguments import check_at_least, check_int, fail

State = tuple[Tensor, Tensor]


class LSTMLanguageModel(nn.Module):
    """Predicts the next token from all tokens before it.

    >>> model = pk.models.LSTMLanguageModel(10000, 256, 512, 2).eval()
    >>> logits, state = model(tokens)  # (B, T) int64 to (B, 10000)
    >>> for token in model.generate(tokens, 20, temperature=0.8):
    ...     print(token)  # (B,) int64, as soon as it is sampled

    Args:
        vocab_size: How many tokens there are.
        emb_dim: Width of a token's embedding.
        hidden_dim: Width of the LSTM.
        num_layers: Depth of the LSTM.

    Raises:
        TypeError: One of them is not an int.
        ValueError: One of them is not positive.
    """

    def __init__(self, vocab_size: int, emb_dim: int, hidden_dim: int, num_layers: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "vocab_size": vocab_size, "emb_dim": emb_dim, "hidden_dim": hidden_dim, "num_layers": num_layers,
        }  # fmt: skip
        for name, count in self.config.items():
            check_int("LSTMLanguageModel", name, count, 1)
        self.embedding = nn.Embedding(vocab_size, emb_dim)
        self.lstm = LSTM(emb_dim, hidden_dim, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_dim, vocab_size)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Computes the logits of the next token, and the state to go on from.

        Args:
            x: (B, T) token ids, int64 or int32, T at least 1.
            state: ``(h, c)``, each (num_layers, B, hidden_dim), from an earlier call; None begins at zeros.

        Returns:
            (B, vocab_size) logits and ``(h, c)``. A sequence in pieces, each with the state of the one before, gives
            what the whole sequence gives.

        Raises:
            TypeError: ``x`` does not hold integers.
            ValueError: ``x`` is not (B, T) with a T of at least 1, or ``state`` does not fit.
            IndexError: A token id is not in the vocabulary.
        """
        if not isinstance(x, torch.fx.Proxy):
            _check_tokens("x", x)
        try:
            embedded = self.embedding(x)
        except IndexError as problem:
            expected = f"token ids from 0 to {self.embedding.num_embeddings - 1}"
            got = f"ids from {int(x.min())} to {int(x.max())}"
            raise IndexError(f"pykernels.LSTMLanguageModel: x: expected {expected}, got {got}") from problem
        output, state = self.lstm(embedded, state)
        return self.fc(output[:, -1]), state

    if TYPE_CHECKING:
        __call__ = forward

    def generate(
        self,
        prompt: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Streams a continuation of ``prompt``: reads it once, then makes one step of the LSTM for each token.

        Args:
            prompt: (B, T) token ids, or (T,) for one sequence.
            max_new_tokens: How many tokens to make; 0 makes none.
            temperature: Divides the logits before sampling; 0 takes the likeliest token.
            generator: The random number generator; the same seed gives the same tokens. None means torch's own.

        Yields:
            (B,) token ids, or a scalar tensor for one sequence; one at a time, without gradients.

        Raises:
            TypeError: ``prompt`` does not hold integers, or ``max_new_tokens`` is not an int.
            ValueError: ``prompt`` is of another shape, ``max_new_tokens`` or ``temperature`` negative.
        """
        one = isinstance(prompt, Tensor) and prompt.dim() == 1
        _check_tokens("prompt", prompt[None] if one else prompt)
        check_int("LSTMLanguageModel.generate", "max_new_tokens", max_new_tokens, 0)
        check_at_least("LSTMLanguageModel.generate", "temperature", temperature, 0)
        # A function of its own, so that the checks are made at the call and not at the first token.
        tokens = self._stream(prompt[None] if one else prompt, max_new_tokens, temperature, generator)
        return (token[0] for token in tokens) if one else tokens

    @torch.no_grad()
    def _stream(self, x: Tensor, count: int, temperature: float, generator: torch.Generator | None) -> Iterator[Tensor]:
        state = None
        for _ in range(count):
            logits, state = self(x, state)
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                chances = torch.softmax(logits.float() / temperature, -1)
                token = torch.multinomial(chances, 1, generator=generator)[:, 0]
            yield token
            x = token[:, None]


def _check_tokens(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dtype not in (torch.int64, torch.int32):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        fail(TypeError, "LSTMLanguageModel", name, "a tensor of int64 or int32", got)
    if x.dim() != 2 or x.shape[1] < 1:
        fail(ValueError, "LSTMLanguageModel", name, "(B, T) with at least one step", tuple(x.shape))
