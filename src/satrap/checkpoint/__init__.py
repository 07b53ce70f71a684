"""Checkpoints: one cut of a job on disk, and back.

Owns: the checkpoint's formats (docs/formats/checkpoint.md, docs/formats/rows.md), saving, verifying, loading,
retention, the digest of a model's content. May import: ps, data, schema, observe, errors, torch. Must never: unpickle,
use anything it has not verified, or leave a folder worse off than it was.

    path = save(run / "checkpoints", job=job, service=service, dense=model.state_dict(),
                optimizer=optimizer.state_dict(), step=1200, position=batch.position, rng=torch.get_rng_state())
    loaded = load(path)
    loaded.restore_rows(service)
    model.load_state_dict(loaded.dense)
"""

from satrap.checkpoint.claim import claim
from satrap.checkpoint.digest import content_digest, digest
from satrap.checkpoint.folder import at_step, best, checkpoints, find, home, keep_at, kept_at, latest, mark_best, retain
from satrap.checkpoint.load import Loaded, load, verify
from satrap.checkpoint.manifest import FileEntry, Manifest, TableEntry
from satrap.checkpoint.objects import ObjectFiles
from satrap.checkpoint.places import RemotePath, place, use_filesystem
from satrap.checkpoint.save import Contents, default_threads, save, write
from satrap.checkpoint.summary import Kept, Summary, inspect, kept
from satrap.durable.files import LOCAL, Files, LocalFiles, write_small

__all__ = [
    "LOCAL",
    "Contents",
    "FileEntry",
    "Files",
    "Kept",
    "Loaded",
    "LocalFiles",
    "Manifest",
    "ObjectFiles",
    "RemotePath",
    "Summary",
    "TableEntry",
    "at_step",
    "best",
    "checkpoints",
    "claim",
    "content_digest",
    "default_threads",
    "digest",
    "find",
    "home",
    "inspect",
    "keep_at",
    "kept",
    "kept_at",
    "latest",
    "load",
    "mark_best",
    "place",
    "retain",
    "save",
    "use_filesystem",
    "verify",
    "write",
    "write_small",
]
