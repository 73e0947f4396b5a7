"""PubMed, a citation graph, with the public split of Planetoid."""

from pathlib import Path

import numpy as np

from lowmem.data import graphs


def arrays(raw: Path) -> dict[str, np.ndarray]:
    """features, edges, labels, and the nodes of train, val and test (see lowmem.data.graphs)."""
    return graphs.planetoid(raw, "pubmed")
