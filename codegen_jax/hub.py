"""Ids of Hugging Face's hub: which names may be one, and the files of a repository there."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from codegen_jax.errors import UserError, require
from codegen_jax.fields import did_you_mean
from codegen_jax.mistaken_paths import missing

ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@.*)?")


def hub_id(name: str) -> tuple[str, str | None]:
    """Repository and revision (a branch, tag or commit) of OWNER/NAME[@REVISION]; None: the newest."""
    repository, at, revision = name.partition("@")
    require(not at or bool(revision), f"{name}: a branch, tag or commit must follow the @")
    return repository, revision or None


def hub_files(name: str, patterns: Sequence[str], either: Sequence[str] = ()) -> Path:
    """The folder in the hub's cache that holds files of a repository, which are downloaded if need be.

    A name that is a path by its looks is not looked for in the network, and a hub that does not answer within
    `HF_HUB_ETAG_TIMEOUT` seconds (10, unless the environment says otherwise) is not asked again.

    Args:
        name: of what is no path on this machine, perhaps OWNER/NAME[@REVISION].
        patterns: of the files.
        either: of more files; the first of these that the repository has.

    Raises:
        UserError: if the files are neither in the cache nor to be had.
    """
    from huggingface_hub import snapshot_download

    require(ID.fullmatch(name) is not None, missing(name))
    repository, revision = hub_id(name)
    refused = f"{missing(name)}; the hub's is {name}@main" if _is_meant_here(name) else refusal(name)

    def folder(pattern: list[str]) -> Path:
        only_cached = refused is not None
        found = snapshot_download(repository, revision=revision, allow_patterns=pattern, local_files_only=only_cached)
        return Path(found)

    try:
        found = folder([*patterns])
        for pattern in either:
            if any(folder([pattern]).glob(pattern)):
                break
    except Exception as error:  # of huggingface_hub, the network or the disk
        raise UserError(refused or f"{name}: can't be fetched from the hub ({_line(error)})") from error
    return found


def _is_meant_here(name: str) -> bool:
    """Whether a name that could be the hub's was meant for a path: its first part is a folder here, or it has but one
    part and is the name of something here with a slip. One with a @REVISION is the hub's."""
    owner, slash, _ = name.partition("/")
    is_here = Path(owner).is_dir() if slash else bool(_nearest(name))
    return is_here and "@" not in name


def _nearest(name: str) -> str:
    return did_you_mean(name, [file.name for file in Path().iterdir()])


def refusal(name: str, kind: Literal["model", "dataset"] = "model") -> str | None:
    """Why the hub has nothing for us by this name; None if it has."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, revision = hub_id(name)
    seconds = constants.HF_HUB_ETAG_TIMEOUT
    near = _nearest(name.partition("/")[0]).removeprefix("; ")
    nowhere = f"{name}: neither on this machine{f' ({near})' if near else ''} nor in the hub's cache, and the hub"
    try:
        _within(seconds, lambda: HfApi().repo_info(repository, revision=revision, repo_type=kind))
    except GatedRepoError:
        return f"{nowhere} gives it to those whom its owner admits; ask on its page, then run hf auth login"
    except RepositoryNotFoundError:
        return f"{nowhere} has no such repository, or a private one: check the name, or run hf auth login"
    except RevisionNotFoundError:
        return f"{nowhere} has no revision {revision} of it"
    except HfHubHTTPError as error:
        return f"{nowhere} refuses ({_line(error)})"
    except OfflineModeIsEnabled:
        return f"{nowhere} is not asked where HF_HUB_OFFLINE is set"
    except TimeoutError:
        return f"{nowhere} can't be reached (no answer in {seconds} s)"
    except Exception as error:  # of DNS, proxies, certificates: OSError, and what httpx raises
        return f"{nowhere} can't be reached ({_line(error)})"
    return None


def _within(seconds: float, question: Callable[[], Any]) -> None:
    """Ask, and raise TimeoutError when the time is over: the limits of a client hold for one address of a host and not
    for its name, and huggingface_hub tries again for half a minute."""
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()
    answer.result(seconds)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
