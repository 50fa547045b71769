"""The cut model of EC2 says of each call what the whole one says, and a client of it works where botocore's would."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader  # type: ignore[import-untyped]
from botocore.model import ServiceModel, Shape, StructureShape  # type: ignore[import-untyped]
from botocore.regions import EndpointResolver  # type: ignore[import-untyped]

from ipamd import cloud
from ipamd.cloud import model


@pytest.fixture(scope="module")
def whole() -> ServiceModel:
    return ServiceModel(Loader().load_service_model("ec2", "service-2"))


@pytest.fixture(scope="module")
def cut() -> ServiceModel:
    return ServiceModel(model.loader().load_service_model("ec2", "service-2"))


def described(shape: Shape, above: tuple[str, ...] = ()) -> Any:
    """All that encoding and parsing go by. A shape within itself is given by its name."""
    if shape is None or shape.name in above:
        return shape and shape.name
    above = (*above, shape.name)
    inner: Any = None
    if isinstance(shape, StructureShape):
        inner = {name: described(member, above) for name, member in shape.members.items()}
    elif shape.type_name == "list":
        inner = described(shape.member, above)
    elif shape.type_name == "map":
        inner = described(shape.key, above), described(shape.value, above)
    enum = getattr(shape, "enum", None)
    return shape.name, shape.type_name, shape.serialization, shape.metadata, enum, inner


@pytest.mark.parametrize("action", model.ACTIONS)
def test_an_action_is_described_as_in_the_whole_model(whole: ServiceModel, cut: ServiceModel, action: str) -> None:
    ours, theirs = cut.operation_model(action), whole.operation_model(action)
    assert described(ours.input_shape) == described(theirs.input_shape)
    assert described(ours.output_shape) == described(theirs.output_shape)
    assert ours.http == theirs.http
    assert [shape.name for shape in ours.error_shapes] == [shape.name for shape in theirs.error_shapes]
    assert ours.idempotent_members == theirs.idempotent_members


def test_only_what_is_called_is_there(cut: ServiceModel, whole: ServiceModel) -> None:
    assert sorted(cut.operation_names) == sorted(model.ACTIONS)
    assert len(cut.shape_names) * 5 < len(whole.shape_names)
    assert cut.metadata == whole.metadata


def test_each_action_that_the_code_calls_is_there() -> None:
    """EC2's methods are called on something named `ec2`."""
    called = {
        node.attr.replace("_", "")
        for file in Path(cloud.__path__[0]).glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ec2"
    }
    assert called == {action.lower() for action in model.ACTIONS}


def test_every_region_has_the_endpoints_that_botocore_knows() -> None:
    ours, theirs = (EndpointResolver(source.load_data("endpoints")) for source in (model.loader(), Loader()))
    for partition in theirs.get_available_partitions():
        for service in ("ec2", "sts"):
            regions = theirs.get_available_endpoints(service, partition)
            assert ours.get_available_endpoints(service, partition) == regions
            assert regions or partition != "aws"
            for region in regions:
                assert ours.construct_endpoint(service, region) == theirs.construct_endpoint(service, region)
    assert ours.get_partition_for_region("eu-central-1") == "aws"


def test_another_service_is_left_whole() -> None:
    assert model.loader().load_service_model("sts", "service-2") == Loader().load_service_model("sts", "service-2")
