"""The boxes of the photos that the starter's recipe holds out, for `regionqa eval recognition`.

    python benchmarks/held_out_boxes.py DATA/coco_small held_out.json
    regionqa eval recognition --boxes held_out.json --images DATA/coco_small/images

Nothing is learned from these photos of `instances_train.json`, but confidences are calibrated on
them. Where candidates were compared on dev, they tell how much of that was luck.
"""

import json
import sys
from pathlib import Path

from recipes.starter.vision.photos import read_photos, split


def main(folder: Path, out: Path) -> None:
    """Write the part of the instances that belongs to photos held out, and say how much it is."""
    _, held_out = split(read_photos(folder, "train"))
    names = {photo.path.name for photo in held_out.photos}
    instances = json.loads((folder / "instances_train.json").read_text(encoding="utf-8"))
    instances["images"] = [each for each in instances["images"] if each["file_name"] in names]
    images = {each["id"] for each in instances["images"]}
    boxes = [each for each in instances["annotations"] if each["image_id"] in images]
    instances["annotations"] = boxes
    out.write_text(json.dumps(instances), encoding="utf-8")
    print(f"photos\t{len(images)}\nboxes\t{len(boxes)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
