#!/usr/bin/env bash
# Run the examples in environments with only their own requirements. Arguments: a Python with denseclip_d2 for
# the export, and a folder to work in.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 folder=$2
mkdir -p "$folder"
test -x "$folder/venv/bin/python" || "$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r examples/requirements.txt
"$python" - "$folder/shapes" <<'PYTHON'
import sys
from denseclip_d2.shapes.dataset import generate_shapes
from pathlib import Path
if not Path(sys.argv[1]).exists():
    generate_shapes(Path(sys.argv[1]), num_train=1, num_val=1, seed=3)
PYTHON
for system in retinanet mask_rcnn semantic_fpn; do
  "$python" tools/export_model.py --config-file "denseclip://Shapes/denseclip_${system}_tiny.yaml" \
    --format onnx --output "$folder/$system" --overwrite
  "$folder/venv/bin/python" -I examples/detect.py "$folder/$system/model.onnx" \
    "$folder/shapes/val/000000000001.png" --threshold 0.3 --output "$folder/$system/seen.png"
done

# A model that takes names.
names=("blue circle" "green dot|green circle")
"$python" tools/export_model.py --config-file denseclip://Shapes/denseclip_retinanet_text_tiny.yaml \
  --format onnx --output "$folder/names" --overwrite
echo "With names:"
"$folder/venv/bin/python" -I examples/detect.py "$folder/names/model.onnx" "$folder/shapes/val/000000000001.png" \
  --names "${names[@]}" --threshold 0.4 --output "$folder/names/seen.png" |
  grep ' at [0-9]' | tee "$folder/names/found.txt"

echo "By OpenVINO:"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check openvino
"$folder/venv/bin/python" -I examples/detect.py "$folder/mask_rcnn/model.onnx" --runtime openvino \
  "$folder/shapes/val/000000000001.png" --threshold 0.3 --output "$folder/mask_rcnn/openvino.png"
"$folder/venv/bin/python" -I examples/detect.py "$folder/names/model.onnx" --runtime openvino \
  "$folder/shapes/val/000000000001.png" --names "${names[@]}" --threshold 0.4 --output "$folder/names/openvino.png" |
  grep ' at [0-9]'

if command -v cmake > /dev/null && command -v c++ > /dev/null; then
  found=$("$folder/venv/bin/python" -c "import openvino.utils as u; print(u.get_cmake_path())")
  cmake -S examples/cpp -B "$folder/cpp" -DOpenVINO_DIR="$found" > "$folder/cmake.txt"
  cmake --build "$folder/cpp" >> "$folder/cmake.txt"
  "$folder/venv/bin/python" - "$folder/shapes/val/000000000001.png" "$folder/image.ppm" <<'PYTHON'
import sys
from PIL import Image
Image.open(sys.argv[1]).convert("RGB").save(sys.argv[2])
PYTHON
  echo "In C++:"
  "$folder/cpp/detect" "$folder/mask_rcnn/model.onnx" "$folder/image.ppm" 0.3
else
  echo "Skipped the C++ example: it needs cmake and a compiler."
fi

if [ -n "${OpenCV_DIR:-}" ]; then
  cmake -S examples/opencv -B "$folder/opencv" -DOpenCV_DIR="$OpenCV_DIR" > "$folder/cmake.txt"
  cmake --build "$folder/opencv" >> "$folder/cmake.txt"
  "$folder/venv/bin/python" - "$folder/shapes/val/000000000001.png" "$folder/0.png" <<'PYTHON'
import sys
from PIL import Image
Image.open(sys.argv[1]).convert("RGB").resize((160, 128)).save(sys.argv[2])
PYTHON
  "$python" tools/export_model.py --config-file denseclip://Shapes/denseclip_mask_rcnn_tiny.yaml \
    --format onnx --size 128 160 --output "$folder/fixed" --overwrite
  "$python" - "$folder/fixed/model.onnx" > "$folder/names.txt" <<'PYTHON'
import json, sys
import onnx
print(*json.loads({x.key: x.value for x in onnx.load(sys.argv[1]).metadata_props}["class_names"]), sep="\n")
PYTHON
  echo "By OpenCV, in C++:"
  "$folder/opencv/detect" "$folder/fixed/model.onnx" "$folder/names.txt" "$folder/0.png" "$folder/seen.avi" 0.3 |
    tee "$folder/opencv/found.txt"
  "$folder/venv/bin/python" -I examples/detect.py "$folder/fixed/model.onnx" "$folder/0.png" --threshold 0.3 \
    --output "$folder/opencv/seen.png" | grep ' at [0-9]' | diff <(sed 's/^0: //' "$folder/opencv/found.txt") -
else
  echo "Skipped the example with OpenCV: it needs OpenCV_DIR, the CMake files of an OpenCV 5."
fi

if command -v npm > /dev/null; then
  cp -r examples/node examples/browser "$folder"
  (cd "$folder/node" && npm install --silent --no-audit --no-fund --onnxruntime-node-install=skip)
  echo "In Node:"
  node "$folder/node/detect.mjs" "$folder/mask_rcnn/model.onnx" "$folder/shapes/val/000000000001.png" 0.3
  node "$folder/node/detect.mjs" "$folder/names/model.onnx" "$folder/shapes/val/000000000001.png" 0.4 "${names[@]}" |
    diff "$folder/names/found.txt" -
  echo "With names, Node finds what Python finds."
else
  echo "Skipped the example in Node: it needs npm."
fi

chromium=$(command -v chromium || command -v google-chrome || true)
if [ -z "$chromium" ] || ! command -v npm > /dev/null; then
  echo "Skipped the browser example: it needs npm, and chromium or google-chrome."
  exit 0
fi
mkdir -p "$folder/browser"
cp examples/browser/* "$folder/mask_rcnn/model.onnx" "$folder/shapes/val/000000000001.png" "$folder/browser"
cp -r "$folder/names" "$folder/browser"
(cd "$folder/browser" && npm install --silent --no-audit --no-fund)
"$python" -m http.server 8471 --bind 127.0.0.1 --directory "$folder/browser" > /dev/null 2>&1 &
trap "kill $!" EXIT
sleep 2
browse() { # print the text that the page finds, with a query
  "$chromium" --headless --no-sandbox --disable-gpu --user-data-dir="$folder/chromium" --virtual-time-budget=60000 \
    --dump-dom "http://127.0.0.1:8471/?image=000000000001.png&$1" 2> /dev/null |
    sed -n '/id="found"/,/<\/pre>/p' | sed 's/<[^>]*>//g'
}
echo "In the browser:"
browse "threshold=0.3" | tee "$folder/browser/page.txt"
grep -q ' at [0-9]' "$folder/browser/page.txt"
query=$(IFS=,; echo "${names[*]}")
browse "threshold=0.4&model=names/model.onnx&names=${query// /%20}" | grep ' at [0-9]' | diff "$folder/names/found.txt" -
echo "With names, the browser finds what Python finds."
