// A detector of tools/export_model.py, in a browser by onnxruntime-web or in Node by onnxruntime-node.

// Return the metadata, which neither exposes: metadata_props, field 14 of an ONNX model.
function aboutModel(bytes) {
  const about = {}, text = new TextDecoder();
  let at = 0;
  const varint = () => {
    let value = 0, shift = 1, byte;
    do { byte = bytes[at++]; value += (byte & 127) * shift; shift *= 128; } while (byte > 127);
    return value;
  };
  const field = () => {
    const tag = varint(), size = varint();
    if (tag % 8 !== 2) return { number: 0 }; // a number, which varint() has read
    return { number: tag >> 3, start: at, end: (at += size) };
  };
  while (at < bytes.length) {
    const outer = field(), after = at;
    if (outer.number !== 14) continue;
    at = outer.start;
    const [key, value] = [field(), field()].map((x) => text.decode(bytes.subarray(x.start, x.end)));
    about[key] = value;
    at = after;
  }
  return about;
}

// ort: the runtime. read: an async function from a name, such as "names.onnx", to the bytes of that file beside the
// model. tokenizers: an async function that imports @huggingface/tokenizers.
export async function loadDetector(ort, read, tokenizers, { name = "model.onnx", ...options } = {}) {
  const open = async (file) => {
    const bytes = await read(file);
    return { about: aboutModel(bytes), session: await ort.InferenceSession.create(bytes, options) };
  };
  const { about, session } = await open(name);

  // Return a function from names to their text embeddings (K, C). Synonyms, "sofa|couch", share their mean.
  async function namesEncoder() {
    const { Tokenizer } = await tokenizers();
    const tokenizer = new Tokenizer(JSON.parse(new TextDecoder().decode(await read("tokenizer.json"))), {});
    const { about, session } = await open("names.onnx");
    return async (names) => {
      const words = names.map((name) => name.split("|").map((word) => word.trim()));
      if (!words.flat().every(Boolean)) throw new Error("a name or a synonym is empty.");
      const ids = words.flat().map((word) => tokenizer.encode(about.prompt.replace("{}", () => word)).ids);
      const length = Math.max(...ids.map((own) => own.length));
      if (length > Number(about.most_tokens)) throw new Error(`a name has more than ${about.most_tokens} tokens.`);
      const padded = ids.flatMap((own) => [...own, ...Array(length - own.length).fill(0)]);
      const token_ids = new ort.Tensor("int64", BigInt64Array.from(padded, BigInt), [ids.length, length]);
      const { data, dims: [, width] } = (await session.run({ token_ids })).text_embeddings;
      const means = new Float32Array(names.length * width);
      let row = 0;
      words.forEach((own, k) => own.forEach(() => {
        for (let c = 0; c < width; c++) means[k * width + c] += data[row * width + c] / own.length;
        row++;
      }));
      return new ort.Tensor("float32", means, [names.length, width]);
    };
  }

  if (!JSON.parse(about.outputs).includes("boxes")) throw new Error("the model gives no boxes.");
  const encode = about.learned_names ? await namesEncoder() : null; // a model that takes any names
  const classNames = JSON.parse(about.class_names);

  return {
    classNames,
    takesNames: Boolean(encode),
    // pixels: RGB or RGBA. Return the detections, by falling score.
    async detect({ data, width, height }, names = classNames) {
      if (!encode && names !== classNames) throw new Error("this model finds the classes it was trained on alone.");
      const channels = data.length / (width * height), pixels = new Uint8Array(3 * width * height);
      const order = about.pixel_format === "BGR" ? [2, 1, 0] : [0, 1, 2];
      for (let i = 0; i < width * height; i++)
        for (let c = 0; c < 3; c++) pixels[3 * i + c] = data[channels * i + order[c]];
      const images = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
      const { boxes, scores, classes } = await session.run({
        images, ...(encode && { text_embeddings: await encode(names) }),
      });
      return Array.from(scores.data, (score, i) => ({
        score, class: Number(classes.data[i]), name: names[Number(classes.data[i])],
        box: Array.from(boxes.data.subarray(4 * i, 4 * i + 4)),
      }));
    },
  };
}

export const describe = ({ name, score, box }) =>
  `${name} ${score.toFixed(2)} at ${box.map((x) => x.toFixed(1)).join(", ")}`;
