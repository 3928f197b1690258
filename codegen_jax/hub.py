"""The Hugging Face hub: recognize repository ids, and download a repository's files or find them in the cache."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from codegen_jax.errors import UserError, require
from codegen_jax.fields import did_you_mean
from codegen_jax.mistaken_paths import contains, missing

ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@.*)?")


def hub_id(name: str) -> tuple[str, str | None]:
    """Split OWNER/NAME[@REVISION] into repository and revision: a branch, tag or commit, or None for the newest."""
    repository, at, revision = name.partition("@")
    require(not at or bool(revision), f"{name}: @ must be followed by a branch, tag or commit")
    return repository, revision or None


def hub_files(
    name: str, patterns: Sequence[str], either: Sequence[str] = (), needs: Sequence[Sequence[str]] = ()
) -> Path:
    """Return the hub cache folder with the files of a repository, downloading them if necessary.

    A name that looks like a local path is not looked up on the hub. If the hub does not respond within
    `HF_HUB_ETAG_TIMEOUT` seconds (10 by default), it is not queried again.

    Args:
        name: a name that is not an existing path on this machine, perhaps OWNER/NAME[@REVISION].
        patterns: patterns of the files to download.
        either: patterns of further files, in order of preference; only the first one that matches is downloaded.
        needs: a cached copy is usable only if, for each of these sequences, a file matches one of its patterns.

    Raises:
        UserError: if the files are neither in the cache nor available from the hub.
    """
    from huggingface_hub import snapshot_download

    require(ID.fullmatch(name) is not None, missing(name))
    repository, revision = hub_id(name)
    meant_local = _is_meant_local(name)
    reason = f"for a repository on the hub, use {name}@main" if meant_local else refusal(name)
    if reason is None:

        def download(patterns: list[str]) -> Path:
            return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))

        try:
            folder = download([*patterns])
            for pattern in either:
                if any(download([pattern]).glob(pattern)):
                    break
            return folder
        except Exception as error:  # from huggingface_hub, the network or the disk, such as a read-only cache
            reason = f"the download from the hub failed ({_line(error.__cause__ or error)})"
    folder = _cached(name, reason)
    if folder is None:
        raise UserError(f"{missing(name)}; {reason}" if meant_local else not_found(name, reason))
    exists = lambda pattern: any(file.exists() for file in folder.glob(pattern))  # a link may be dangling
    absent = [" or ".join(one_of) for one_of in needs if not any(map(exists, one_of))]
    require(
        not absent,
        f"{name}: its hub cache {_describe_cached(folder)}; missing: {' and '.join(absent)}; {reason}",
    )
    return folder


def _cached(name: str, reason: str) -> Path | None:
    """The hub cache folder of a revision, or None if no revision of the repository is cached.

    Raises:
        UserError: if only other revisions are cached; `reason` says why they cannot be downloaded from the hub.
    """
    from huggingface_hub import constants

    repository, revision = hub_id(name)
    cache = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    refs = {str(ref.relative_to(cache / "refs")): ref.read_text().strip() for ref in _files(cache / "refs")}
    commits = sorted(folder.name for folder in (cache / "snapshots").glob("*") if folder.is_dir())
    if not commits:
        return None
    wanted = refs.get(revision or "main", revision)
    if wanted is None and len(commits) == 1:  # downloaded by commit, which leaves no ref
        wanted = commits[0]
    if wanted not in commits:
        cached = [ref for ref, commit in refs.items() if commit in commits]
        cached += [commit for commit in commits if commit not in refs.values()]
        names = ", ".join(f"{repository}@{revision}" for revision in cached[:5])
        raise UserError(f"{name}: not in the hub cache, which has only {names}; {reason}")
    return cache / "snapshots" / wanted


def _describe_cached(folder: Path) -> str:
    """Describe the files in a revision's cache folder, including dangling links and interrupted downloads."""
    files = {str(file.relative_to(folder)): file.exists() for file in _files(folder)}
    broken = [file for file, exists in files.items() if not exists]
    dangling = f" (with a dangling link: {', '.join(broken)})" if broken else ""
    interrupted = " (with an interrupted download)" if any(folder.glob("../../blobs/*.incomplete")) else ""
    return f"{contains([file for file, exists in files.items() if exists])}{dangling}{interrupted}"


def _files(folder: Path) -> list[Path]:
    """Files at any depth, including dangling links."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _is_meant_local(name: str) -> bool:
    """Whether a name that could be a hub id was probably meant as a local path.

    That is the case if its first part is a folder in the working directory, or if it has only one part and resembles
    the name of a file there. A name with a @REVISION is always a hub id.
    """
    owner, slash, _ = name.partition("/")
    resembles_local = Path(owner).is_dir() if slash else bool(_nearest(name))
    return resembles_local and "@" not in name


def _nearest(name: str) -> str:
    return did_you_mean(name, [file.name for file in Path().iterdir()])


def not_found(name: str, reason: str) -> str:
    """The message for a name found neither on this machine nor on the hub; `reason` is the clause from `refusal`."""
    hint = _nearest(name.partition("/")[0]).removeprefix("; ")
    return f"{name}: not found on this machine{f' ({hint})' if hint else ''} or in the hub cache; {reason}"


def refusal(name: str, kind: Literal["model", "dataset"] = "model") -> str | None:
    """Why the hub does not provide a repository of this name, as a clause; None if it does."""
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
    try:
        _within(seconds, lambda: HfApi().repo_info(repository, revision=revision, repo_type=kind))
    except GatedRepoError:
        return "the repository is gated; request access on its page on the hub, then run hf auth login"
    except RepositoryNotFoundError:
        return "the hub has no such repository, or it is private; check the name, or run hf auth login"
    except RevisionNotFoundError:
        return f"the hub has no revision {revision} of this repository"
    except HfHubHTTPError as error:
        return f"the hub returned an error ({_line(error)})"
    except OfflineModeIsEnabled:
        return "the hub was not queried, since HF_HUB_OFFLINE is set"
    except TimeoutError:
        return f"the hub is unreachable (no response within {seconds} s)"
    except Exception as error:  # DNS, proxies, certificates: OSError and httpx's exceptions
        return f"the hub is unreachable ({_line(error)})"
    return None


def _within(seconds: float, query: Callable[[], Any]) -> None:
    """Run a query in a thread and raise TimeoutError if it takes longer than `seconds`.

    The HTTP client's own timeout applies to each address of a host separately and not to name resolution, and
    huggingface_hub retries for half a minute.
    """
    response: Future[Any] = Future()

    def run() -> None:
        try:
            response.set_result(query())
        except BaseException as error:
            response.set_exception(error)

    Thread(target=run, daemon=True).start()
    response.result(seconds)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
