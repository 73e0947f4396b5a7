"""A small graph in the files of Planetoid."""

import pickle

import numpy as np


def csr(dense) -> bytes:
    """A sparse matrix as Python 2 pickled scipy's class; scipy itself is not needed."""
    rows, columns = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
    values = np.asarray(dense, dtype=np.float32)[rows, columns]
    state = {"_shape": np.shape(dense), "data": values, "indices": columns, "indptr": indptr, "maxprint": 50}
    head = b"ccopy_reg\n_reconstructor\n(cscipy.sparse.csr\ncsr_matrix\nc__builtin__\nobject\nNtR"
    return head + pickle.dumps(state, protocol=3).removesuffix(b".") + b"b."


def planetoid_files(left_out: bool = False) -> dict[str, bytes]:
    """12 nodes, of which 10 to 11 (or 10 and 12, so that 11 is in no list) are for testing. 2 classes, 3 features."""
    features, classes = np.eye(12, 3), np.eye(2)[np.arange(12) % 2]
    tests = [12, 10] if left_out else [11, 10]
    graph = {node: [(node + 1) % 10, node] for node in range(10)} | {node: [0] for node in tests}
    parts = {"x": csr(features[:2]), "allx": csr(features[:10]), "tx": csr(features[10:])}
    parts |= {
        name: pickle.dumps(value) for name, value in (("y", classes[:2]), ("ally", classes[:10]), ("ty", classes[10:]))
    }
    parts |= {"graph": pickle.dumps(graph, protocol=2), "test.index": "\n".join(map(str, tests)).encode()}
    return {f"ind.cora.{name}": content for name, content in parts.items()}
