"""The web page: a picture in, and what a model sees in it out. It needs Gradio, which is an extra."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

from ..visualization.drawing import HEAT, class_color
from .session import Limits, Look, Models, look_at, names_typed, read_upload, reads_any_words, write_examples

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it would tell its makers of every start
try:
    import gradio as gr
except ImportError as error:
    raise ImportError("The web page needs Gradio: pip install gradio.") from error

logger = logging.getLogger(__name__)

SESSIONS_KEPT = 32
"""People whose last look is in memory; older ones have to look again."""
FILES_KEPT = 3600
"""Seconds for which pictures that were sent, and what was drawn on them, stay on the disk."""
NAMES_TOLD = 40
"""Classes of a model that are named."""

THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # the machine's: none is fetched
    font_mono=["ui-monospace", "monospace"],
)
CSS = """
.gradio-container { max-width: 1280px !important; margin: auto; }
#result img { max-height: 560px; }
#found span { display: inline-flex; align-items: center; gap: .4em; margin: 0 1em .3em 0; }
#found i { width: .9em; height: .9em; border-radius: .2em; }
#about { font-size: .9em; }
#about summary { cursor: pointer; }
#scale { display: flex; align-items: center; gap: .6em; }
#scale i { width: 9em; height: .7em; border-radius: .2em; }
#heat_maps .grid-wrap { height: auto; min-height: 0; max-height: none; overflow: visible; }
#heat_maps .grid-container { grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)) !important; }
"""
BEGIN = "Drop a picture, or take one of the examples."


class Page:
    """What the page does; each method that Gradio calls gives what it is to show."""

    def __init__(self, models: Models, limits: Limits):
        self.models, self.limits = models, limits
        self._drawing = Lock()  # matplotlib is not made for threads

    def look(self, path: str | None, last: Look | None, model: str, text: str, threshold: float) -> tuple:
        """Run the model over a picture that was sent, or over the last one again."""
        if path:
            image, file_name = read_upload(path, self.limits), Path(path).name
        elif last:
            image, file_name = last.image, last.file_name
        else:
            raise ValueError(BEGIN)
        predictor = self.models.get(model)
        names = names_typed(text or "", predictor.class_names, self.limits)
        look = look_at(predictor, image, names, file_name)
        heat_maps = [(heat, name) for name, heat in look.heat_maps.items()]
        # No file: there is room for the next.
        return *self.draw(look, threshold), str(look.detections), heat_maps, look, None

    def draw(self, look: Look | None, threshold: float) -> tuple:
        """Draw again what the model has seen already."""
        if look is None:
            return gr.skip(), gr.skip(), gr.skip()
        with self._drawing:
            drawn = look.draw(threshold)
            picture = look.write_picture(drawn, threshold)
        return _legend(look, threshold), drawn, str(picture)

    def about(self, model: str) -> str:
        """What names a model knows."""
        predictor = self.models.get(model)
        names = predictor.class_names
        more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
        told = escape(", ".join(names[:NAMES_TOLD])) + more
        what = "Names of its classes alone have heat maps: the text encoder was left out of this model."
        if predictor.guidance is None:
            what = "This model is without language, and has no heat maps."
        elif reads_any_words(predictor):
            what = "Any words have heat maps."
        return f"{what} <details><summary>It has {len(names)} classes</summary>{told}</details>"

    def names_for(self, model: str, names: list[str]) -> list[str]:
        """These names, or where the model cannot read them some of its classes."""
        predictor = self.models.get(model)
        classes = predictor.class_names
        readable = reads_any_words(predictor) or set(names) <= set(classes)
        return names if readable else list(classes[:3])


def in_words(method, *others):
    """A method for Gradio, whose errors people read in place of the first thing that it gives to show.

    What is theirs is said in its words; what is not is in the log.

    Args:
        others: what the other things become then.
    """

    @wraps(method)
    def told(*args):
        try:
            return method(*args)
        except (ValueError, OSError) as error:
            words = escape(str(error))
        except Exception:
            logger.exception("The page could not do what it was asked for.")
            words = "This did not work, for a reason that the log of the page's program tells."
        gr.Warning(words, title="Not done")
        refusal = f'<p role="alert">{words}</p>'
        return (refusal, *others) if others else refusal

    return told


def build_page(page: Page, folder: Path) -> gr.Blocks:
    """
    Args:
        folder: for the pictures of the examples.
    """
    examples = write_examples(folder, 5)
    names = page.names_for(next(iter(page.models.configs)), examples[0][1])
    with gr.Blocks(title="DenseCLIP", analytics_enabled=False, delete_cache=(600, FILES_KEPT)) as blocks:
        gr.Markdown(
            "# DenseCLIP\nWhat a model finds in a picture, and where it sees the names that you type."
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                inputs, samples, about = _controls(page, names, [[path] for path, _ in examples])
            with gr.Column(scale=4, min_width=320):
                result, found, downloads = _results()
        gr.HTML(
            f'<div id="scale">Where the model sees each name: nowhere <i style="{_turbo()}"></i> here</div>'
        )
        heat_maps = gr.Gallery(
            show_label=False, height="auto", object_fit="contain", format="png", interactive=False,
            buttons=["fullscreen"], elem_id="heat_maps",
        )  # fmt: skip
        look = gr.State(time_to_live=FILES_KEPT)
        shown = [found, result, *downloads, heat_maps, look, inputs[0]]
        _connect(page, examples, blocks, inputs, samples, about, shown)
    return blocks.queue(max_size=page.limits.queue)


def _connect(
    page: Page, examples: list, blocks: gr.Blocks, inputs: tuple, samples, about, shown: list
) -> None:
    """Say what happens when. The model takes one at a time, whoever asks; the slider does not wait for it."""
    file, model, names, threshold, button = inputs
    found, result, picture, *_, look, _ = shown
    looking: dict[str, Any] = {
        "inputs": [file, look, model, names, threshold], "outputs": shown, "concurrency_limit": 1,
        "concurrency_id": "model",
    }  # fmt: skip
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    kept = gr.skip()
    run = in_words(page.look, kept, kept, kept, kept, kept, None)

    def take(example: int, model: str) -> tuple[str, str]:
        path, names = examples[example]
        return path, ", ".join(page.names_for(model, names))

    blocks.load(lambda _, *rest: run(examples[0][0], *rest), **looking, api_visibility="private")
    gr.on(
        [file.upload, names.submit, button.click], run, **looking, api_name="look",
        trigger_mode="always_last",
    )  # fmt: skip
    taken = samples.click(take, [samples, model], [file, names], concurrency_id="model", **private)
    chosen = model.change(in_words(page.about), model, about, concurrency_id="model", **private)
    for event in (taken, chosen):
        event.success(run, **looking, api_visibility="private")
    threshold.change(
        in_words(page.draw, kept, kept), [look, threshold], [found, result, picture], api_name="draw",
        show_progress="hidden", trigger_mode="always_last",
    )  # fmt: skip


def _controls(page: Page, names: list[str], pictures: list[list[str]]) -> tuple:
    """What there is to choose from: the picture, model, names, threshold and button; examples; a text."""
    gr.Markdown(f"**Picture**, up to {page.limits.megabytes} MB and {page.limits.megapixels} megapixels")
    file = gr.File(show_label=False, file_types=["image"], height=130, elem_id="picture")
    samples = gr.Dataset(
        components=[gr.Image(visible=False)], samples=pictures, type="index", label="Examples",
    )  # fmt: skip
    choices = page.models.choices()
    model = gr.Dropdown(choices, value=choices[0][1], label="Model", elem_id="model")
    typed = gr.Textbox(", ".join(names), label="Names to look for, with commas between", elem_id="names")
    about = gr.HTML(page.about(choices[0][1]), elem_id="about")
    threshold = gr.Slider(
        0, 1, 0.4, step=0.01, label="Draw what is at least this sure", elem_id="threshold",
    )  # fmt: skip
    button = gr.Button("Look", variant="primary")
    return (file, model, typed, threshold, button), samples, about


def _results() -> tuple:
    """The picture, what is in it, and the buttons for its files."""
    result = gr.Image(
        show_label=False, format="png", interactive=False, buttons=["fullscreen"], elem_id="result"
    )
    found = gr.HTML(BEGIN, elem_id="found")
    with gr.Row():
        downloads = [gr.DownloadButton("Picture (PNG)"), gr.DownloadButton("Detections (COCO's JSON)")]
    return result, found, downloads


@contextmanager
def served(page: Page, *, host: str = "127.0.0.1", port: int = 7860) -> Iterator[str]:
    """The page's address, while it is served; what was sent to it is then deleted.

    Args:
        host: an address of this machine by which others reach the page; "0.0.0.0" is all of them.
        port: 0 takes the first free one from 7860 on.

    Raises:
        ValueError, FileNotFoundError: the first model's weights cannot be loaded.
        OSError: the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="denseclip_d2_web_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        blocks = build_page(page, Path(folder))
        _, address, _ = blocks.launch(
            server_name=host, server_port=port or None, share=False, prevent_thread_lock=True, quiet=True,
            inbrowser=False, footer_links=[], run_history=False, enable_monitoring=False, pwa=False,
            ssr_mode=False, mcp_server=False, max_file_size=f"{page.limits.megabytes}mb",
            state_session_capacity=SESSIONS_KEPT, theme=THEME, css=CSS,
        )  # fmt: skip
        try:
            yield address
        finally:
            blocks.close()


def _turbo() -> str:
    """The colors of heat maps, for a style."""
    colors = (", ".join(f"{255 * x:.0f}" for x in HEAT(i / 8)[:3]) for i in range(9))
    return f"background: linear-gradient(to right, {', '.join(f'rgb({c})' for c in colors)})"


def _legend(look: Look, threshold: float) -> str:
    """What was found, in the colors that it is drawn in, and the names that could not be read."""
    spans = [
        f'<span><i style="background: rgb({", ".join(f"{255 * x:.0f}" for x in class_color(c))})"></i>'
        f"{escape(look.class_names[c])} &middot; {amount}</span>"
        for c, amount in look.seen.amounts(threshold).items()
    ]
    unread = f"<p>This model cannot read: {escape(', '.join(look.unread))}.</p>" if look.unread else ""
    return "".join(spans or ["Nothing is as sure as that."]) + unread
