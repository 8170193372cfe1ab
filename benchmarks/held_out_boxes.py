"""Write the boxes of the photos that the starter's recipe holds out from training.

    PYTHONPATH=. python benchmarks/held_out_boxes.py DATA/coco_small held_out.json
    regionqa eval recognition --boxes held_out.json --images DATA/coco_small/images

The photos are a part of `instances_train.json`. The starter is not trained on them, only its
confidence is calibrated on them. They show how far choosing between candidates on dev has
overfitted dev. Which photos they are is read from the recipe, hence the PYTHONPATH.

Prints the number of photos and of boxes.
"""

import json
import sys
from pathlib import Path


def held_out_names(folder: Path) -> set[str]:
    """Return the file names of the photos that the recipe holds out."""
    from recipes.starter.photos import read_photos, split

    _, held_out = split(read_photos(folder, "train")[0])
    return {photo.path.name for photo in held_out}


def main(folder: Path, out: Path) -> None:
    """Write the annotations of the held-out photos, and print how many there are."""
    names = held_out_names(folder)
    instances = json.loads((folder / "instances_train.json").read_text(encoding="utf-8"))
    instances["images"] = [each for each in instances["images"] if each["file_name"] in names]
    images = {each["id"] for each in instances["images"]}
    boxes = [each for each in instances["annotations"] if each["image_id"] in images]
    instances["annotations"] = boxes
    out.write_text(json.dumps(instances), encoding="utf-8")
    print(f"photos\t{len(images)}\nboxes\t{len(boxes)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
