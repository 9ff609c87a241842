#!/usr/bin/env bash
# In the "TemplateProcessing" of a tokenizer.json, a special token has a name for the template, and "ids" that stand for
# the name. The JavaScript package @huggingface/tokenizers ignores these ids and looks the name up among the words. A name
# that is also a word silently becomes this word. Needs node and npm.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check tokenizers==0.23.3 || exit 2
echo '{"private": true}' > package.json
npm install --silent --no-audit --no-fund @huggingface/tokenizers@0.2.0 || exit 2
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

tokenizer = Tokenizer(models.WordLevel({"[BOS]": 0, "start": 1, "cat": 2, "[UNK]": 3}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
start = {"id": "start", "ids": [0], "tokens": ["[BOS]"]}
tokenizer.post_processor = TemplateProcessing(single="start $A", special_tokens=[start])
tokenizer.save("tokenizer.json")
ids = Tokenizer.from_file("tokenizer.json").encode("cat").ids
print(f"tokenizers {version('tokenizers')} in Python: {ids}")
assert ids == [0, 2]
PYTHON
cat > run.mjs <<'JAVASCRIPT'
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";

const { ids } = new Tokenizer(JSON.parse(readFileSync("tokenizer.json", "utf8")), {}).encode("cat");
console.log(`@huggingface/tokenizers 0.2.0 in JavaScript: ${JSON.stringify(ids)}`);
process.exit(Number(JSON.stringify(ids) !== "[1,2]"));
JAVASCRIPT
node run.mjs
