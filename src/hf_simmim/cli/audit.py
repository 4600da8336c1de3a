"""Look at a folder of images: broken and blank files, copies, test images among them, and what to set.

    hf-simmim audit photos
    hf-simmim audit photos --against test_photos --output_dir runs/audit

Copies are found byte by byte, and images that are nearly the same after resizing, compression, crops of 5 % and
mirroring. The output folder holds audit.html, which opens in a browser; audit.json with everything; exclude.json, the
images to leave out, for `hf-simmim pretrain --leave_out`; and groups.json, a group for each image, for splits that
separate no near duplicates. A repeated command continues where it stopped, and looks only at files that are new or
have changed.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..curation.audit import AUDIT_FILE, EXCLUDE_FILE, GROUPS_FILE, Audit, audit_folder, write_audit
from ..curation.audit_page import audit_page
from .command import Command, in_words, make_folder, print_files
from .options.parts import PartArguments, run_parts
from .options.slices import SliceArguments

PAGE_FILE = "audit.html"
FILES = {
    PAGE_FILE: "what was found, to open in a browser",
    AUDIT_FILE: "all findings, and the facts of each image",
    EXCLUDE_FILE: "images to leave out, for --leave_out",
    GROUPS_FILE: "group of each image, for splits without near duplicates on both sides",
}


@dataclass
class AuditArguments(PartArguments, SliceArguments):
    """Options of an audit."""

    _argument_group_name = "audit"

    folder: str | None = field(default=None, metadata={"help": "Folder of images, nested or not."})
    against: list[str] | None = field(
        default=None, metadata={"help": "Folders whose images must not be among them, such as test images."}
    )
    output_dir: str = field(default="runs/audit", metadata={"help": "Folder of the results."})
    workers: int | None = field(default=None, metadata={"help": "Number of processes (one for each core if unset)."})
    max_images: int | None = field(
        default=None, metadata={"help": "Largest number of images of each folder, spread evenly (all if unset)."}
    )

    def __post_init__(self):
        self.check_part()
        if self.folder is None:
            raise ValueError("No folder is named. Give a folder of images: hf-simmim audit photos.")
        for name in ("workers", "max_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more.")


@dataclass(frozen=True)
class AuditResult:
    """Result of an audit.

    Args:
        audit: What was found: facts of each image, groups of copies, and what to set.
        summary: The same in sentences.
        settings: Options of a pre-training that follow from the images, by name.
        excluded: Images to leave out, with reasons, by path.
        command: The command of a pre-training that follows.
        output_dir: Folder of the results.
        page: Path of the HTML page; None of a part.
    """

    audit: Audit
    summary: list[str]
    settings: dict[str, str]
    excluded: dict[str, str]
    command: str
    output_dir: Path
    page: Path | None


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(arguments: AuditArguments) -> AuditResult:
    """Look at the images, print and write what was found."""
    with in_words():
        folder = make_folder(arguments.output_dir)
        run_parts(arguments, run)
        audit = audit_folder(
            str(arguments.folder),
            arguments.against or (),
            folder,
            arguments.workers or num_cores(),
            arguments.max_images,
            slicing=arguments.slicing,
            part=arguments.part,
        )
        if arguments.part is not None:
            print(
                f"Part {arguments.part}: {len(audit.facts):,} images were looked at. After all parts, run the command"
                " without --part."
            )
            return AuditResult(audit, [], {}, {}, "", folder, None)
        write_audit(audit, folder)
        command = audit.command(folder / EXCLUDE_FILE)
        (folder / PAGE_FILE).write_text(audit_page(audit, command), encoding="utf-8")
    excluded, summary = audit.excluded(), audit.summary()
    print("\n".join(summary))
    print_files(folder, FILES)
    print(f"{len(excluded):,} of {len(audit.facts):,} images are to be left out. What to run:\n{command}")
    return AuditResult(audit, summary, audit.advice.settings, excluded, command, folder, folder / PAGE_FILE)


COMMAND = Command(
    name="audit",
    usage="FOLDER [--against FOLDER ...] [--output_dir FOLDER] [options]",
    description=__doc__,
    kinds=(AuditArguments,),
    run=run,
    common=("folder", "against", "output_dir", "workers", "max_images"),
    positional=("folder",),
)
