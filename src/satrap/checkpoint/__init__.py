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
from satrap.checkpoint.files import LOCAL, Files, LocalFiles, write_small
from satrap.checkpoint.folder import best, checkpoints, find, latest, mark_best, retain
from satrap.checkpoint.load import Loaded, load, verify
from satrap.checkpoint.manifest import FileEntry, Manifest, TableEntry
from satrap.checkpoint.save import save
from satrap.checkpoint.summary import Summary, inspect

__all__ = [
    "LOCAL",
    "FileEntry",
    "Files",
    "Loaded",
    "LocalFiles",
    "Manifest",
    "Summary",
    "TableEntry",
    "best",
    "checkpoints",
    "claim",
    "content_digest",
    "digest",
    "find",
    "inspect",
    "latest",
    "load",
    "mark_best",
    "retain",
    "save",
    "verify",
    "write_small",
]
