"""Bringing one upstream file into a folder: direct links, Google Drive, the Hugging Face Hub, a mirror.

This room does; `store` decides, checks the hash and keeps the cache. Nothing here trusts what a server sends: the size
is limited, redirects are restricted and a file appears under its name only when it is complete.
"""

from .direct import download as download
from .failures import FolderError as FolderError
from .failures import MissingError as MissingError
from .failures import folder_error as folder_error
from .failures import offline as offline
from .huggingface import hf_cached as hf_cached
from .huggingface import hf_download as hf_download
from .links import gdrive_url as gdrive_url
from .links import mirror as mirror
from .links import mirror_urls as mirror_urls
from .links import public_url as public_url
