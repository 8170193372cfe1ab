"""Kinds of datasets that `regionqa data convert --kind` reads, and its options."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from regionqa.data.streams.shards import Shard
from regionqa.errors import UsageError
from regionqa.flags import Options, Reads, Writes, option


class DatasetKind(StrEnum):
    """Public datasets in their published layouts."""

    coco = "coco"
    refcoco = "refcoco"
    refcoco_plus = "refcoco+"
    refcocog = "refcocog"
    ref_l4 = "ref-l4"
    visual_genome = "visual-genome"
    visual_genome_objects = "visual-genome-objects"
    flickr30k_entities = "flickr30k-entities"
    gqa = "gqa"
    vcr = "vcr"
    vcr_named = "vcr-named"
    visual7w = "visual7w"
    visual7w_telling = "visual7w-telling"
    llava_instruct = "llava-instruct"
    osprey = "osprey"
    dam = "dam"
    gar = "gar"
    huggingface = "huggingface"
    pvit = "pvit"


@dataclass(frozen=True)
class KindEntry:
    """What a kind reads."""

    help: str
    """What becomes of it, in one line."""
    file: str
    """What FILE is."""
    annotations: str = ""
    """What `--annotations` is; empty: the kind has none."""
    needs_annotations: bool = False
    """Whether it must be given."""
    has_splits: bool = False
    """Whether FILE holds several splits, of which `--split` picks one."""
    holds_images: bool = False
    """Whether FILE may hold its images, which `--save-images` writes to a folder."""
    folders: tuple[str, ...] = ()
    """Folders of published layouts below `--images` in which images are looked for."""


_REFS = "refs(unc).p, refs(umd).p or refs(google).p, or MDETR's finetune_*_train.json"
_INSTANCES = "instances.json; by default beside the pickle"
_VCR = "train.jsonl, with each image's metadata beside it"

KINDS: dict[DatasetKind, KindEntry] = {
    DatasetKind.coco: KindEntry(
        "name the class of every region", "instances, or labelled boxes of any other format"
    ),
    DatasetKind.refcoco: KindEntry(
        "refer to every region by place and looks", _REFS, _INSTANCES, has_splits=True
    ),
    DatasetKind.refcoco_plus: KindEntry(
        "refer to every region by looks alone", _REFS, _INSTANCES, has_splits=True
    ),
    DatasetKind.refcocog: KindEntry(
        "describe every region in a long phrase", _REFS, _INSTANCES, has_splits=True
    ),
    DatasetKind.ref_l4: KindEntry(
        "describe every region in a long phrase",
        "ref-l4-val.parquet or ref-l4-test.parquet, which are meant for evaluation",
        folders=("images",),
    ),
    DatasetKind.visual_genome: KindEntry(
        "describe every region in a phrase",
        "region_descriptions.json",
        folders=("VG_100K", "VG_100K_2"),
    ),
    DatasetKind.visual_genome_objects: KindEntry(
        "name every object",
        "objects.json",
        folders=("VG_100K", "VG_100K_2"),
    ),
    DatasetKind.flickr30k_entities: KindEntry(
        "caption regions together, then quote the phrase of each",
        "the folder of Sentences, Annotations and train.txt",
        has_splits=True,
        folders=("flickr30k-images", "flickr30k_images"),
    ),
    DatasetKind.gqa: KindEntry(
        "answer questions whose objects are regions, several in turn",
        "questions, as train_balanced_questions.json",
        "scene graphs, as train_sceneGraphs.json",
        needs_annotations=True,
        folders=("images",),
    ),
    DatasetKind.vcr: KindEntry(
        "answer and explain, with all regions listed", _VCR, folders=("vcr1images",)
    ),
    DatasetKind.vcr_named: KindEntry(
        "answer and explain, with the regions that the question names",
        _VCR,
        folders=("vcr1images",),
    ),
    DatasetKind.visual7w: KindEntry(
        "choose the region that answers",
        "dataset_v7w_pointing.json",
        has_splits=True,
        folders=("images",),
    ),
    DatasetKind.visual7w_telling: KindEntry(
        "answer questions, with the regions that the answer is about where they are known",
        "dataset_v7w_telling.json",
        "v7w_telling_answers.json, boxes of what answers name; by default none",
        has_splits=True,
        folders=("images",),
    ),
    DatasetKind.llava_instruct: KindEntry(
        "converse about the whole image, half of the time with detected boxes",
        "a JSON array, as llava_instruct_150k.json",
        "labelled boxes of a detector, in any format that ask --boxes reads",
        folders=("train2017", "train2014", "coco/train2017"),
    ),
    DatasetKind.osprey: KindEntry(
        "converse about numbered regions, or describe each in detail",
        "a JSON array of Osprey-724K, as osprey_conversation.json",
        folders=("train2017", "train2014"),
    ),
    DatasetKind.dam: KindEntry(
        "describe every region in detail",
        "annotations.json of a part of DAM's data, as COCOStuff/annotations.json",
        holds_images=True,
        folders=("images",),
    ),
    DatasetKind.gar: KindEntry(
        "converse about numbered regions, or describe each in detail",
        "a folder of Grasp Any Region's data-*.arrow, as Relation-Dataset",
        holds_images=True,
    ),
    DatasetKind.huggingface: KindEntry(
        "name the class of every region",
        "Parquet with labelled objects, or a folder of it",
        holds_images=True,
    ),
    DatasetKind.pvit: KindEntry(
        "converse with inline regions, all files of a mapping in one",
        "the folder of mapping.yaml and the JSON files that it lists",
    ),
}
"""Every kind, in the order of the guide."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DatasetOptions(Options):
    """A public dataset, and how its records are made."""

    kind: DatasetKind | None = option(
        None,
        "Dataset that FILE is of, in its published layout (docs/guide/data.md). Default: training "
        "data, or labelled boxes.",
    )
    annotations: Path | None = option(
        None,
        "The dataset's second file: instances.json, scene graphs or detected boxes, by --kind.",
        role=Reads.data,
        needs=("kind",),
    )
    split: str | None = option(
        None,
        "Split to read where FILE holds several; all is every one. Default: train.",
        metavar="NAME",
        needs=("kind",),
    )
    save_images: Path | None = option(
        None,
        "Folder to write images to that FILE holds; those that are there stay.",
        role=Writes.shared,
        needs=("kind",),
        excludes=("images",),
    )
    max_regions: int = option(15, "Regions of a record at most.", min=1, needs=("kind",))
    seed: int = option(0, "Random seed of wordings and order.", needs=("kind",))
    shard: str | None = option(
        None,
        "Convert only part I of N, such as 1/8; all parts together are the whole.",
        metavar="I/N",
    )

    def check(self) -> None:
        """Refuse what the kind has no use for, and a shard that is none."""
        _ = self.part
        if self.kind is None:
            return
        entry = KINDS[self.kind]
        if self.annotations is not None and not entry.annotations:
            raise UsageError(
                f"--annotations: has no effect beside --kind {self.kind}, which reads no second "
                "file; drop it"
            )
        if self.annotations is None and entry.needs_annotations:
            raise UsageError(f"--kind {self.kind}: add --annotations FILE ({entry.annotations})")
        if self.split is not None and not entry.has_splits:
            raise UsageError(f"--split: FILE of --kind {self.kind} is one split; drop it")

        if self.save_images is not None and not entry.holds_images:
            raise UsageError(
                f"--save-images: has no effect beside --kind {self.kind}, whose FILE holds no "
                "images; drop it"
            )

    @property
    def part(self) -> Shard:
        """The part to convert; UsageError if it is none."""
        return Shard.parse(self.shard)
