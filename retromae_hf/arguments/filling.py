"""From a mapping to dataclasses: the one way for flags, YAML recipes, and what one command hands to another."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from reprlib import repr as short_repr
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from ..model.errors import RetroMAEError

TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
"""What values are converted to, in the order in which the types of a union are tried."""

TRUTH = dict.fromkeys(("yes", "true", "t", "y", "1"), True) | dict.fromkeys(("no", "false", "f", "n", "0"), False)

RENAMED = {
    # of transformers before version 5
    "adafactor": "optim adafactor",
    "evaluate_during_training": "eval_strategy steps",
    "evaluation_strategy": "eval_strategy",
    "fp16_backend": "",
    "fp16_opt_level": "",
    "group_by_length": "train_sampling_strategy group_by_length",
    "half_precision_backend": "",
    "no_cuda": "use_cpu",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "save_safetensors": "",
    "sharded_ddp": "fsdp",
    "torchdynamo": "torch_compile_backend",
    "use_mps_device": "",
    "warmup_ratio": "warmup_steps, a share of the steps where it is below 1",
    "xpu_backend": "ddp_backend",
    # of the released RetroMAE and its successors, and of the examples of transformers
    "dataset_name": "dataset",
    "decoder_mlm_probability": "decoder_mask_ratio",
    "encoder_mlm_probability": "encoder_mask_ratio",
    "max_seq_length": "max_length",
    "mlm_probability": "encoder_mask_ratio",
    "passage_max_len": "passage_length",
    "query_max_len": "query_length",
    "train_data": "dataset",
    "train_file": "dataset",
    "train_group_size": "num_negatives, of which there is one less",
}
"""What arguments that people know from elsewhere are called here; "" for those that are not needed."""


def fill(values: Mapping[str, Any], classes: Sequence[type], where: str) -> list[Any]:
    """Instances of dataclasses, each with those of the values that are its fields.

    Values are converted to their fields' types, as text and as what YAML made of it (which takes 1e-3 for text), the
    items of lists one by one. None stays None. A field with another type, such as an enumeration, takes its value as it
    is.

    Args:
        values: by name.
        classes: the dataclasses.
        where: what to begin messages with; may be empty.

    Raises:
        RetroMAEError: a value is no field of any of them, is of another type or not accepted, or one is missing.
    """
    where = f"{where}: " if where else ""
    known = {one.name: one for cls in classes for one in fields(cls) if one.init}
    if unknown := values.keys() - known.keys():
        refuse_unknown(sorted(map(str, unknown)), known, where)
    required = [name for name, one in known.items() if one.default is one.default_factory is MISSING]
    if missing := [name for name in sorted(required) if values.get(name) is None]:
        raise RetroMAEError(f"{where}{', '.join(missing)} must be given; see --help")
    filled = []
    for cls in classes:
        hints, own = get_type_hints(cls), {}
        for name in [one.name for one in fields(cls) if one.init and one.name in values]:
            try:
                own[name] = _converted(values[name], hints[name])
            except ValueError as error:
                wanted = " or ".join(map(_described, types_of(hints[name])))
                raise RetroMAEError(f"{where}{name}={short_repr(values[name])} must be {wanted}") from error
        try:
            filled.append(cls(**own))
        except Exception as error:  # what a dataclass, a library's own too, raises about its values
            raise RetroMAEError(f"{where}{' '.join(str(error).split())}") from error
    return filled


def refuse_unknown(unknown: Sequence[str], known: Container[str], where: str = "") -> NoReturn:
    """Refuse arguments that do not exist, and say what those are called that have another name here."""
    names = [one.lstrip("-").partition("=")[0] for one in unknown]
    new = {name: RENAMED[name] for name in names if name in RENAMED}
    told = [f"{old} is --{name}; " for old, name in new.items() if name.replace(",", " ").partition(" ")[0] in known]
    told += [f"{old} is not needed any more; " for old, name in new.items() if not name]
    separator = " " if unknown[0].startswith("-") else ", "
    raise RetroMAEError(f"{where}unknown arguments: {separator.join(unknown)}; {''.join(told)}see --help")


def types_of(hint: Any) -> list[Any]:
    """The types that a field takes beside None, those that values are converted to in the order of `TYPES`."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    order: list[Any] = list(TYPES)
    kinds = {one: get_origin(one) or one for one in options if one is not NoneType}
    return sorted(kinds, key=lambda one: order.index(kinds[one]) if kinds[one] in order else len(order))


def _described(option: Any) -> str:
    kind = get_origin(option) or option
    if kind is list and get_args(option):
        return f"a list, each item {' or '.join(map(_described, types_of(get_args(option)[0])))}"
    return TYPES.get(kind, str(kind))


def _converted(value: Any, hint: Any) -> Any:
    """The value as one of the field's types; ValueError where it is none of them."""
    options = types_of(hint)
    if value is None or any((get_origin(one) or one) not in TYPES for one in options):
        return value
    for option in options:
        with suppress(ValueError, KeyError):
            return _as(get_origin(option) or option, get_args(option), value)
    raise ValueError


def _as(kind: type, items: tuple[Any, ...], value: Any) -> Any:
    if kind is list:
        (item,) = items
        return [_converted(one, item) for one in (value if isinstance(value, list) else [value])]
    if kind is dict and isinstance(value, dict):
        key, item = items or (Any, Any)
        return {_converted(name, key): _converted(one, item) for name, one in value.items()}
    if kind is dict or isinstance(value, list | dict):
        raise ValueError
    if type(value) is kind:
        return value
    return TRUTH[str(value).lower()] if kind is bool else kind(str(value))
