"""The pages of `imixer explore`, served by a real process and read by a real browser."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from PIL import Image

from imixer.training.finished_run import load_run

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


class Served:
    """A process that serves, and the address that it says."""

    def __init__(self, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "imixer", "explore", *map(str, words), "--port", "0", "--no-open"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.line = self.process.stdout.readline()
        self.url = (re.search(r" is at (http://127\.0\.0\.1:\d+/) ", self.line) or ["", ""])[1]

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.communicate()

    def ask(self, path, method="GET", body=None, **headers):
        """Ask without a library that would tidy the path or the headers."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read()


@pytest.fixture(scope="module")
def served(run):
    server = Served(run, "--patterns", "20")
    assert server.url, server.stop()
    yield server
    _, errors = server.stop()
    assert "Traceback" not in errors


@pytest.fixture
def open_page(browser, served):
    """Open a page; at the end nothing may have gone wrong, and nothing been asked of another server."""
    problems, contexts = [], []

    def opened(path="", **options):
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(0)  # however slow the machine is
        refusals = ("status of 400",)  # which the page says in a sentence
        page.on(
            "console",
            lambda message: (
                problems.append(message.text)
                if message.type == "error" and not any(each in message.text for each in refusals)
                else None
            ),
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: (
                problems.append(request.url) if not request.url.startswith((served.url, "data:", "blob:")) else None
            ),
        )
        page.goto(served.url + path)
        settled(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def until(page, condition):
    """Wait for a condition. The page allows no `eval`, in which playwright's own waiting would run."""
    while not page.evaluate(f"Boolean({condition})"):
        page.wait_for_timeout(40)


def settled(page):
    page.wait_for_selector("main[aria-busy=false]")


def test_a_held_out_image_is_shown_with_all_that_is_measured(open_page, served):
    page = open_page()
    told = json.loads(served.ask("/api/inspect?held_out=0", "POST")[1])
    assert page.locator("#problem").inner_text() == ""
    names = page.locator("#classes li span:first-child").all_inner_texts()
    assert names == [name for name, _ in told["classes"]]
    assert page.locator("#classes li span:last-child").first.inner_text() == f"{100 * told['classes'][0][1]:.1f}%"
    assert page.locator("#truth").inner_text() == f"True class: {told['truth']}."
    assert page.locator("#convergence .series").count() == len(told["blocks"]) == 1
    # one point per iteration, lower on the page where the change is smaller
    points = page.locator("#convergence .series").first.get_attribute("points").split()
    heights = [float(point.split(",")[1]) for point in points]
    assert len(points) == len(told["blocks"][0]["residuals"]) and heights == sorted(heights)
    assert page.locator("#energies tbody tr").count() == len(told["energies"]) == 2
    maps = told["features"]
    assert page.locator("#features canvas").count() == len(maps["channels"]) * len(maps["iterations"]) == 18
    assert page.locator("#near li").count() == 5
    shown = page.locator("#near img, #offered img, #seen").evaluate_all("all => all.map(each => each.naturalWidth)")
    assert len(shown) == 5 + 12 + 1 and min(shown) == 8


def test_moving_n_and_the_tolerance_changes_what_is_shown(open_page, served):
    page = open_page()
    page.locator("#n").fill("9")
    until(page, "document.getElementById('how-found').textContent.includes('n = 9')")
    told = json.loads(served.ask("/api/inspect?held_out=0&n_iter=9", "POST")[1])
    assert page.locator("#classes li").first.inner_text().split() == [
        told["classes"][0][0],
        f"{100 * told['classes'][0][1]:.1f}%",
    ]
    assert page.locator("input[name=how][value=n_iter]").is_checked()
    page.locator("#tolerance").fill("-4")
    until(page, "document.getElementById('how-found').textContent.includes('tolerance of 0.0001')")
    assert page.locator("#convergence-table td").all_inner_texts()[-1] == "yes"
    page.locator("input[value=trained]").check()
    until(page, "document.getElementById('how-found').textContent.includes('as trained')")


def test_a_file_is_looked_at_and_one_that_is_no_image_is_answered_in_a_sentence(open_page, run, tmp_path):
    page = open_page()
    digit, _ = load_run(str(run)).data().val[7]
    digit.save(tmp_path / "digit.png")
    page.locator("#file").set_input_files(tmp_path / "digit.png")
    until(page, "document.getElementById('truth').textContent === ''")
    settled(page)
    assert page.locator("#problem").inner_text() == ""
    (tmp_path / "text.png").write_text("no image")
    page.locator("#file").set_input_files(tmp_path / "text.png")
    until(page, "document.getElementById('problem').textContent !== ''")
    assert page.locator("#problem").inner_text() == (
        "Cannot read the image: not an image that Pillow can read; give a complete image file."
    )
    (tmp_path / "large.png").write_bytes(b"x" * (2**24 + 1))
    page.locator("#file").set_input_files(tmp_path / "large.png")
    until(page, "document.getElementById('problem').textContent.includes('larger than 16 MB')")
    page.locator("#held-out").fill("12")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('truth').textContent !== ''")
    settled(page)
    assert page.locator("#problem").inner_text() == ""
    page.locator("#held-out").fill("360")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('problem').textContent.startsWith('There is no held-out image')")


def test_an_image_is_dropped(open_page, tmp_path):
    page = open_page()
    Image.new("RGB", (30, 20), "white").save(tmp_path / "white.png")
    held = page.evaluate_handle(
        """bytes => {
          const held = new DataTransfer();
          held.items.add(new File([new Uint8Array(bytes)], "white.png", { type: "image/png" }));
          return held;
        }""",
        list((tmp_path / "white.png").read_bytes()),
    )
    page.locator("#drop").dispatch_event("drop", {"dataTransfer": held})
    until(page, "document.getElementById('truth').textContent === ''")
    settled(page)
    seen = page.evaluate(
        """() => {
          const context = document.createElement("canvas").getContext("2d");
          context.drawImage(document.getElementById("seen"), 0, 0);
          return [...context.getImageData(0, 0, 8, 8).data];
        }"""
    )
    assert set(seen) == {255} and page.locator("#problem").inner_text() == ""


def energies_on(page):
    points = page.locator("#energy .series").get_attribute("points").split()
    return [-float(point.split(",")[1]) for point in points]


def test_a_spoilt_digit_comes_back_while_the_energy_falls(open_page):
    page = open_page("memory")
    page.locator("#gallery button").nth(3).click()
    page.locator("#spoil").click()
    settled(page)
    page.locator("#recall").click()
    until(page, "document.getElementById('came-back').textContent.startsWith('Came back: nearest is digit 3')")
    settled(page)
    energies = energies_on(page)
    assert len(energies) > 10 and energies == sorted(energies, reverse=True) and energies[0] > energies[-1]
    last = int(page.locator("#step").input_value())
    assert last == len(energies) - 1 == int(page.locator("#step-shown").inner_text())
    pixels = "id => [...document.getElementById(id).getContext('2d').getImageData(0, 0, 8, 8).data]"
    end = page.evaluate(pixels, "state")
    stored = page.locator("#gallery canvas").nth(3).evaluate("c => [...c.getContext('2d').getImageData(0,0,8,8).data]")
    assert max(abs(a - b) for a, b in zip(end, stored, strict=True)) <= 2
    page.locator("#step").fill("0")  # the start again
    assert page.evaluate(pixels, "state") != end
    assert page.locator("#energy .dot").get_attribute("cx") == "56"


def test_steps_are_played_one_after_the_other_unless_less_motion_is_wished(open_page):
    page = open_page("memory", reduced_motion="no-preference")
    page.evaluate(
        """() => {
          window.seen = [];
          new MutationObserver(() => seen.push(Number(document.getElementById("step-shown").textContent)))
            .observe(document.getElementById("step-shown"), { childList: true });
        }"""
    )
    page.locator("#recall").click()
    until(page, "seen.length && seen[seen.length - 1] === Number(document.getElementById('step').max)")
    seen = page.evaluate("seen")
    assert seen == sorted(seen) and len(set(seen)) == seen[-1] + 1


def test_a_digit_is_drawn_by_pointer_and_by_keys_and_half_of_one_is_completed(open_page):
    page = open_page("memory")
    page.locator("#clear").click()
    box = page.locator("#drawing").bounding_box()
    part = box["width"] / 8
    page.mouse.move(box["x"] + 2.5 * part, box["y"] + 1.5 * part)
    page.mouse.down()
    page.mouse.move(box["x"] + 5.5 * part, box["y"] + 1.5 * part, steps=8)
    page.mouse.up()
    assert page.evaluate("picture.map((value, i) => value === 1 ? i : 0).filter(i => i)") == [10, 11, 12, 13]
    page.locator("#drawing").focus()
    for key in ("ArrowDown", "ArrowLeft", "Space"):
        page.keyboard.press(key)
    assert page.evaluate("picture[20]") == 1
    assert page.locator("#cell").inner_text() == "Row 3, column 5: 1"
    page.locator("#gallery button").nth(5).click()
    page.locator("#noise").fill("0")
    page.locator("#mask").select_option("left")
    page.locator("#spoil").click()
    settled(page)
    assert page.evaluate("known.filter(seen => seen).length") == 32
    page.locator("#recall").click()
    until(page, "document.getElementById('came-back').textContent.startsWith('Came back: nearest is digit 5')")
    page.locator("#kind").select_option("exponential")
    settled(page)
    page.locator("#spoil").click()
    settled(page)
    page.locator("#recall").click()
    settled(page)
    assert page.locator("#problem").inner_text() == ""


@pytest.mark.parametrize("path", ["", "memory"])
def test_the_keyboard_reaches_every_control(open_page, path):
    page = open_page(path)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    wanted = page.evaluate(
        """() => {
          const all = [...document.querySelectorAll("a, input, select, button, [tabindex]")];
          const shown = all.filter(each => each.offsetParent && !each.disabled);
          shown.forEach((each, i) => { each.dataset.stop = i; });
          const groups = new Set(shown.filter(each => each.type === "radio").map(each => each.name));
          return shown.filter(each => each.type !== "radio").length + groups.size;
        }"""
    )
    for _ in range(2 * wanted):
        page.keyboard.press("Tab")
        stop = page.evaluate("(e => e.type === 'radio' ? e.name : e.dataset.stop)(document.activeElement)")
        reached.add(stop)
    assert len(reached - {None}) >= wanted - 1  # the link to skip has no box of its own
    assert page.evaluate("[...document.querySelectorAll('input, select')].every(e => e.labels.length)")
    assert page.evaluate("[...document.querySelectorAll('img')].every(e => e.alt)")


@pytest.mark.parametrize("path", ["", "memory"])
@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_needs_no_sideways_scrolling(open_page, path, width):
    page = open_page(path, viewport={"width": width, "height": 844}, is_mobile=True)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]


@pytest.mark.parametrize("path", ["", "memory"])
def test_both_colour_schemes_can_be_read(open_page, path):
    def contrast(scheme):
        page = open_page(path, color_scheme=scheme)
        return page.evaluate(
            """() => {
              const light = color => color.match(/[\\d.]+/g).slice(0, 3).map(Number).map(c => c / 255)
                .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
                .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0.05);
              const ground = light(getComputedStyle(document.body).backgroundColor);
              const inks = ["body", ".faint", "nav a", "#problem"].map(each => document.querySelector(each))
                .map(each => light(getComputedStyle(each).color));
              return [ground, Math.min(...inks.map(ink => Math.max(ink, ground) / Math.min(ink, ground)))];
            }"""
        )

    (light, light_contrast), (dark, dark_contrast) = contrast("light"), contrast("dark")
    assert light > 1 and dark < 0.1
    assert min(light_contrast, dark_contrast) >= 4.5


def test_only_the_page_answers_and_only_to_this_machine(served, run):
    host = urlsplit(served.url).netloc
    for path in ("/", "/memory"):
        status, page = served.ask(path)
        assert status == 200 and b"<script src" not in page and not re.findall(rb'(?:src|href)="(?!/|#|data:|\$)', page)
    for path in (
        "/../pyproject.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/config.yaml",
        f"/{run}/config.yaml",
        "/api/image/held-out/..%2f..%2fconfig.yaml",
        "/api/image/../../config.yaml",
        "/explore.html",
        "/openapi.json",
    ):
        status, answer = served.ask(path)
        assert status == 404 and b"learning" not in answer and b"root:" not in answer, path
    assert served.ask("/", Host="example.org")[0] == 403  # a name that leads here, of a page elsewhere
    assert served.ask("/", Host="127.0.0.1.example.org")[0] == 403
    assert served.ask("/api/inspect?held_out=0", "POST", Host=host, Origin="http://example.org")[0] == 403
    assert served.ask("/api/inspect?held_out=0", "POST", Host=host, Origin=f"http://{host}")[0] == 200
    assert served.ask("/", Host=host, Origin="http://[")[0] == 403
    assert served.ask("/", Host="[")[0] == 403
    for place in ("9" * 5_000, "-", "1.5"):
        status, answer = served.ask(f"/api/image/training/{place}.png")
        assert status == 400 and "give a whole number" in json.loads(answer)["problem"]
    assert served.ask("/", "PUT")[0] == 405


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("/api/inspect?held_out=0&n_iter=101", "", "n_iter is 101; give 0 to 100"),
        ("/api/inspect?held_out=0&n_iter=1e9", "", "n_iter is 1e9; give a whole number"),
        ("/api/inspect?held_out=0&n_iter=1&tolerance=0.1", "", "leave one of them out"),
        ("/api/inspect?held_out=0&tolerance=nan", "", "tolerance is nan"),
        ("/api/inspect?held_out=0&tolerance=x", "", "tolerance is x; give a number"),
        ("/api/inspect?held_out=-1", "", "there is no held-out image -1"),
        ("/api/inspect", "", "it is empty"),
        ("/api/inspect", "x" * (2**24 + 1), "larger than 16 MB"),
        ("/api/recall", "x", "what was sent is damaged"),
        ("/api/recall", "[]", "no picture is given"),
        ("/api/recall", '{"picture": [NaN]}', "not a finite number"),
        ("/api/recall", '{"picture": [1]}', "1 pixels; give 64"),
        ("/api/recall", '{"picture": [], "path": "/etc/passwd"}', "there is no path"),
        ("/api/recall", '{"picture": [], "stored": "9"}', "stored is no int"),
        ("/api/recall", '{"picture": "%s"}' % ("x" * 70_000), "larger than 64 kB"),
        ("/api/spoil", '{"picture": [], "kind": "%s"}' % ("x" * 5_000), "kind is 'xxx"),
        ("/api/spoil", "[" * 50_000, "what was sent is damaged"),
    ],
)
def test_a_question_that_is_none_is_answered_in_a_sentence(served, path, body, problem):
    status, answer = served.ask(path, "POST", body)
    said = json.loads(answer)["problem"]
    assert status == 400 and problem in said and "\n" not in said and len(said) <= 400


def test_it_says_where_it_is_serves_no_other_machine_and_stops_on_ctrl_c(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    server = Served("--model", "imixer_n2_8.digits")
    try:
        assert server.line.startswith("imixer_n2_8.digits is at http://127.0.0.1:")
        assert json.loads(server.ask("/api/facts")[1])["held_out"] == 360
        port = urlsplit(server.url).port
        taken = subprocess.run(
            [sys.executable, "-m", "imixer", "explore", str(run), "--port", str(port), "--no-open"],
            capture_output=True,
            text=True,
        )
        assert taken.returncode == 2 and taken.stderr.startswith(f"imixer: port {port} of 127.0.0.1 is in use")
    finally:
        output, errors = server.stop()
    assert server.process.returncode == 0 and output == "stopped\n"
    assert errors == "loading PyTorch and the run ...\n"
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
