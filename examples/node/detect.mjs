// Detect objects in Node by a model.onnx of tools/export_model.py.
//
//   npm install --onnxruntime-node-install=skip      # in this folder; skips what CUDA needs
//   node detect.mjs DIR/model.onnx photo.jpg 0.5 ["garden gnome" "sofa|couch" ...]

import { readFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import ort from "onnxruntime-node";
import sharp from "sharp";
import { describe, loadDetector } from "../browser/detector.mjs";

const [model, image, threshold, ...names] = process.argv.slice(2);
if (!threshold) throw new Error("usage: node detect.mjs model.onnx photo.jpg threshold [name ...]");
const read = (name) => readFile(join(dirname(model), name));
const detector = await loadDetector(ort, read, () => import("@huggingface/tokenizers"), { name: basename(model) });
const upright = sharp(image).autoOrient().toColorspace("srgb").removeAlpha();
const { data, info } = await upright.raw().toBuffer({ resolveWithObject: true });
const found = await detector.detect({ data, ...info }, names.length ? names : undefined);
for (const detection of found) if (detection.score >= Number(threshold)) console.log(describe(detection));
