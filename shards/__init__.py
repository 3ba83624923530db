"""The format on disk: names, samples, index, manifest, writer, reader, verify. Needs NumPy, nothing else.

The format byte by byte is in README.md beside this file.
"""

from .cores import usable_cores
from .damage import Problem
from .errors import AlexshardError, BadManifest, CorruptShardSet, NoShardSet, NoSuchSplit, WrongCall, mending
from .files import OpenShard, ShardFiles
from .index import ImageIndex, IndexEntry, index_text, read_index
from .interop import braces
from .json_text import parse_json
from .lock import LOCK_NAME, Holder, holder_of, is_another_running, locked
from .manifest import (
    CLASSES_NAME,
    INFO_NAME,
    MANIFEST_NAME,
    MEAN_IMAGE_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SUMS_NAME,
    ClassEntry,
    ImageFormat,
    Manifest,
    ShardEntry,
    SplitEntry,
    Statistics,
)
from .naming import KEY_LENGTH, ShardName, Split, is_key, safe_key
from .patience import PAUSES_S, Patience, folder_at, holds_credentials, is_address, masked
from .reader import ShardSet, SplitIndex, find_shard_set
from .regular import open_regular
from .restore import promised_digests, restored
from .rows import SampleRow, count_labels, read_rows
from .sample import JPEG_EXTENSION, LABEL_EXTENSION, NO_LABEL, RAW_EXTENSION, Sample, ppm_bytes, ppm_pixels
from .shelf import LocalShelf, Readers, Shelf
from .stores import ANSWER_S, GOOGLE_SCHEMES, S3_SCHEMES, local_name, open_store
from .tar import stored_size
from .verify import load_mended, verify_shard_set
from .words import byte_size, printable
from .writer import (
    PART_SUFFIX,
    ShardWriter,
    appearing_whole,
    finish_shard_set,
    mean_image_file,
    quarantine_file,
    samples_file,
    sync_folder,
    unique_part_suffix,
)

__all__ = [
    "ANSWER_S",
    "CLASSES_NAME",
    "GOOGLE_SCHEMES",
    "INFO_NAME",
    "JPEG_EXTENSION",
    "KEY_LENGTH",
    "LABEL_EXTENSION",
    "LOCK_NAME",
    "MANIFEST_NAME",
    "MEAN_IMAGE_NAME",
    "NO_LABEL",
    "PART_SUFFIX",
    "PAUSES_S",
    "QUARANTINE_NAME",
    "RAW_EXTENSION",
    "S3_SCHEMES",
    "SAMPLES_NAME",
    "SUMS_NAME",
    "AlexshardError",
    "BadManifest",
    "ClassEntry",
    "CorruptShardSet",
    "Holder",
    "ImageFormat",
    "ImageIndex",
    "IndexEntry",
    "LocalShelf",
    "Manifest",
    "NoShardSet",
    "NoSuchSplit",
    "OpenShard",
    "Patience",
    "Problem",
    "Readers",
    "Sample",
    "SampleRow",
    "ShardEntry",
    "ShardFiles",
    "ShardName",
    "ShardSet",
    "ShardWriter",
    "Shelf",
    "Split",
    "SplitEntry",
    "SplitIndex",
    "Statistics",
    "WrongCall",
    "appearing_whole",
    "braces",
    "byte_size",
    "count_labels",
    "find_shard_set",
    "finish_shard_set",
    "folder_at",
    "holder_of",
    "holds_credentials",
    "index_text",
    "is_address",
    "is_another_running",
    "is_key",
    "load_mended",
    "local_name",
    "locked",
    "masked",
    "mean_image_file",
    "mending",
    "open_regular",
    "open_store",
    "parse_json",
    "ppm_bytes",
    "ppm_pixels",
    "printable",
    "promised_digests",
    "quarantine_file",
    "read_index",
    "read_rows",
    "restored",
    "safe_key",
    "samples_file",
    "stored_size",
    "sync_folder",
    "unique_part_suffix",
    "usable_cores",
    "verify_shard_set",
]
