"""What archives, catalogs and reviewers read beside the code: one version, whole licences, documentation that is up to date."""

import json
import re
import tomllib

import pytest
import yaml
from synthetic import ROOT, checkout, write_state_memory

import lowmem
from lowmem.files import read_json, read_yaml
from lowmem.pipeline import config_docs
from lowmem.reporting import claims, exhibit, report


def test_the_version_stands_in_the_package_and_every_other_file_repeats_it():
    assert re.fullmatch(r"\d+\.\d+\.\d+", lowmem.__version__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lowmem.__version__"}
    repeated = [json.loads((ROOT / name).read_text())["version"] for name in ("codemeta.json", ".zenodo.json")]
    repeated.append(str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]))
    assert set(repeated) == {lowmem.__version__}
    assert (ROOT / "CHANGELOG.md").read_text().split("## ", 1)[1].startswith(lowmem.__version__)


def test_the_workflow_catalog_finds_what_it_asks_for():
    """Rules of the Snakemake workflow catalog: main file, usage file, documentation of the configuration, a test."""
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage.keys() >= {"mandatory-flags", "software-stack-deployment", "report"}
    assert usage["mandatory-flags"].keys() == {"desc", "flags"}
    assert any(usage["software-stack-deployment"].values())
    included = re.search(r'include: "(.+)"', (ROOT / "workflow/Snakefile").read_text())[1]
    assert (ROOT / "workflow" / included).resolve() == ROOT / "Snakefile"
    asked = yaml.safe_load((ROOT / ".test/config/config.yaml").read_text())
    assert asked.keys() <= yaml.safe_load((ROOT / "workflow/config/config.yaml").read_text()).keys()
    assert (ROOT / "README.md").is_file() and (ROOT / "LICENSE").is_file()


def test_the_documentation_of_the_configuration_is_that_of_the_schemas():
    written = (ROOT / "config/README.md").read_text(encoding="utf-8")
    assert written == config_docs.text(ROOT), "run python -m lowmem.pipeline.config_docs"
    for schema in config_docs.FILES:
        keys = yaml.safe_load((ROOT / f"workflow/schemas/{schema}.schema.yaml").read_text())["properties"]
        assert all(f"| `{key}` |" in written for key in keys), schema


def test_every_file_has_a_licence_whose_text_is_here():
    annotations = tomllib.loads((ROOT / "REUSE.toml").read_text())["annotations"]
    assert any(one["path"] == "**" for one in annotations)
    for one in annotations:
        text = ROOT / f"LICENSES/{one['SPDX-License-Identifier']}.txt"
        assert text.read_text() == (ROOT / "LICENSE").read_text() and one["SPDX-FileCopyrightText"]


def test_the_badges_name_files_and_commands_that_exist():
    page = (ROOT / "docs/artifact.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./-]+\.(?:md|json|cff|yaml))`", page))
    named -= {"ro-crate-metadata.json", "reports/laptop/claims.md"}  # what a command writes
    assert named and all((ROOT / name).exists() for name in named), named
    make = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", make, re.MULTILINE) for target in re.findall(r"`make (\w+)`", page))


@pytest.fixture
def crate(tmp_path):
    root = checkout(tmp_path)
    write_state_memory(root, "laptop")
    exhibit.make(root, "adam_mini_table1", "laptop")
    claims.gather(root, "laptop")
    report.make(root, "laptop")
    out = root / "reports/laptop"
    return out, read_json(out / "ro-crate-metadata.json")["@graph"], read_json(out / "claims.json")


def test_a_report_is_a_crate_whose_parts_exist_and_whose_references_resolve(crate):
    out, graph, _ = crate
    entities = {one["@id"]: one for one in graph}
    assert len(entities) == len(graph)
    head, top = entities["ro-crate-metadata.json"], entities["./"]
    assert head["about"] == {"@id": "./"} and head["conformsTo"]["@id"].startswith("https://w3id.org/ro/crate/")
    assert top["@type"] == "Dataset" and all(top[key] for key in ("name", "description", "datePublished", "license"))
    for part in top["hasPart"]:
        assert (out / part["@id"]).is_file() and entities[part["@id"]]["@type"] == "File"
    for key in ("mentions", "about", "hasPart"):
        assert all(one["@id"] in entities for one in top[key])


def test_each_claim_is_an_entity_with_its_verdict(crate):
    _, graph, rows = crate
    found = {one["name"]: one for one in graph if one["@type"] == "Claim"}
    properties = {one["@id"]: one for one in graph if one["@type"] == "PropertyValue"}
    assert found.keys() == {row["id"] for row in rows}
    for row in rows:
        entity = found[row["id"]]
        named = [properties[one["@id"]] for one in entity["additionalProperty"]]
        values = {one["name"]: one["value"] for one in named}
        assert values["verdict"] == row["verdict"] and entity["text"] == row["statement"]
        assert ("appearance" in entity) == (row["paper"] != "extra")


def empty_keys(value, place: str = "") -> list[str]:
    """Places of keys without a value, as a comma in an unquoted text leaves them."""
    if isinstance(value, dict):
        return [f"{place}/{key}" for key, one in value.items() if one is None] + [
            found for key, one in value.items() for found in empty_keys(one, f"{place}/{key}")
        ]
    return [found for one in value for found in empty_keys(one, place)] if isinstance(value, list) else []


def test_no_schema_has_a_text_that_is_cut_at_a_comma():
    schemas = sorted((ROOT / "workflow/schemas").glob("*.yaml"))
    assert schemas and empty_keys({"a": [{"b": None}]}) == ["/a/b"]
    assert {path.name: empty_keys(read_yaml(path)) for path in schemas if empty_keys(read_yaml(path))} == {}
