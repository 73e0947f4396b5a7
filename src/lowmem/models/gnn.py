"""Graph networks for node classification: GCN (Kipf and Welling, arXiv 1609.02907) and GAT (Velickovic et al., 1710.10903).

Plain PyTorch: GCN multiplies by a sparse matrix, GAT gathers along edges. N nodes, E directed edges with one loop per
node, so that a node without neighbours keeps its own features; H heads of size D.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowmem.errors import Misuse
from lowmem.models._config import config_of

KINDS = ("gcn", "gat")


@dataclass
class Config:
    """Shape of the network. n_hidden: width of a hidden layer, all heads together. dropout: of the inputs of each layer
    and of attention weights. norm: batch norm behind hidden layers, as usual on ogbn-arxiv. n_output_head: heads of the
    last layer, which are averaged.
    """

    kind: str = "gcn"
    n_input: int = 1433
    n_hidden: int = 16
    n_output: int = 7
    n_layer: int = 2
    n_head: int = 1
    n_output_head: int = 1
    dropout: float = 0.5
    norm: bool = False


@dataclass
class Graph:
    """features: (N, I), dense or sparse. source, target: (E,) directed edges with loops. adjacency: (N, N) sparse."""

    features: Tensor
    source: Tensor
    target: Tensor
    adjacency: Tensor


def make_graph(features: Tensor, edges: Tensor) -> Graph:
    """features (N, I), edges (E / 2, 2), each once. Features of which few are not 0 become sparse.

    Adjacency: D^-1/2 (A + 1) D^-1/2 (GCN, equation 2).
    """
    count = len(features)
    loops = torch.arange(count, device=features.device)
    a, b = edges.long().T
    source, target = torch.cat([a, b, loops]), torch.cat([b, a, loops])
    scale = torch.bincount(target, minlength=count).rsqrt()
    weights = scale[source] * scale[target]
    adjacency = sparse(torch.stack([target, source]), weights, (count, count)).coalesce()
    if (features != 0).float().mean() < 0.1:
        features = features.to_sparse()
    return Graph(features, source, target, adjacency)


def sparse(places: Tensor, values: Tensor, shape: tuple) -> Tensor:
    """A checked sparse matrix: places (2, N), values (N,)."""
    return torch.sparse_coo_tensor(places, values, shape, check_invariants=True)


def drop(x: Tensor, share: float, training: bool) -> Tensor:
    """Dropout, of a sparse tensor on what is not 0."""
    if not x.is_sparse or not training:
        return F.dropout(x, share, training)
    values = F.dropout(x.values(), share)
    return torch.sparse_coo_tensor(x.indices(), values, x.shape, is_coalesced=True, check_invariants=False)


def project(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x) for a layer without bias, x dense or sparse."""
    return torch.sparse.mm(x, layer.weight.T) if x.is_sparse else layer(x)


class GraphConvolution(nn.Module):
    """A' X W + b, (N, I) -> (N, O)."""

    def __init__(self, n_input: int, n_output: int):
        super().__init__()
        self.linear = nn.Linear(n_input, n_output, bias=False)
        self.bias = nn.Parameter(torch.zeros(n_output))
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, graph: Graph, x: Tensor) -> Tensor:
        """features (N, I) of the nodes -> (N, O)"""
        return torch.sparse.mm(graph.adjacency, project(self.linear, x)) + self.bias


class GraphAttention(nn.Module):
    """Each node sums over its neighbours with weights softmax(leaky_relu(s . W x_source + t . W x_target))."""

    def __init__(self, n_input: int, n_output: int, n_head: int, dropout: float, mean: bool):
        super().__init__()
        self.shape, self.dropout, self.mean = (n_head, n_output if mean else n_output // n_head), dropout, mean
        width = self.shape[0] * self.shape[1]
        self.linear = nn.Linear(n_input, width, bias=False)
        self.source = nn.Parameter(torch.empty(self.shape))  # (H, D)
        self.target = nn.Parameter(torch.empty(self.shape))
        self.bias = nn.Parameter(torch.zeros(n_output))
        for weight in (self.linear.weight, self.source, self.target):
            nn.init.xavier_uniform_(weight)

    def forward(self, graph: Graph, x: Tensor) -> Tensor:
        """features (N, I) of the nodes -> (N, O), heads one behind the other or averaged."""
        h = project(self.linear, x).view(-1, *self.shape)  # (N, H, D)
        scores = (h * self.source).sum(-1)[graph.source] + (h * self.target).sum(-1)[graph.target]  # (E, H)
        weights = edge_softmax(F.leaky_relu(scores, 0.2), graph.target, len(h))
        weights = F.dropout(weights, self.dropout, self.training)
        summed = torch.zeros_like(h).index_add(0, graph.target, h[graph.source] * weights[..., None])  # (N, H, D)
        return (summed.mean(1) if self.mean else summed.flatten(1)) + self.bias


def edge_softmax(scores: Tensor, target: Tensor, count: int) -> Tensor:
    """Softmax over the edges that end in the same node. scores (E, H), target (E,) -> (E, H)."""
    top = torch.full((count, scores.shape[1]), -torch.inf, dtype=scores.dtype, device=scores.device)
    top = top.scatter_reduce(0, target[:, None].expand_as(scores), scores.detach(), "amax")  # no gradient: it cancels
    powers = (scores - top[target]).exp()
    total = torch.zeros_like(top).index_add(0, target, powers)
    return powers / total[target]


class GNN(nn.Module):
    """Graph -> logits (N, O)."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        widths = [config.n_input, *[config.n_hidden] * (config.n_layer - 1), config.n_output]
        self.layers = nn.ModuleList()
        for number, (n_input, n_output) in enumerate(itertools.pairwise(widths), 1):
            last = number == config.n_layer
            if config.kind == "gcn":
                self.layers.append(GraphConvolution(n_input, n_output))
            else:
                heads = config.n_output_head if last else config.n_head
                self.layers.append(GraphAttention(n_input, n_output, heads, config.dropout, mean=last))
        norms = config.n_layer - 1 if config.norm else 0
        self.norms = nn.ModuleList(nn.BatchNorm1d(config.n_hidden) for _ in range(norms))

    def forward(self, graph: Graph) -> Tensor:
        """Logits (N, classes) of all nodes."""
        x, activation = graph.features, F.relu if self.config.kind == "gcn" else F.elu
        for number, layer in enumerate(self.layers):
            x = layer(graph, drop(x, self.config.dropout, self.training))
            if number < len(self.layers) - 1:
                x = activation(self.norms[number](x) if self.config.norm else x)
        return x


def build(**settings) -> GNN:
    """A graph network with fresh weights (Glorot) from the global generator. settings: fields of Config."""
    config = config_of("gnn", Config, settings)
    if config.kind not in KINDS:
        raise Misuse(f"gnn model: unknown kind {config.kind!r}; choose from: {', '.join(KINDS)}")
    if config.kind == "gat" and config.n_hidden % config.n_head:
        raise Misuse(f"gnn model: n_hidden {config.n_hidden} is not divisible by n_head {config.n_head}")
    return GNN(config)
