"""Files and folders of the hub, every failure as one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import logging

from reference.on_disk import variant_of

# nunchaku's organisation was renamed; the old name stands in many notes.
RENAMED = {"nunchaku-tech": "nunchaku-ai"}


class NotOnHub(ValueError):
    """The repository or the file does not exist, as far as this account can see."""


def hub_file(repo: str, path: str) -> Path:
    """A file of a repository, downloaded or from the cache."""
    try:
        with one_line(repo, path):
            return Path(hf_hub_download(repo, path))
    except NotOnHub:
        owner, _, name = repo.partition("/")
        if owner not in RENAMED:
            raise
        return hub_file(f"{RENAMED[owner]}/{name}", path)


def hub_folder(repo: str, passed: tuple[str, ...] = ()) -> Path:
    """A pipeline's folder without the components that are passed in, or a model's; no pickles."""
    try:
        hub_file(repo, "model_index.json")
    except NotOnHub as no_pipeline:
        try:
            hub_file(repo, "config.json")
        except NotOnHub:
            raise no_pipeline from None
        with one_line(repo, "config.json"):
            return Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors"]))
    download = partial(DiffusionPipeline.download, repo, use_safetensors=True, **dict.fromkeys(passed))
    with one_line(repo, "model_index.json"):
        try:
            return Path(download())
        except OSError as error:  # files without a variant are not all there
            if error.errno is not None:  # or the disk is full
                raise
            files = [PurePath(file) for file in list_repo_files(repo) if file.endswith(".safetensors")]
            variant = variant_of(PurePath(repo) / file for file in files if len(file.parts) == 2)
            if variant is None:
                raise ValueError(
                    f"{repo} does not hold all its weights as safetensors, the one kind that is read"
                ) from None
            return Path(download(variant=variant))


@contextmanager
def one_line(repo: str, path: str) -> Iterator[None]:
    """Turn what the hub's client raises into a ValueError of one line, and keep its tale of retries to itself."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except GatedRepoError:
        raise ValueError(
            f"{repo} is gated: accept its terms on its hub page, log in with `hf auth login`, or name a local copy"
        ) from None
    except RepositoryNotFoundError:
        raise NotOnHub(f"the hub has no repository {repo}, or it is private: log in with `hf auth login`") from None
    except RemoteEntryNotFoundError:
        raise NotOnHub(f"{repo} has no file {path}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError):
        raise ValueError(
            f"{repo} ({path}) is not in the local cache and the hub cannot be reached: go online once, or name a "
            "local file or folder"
        ) from None
    except HFValidationError:
        raise ValueError(f"{repo!r} is no file or folder here and no hub id such as org/name") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "nothing"
        raise ValueError(f"the hub answered {status} for {path} of {repo}; try again later") from None
    finally:
        logging.set_verbosity(level)
