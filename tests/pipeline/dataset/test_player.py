"""The page: nothing from outside, no way out of its data, and data that replays every trajectory."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.inspection_data import KINDS, dataset
from tests.support import present
from tsdfm.pipeline.dataset.frames import Pieces, frames
from tsdfm.pipeline.dataset.manifest import read_vocabulary
from tsdfm.pipeline.dataset.player import player_page
from tsdfm.pipeline.dataset.summary import read_trajectories
from tsdfm.pipeline.text.vocabulary import Vocabulary

EVIL = "</script><script>document.title='owned'</script><!--<script>&lt;\u2028"


class Page(HTMLParser):
    """The elements of a page and the text of each script, as a browser would tokenise them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.inside = [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
            self.inside = True

    def handle_endtag(self, tag):
        if tag == "script":
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module", params=KINDS)
def opened(request, tmp_path_factory, tiny_models):
    store, manifest = dataset(request.param, tmp_path_factory.mktemp(request.param), tiny_models)
    return manifest, read_trajectories(store, manifest, range(4)), read_vocabulary(store, manifest)


@pytest.fixture
def paired(tmp_path, tiny_models):
    store, manifest = dataset("mask", tmp_path / "out", tiny_models)
    return manifest, read_trajectories(store, manifest, range(3)), read_vocabulary(store, manifest)


def spiked(vocab, text):
    """The vocabulary with `text` for a token, and that token's id."""
    from tokenizers import Tokenizer

    content = json.loads(vocab.to_json())
    words = content["model"]["vocab"]
    # the text in the letters that a byte-level vocabulary spells bytes with
    letters = "".join(piece for piece, _ in vocab.tokenizer.pre_tokenizer.pre_tokenize_str(text))
    victim = max(words, key=words.get)
    number = words.pop(victim)
    words[letters] = number
    content["model"]["merges"] = [m for m in content["model"]["merges"] if "".join(m) != victim]
    changed = Vocabulary(Tokenizer.from_str(json.dumps(content)), "test")
    assert changed.decode([number]) == text
    return changed, number


def test_data_replays_every_trajectory(opened):
    manifest, logs, vocab = opened
    grid, data = manifest.identity.grid, Page(player_page(manifest, logs, vocab)).data
    assert [(log["id"], log["arm"]) for log in data["logs"]] == [(log.trajectory_id, log.arm) for log in logs]
    for played, log in zip(data["logs"], logs, strict=True):
        pieces = list(played["source"])
        assert played["given"] == ([] if log.fixed_positions is None else log.fixed_positions.tolist())
        for frame in [{"step": -1, "set": []}, *played["frames"]]:  # the source, first
            for position, piece in frame["set"]:
                pieces[position] = piece
            state = log.state_after(frame["step"], grid.mask_id).tolist()
            assert "".join("_" if p is None else p for p in pieces) == vocab.decode(state)
            assert [p is None for p in pieces] == [token == grid.mask_id for token in state]
        assert pieces == Pieces(vocab).of(log.tokens.tolist())


def test_data_holds_what_was_chosen_among(opened):
    manifest, logs, vocab = opened
    grid, data = manifest.identity.grid, Page(player_page(manifest, logs, vocab)).data
    assert (data["steps"], data["masks"]) == (grid.steps, grid.mask_id is not None)
    for played, log in zip(data["logs"], logs, strict=True):
        final = log.final_energy
        assert played["final"] == (None if final is None else pytest.approx(final, abs=1e-5))
        for shown, frame in zip(played["frames"], frames(log, vocab, grid), strict=True):
            assert (shown["step"], shown["choice"]) == (frame.step, frame.choice)
            assert shown["changed"] == frame.changed
            if frame.energies is None:
                assert shown["energies"] is None
            else:
                assert shown["energies"] == pytest.approx(frame.energies, abs=1e-5)
                assert shown["candidates"] == frame.candidates


def test_the_page_needs_nothing_from_outside(paired):
    text = player_page(*paired)
    page = Page(text)
    loading = {"link", "img", "iframe", "object", "embed", "base", "audio", "video"}
    assert not {tag for tag, _ in page.elements} & loading
    for tag, attributes in page.elements:
        assert not attributes.keys() & {"src", "href", "srcset", "action"}, (tag, attributes)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|import\(|innerHTML", text)
    # the one address is the name of SVG, which nothing is loaded from
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}
    [policy] = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy


def test_nothing_of_the_template_is_left_open(paired):
    assert not re.search(r"__[A-Z]+__", player_page(*paired))


def test_controls_are_labelled(paired):
    page = Page(player_page(*paired))
    attributes = {a["id"]: a for _, a in page.elements if "id" in a}
    for control in ("slider", "back", "next"):
        assert attributes[control]["aria-label"]
    assert attributes["live"]["aria-live"] == "polite"
    assert ("html", {"lang": "en"}) in page.elements


@pytest.mark.parametrize("text", [EVIL, "__TRAJECTORIES__", "__SCRIPT__", "\\u003c/script>", "\x1b[31m\x00"])
def test_no_text_breaks_out_of_the_data(paired, text):
    manifest, logs, vocab = paired
    vocab, token = spiked(vocab, text)
    log = dataclasses.replace(
        logs[0], tokens=np.full_like(logs[0].tokens, token),
        event_token=np.full_like(logs[0].event_token, token),
        event_candidates=np.full_like(logs[0].event_candidates, token))
    page = player_page(manifest, [log], vocab)
    plain = Page(player_page(manifest, logs[:1], vocab))
    parsed = Page(page)
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in plain.elements]
    assert parsed.scripts[1] == plain.scripts[1]
    assert "<" not in parsed.scripts[0]
    [played] = parsed.data["logs"]
    assert {piece for frame in played["frames"] for _, piece in frame["set"]} == {text}


def test_a_page_plays_at_most_eight(paired):
    manifest, logs, vocab = paired
    many = [dataclasses.replace(logs[0], trajectory_id=number) for number in range(9)]
    assert len(Page(player_page(manifest, many[:8], vocab)).data["logs"]) == 8
    for wrong in (many, []):
        with pytest.raises(ValueError, match="1 to 8 trajectories"):
            player_page(manifest, wrong, vocab)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("kind", ["mask", "prompts"])
def test_a_browser_shows_the_states(tmp_path, tiny_models, kind):
    """The script itself: at each of several pictures, the spans hold the state, masks are the blocks, and what was given is marked."""
    store, manifest = dataset(kind, tmp_path / "out", tiny_models)
    logs, vocab = read_trajectories(store, manifest, range(3)), read_vocabulary(store, manifest)
    grid, log = manifest.identity.grid, logs[0]
    pictures = frames(log, vocab, grid)
    probe = """<script>
      const shown = player.pictures.map((step, index) => { go(index); return [step,
        [...player.panels[0].spans].map((span) => span.className === "mask" ? "_" : span.textContent),
        [...player.panels[0].spans].flatMap((span, i) => span.className === "now" ? [i] : []),
        [...player.panels[0].spans].flatMap((span, i) => span.className === "given" ? [i] : []),
        document.querySelectorAll("tr.chosen").length]; });
      document.body.replaceChildren(JSON.stringify(shown));
    </script></body>"""
    file = tmp_path / "page.html"
    file.write_text(player_page(manifest, logs, vocab).replace("</body>", probe))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
               file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    shown = json.loads(html.unescape(present(re.search(r"<body>(.*)</body>", dom, re.DOTALL))[1]))
    if pictures[-1].step < grid.steps - 1:  # no jump at the end: there is a picture of t = 1 all the same
        last = shown.pop()
        assert (last[0], last[1]) == (grid.steps - 1, pictures[-1].pieces)
    assert [entry[0] for entry in shown] == [-1, *(frame.step for frame in pictures)]
    given = [] if log.fixed_positions is None else log.fixed_positions.tolist()
    assert [position for position, piece in enumerate(shown[0][1]) if piece != "_"] == given
    for (_, pieces, now, marked, chosen), frame in zip(shown[1:], pictures, strict=True):
        assert pieces == frame.pieces
        assert now == frame.changed
        assert marked == given
        assert chosen == (frame.energies is not None)
