"""EC2's Query protocol in both directions, driven by botocore's own description of the EC2 API.

A request is a form: Action, Version, and parameters whose names spell out their place (`Filter.1.Value.2`). A reply
is XML. botocore's service model has the names of both; taking them from there means that what botocore's client
sends is understood, and what its parser reads is what we meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from botocore.exceptions import ParamValidationError  # type: ignore[import-untyped]
from botocore.loaders import Loader  # type: ignore[import-untyped]
from botocore.model import (  # type: ignore[import-untyped]
    ListShape,
    OperationModel,
    OperationNotFoundError,
    ServiceModel,
    Shape,
    StructureShape,
)
from botocore.serialize import create_serializer  # type: ignore[import-untyped]
from botocore.validate import ParamValidator  # type: ignore[import-untyped]

from ipamd.sim.ec2.rules import Ec2Error

VERSION: Final = "2016-11-15"
_NAMESPACE: Final = f"http://ec2.amazonaws.com/doc/{VERSION}/"

Form = dict[str, Any]  # one level of a parameter's name: the text itself, or what stands below


@cache
def service_model() -> ServiceModel:
    """Takes about 0.2 s the first time: 2 MB of JSON."""
    return ServiceModel(Loader().load_service_model("ec2", "service-2"), "ec2")


def encode_request(action: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    """A request as botocore writes it. Raises `Ec2Error`, and botocore's ParamValidationError."""
    operation = _operation(action)
    if operation.input_shape is not None:
        report = ParamValidator().validate(parameters, operation.input_shape)
        if report.has_errors():
            raise ParamValidationError(report=report.generate_report())
    body = create_serializer("ec2").serialize_to_request(parameters, operation)["body"]
    return {name: str(value) for name, value in body.items()}


def decode(action: str, form: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of a call by botocore's names, checked against the model. Raises `Ec2Error`."""
    operation = _operation(action)
    tree: Form = {}
    for name, text in form.items():
        if name in ("Action", "Version"):
            continue
        *parents, last = name.split(".")
        level = tree
        for part in parents:
            below = level.setdefault(part, {})
            if not isinstance(below, dict):
                raise _unknown(name)
            level = below
        if isinstance(level.get(last), dict):
            raise _unknown(name)
        level[last] = text
    if operation.input_shape is None:
        return {}
    return _decode_structure(operation.input_shape, tree, "")


def _operation(action: str) -> OperationModel:
    try:
        return service_model().operation_model(action)
    except OperationNotFoundError:
        raise Ec2Error("InvalidAction", f"The action {action} is not valid for this web service.") from None


def _decode_structure(shape: StructureShape, tree: Form, path: str) -> dict[str, Any]:
    left = dict(tree)
    values: dict[str, Any] = {}
    for member, member_shape in shape.members.items():
        name = _request_name(member, member_shape)
        if name in left:
            values[member] = _decode(member_shape, left.pop(name), f"{path}{name}")
        elif member in shape.required_members:
            raise Ec2Error("MissingParameter", f"The request must contain the parameter {path}{name}")
    for name in left:
        raise _unknown(f"{path}{name}")
    return values


def _request_name(member: str, shape: Shape) -> str:
    """As botocore's EC2Serializer: queryName, or the location's name with a capital, or the member's own."""
    if "queryName" in shape.serialization:
        return str(shape.serialization["queryName"])
    location = str(shape.serialization.get("name", member))
    return location[0].upper() + location[1:]


def _decode(shape: Shape, tree: Form | str, path: str) -> Any:
    if isinstance(tree, dict) != (shape.type_name in ("structure", "list")):
        raise _unknown(path)
    if isinstance(tree, str):
        return _decode_scalar(shape, tree, path)
    if isinstance(shape, StructureShape):
        return _decode_structure(shape, tree, f"{path}.")
    assert isinstance(shape, ListShape)
    for index in tree:
        if not index.isdecimal():
            raise _unknown(f"{path}.{index}")
    return [_decode(shape.member, tree[index], f"{path}.{index}") for index in sorted(tree, key=int)]


def _decode_scalar(shape: Shape, text: str, path: str) -> str | int | bool:
    if shape.type_name == "string":
        return text
    try:
        if shape.type_name == "boolean":
            return {"true": True, "false": False}[text.lower()]
        if shape.type_name == "integer":
            number = int(text)
            if shape.metadata.get("min", number) <= number <= shape.metadata.get("max", number):
                return number
    except (KeyError, ValueError):
        pass
    raise Ec2Error("InvalidParameterValue", f"Value ({text}) for parameter {path} is invalid.")


def _unknown(name: str) -> Ec2Error:
    return Ec2Error("UnknownParameter", f"The parameter {name} is not recognized")


def encode(action: str, request_id: str, result: Mapping[str, Any] | None) -> bytes:
    """A reply from values by botocore's names; None for a call that only succeeds. None values are left out.

    Raises KeyError for a name that the reply doesn't have.
    """
    root = Element(f"{action}Response", xmlns=_NAMESPACE)
    SubElement(root, "requestId").text = request_id
    if result is None:
        SubElement(root, "return").text = "true"
    else:
        shape = _operation(action).output_shape
        assert shape is not None, f"{action} answers nothing"
        _encode(root, shape, result)
    return _document(root)


def _encode(element: Element, shape: Shape, value: Any) -> None:
    if isinstance(shape, StructureShape):
        for member, below in value.items():
            member_shape = shape.members[member]
            if below is not None:
                _encode(SubElement(element, member_shape.serialization.get("name", member)), member_shape, below)
    elif isinstance(shape, ListShape):
        for item in value:
            _encode(SubElement(element, shape.member.serialization.get("name", "item")), shape.member, item)
    elif isinstance(value, bool):
        element.text = "true" if value else "false"
    elif isinstance(value, datetime):
        element.text = value.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    else:
        element.text = str(value)


def without(body: bytes, element: str) -> bytes:
    """A reply without the elements of this name."""
    root = fromstring(body)
    for parent in list(root.iter()):
        for below in list(parent):
            if below.tag.rpartition("}")[2] == element:
                parent.remove(below)
    return _document(root)


def encode_error(request_id: str, error: Ec2Error) -> bytes:
    root = Element("Response")
    item = SubElement(SubElement(root, "Errors"), "Error")
    SubElement(item, "Code").text = error.code
    SubElement(item, "Message").text = error.message
    SubElement(root, "RequestID").text = request_id
    return _document(root)


def _document(root: Element) -> bytes:
    text: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return text
