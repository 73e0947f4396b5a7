"""A network with one hidden layer, as in Figure 3 of Adam-mini: inputs (B, I) -> logits (B, O)."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from lowmem.errors import Misuse
from lowmem.models._config import config_of

ACTIVATIONS = {"relu": F.relu, "tanh": F.tanh, "gelu": F.gelu}


@dataclass
class Config:
    """Shape of the network. The paper has 8 hidden neurons and does not say which activation."""

    n_input: int = 3072
    n_hidden: int = 8
    n_output: int = 100
    activation: str = "relu"
    bias: bool = True


class MLP(nn.Module):
    """inputs (B, I) -> logits (B, O); with targets (B,) -> the mean cross-entropy in nats, a scalar."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.hidden = nn.Linear(config.n_input, config.n_hidden, bias=config.bias)
        self.output = nn.Linear(config.n_hidden, config.n_output, bias=config.bias)

    def forward(self, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """inputs (B, I) -> logits (B, O), or with targets (B,) their mean cross-entropy."""
        logits = self.output(ACTIVATIONS[self.config.activation](self.hidden(inputs)))  # (B, O)
        return logits if targets is None else F.cross_entropy(logits, targets)


def build(**settings) -> MLP:
    """An MLP with fresh weights (torch's initialisation) from the global generator. settings: fields of Config."""
    config = config_of("mlp", Config, settings)
    if config.activation not in ACTIVATIONS:
        raise Misuse(f"mlp model: unknown activation {config.activation!r}; choose from: {', '.join(ACTIVATIONS)}")
    return MLP(config)
