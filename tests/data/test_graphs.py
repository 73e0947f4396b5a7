"""Graphs: what is read from their files, what is refused, and what the networks on them compute."""

import os
import pickle

import numpy as np
import pytest
import torch
from archive_bytes import tar_bytes, zip_bytes
from planetoid import planetoid_files
from prepared_folders import seal
from synthetic import ROOT
from user_files import use

from lowmem import partition
from lowmem.data import graphs, prepare, safe_pickle
from lowmem.errors import Failed, Misuse
from lowmem.models import gnn
from lowmem.tasks import nodes


def prepared(tmp_path, dataset, files):
    root = use(tmp_path, dataset, files)
    return prepare.load_arrays(prepare.prepare(root, dataset, "folder"))


# -- files -------------------------------------------------------------------------------------------------------------


def test_planetoid_files_become_one_graph_with_the_public_split(tmp_path):
    found = prepared(tmp_path, "cora", planetoid_files())
    assert found["features"].shape == (12, 3) and found["features"].sum() == 3
    assert found["labels"].tolist()[:10] == [k % 2 for k in range(10)]
    assert found["labels"][11] == 0 and found["labels"][10] == 1  # ty is in the order of test.index
    assert found["train"].tolist() == [0, 1] and found["test"].tolist() == [10, 11]
    edges = set(map(tuple, found["edges"].tolist()))
    assert (0, 1) in edges and (0, 9) in edges and (0, 11) in edges and len(edges) == 12  # both ways once, no loops


def test_nodes_that_the_test_list_leaves_out_stay_and_are_in_no_part(tmp_path):
    found = prepared(tmp_path, "cora", planetoid_files(left_out=True))
    assert len(found["labels"]) == 13 and not found["features"][11].any()
    assert 11 not in np.concatenate([found[part] for part in ("train", "test")])
    assert graphs.isolated(found["edges"], 13) == 1


@pytest.mark.parametrize("call", [(os.system, "touch {}"), (eval, "open({!r}, 'w')"), (exec, "open({!r}, 'w')")])
def test_a_pickle_that_would_run_code_is_refused_in_one_line_and_runs_nothing(tmp_path, call):
    marker, function = str(tmp_path / "was_run"), call[0]
    evil = type("Evil", (), {"__reduce__": lambda self: (function, (call[1].format(marker),))})()
    files = planetoid_files() | {"ind.cora.graph": pickle.dumps(evil)}
    with pytest.raises(
        Failed, match=r"ind.cora.graph is not read: it asks for (posix|nt|builtins)\.\w+, and a data file"
    ):
        prepared(tmp_path, "cora", files)
    assert not os.path.exists(marker)


@pytest.mark.parametrize(
    "content, reason",
    [
        (
            b"ccopy_reg\n_reconstructor\n(ccollections\ndefaultdict\nc__builtin__\nobject\nNtR.",
            "it builds an object in an unsupported way",
        ),
        (b"c_codecs\nencode\n(Vaaaa\nVzlib\ntR.", "it encodes as zlib"),
        (pickle.dumps(np.array([{}])), "it holds an array of 'O8'"),
        (pickle.dumps([1, 2])[:-4], "damaged"),
        (b"", "damaged"),
        (b"hello", "damaged"),
    ],
)
def test_what_is_no_data_is_refused_with_the_name_of_its_file(content, reason):
    with pytest.raises(Failed, match=f"some.file .*{reason}"):
        safe_pickle.load(content, "some.file")


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol_are_read(protocol):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert (safe_pickle.load(pickle.dumps(array, protocol), "a") == array).all()


def test_a_missing_part_is_named(tmp_path):
    files = planetoid_files()
    del files["ind.cora.ally"]
    with pytest.raises(Failed, match=r"ind\.cora\.ally"):
        prepared(tmp_path, "cora", files)


def test_ogbn_arxiv_is_read_from_the_zip_of_its_authors(tmp_path):
    import gzip

    tables = {
        "raw/edge": "0,1\n1,0\n1,2\n2,2",
        "raw/node-feat": "0.5,1\n1,2\n-1,0",
        "raw/node-label": "3\n0\n1",
        "split/time/train": "0",
        "split/time/valid": "2",
        "split/time/test": "1",
    }
    members = {f"arxiv/{name}.csv.gz": gzip.compress(text.encode()) for name, text in tables.items()}
    found = prepared(tmp_path, "ogbn_arxiv", {"arxiv.zip": zip_bytes(members)})
    assert found["edges"].tolist() == [[0, 1], [1, 2]]
    assert found["features"].tolist() == [[0.5, 1], [1, 2], [-1, 0]] and found["labels"].tolist() == [3, 0, 1]
    assert [found[part].tolist() for part in graphs.PARTS] == [[0], [2], [1]]


def test_wordnet_nodes_are_tagged_nouns_of_the_largest_part_with_words_of_their_glosses(tmp_path):
    """Two thousand synsets in seven files, each pointing at the one before; one more is not tagged, one is alone."""
    lines, senses = ["  1 licence text"], []
    for k in range(2002):
        pointers = f"001 @ {k - 1:08d} n 0000" if 0 < k < 2000 else "000"
        lines.append(f'{k:08d} {3 + k % 7:02d} n 01 word{k} 0 {pointers} | a gloss of kind w{k % 7}x; "used so"  ')
        senses.append(f"word{k}%1:{3 + k % 7:02d}:00:: {k:08d} 1 {0 if k == 2001 else 2}")
    files = {
        "package/dict/data.noun": "\n".join(lines).encode(),
        "package/dict/index.sense": "\n".join(senses).encode(),
    }
    found = prepared(tmp_path, "wordnet_graph", {"wordnet.tgz": tar_bytes(files)})
    assert len(found["labels"]) == 2000 and len(found["edges"]) == 1999 and graphs.isolated(found["edges"], 2000) == 0
    assert np.bincount(found["labels"][found["train"]]).tolist() == [20] * 7
    assert [len(found[part]) for part in graphs.PARTS] == [140, 500, 1000]
    rows = found["features"]
    assert rows.dtype == np.uint8 and (rows.sum(1) == 8).all()  # a, gloss, of, kind, w, x, used, so


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"edges": np.array([[0, 9]])}, "edges name nodes that do not exist"),
        ({"val": np.array([0])}, "parts overlap"),
        ({"train": np.array([], dtype=int)}, "a part is empty"),
        ({"features": np.full((4, 2), np.nan)}, "features are not finite"),
        ({"features": np.ones((3, 2))}, "different numbers of nodes"),
    ],
)
def test_arrays_that_are_no_graph_are_refused(tmp_path, change, problem):
    good = {"features": np.ones((4, 2)), "edges": np.array([[0, 1]]), "labels": np.array([0, 1, 0, 1])}
    good |= {"train": np.array([0]), "val": np.array([1]), "test": np.array([2])}
    graphs.check(good, tmp_path)
    with pytest.raises(Failed, match=problem):
        graphs.check(good | change, tmp_path)
    with pytest.raises(Failed, match="labels missing"):
        graphs.check({key: value for key, value in good.items() if key != "labels"}, tmp_path)


# -- networks ----------------------------------------------------------------------------------------------------------

EDGES = torch.tensor([[0, 1], [1, 2], [0, 3]])  # node 4 has no edge


def test_gcn_is_the_dense_formula_of_its_paper():
    torch.manual_seed(0)
    x = torch.rand(5, 6)
    graph, layer = gnn.make_graph(x, EDGES), gnn.GraphConvolution(6, 3)
    adjacency = torch.eye(5)
    for a, b in EDGES.tolist():
        adjacency[a, b] = adjacency[b, a] = 1
    root = torch.diag(adjacency.sum(1).rsqrt())
    torch.testing.assert_close(layer(graph, x), root @ adjacency @ root @ x @ layer.linear.weight.T)


def test_sparse_features_give_what_dense_ones_give():
    torch.manual_seed(0)
    x = torch.rand(5, 40) * (torch.rand(5, 40) < 0.05)
    graph = gnn.make_graph(x, EDGES)
    assert graph.features.is_sparse
    for kind in gnn.KINDS:
        model = gnn.build(kind=kind, n_input=40, n_output=3, n_hidden=8, n_head=2 if kind == "gat" else 1).eval()
        dense = gnn.Graph(x, graph.source, graph.target, graph.adjacency)
        torch.testing.assert_close(model(graph), model(dense))


def test_attention_weights_of_a_node_sum_to_one_even_for_large_scores():
    scores = torch.tensor([[500.0], [499.0], [-500.0], [-501.0]])
    target = torch.tensor([0, 0, 1, 1])
    weights = gnn.edge_softmax(scores, target, 2)
    expected = torch.softmax(torch.tensor([1.0, 0.0]), 0)
    torch.testing.assert_close(weights.flatten(), torch.cat([expected, expected]))


def test_gat_is_the_formula_of_its_paper_node_by_node():
    torch.manual_seed(0)
    x = torch.rand(5, 6)
    graph, layer = gnn.make_graph(x, EDGES), gnn.GraphAttention(6, 4, 2, 0.0, mean=False).eval()
    h = layer.linear(x).view(5, 2, 2)
    for node, others in ((0, [1, 3, 0]), (2, [1, 2]), (4, [4])):
        for head in range(2):
            scores = torch.stack([layer.source[head] @ h[o, head] + layer.target[head] @ h[node, head] for o in others])
            weights = torch.softmax(torch.nn.functional.leaky_relu(scores, 0.2), 0)
            expected = (weights[:, None] * h[others, head]).sum(0)
            torch.testing.assert_close(layer(graph, x)[node, 2 * head : 2 * head + 2], expected)


@pytest.mark.parametrize("kind", gnn.KINDS)
def test_a_node_without_edges_sees_only_itself(kind):
    torch.manual_seed(0)
    model = gnn.build(kind=kind, n_input=6, n_output=3, n_hidden=8, n_head=2 if kind == "gat" else 1).eval()
    x = torch.rand(5, 6)
    other = x.clone()
    other[:4] = torch.rand(4, 6)
    one, two = model(gnn.make_graph(x, EDGES)), model(gnn.make_graph(other, EDGES))
    torch.testing.assert_close(one[4], two[4])
    assert torch.isfinite(one).all() and not torch.allclose(one[0], two[0])


@pytest.mark.parametrize("kind", gnn.KINDS)
def test_blocks_are_tensors_by_the_papers_rule_and_neurons_when_asked(kind):
    model = gnn.build(kind=kind, n_input=6, n_output=3, n_hidden=8, norm=True)
    weights = {name for name, p in model.named_parameters() if p.ndim == 2}
    assert {blocks.count for blocks in partition(model) if blocks.name in weights} == {1}
    by_neuron = partition(model, neurons=True)
    if kind == "gat":
        assert by_neuron["layers.0.source"].count == by_neuron["layers.0.target"].count == 1
    assert by_neuron["layers.0.linear.weight"].count == 8 and by_neuron["layers.1.linear.weight"].count == 3


def test_wrong_settings_of_a_graph_network_are_one_line():
    with pytest.raises(Misuse, match="unknown kind 'gin'"):
        gnn.build(kind="gin")
    with pytest.raises(Misuse, match="n_hidden 10 is not divisible by n_head 4"):
        gnn.build(kind="gat", n_hidden=10, n_head=4)


# -- task --------------------------------------------------------------------------------------------------------------


def test_the_task_counts_nodes_without_edges_and_learns_its_training_nodes(tmp_path):
    root = use(tmp_path, "cora", planetoid_files(left_out=True), script=None)
    prepare.prepare(root, "cora", "folder")
    folder = root / "data/prepared/cora@folder"
    found = dict(prepare.load_arrays(folder)) | {"val": np.array([5, 6])}  # the split of so small a graph has none
    np.save(folder / "val.npy", found["val"])
    seal(folder)
    config = {"data": {"dataset": "cora", "source": "folder"}, "model": {"name": "gnn", "n_hidden": 8, "dropout": 0.0}}
    task = nodes.build({**config, "train": {"batch_size": 1}}, 0, root, "cpu")
    assert task.finish(task.model) == ({"isolated_nodes": 1}, {})
    optimizer = torch.optim.Adam(task.model.parameters(), lr=0.05)
    before = task.loss(task.model, task.batch(0)).item()
    for step in range(20):
        optimizer.zero_grad()
        task.loss(task.model, task.batch(step)).backward()
        optimizer.step()
    assert task.loss(task.model, task.batch(0)).item() < before / 2
    assert set(task.evaluate(task.model)) == {"val_loss", "val_accuracy", "test_accuracy"}
    with pytest.raises(Misuse, match=r"train.batch_size 1 \(the graph\)"):
        nodes.build({**config, "train": {"batch_size": 2}}, 0, root, "cpu")


def test_the_real_scripts_name_the_public_graphs():
    for name in ("cora", "citeseer", "pubmed"):
        assert f'planetoid(raw, "{name}")' in (ROOT / f"data/{name}/prepare.py").read_text()
