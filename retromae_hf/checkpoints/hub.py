"""Publishes on the Hugging Face Hub, with what goes wrong there as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from transformers import Trainer, TrainingArguments
from transformers.dynamic_module_utils import custom_object_save

from ..model.encoders import hub_reason
from ..model.errors import RetroMAEError

REPLACED = ("*.safetensors", "*.safetensors.index.json", "onnx/*", "[0-9]_*/config.json")
"""Files that make up a model; those of an earlier push are not to stay beside a new one. "*" is within a folder."""


def create_repo(repo_id: str, private: bool = False) -> str:
    """Make a model repository where there is none yet, before anything costly is done; returns its full name.

    Of "name" alone the user that is logged in is the owner. An old repository stays as private as it is.
    """
    with hub_errors(f"{repo_id} cannot be pushed to"):
        return HfApi().create_repo(repo_id, private=private or None, exist_ok=True).repo_id


def push_folder(folder: str | Path, repo_id: str, message: str) -> str:
    """Upload a model's folder to its repository in one commit: it is there as a whole, or nothing has changed.

    Unlike `upload_folder`, which may make several commits of a large folder. Weights and modules of an earlier model
    that the folder does not have go in the same commit; other files in the repository stay. Returns the commit's
    address.
    """
    files = {file.relative_to(folder).as_posix(): file for file in sorted(Path(folder).rglob("*")) if file.is_file()}
    api = HfApi()
    remedy = f"push it with: hf upload {repo_id} {folder} ."
    with hub_errors(f"{folder} could not be pushed to {repo_id}", remedy):
        stale = [name for name in api.list_repo_files(repo_id) if name not in files and _is_replaced(name)]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()),
            *(CommitOperationDelete(path_in_repo=name) for name in stale),
        ]
        return str(api.create_commit(repo_id, operations, commit_message=message).commit_url)


def _is_replaced(name: str) -> bool:
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in REPLACED)


def prepare_pushes(args: TrainingArguments) -> None:
    """Make sure that a training run with `push_to_hub` can push, before anything costly is done."""
    if args.hub_token is not None:
        raise RetroMAEError(
            "hub_token would stand in the list of processes and the shell's history, which others read; leave it out, "
            "and log in with hf auth login or set HF_TOKEN"
        )
    if args.push_to_hub and args.process_index == 0:
        name = create_repo(_hub_name(args), bool(args.hub_private_repo))
        if args.hub_revision is not None:
            with hub_errors(f"{name} cannot be pushed to at hub_revision={args.hub_revision}"):
                HfApi().repo_info(name, revision=args.hub_revision)


@contextmanager
def pushing(trainer: Trainer) -> Iterator[None]:
    """Around a training run that may push to the Hub as it goes; what goes wrong there becomes a `RetroMAEError`."""
    args = trainer.args
    if not args.push_to_hub:
        yield
        return
    if trainer.is_world_process_zero() and getattr(trainer.model, "_auto_class", None) is not None:
        # In the middle of a run Trainer pushes a checkpoint's weights, but not the code that goes with them.
        custom_object_save(trainer.model, args.output_dir)
    name = _hub_name(args)
    command = f"hf upload {name} {args.output_dir} . --exclude 'checkpoint-*' --exclude '_*'"
    with hub_errors(f"the model in {args.output_dir} could not be pushed to {name}", f"push it with: {command}"):
        yield


def _hub_name(args: TrainingArguments) -> str:
    """What `Trainer` calls the repository that it pushes to."""
    return args.hub_model_id or Path(args.output_dir).resolve().name


@contextmanager
def hub_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Errors of the Hub inside become a `RetroMAEError`: `what`, the reason and the remedy. Others pass."""
    try:
        yield
    except RetroMAEError:
        raise
    except Exception as error:
        reason = hub_reason(error)
        if reason is None:
            raise
        raise RetroMAEError("; ".join(part for part in (f"{what}: {reason}", remedy) if part)) from error
