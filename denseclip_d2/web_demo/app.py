"""The web page, which shows a model's predictions for an uploaded image. It needs Gradio, an extra."""

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
from .session import (
    Limits,
    Models,
    Prediction,
    can_read,
    names_typed,
    photographs,
    predict,
    read_upload,
    reads_any_words,
    write_examples,
)

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # otherwise Gradio reports every start to its makers
try:
    import gradio as gr
except ImportError as error:
    raise ImportError("The web page needs Gradio: pip install gradio.") from error

logger = logging.getLogger(__name__)

SESSIONS_KEPT = 32
"""Number of people whose last predictions stay in memory."""
FILES_KEPT = 3600
"""Seconds for which uploaded and drawn images stay on the disk."""

THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # the machine's fonts: nothing is downloaded
    font_mono=["ui-monospace", "monospace"],
)
CSS = """
.gradio-container { max-width: 1280px !important; margin: auto; }
#result img { max-height: 560px; }
#found span { display: inline-flex; align-items: center; gap: .4em; margin: 0 1em .3em 0; }
#found i { width: .9em; height: .9em; border-radius: .2em; }
#about { font-size: .9em; }
#about details { max-height: 20em; overflow: auto; }
#about summary { cursor: pointer; }
#scale { display: flex; align-items: center; gap: .6em; }
#scale i { width: 9em; height: .7em; border-radius: .2em; }
#heat_maps .grid-wrap { height: auto; min-height: 0; max-height: none; overflow: visible; }
#heat_maps .grid-container { grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)) !important; }
"""
BEGIN = "Upload an image, or choose an example."


class Page:
    """The page's actions. Each method returns the values that Gradio shows."""

    def __init__(self, models: Models, limits: Limits):
        self.models, self.limits = models, limits
        self._drawing = Lock()  # matplotlib is not thread-safe

    def predict(
        self, path: str | None, last: Prediction | None, model: str, text: str, threshold: float
    ) -> tuple:
        """Run the model on an uploaded image, or again on the last one."""
        if path:
            image, file_name = read_upload(path, self.limits), Path(path).name
        elif last:
            image, file_name = last.image, last.file_name
        else:
            raise ValueError(BEGIN)
        predictor = self.models.get(model)
        names = names_typed(text or "", predictor.class_names, self.limits)
        prediction = predict(predictor, image, names, file_name)
        heat_maps = [(heat, name) for name, heat in prediction.heat_maps.items()]
        # None empties the upload field for the next file.
        *drawn, _ = self.draw(prediction, threshold)
        return *drawn, str(prediction.detections), heat_maps, prediction, None, threshold

    def draw(self, prediction: Prediction | None, threshold: float, drawn_at: float | None = None) -> tuple:
        """Draw the last predictions again, unless they are drawn at this threshold."""
        if prediction is None or threshold == drawn_at:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        with self._drawing:
            drawn = prediction.draw(threshold)
            image = prediction.write_image(drawn, threshold)
        return _legend(prediction, threshold), drawn, str(image), threshold

    def about(self, model: str) -> str:
        """Describe a model: which names have heat maps, and its class names."""
        predictor = self.models.get(model)
        names = predictor.class_names
        what, kind = "This model has no text encoder. Only its class names have heat maps.", "classes"
        if predictor.guidance is None:
            what = "This model is not language-guided, and has no heat maps."
        elif readable := predictor.guidance.language.readable_names:
            what = "This model finds those of its names that you type; without names, its classes."
            names, kind = readable, "names"
        elif predictor.takes_names:
            what = "This model finds the names that you type, in any words; without names, its classes."
        elif reads_any_words(predictor):
            what = "This model has a text encoder. Any words have heat maps."
        return f"{what} <details><summary>{len(names)} {kind}</summary>{escape(', '.join(names))}</details>"

    def names_for(self, model: str, names: list[str]) -> list[str]:
        """Return the names if the model knows them, and otherwise some of its class names."""
        predictor = self.models.get(model)
        return names if can_read(predictor, names) else list(predictor.class_names[:3])


def in_words(method, *others):
    """Wrap a method for Gradio. It returns an error message in place of the first output.

    The message of a ValueError or OSError is shown. Other errors are logged.

    Args:
        others: the other outputs after an error.
    """

    @wraps(method)
    def told(*args):
        try:
            return method(*args)
        except (ValueError, OSError) as error:
            words = escape(str(error))
        except Exception:
            logger.exception("The web page had an unexpected error.")
            words = "An unexpected error occurred. The log of the server has the details."
        gr.Warning(words, title="Error")
        refusal = f'<p role="alert">{words}</p>'
        return (refusal, *others) if others else refusal

    return told


def build_page(page: Page, folder: Path) -> gr.Blocks:
    """Build the page and write the images of its examples to a folder."""
    first = page.models.get(page.models.choices()[0][1])
    examples = [*photographs(), *write_examples(folder, 4)]
    examples.sort(key=lambda example: not can_read(first, example[1]))
    with gr.Blocks(title="DenseCLIP", analytics_enabled=False, delete_cache=(600, FILES_KEPT)) as blocks:
        gr.Markdown("# DenseCLIP\nUpload an image. See the predictions, and where the model sees your words.")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                inputs, samples, about = _controls(page, examples)
            with gr.Column(scale=4, min_width=320):
                result = gr.Image(
                    show_label=False, format="png", interactive=False, buttons=["fullscreen"],
                    elem_id="result",
                )  # fmt: skip
                found = gr.HTML(BEGIN, elem_id="found")
                with gr.Row():
                    downloads = gr.DownloadButton("Image (PNG)"), gr.DownloadButton("Predictions (COCO JSON)")
        gr.HTML(f'<div id="scale">Heat map of each name: 0 <i style="{_turbo()}"></i> 1</div>')
        heat_maps = gr.Gallery(
            show_label=False, height="auto", object_fit="contain", format="png", interactive=False,
            buttons=["fullscreen"], elem_id="heat_maps",
        )  # fmt: skip
        prediction, drawn_at = gr.State(time_to_live=FILES_KEPT), gr.State()
        shown = [found, result, *downloads, heat_maps, prediction, inputs[0], drawn_at]
        _connect(page, examples, blocks, inputs, samples, about, shown)
    return blocks.queue(max_size=page.limits.queue)


def _controls(page: Page, examples: list[tuple[str, list[str]]]) -> tuple:
    """Return the inputs (file, model, names, threshold, button), the examples and the model's description."""
    choices = page.models.choices()
    names = page.names_for(choices[0][1], examples[0][1])
    gr.Markdown(f"**Image**, up to {page.limits.megabytes} MB and {page.limits.megapixels} megapixels")
    file = gr.File(show_label=False, file_types=["image"], height=130, elem_id="image")
    samples = gr.Dataset(
        components=[gr.Image(visible=False)], samples=[[path] for path, _ in examples], type="index",
        label="Examples",
    )  # fmt: skip
    model = gr.Dropdown(choices, value=choices[0][1], label="Model", elem_id="model")
    typed = gr.Textbox(", ".join(names), label="Names, separated by commas", elem_id="names")
    about = gr.HTML(page.about(choices[0][1]), elem_id="about")
    threshold = gr.Slider(0, 1, 0.4, step=0.01, label="Score threshold", elem_id="threshold")
    return (file, model, typed, threshold, gr.Button("Run", variant="primary")), samples, about


def _connect(
    page: Page, examples: list, blocks: gr.Blocks, inputs: tuple, samples, about, shown: list
) -> None:
    """Connect events to actions. The model runs one request at a time. The slider does not wait for it."""
    file, model, names, threshold, button = inputs
    found, result, image, *_, prediction, _, drawn_at = shown
    predicting: dict[str, Any] = {
        "inputs": [file, prediction, model, names, threshold], "outputs": shown, "concurrency_limit": 1,
        "concurrency_id": "model",
    }  # fmt: skip
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    kept = gr.skip()
    run = in_words(page.predict, kept, kept, kept, kept, kept, None, kept)
    redraw: dict[str, Any] = {
        "fn": in_words(page.draw, kept, kept, kept), "inputs": [prediction, threshold, drawn_at],
        "outputs": [found, result, image, drawn_at], "show_progress": "hidden",
    }  # fmt: skip

    def take(example: int, model: str) -> tuple[str, str]:
        path, names = examples[example]
        return path, ", ".join(page.names_for(model, names))

    runs = [
        blocks.load(lambda _, *rest: run(examples[0][0], *rest), **predicting, api_visibility="private"),
        gr.on(
            [file.upload, names.submit, button.click], run, **predicting, api_name="predict",
            trigger_mode="always_last",
        ),
    ]  # fmt: skip
    taken = samples.click(take, [samples, model], [file, names], concurrency_id="model", **private)
    chosen = model.change(in_words(page.about), model, about, concurrency_id="model", **private)
    runs += [event.success(run, **predicting, api_visibility="private") for event in (taken, chosen)]
    threshold.change(**redraw, api_name="draw", trigger_mode="always_last")
    for event in runs:  # the slider may have moved meanwhile
        event.success(**redraw, api_visibility="private")


@contextmanager
def serve_page(page: Page, *, host: str = "127.0.0.1", port: int = 7860) -> Iterator[str]:
    """Serve the page and yield its address. Uploaded files are deleted at the end.

    Args:
        host: address of this machine that others reach the page by; "0.0.0.0" is all of them.
        port: 0 takes the first free port from 7860 on.

    Raises:
        ValueError, FileNotFoundError: the first model's weights cannot be loaded.
        OSError: the port is in use.
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


def _css_color(color: tuple[float, ...]) -> str:
    return f"rgb({', '.join(f'{255 * x:.0f}' for x in color[:3])})"


def _turbo() -> str:
    """Return the CSS background with the colors of heat maps."""
    return f"background: linear-gradient(to right, {', '.join(_css_color(HEAT(i / 8)) for i in range(9))})"


def _legend(prediction: Prediction, threshold: float) -> str:
    """Return the HTML of the predicted classes with their colors, and of names without a heat map."""
    spans = [
        f'<span><i style="background: {_css_color(class_color(c))}"></i>'
        f"{escape(prediction.class_names[c])} &middot; {amount}</span>"
        for c, amount in prediction.seen.amounts(threshold).items()
    ]
    unread = (
        f"<p>This model does not know: {escape(', '.join(prediction.unread))}.</p>"
        if prediction.unread
        else ""
    )
    return "".join(spans or ["No prediction reaches this score."]) + unread
