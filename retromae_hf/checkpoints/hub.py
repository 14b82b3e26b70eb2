"""Publishes on the Hugging Face Hub, with what goes wrong there as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import Trainer, TrainingArguments
from transformers.dynamic_module_utils import custom_object_save

from ..model.errors import RetroMAEError, first_line, in_one_sentence

REPLACED = ("*.safetensors", "*.safetensors.index.json", "onnx/*", "[0-9]_*/config.json")
"""Files that make up a model; those of an earlier push are not to stay beside a new one. "*" is within a folder."""


def create_repo(repo_id: str, private: bool = False) -> str:
    """Make a model repository where there is none yet, before anything costly is done that is to be pushed there.

    Args:
        repo_id: "user/name", or "name" for the user that is logged in.
        private: whether a new repository is private; an old one stays what it is.

    Returns:
        Its full name.

    Raises:
        RetroMAEError: nobody is logged in, or the user may not write there.
    """
    with hub_errors(f"{repo_id} cannot be pushed to"):
        return HfApi().create_repo(repo_id, private=private or None, exist_ok=True).repo_id


def push_folder(folder: str | Path, repo_id: str, message: str) -> str:
    """Upload a model's folder to its repository in one commit: it is there as a whole, or nothing has changed.

    Unlike `upload_folder`, which may make several commits of a large folder. Weights and modules of an earlier model
    that the folder does not have go in the same commit; other files in the repository stay.

    Args:
        folder: the folder.
        repo_id: "user/name", of a repository that exists.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        RetroMAEError: the upload failed.
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
    """Make sure that a training run with `push_to_hub` can push, before anything costly is done.

    Raises:
        RetroMAEError: nobody is logged in, the user may not write there, there is no branch `hub_revision`, or a token
            is among the arguments, whether or not anything is pushed.
    """
    if args.hub_token is not None:
        raise RetroMAEError(
            "hub_token would stand in the list of processes and the shell's history, which others read; leave it out, "
            "and log in with hf auth login or set HF_TOKEN"
        )
    if not args.push_to_hub:
        return
    if args.process_index == 0:
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
    """Errors of the Hub inside become a `RetroMAEError`: `what`, the reason and the remedy. Others pass.

    An error that another library has made of one counts as well.
    """
    try:
        yield
    except RetroMAEError:
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise RetroMAEError("; ".join(part for part in (f"{what}: {reason}", remedy) if part)) from error


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Whatever goes wrong while a model is loaded, from a folder or the Hub, becomes a `RetroMAEError` about `what`."""
    with in_one_sentence(what), hub_errors(what):
        yield


def _reason(error: BaseException | None) -> str | None:
    """What an error says that comes from the Hub, or that was made of one that does; None for others."""
    if isinstance(error, LocalTokenNotFoundError | OfflineModeIsEnabled):
        return first_line(error)
    while error is not None and not isinstance(error, HTTPError | HFValidationError):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if error is None or isinstance(error, EntryNotFoundError):
        return None  # that a file is missing is told better by whoever wanted it
    if isinstance(error, HFValidationError):
        return "there is no such folder, and on the Hub a name is USER/NAME"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision; name one of its branches or tags"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            "there is no such repository on the Hub, or no access to it; check the name, and log in with hf auth "
            "login or set HF_TOKEN to a token that has access"
        )
    if status is None or status >= 500:
        return f"the connection to {constants.ENDPOINT} failed ({first_line(error)})"
    return first_line(error)
