"""Prompts: read to the last of 150 words, refused where they would not be; and expansion, which keeps what
was said."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

import orrery
from simulator import expand
from simulator.canvas import shots_of, text_to_video
from simulator.captions import STYLES, parse
from simulator.expand import KEY, MODEL, URL, expanded, named_relations
from simulator.generate import expanded_shots
from simulator.text import MAX_TOKENS, check_prompt, embed
from simulator.words import WORLDS
from simulator.world_model import WorldModel

SENTENCE = (
    "the camera slowly turns around a wide wooden table between pale walls while light falls from above "
)
LONG = " ".join((SENTENCE * 10).split()[:143]) + " and there stands a single large red"


def long_prompt(last: str) -> str:
    prompt = f"{LONG} {last}".replace("and there stands", "there stands")
    assert len(prompt.split()) == 150
    return prompt


def test_the_last_word_of_150_changes_the_embeddings():
    first, second = embed([check_prompt(long_prompt(word)) for word in ("ball", "mug")])
    assert len(first) == len(second) > 150
    assert (first[-2] - second[-2]).abs().max() > 0.1, "the last word's own embedding"
    assert (first[1:-2] - second[1:-2]).abs().max() > 1e-3, "and what the others see of it"


def test_the_last_word_of_150_changes_the_shipped_model_s_picture():
    model = WorldModel.load("default")
    pictures = [
        model.generate(text_to_video(long_prompt(word), 1, world="Orbit"), seed=1, steps=4)
        for word in ("ball", "mug", "ball")
    ]
    assert np.array_equal(pictures[0], pictures[2])
    assert np.abs(pictures[0].astype(int) - pictures[1].astype(int)).max() > 8


def test_a_prompt_over_the_encoder_s_limit_is_refused():
    with pytest.raises(ValueError, match=f"tokens, the encoder reads {MAX_TOKENS}; shorten"):
        check_prompt("word " * 400)
    with pytest.raises(ValueError, match="shorten"):
        WorldModel.load("default").generate(text_to_video("word " * 400, 1))


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch):
    for name in (URL, MODEL, KEY):
        monkeypatch.delenv(name, raising=False)


SHORT = (
    "a red ball",
    "two balls and a mug",
    "a large cube left of a small blue sphere",
    "a purple egg behind a white capsule in a room",
    "an orange L block falls onto a marble floor",
    "a red ball left of a blue box, the green egg is right of the red ball",
    "a pink mug on a grassy table, mint walls",
)


@pytest.mark.parametrize("prompt", SHORT)
@pytest.mark.parametrize("style", STYLES)
def test_templates_keep_all_that_was_said_and_say_more(prompt, style):
    for seed in range(5):
        text = expanded(prompt, style=style, seed=seed)
        assert text == expanded(prompt, style=style, seed=seed)
        said, told = parse(expand.spelled_out(prompt, np.random.default_rng(seed))), parse(text)
        assert [t["shape"] for t in told.things] == [t["shape"] for t in said.things]
        assert [t["colour"] for t in told.things] == [t["colour"] for t in said.things]
        assert set(named_relations(said)) <= set(named_relations(told))
        for thing, full in zip(said.things, told.things, strict=True):
            assert thing["size"] in ("medium", full["size"])
        for name in ("floor", "wall", "kind"):
            assert getattr(said, name) in (None, getattr(told, name))
        assert len(prompt.split()) <= len(text.split()) <= 150 or style in ("relational", "tags")


def test_words_without_a_template_stay_in_front():
    text = expanded("a shiny red ball at sunset")
    assert text.startswith("a shiny red ball at sunset. ") and len(text.split()) > 10


@pytest.mark.parametrize("world", WORLDS)
def test_a_world_that_is_asked_for_is_kept(world):
    text = expanded("a red ball", world, seed=3)
    assert ("table" in text) == (world == "Orbit") and (parse(text).kind is not None) == (world == "Lab")


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ("a sunset", {}, "templates expand prompts that name a box, ball"),
        ("", {}, "prompt is empty"),
        ("a red ball left of a blue box, the blue box is left of the red ball", {}, "cannot hold together"),
        ("five balls and five mugs", {}, "more things than there are colours"),
        ("a red ball", {"style": "poem"}, "style must be one of plain"),
        ("a red ball", {"world": "Sea"}, "world must be one of Room"),
    ],
)
def test_what_cannot_be_expanded_is_named(prompt, options, said):
    with pytest.raises(ValueError, match=said):
        expanded(prompt, **options)


class Endpoint(BaseHTTPRequestHandler):
    """A language model on this machine that answers what its server holds, and remembers what it was
    asked."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        status, content = self.server.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(URL, f"http://127.0.0.1:{server.server_port}/v1/")
    monkeypatch.setenv(MODEL, "small-model")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def completion(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def test_a_configured_endpoint_is_asked_and_its_answer_used(endpoint, monkeypatch):
    monkeypatch.setenv(KEY, "s3cret")
    endpoint.answer = completion("A large red ball\n on a wooden table, lilac walls")
    assert expanded("a red ball", seed=5) == "A large red ball on a wooden table, lilac walls"
    path, key, body = endpoint.asked[0]
    assert path == "/v1/chat/completions" and key == "Bearer s3cret" and len(endpoint.asked) == 1
    assert body["model"] == "small-model" and body["messages"][-1]["content"] == "a red ball"
    assert body["seed"] == 5


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, "out of memory"), "answered 500 'out of memory'"),
        ((200, "<html>"), "gave no answer"),
        ((200, '{"error": 1}'), "needs a chat completion"),
        (completion("  "), "no text"),
        (completion("a blue ball on a table"), "dropped the red ball"),
        (completion("a red ball " + "and so on " * 60), "words, more than 150"),
    ],
)
def test_an_endpoint_that_fails_is_an_error_and_no_template_takes_its_place(endpoint, answer, said, capsys):
    endpoint.answer = answer
    with pytest.raises(SystemExit) as stop:
        orrery.main(["expand", "a red ball"])
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_settings_of_an_endpoint_are_checked_before_it_is_called(monkeypatch):
    monkeypatch.setenv(URL, "localhost:8000")
    with pytest.raises(ValueError, match="must start with http"):
        expanded("a red ball")
    monkeypatch.setenv(URL, "http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match=f"{MODEL} must name a model"):
        expanded("a red ball")
    monkeypatch.setenv(MODEL, "m")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ValueError, match="gave no answer"):
        expanded("a red ball")


def test_shots_are_expanded_one_by_one_in_one_scene():
    first, second = shots_of(expanded_shots("shot 1: a ball on a table. shot 2: a ball falls", None, 4))
    assert first == expanded("a ball on a table.", seed=4) and second == expanded("a ball falls", seed=4)
    assert parse(first).things[0] == parse(second).things[0] and parse(first).floor == parse(second).floor


def test_generate_expands_when_asked(tmp_path, capsys):
    out = tmp_path / "x.png"
    with pytest.raises(SystemExit) as stop:
        orrery.main(["generate", "a red ball", "--frames", "1", "--steps", "1", "--expand", "-o", str(out)])
    assert stop.value.code == 0 and out.exists()
    assert capsys.readouterr().out == f"{expanded('a red ball', seed=0)}\n{out}\n"
