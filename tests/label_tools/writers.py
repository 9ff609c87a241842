"""Give the scene to each label tool, in the tool's own types.

Run by make.py, in an environment of the tool and in a folder with images/.
"""

import json
import shutil
import sys
from pathlib import Path

from scene import CLASSES, HEIGHT, IMAGES, OBJECTS, WIDTH, Object, objects_of, outline


def datumaro(folder: Path) -> None:
    """Write COCO files, with masks as drawn and with ``is_crowd`` given, a YOLO and a Pascal VOC dataset."""
    from datumaro.components.annotation import Bbox, Mask, Polygon
    from datumaro.components.dataset import Dataset
    from datumaro.components.dataset_base import DatasetItem
    from datumaro.components.media import Image

    def annotation(each: Object, masks: bool):
        label = each.class_id
        if each.filled:
            flag = {"is_crowd": each.crowd} if masks or each.crowd else {}
            return Mask(each.mask(), label=label, attributes=flag)
        if each.polygon or masks:
            return Polygon([x for point in each.points for x in point], label=label)
        return Bbox(*each.box, label=label)

    def dataset(masks: bool, val: str = ""):
        items = [
            DatasetItem(
                id=Path(name).stem,
                subset="val" if name == val else "train",
                media=Image.from_file(path=str(Path("images") / name)),
                annotations=[annotation(each, masks) for each in objects_of(name)],
            )
            for name in IMAGES
        ]
        return Dataset.from_iterable(items, categories=list(CLASSES))

    dataset(False).export(str(folder / "coco"), "coco_instances")
    dataset(True).export(str(folder / "coco_flagged"), "coco_instances")
    boxes = dataset(False, val="garden_2.png")  # without a "val", YOLO is refused
    boxes.transform("shapes_to_boxes")
    boxes.export(str(folder / "yolo"), "yolo_ultralytics", save_media=True)
    boxes.export(str(folder / "voc"), "voc_detection", save_media=True)


def globox(folder: Path) -> None:
    """Write boxes alone, under the tool's own ids."""
    from globox import Annotation, AnnotationSet, BoundingBox

    def box(each: Object):
        return BoundingBox.create(label=each.label, coords=each.corners)

    size = (WIDTH, HEIGHT)
    annotations = [Annotation(name, size, [box(each) for each in objects_of(name)]) for name in IMAGES]
    AnnotationSet(annotations).save_coco(folder / "boxes.json", auto_ids=True)


def imantics(folder: Path) -> None:
    """Write boxes, a polygon and masks."""
    from imantics import Annotation, Category, Dataset, Image, Mask, Polygons

    data = Dataset("garden")
    categories = {name: Category(name, id=i) for i, name in enumerate(CLASSES, 1)}
    for number, name in enumerate(IMAGES, 1):
        image = Image.from_path(str(Path("images") / name))
        image.id = number
        for each in objects_of(name):
            shape = {"bbox": each.corners}
            if each.filled:
                shape = {"mask": Mask(each.mask())}
            elif each.polygon:
                shape = {"polygons": Polygons.create([list(each.polygon)])}
            image.add(Annotation(image, categories[each.label], **shape))
        data.add(image)
    (folder / "coco.json").write_text(json.dumps(data.coco()))


def kwcoco(folder: Path) -> None:
    """Write a bundle whose masks are kwimage's segmentations: an RLE, and polygons with interiors."""
    import kwcoco
    import kwimage

    data = kwcoco.CocoDataset()
    ids = [data.add_category(name) for name in CLASSES]
    for name in IMAGES:
        image = data.add_image(file_name=f"images/{name}", width=WIDTH, height=HEIGHT)
        for each in objects_of(name):
            more = {}
            if each.crowd:
                mask = kwimage.Mask(each.mask().astype("uint8"), "c_mask")
                more = {"segmentation": mask.to_coco(), "iscrowd": 1}
            elif each.filled or each.polygon:
                polygon = kwimage.Polygon(exterior=each.points, interiors=[*map(outline, each.holes)])
                more = {"segmentation": polygon.to_multi_polygon().to_coco("new")}
            data.add_annotation(image, ids[each.class_id], bbox=list(each.box), **more)
    data.dump(str(folder / "data.kwcoco.json"))


def label_studio(folder: Path) -> None:
    """Export a project with boxes, polygons and brush strokes as "COCO" and as "Brush labels to COCO"."""
    from label_studio_sdk.converter import Converter

    labels = "".join(f'<Label value="{name}"/>' for name in CLASSES)
    kinds = ("RectangleLabels", "PolygonLabels", "BrushLabels")
    tags = [f'<{kind} name="{kind}" toName="image">{labels}</{kind}>' for kind in kinds]
    shutil.copytree("images", "upload/1")
    for brush, export in ((False, "COCO"), (True, "BRUSH_TO_COCO")):
        tasks = [
            {
                "id": number,
                "data": {"image": f"/data/upload/1/{name}"},
                "annotations": [
                    {"id": number, "result": [_region(each, brush) for each in objects_of(name)]}
                ],
            }
            for number, name in enumerate(IMAGES, 1)
        ]
        Path("tasks.json").write_text(json.dumps(tasks))
        config = f'<View><Image name="image" value="$image"/>{"".join(tags if brush else tags[:2])}</View>'
        converter = Converter(config, project_dir=".", upload_dir="upload")
        converter.convert("tasks.json", str(folder), export, is_dir=False)


def _region(each: Object, brush: bool) -> dict:
    """Return a region as Label Studio keeps it, in percent of the image; a mask is a stroke or its box."""
    from label_studio_sdk.converter.brush import mask2rle

    across, down = 100 / WIDTH, 100 / HEIGHT
    if each.filled and brush:
        kind = "BrushLabels"
        value = {"format": "rle", "rle": mask2rle(each.mask().astype("uint8") * 255)}
    elif each.polygon:
        kind = "PolygonLabels"
        value = {"points": [[x * across, y * down] for x, y in each.points], "closed": True}
    else:
        kind, (x, y, width, height) = "RectangleLabels", each.box
        value = {"x": x * across, "y": y * down, "width": width * across, "height": height * down}
        value["rotation"] = 0
    value[kind.lower()] = [each.label]
    region = {"id": each.key, "type": kind.lower(), "from_name": kind, "to_name": "image", "value": value}
    return {**region, "original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}


def labelme2coco(folder: Path) -> None:
    """Convert files as labelme 5 saves them. The masks are given as polygons, a shape for each part."""
    import labelme2coco

    def shape(label: str, kind: str, points: list, group: int | None = None) -> dict:
        return {
            "label": label, "points": points, "group_id": group, "description": "", "shape_type": kind,
            "flags": {}, "mask": None,
        }  # fmt: skip

    def shapes(each: Object) -> list[dict]:
        if each.filled:
            parts = [[list(point) for point in outline(part)] for part in each.filled]
            return [shape(each.label, "polygon", part, 1 if len(parts) > 1 else None) for part in parts]
        if each.polygon:
            return [shape(each.label, "polygon", [list(point) for point in each.points])]
        x0, y0, x1, y1 = each.corners
        return [shape(each.label, "rectangle", [[x1, y1], [x0, y0]])]  # drawn from its last corner

    for name in IMAGES:
        content = {
            "version": "5.8.1", "flags": {}, "shapes": [s for each in objects_of(name) for s in shapes(each)],
            "imagePath": name, "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH,
        }  # fmt: skip
        (Path("images") / name).with_suffix(".json").write_text(json.dumps(content, indent=2))
    labelme2coco.convert("images", str(folder))


def pycocowriter(folder: Path) -> None:
    """Write a table of boxes, and a file built by the constructors, with polygons and RLEs."""
    from pycocotools import mask as mask_util
    from pycocowriter import coco
    from pycocowriter.csv2coco import Iterable2COCO, Iterable2COCOConfig

    columns = {"filename": 0, "width": 1, "height": 2, "label": 3}
    columns["bbox_tlbr"] = {"tlx": 4, "tly": 5, "brx": 6, "bry": 7}
    rows = [[each.image, WIDTH, HEIGHT, each.label, *each.corners] for each in OBJECTS]
    parts = Iterable2COCO(Iterable2COCOConfig(columns)).parse(rows)
    info = coco.COCOInfo(description="garden")
    coco.COCOData(info, *parts[:2], [], parts[2]).to_json(str(folder / "from_table.json"))

    def segmentation(each: Object):
        if each.filled:
            run_lengths = mask_util.encode(each.mask().astype("uint8", order="F"))
            return {**run_lengths, "counts": run_lengths["counts"].decode()}
        return [list(each.polygon)] if each.polygon else None

    ids = {name: i for i, name in enumerate(IMAGES)}
    images = [coco.COCOImage(i, name, WIDTH, HEIGHT) for name, i in ids.items()]
    annotations = [
        coco.COCOAnnotation(
            ids[each.image], i, each.class_id + 1, each.box,
            segmentation=segmentation(each), iscrowd=int(each.crowd),
        )
        for i, each in enumerate(OBJECTS)
    ]  # fmt: skip
    categories = [coco.COCOCategory(name, i) for i, name in enumerate(CLASSES, 1)]
    coco.COCOData(info, images, annotations, [], categories).to_json(str(folder / "built.json"))


def pylabel(folder: Path) -> None:
    """Read a COCO file, and write it."""
    from pylabel import importer

    ids = {name: i for i, name in enumerate(IMAGES, 1)}
    content = {
        "images": [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for n, i in ids.items()],
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(CLASSES, 1)],
        "annotations": [
            {
                "id": i, "image_id": ids[each.image], "category_id": each.class_id + 1, "bbox": each.box,
                "area": each.box[2] * each.box[3], "iscrowd": int(each.crowd),
                "segmentation": [list(each.polygon)] if each.polygon else [],
            }
            for i, each in enumerate(OBJECTS, 1)
        ],
    }  # fmt: skip
    Path("given.json").write_text(json.dumps(content))
    data = importer.ImportCoco("given.json", path_to_images="images", name="garden")
    data.export.ExportToCoco(str(folder / "garden.json"))


def sahi(folder: Path) -> None:
    """Write boxes and polygons. A mask is given as the polygons of its parts."""
    from sahi.utils.coco import Coco, CocoAnnotation, CocoCategory, CocoImage

    data = Coco()
    for i, name in enumerate(CLASSES):
        data.add_category(CocoCategory(id=i, name=name))
    for name in IMAGES:
        image = CocoImage(f"images/{name}", HEIGHT, WIDTH)
        for each in objects_of(name):
            shape = {"bbox": list(each.box)}
            if each.filled:
                parts = [[x for point in outline(part) for x in point] for part in each.filled]
                shape = {"segmentation": parts}
            elif each.polygon:
                shape = {"segmentation": [list(each.polygon)]}
            image.add_annotation(
                CocoAnnotation(
                    category_id=each.class_id, category_name=each.label, iscrowd=int(each.crowd), **shape
                )
            )
        data.add_image(image)
    (folder / "coco.json").write_text(json.dumps(data.json))


def supervision(folder: Path) -> None:
    """Write boxes of the first image and masks of two others, as COCO, YOLO and Pascal VOC."""
    import numpy as np
    import supervision as sv

    def mask(each: Object):
        if each.filled:
            return each.mask()
        return sv.polygon_to_mask(np.array(each.points).astype(np.int32), (WIDTH, HEIGHT)).astype(bool)

    annotations = {}
    for name in IMAGES:
        objects = objects_of(name)
        if not objects:
            annotations[f"images/{name}"] = sv.Detections.empty()
            continue
        masks = [mask(each) for each in objects if each.filled or each.polygon]
        annotations[f"images/{name}"] = sv.Detections(
            xyxy=np.array([each.corners for each in objects], dtype=np.float32),
            mask=np.stack(masks) if masks else None,
            class_id=np.array([each.class_id for each in objects]),
        )
    data = sv.DetectionDataset(list(CLASSES), list(annotations), annotations)
    data.as_coco(annotations_path=str(folder / "coco.json"))
    yolo, voc = folder / "yolo", folder / "voc"
    data.as_yolo(str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"))
    data.as_pascal_voc(str(voc / "JPEGImages"), str(voc / "Annotations"))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir()
    globals()[sys.argv[1]](target)
