"""push_to_hub: save_pretrained to a repository."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgqe.hub.card import About
from mgqe.hub.folder import write
from mgqe.hub.remote import upload

if TYPE_CHECKING:
    from typing_extensions import Unpack


def push_to_hub(
    thing: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool | None = None,
    **about: Unpack[About],
) -> str:
    """Send a table, a collection or a frozen model to Hugging Face's hub, with a card (extra ``mgqe[hub]``).

    Args:
        thing, about: as for :func:`mgqe.save_pretrained`.
        repo_id: OWNER/NAME, made if it does not exist. Earlier tables in it are replaced.
        private: of a new repository; None for the account's default.
        token: with the right to write; None for the one that ``hf auth login`` keeps.
        revision, commit_message, create_pr: of the commit, as huggingface_hub's ``upload_folder`` has them.

    Returns:
        the address of the commit.

    Raises:
        ConnectionError: the hub cannot be reached. OSError: the hub refused; its answer says why. ImportError:
            huggingface_hub is missing. Others as :func:`mgqe.save_pretrained`; nothing is sent then.
    """
    with tempfile.TemporaryDirectory() as folder:
        write(thing, Path(folder), repo_id.rpartition("/")[2], repo_id, about)
        message = commit_message or f"Upload {type(thing).__name__}"
        return upload(
            Path(folder), repo_id, token, private, revision=revision, commit_message=message, create_pr=create_pr
        )
