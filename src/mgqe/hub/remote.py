"""Hugging Face's hub: a folder up, a folder down, and what to do where the hub cannot be reached."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

REPLACED = "*.safetensors"  # of earlier uploads, whose files may have other names


def download(name: str, revision: str | None, token: str | bool | None, cache_dir: Any, local_files_only: bool) -> Path:
    """The folder in which the files of a repository are. Errors as :func:`mgqe.from_pretrained`."""
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or "\\" in name:
        raise _no_name(name)
    hub = _hub(f"{name!r} is no folder here, and the hub")
    remedy = f"or run `hf download {name} --local-dir FOLDER` where there is a network, and give that folder"
    with _explained(name, f"there is no such folder here, and nothing was downloaded before. Check the name, {remedy}"):
        return Path(
            hub.snapshot_download(
                name, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
            )
        )


def upload(folder: Path, name: str, token: str | bool | None, private: bool | None, **commit: Any) -> str:
    """Make the repository, send a folder in one commit, and return the commit's address."""
    hub = _hub("push_to_hub")
    with _explained(name, "mgqe.save_pretrained(thing, folder) writes what `hf upload` sends from another machine"):
        api = hub.HfApi(token=token)
        full_name = api.create_repo(name, private=private, exist_ok=True).repo_id
        done = api.upload_folder(repo_id=full_name, folder_path=folder, delete_patterns=REPLACED, **commit)
    return str(done.commit_url)


def _hub(who: str) -> Any:
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(f"{who} needs huggingface_hub: pip install 'mgqe[hub]'") from error


@contextmanager
def _explained(name: str, remedy: str) -> Iterator[None]:
    """Errors of the hub and of the network, with what to do."""
    errors = import_module("huggingface_hub.errors")
    try:
        yield
    except errors.HFValidationError as error:
        raise _no_name(name) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            errno.ENOENT,
            "the hub has no such repository, or none that this account may see: check the name, and `hf auth login`",
            name,
        ) from error
    except errors.LocalEntryNotFoundError as error:  # in old versions one of the next kind
        raise _unreachable(name, error, remedy) from error
    except errors.HfHubHTTPError as error:  # an answer of the hub, which says what is wrong
        raise OSError(f"{name}: the hub refused: {error}") from error
    except Exception as error:
        if not (isinstance(error, OSError) or _is_network(error)):
            raise
        raise _unreachable(name, error, remedy) from error


def _no_name(name: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "there is no such folder, and it is no name of the hub (OWNER/NAME)", name)


def _unreachable(name: str, error: BaseException, remedy: str) -> ConnectionError:
    cause = (str(error).splitlines() or [type(error).__name__])[0]
    return ConnectionError(f"{name}: the hub cannot be reached ({cause}): {remedy}")


def _is_network(error: BaseException) -> bool:
    """Whether this is one of the hub's HTTP library's, which differs between its versions."""
    return any(cls.__name__ in ("TransportError", "RequestException") for cls in type(error).__mro__)
